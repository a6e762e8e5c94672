"""`GET /rooms/{roomId}/hierarchy`: the rooms of a space that the caller may look into; other servers tell
of those that are not known here."""

import re
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import orjson
from sqlalchemy import Connection

from matrixlib.identifiers import server_name_of
from servicekit.errors import MatrixError, invalid_param
from servicekit.http import Request, Response, Router, json_response
from syncapi import access
from syncapi.applied import StoredEvent
from syncapi.auth import Caller
from syncapi.http.edge import Edge
from syncapi.remote_spaces import OPEN_RULES, RemoteSpaces, Wanted, only_suggested, via_of
from syncapi.storage import members, rooms, state
from syncapi.storage.tables import MAX_POSITION

MAX_LIMIT = 50
MAX_DEPTH = 10
MAX_ROOMS = 500
MAX_ASKED = 10
REMOTE_S = 5.0
NOTHING = b'{"rooms":[]}'
_TOKEN = re.compile(r"h1_([0-9]{1,6})_([0-9]{1,2})_([01])", re.ASCII)

_SUMMARY_STATE: dict[str, tuple[str, str]] = {
    "name": ("m.room.name", "name"),
    "topic": ("m.room.topic", "topic"),
    "avatar_url": ("m.room.avatar", "url"),
    "canonical_alias": ("m.room.canonical_alias", "alias"),
    "room_type": ("m.room.create", "type"),
    "join_rule": ("m.room.join_rules", "join_rule"),
    "encryption": ("m.room.encryption", "algorithm"),
}


def _content(event: StoredEvent | None) -> dict[str, Any]:
    if event is None:
        return {}
    content: dict[str, Any] = orjson.loads(event.body + b"}")["content"]
    return content


def may_look_into(connection: Connection, user_id: str, room_id: str, depth: int = 0) -> bool:
    """Whether a user may see a room's summary: is in it, is invited, or could come in by oneself."""
    row = members.load_user_room(connection, user_id, room_id)
    if row is not None and (row.joined_until == MAX_POSITION or row.membership == "invite"):
        return True
    if access.is_world_readable(connection, room_id):
        return True
    rules = _content(state.load_state_event(connection, room_id, "m.room.join_rules", ""))
    rule = rules.get("join_rule")
    if rule in ("public", "knock", "knock_restricted"):
        return True
    if rule == "restricted" and isinstance(allow := rules.get("allow"), list):
        for condition in allow:
            allowed = condition.get("room_id") if isinstance(condition, dict) else None
            if isinstance(allowed, str):
                other = members.load_user_room(connection, user_id, allowed)
                if other is not None and other.joined_until == MAX_POSITION:
                    return True
    return False


def _children(connection: Connection, room_id: str, suggested_only: bool) -> list[StoredEvent]:
    """Return a space's valid child events, in the order in which they are shown."""
    found = []
    for event in state.load_state_of_type(connection, room_id, "m.space.child"):
        content = _content(event)
        via = content.get("via")
        if not isinstance(via, list) or not via or (suggested_only and content.get("suggested") is not True):
            continue
        order = content.get("order")
        valid = isinstance(order, str) and len(order) <= 50 and all(" " <= c <= "~" for c in order)
        sent_ms = orjson.loads(event.body + b"}")["origin_server_ts"]
        found.append(((0, order) if valid else (1, ""), sent_ms, event.state_key or "", event))
    return [event for *_, event in sorted(found, key=lambda item: item[:3])]


def load_summary(connection: Connection, room_id: str, children: list[StoredEvent]) -> dict[str, Any] | None:
    """Return what a room's state says of it; None: the room is not known."""
    room = rooms.load_room(connection, room_id)
    if room is None:
        return None
    summary: dict[str, Any] = {
        "room_id": room_id,
        "num_joined_members": room.joined,
        "room_version": room.version,
        "world_readable": access.is_world_readable(connection, room_id),
        "guest_can_join": _content(
            state.load_state_event(connection, room_id, "m.room.guest_access", "")
        ).get("guest_access")
        == "can_join",
    }
    for key, (type_, name) in _SUMMARY_STATE.items():
        value = _content(state.load_state_event(connection, room_id, type_, "")).get(name)
        if isinstance(value, str) and value:
            summary[key] = value
    rules = _content(state.load_state_event(connection, room_id, "m.room.join_rules", ""))
    if isinstance(allow := rules.get("allow"), list):
        summary["allowed_room_ids"] = [
            condition["room_id"]
            for condition in allow
            if isinstance(condition, dict) and isinstance(condition.get("room_id"), str)
        ]
    summary["children_state"] = [
        {
            "type": event.type,
            "state_key": event.state_key,
            "content": _content(event),
            "sender": event.sender,
            "origin_server_ts": orjson.loads(event.body + b"}")["origin_server_ts"],
        }
        for event in children
    ]
    return summary


def load_hierarchy(
    connection: Connection,
    caller: Caller,
    room_id: str,
    *,
    start: int,
    limit: int,
    max_depth: int,
    suggested_only: bool,
    told: Mapping[str, dict[str, Any] | None],
) -> tuple[bytes, list[Wanted]]:
    """Return a page of a space's rooms, depth first, and the rooms that only others can know.

    Args:
        told: what others said of rooms that are not known here.

    Raises:
        MatrixError: M_FORBIDDEN, the caller may not look into the space itself.
    """
    is_known_here = is_known(connection, room_id)
    if is_known_here and not may_look_into(connection, caller.user_id, room_id):
        raise access.no_access()
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    wanted: list[Wanted] = []
    via: dict[str, tuple[str, ...]] = {room_id: tuple(name for name in [server_name_of(room_id)] if name)}
    pending = [(room_id, 0)]
    while pending and len(seen) < MAX_ROOMS and len(found) <= start + limit:
        current, depth = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if not is_known(connection, current):
            other = told.get(current)
            if other is None:
                if current not in told and via.get(current):
                    wanted.append(Wanted(current, via[current]))
            elif may_see_told(connection, caller.user_id, other):
                other = only_suggested(other) if suggested_only else other
                found.append(other)
                if depth < max_depth:
                    for child in reversed(other["children_state"]):
                        via.setdefault(child["state_key"], via_of(child["content"]))
                        pending.append((child["state_key"], depth + 1))
            continue
        if not may_look_into(connection, caller.user_id, current):
            continue
        create = _content(state.load_state_event(connection, current, "m.room.create", ""))
        is_space = create.get("type") == "m.space"
        children = _children(connection, current, suggested_only) if is_space else []
        summary = load_summary(connection, current, children)
        if summary is None:
            continue
        found.append(summary)
        if depth < max_depth:
            for event in children:
                via.setdefault(event.state_key or "", via_of(_content(event)))
            pending += [(event.state_key or "", depth + 1) for event in reversed(children)]
    if not is_known_here and not found and not wanted:
        raise access.no_access()
    answer: dict[str, Any] = {"rooms": found[start : start + limit]}
    if len(found) > start + limit:
        answer["next_batch"] = f"h1_{start + limit}_{max_depth}_{int(suggested_only)}"
    return orjson.dumps(answer), wanted


def is_known(connection: Connection, room_id: str) -> bool:
    """Whether a room's state is here; of a room that somebody is only invited to it is not."""
    return state.load_state_event(connection, room_id, "m.room.create", "") is not None


def may_see_told(connection: Connection, user_id: str, summary: Mapping[str, Any]) -> bool:
    """Whether a user may see what another server told us of a room; it may be meant for others of us."""
    if summary.get("world_readable") is True or summary.get("join_rule", "public") in OPEN_RULES:
        return True
    row = members.load_user_room(connection, user_id, summary["room_id"])
    if row is not None and row.membership == "invite":
        return True
    allowed = summary.get("allowed_room_ids", ())
    rooms_of = (members.load_user_room(connection, user_id, room_id) for room_id in allowed)
    return any(row is not None and row.joined_until == MAX_POSITION for row in rooms_of)


def _start(token: str | None, max_depth: int, suggested_only: bool) -> int:
    """Return after how many rooms a page begins.

    Raises:
        MatrixError: M_INVALID_PARAM for a token that is none, or one of another question.
    """
    if token is None:
        return 0
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise _invalid()
    if (int(match[2]), match[3] == "1") != (max_depth, suggested_only):
        raise invalid_param("max_depth and suggested_only cannot change from page to page")
    return int(match[1])


def _invalid() -> MatrixError:
    return invalid_param("from is not a token of this endpoint")


def add_routes(router: Router, edge: Edge) -> None:
    """Add the endpoint."""

    spaces = RemoteSpaces(edge.remote, time.monotonic)

    async def get_hierarchy(request: Request) -> Response:
        caller = await edge.caller(request)
        max_depth = request.query_int("max_depth", MAX_DEPTH, maximum=MAX_DEPTH)
        suggested_only = request.query_bool("suggested_only")
        load = partial(
            load_hierarchy,
            caller=caller,
            room_id=request.path_params["room_id"],
            start=_start(request.query.get("from"), max_depth, suggested_only),
            limit=request.query_int("limit", MAX_LIMIT, minimum=1, maximum=MAX_LIMIT),
            max_depth=max_depth,
            suggested_only=suggested_only,
        )
        # Others' spaces hold others' rooms: level by level, as long as that takes no more than some seconds.
        until_s = time.monotonic() + REMOTE_S
        while True:
            body, wanted = await edge.read(lambda connection: load(connection, told=spaces.told()))
            if not wanted:
                return json_response(body)
            if time.monotonic() > until_s:
                break
            await spaces.fetch(wanted[:MAX_ASKED])
        if body == NOTHING:
            raise access.no_access()
        return json_response(body)

    router.add("GET", "/_matrix/client/v1/rooms/{room_id}/hierarchy", get_hierarchy)

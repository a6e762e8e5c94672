"""`GET /initialSync` and `GET /events`: what was there before `/sync`, made of its answers.

Who is not in a room may follow it all the same where anybody may read it.

NOTSPEC: `archived` rooms are those that `include_leave` shows. The specification has no `receipts` in
`/initialSync`; servers have them, as the ephemeral events that they are.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import orjson
from sqlalchemy import Connection

from servicekit.http import Request, Response, Router, json_response
from syncapi import access
from syncapi.auth import Caller
from syncapi.filters import parse_filter
from syncapi.http.edge import Edge
from syncapi.http.old_sync import MAX_LIMIT, in_room
from syncapi.http.rendering import render_list, render_one
from syncapi.storage import accounts, members, state
from syncapi.storage import events as event_storage
from syncapi.storage.tables import MAX_POSITION
from syncapi.sync.request import MAX_TIMEOUT_MS, SyncRequest
from syncapi.tokens import SyncToken, parse_sync_token
from syncapi.visibility import Past, visible
from syncapi.window import last_position

# Who peeks looks again at the latest after so long, and not more often.
PEEK_STEP_S = 5.0
PEEK_PAUSE_S = 0.1


def load_invites(connection: Connection, caller: Caller) -> dict[str, Any]:
    """Return the events that invite a user: room -> event."""
    user_id = caller.user_id
    rows = [row for row in members.load_rooms_of_user(connection, user_id) if row.membership == "invite"]
    histories = state.load_member_history(connection, [row.room_id for row in rows], user_id)
    return {
        event.room_id: orjson.loads(
            render_one(caller, event, Past(user_id, histories.get(event.room_id, [])), {})
        )
        for event in event_storage.load_events_by_id(connection, [row.event_id for row in rows]).values()
    }


def is_joined(connection: Connection, user_id: str, room_id: str) -> bool:
    """Whether a user is joined to a room."""
    row = members.load_user_room(connection, user_id, room_id)
    return row is not None and row.joined_until == MAX_POSITION


def initial_answer(answer: dict[str, Any], invites: Mapping[str, Any]) -> dict[str, Any]:
    """Return an initial `/sync` answer in the form of `/initialSync`.

    Args:
        invites: room -> the event that invites the user.
    """
    rooms: list[dict[str, Any]] = []
    receipts: list[Any] = []
    sections = answer.get("rooms", {})
    for section, membership in (("join", "join"), ("leave", "leave")):
        for room_id, room in sections.get(section, {}).items():
            timeline = room["timeline"]
            # State as it was before the timeline; what the timeline set since stands over it.
            current = {(one["type"], one["state_key"]): one for one in room["state"]["events"]}
            current |= {
                (one["type"], one["state_key"]): one for one in timeline["events"] if "state_key" in one
            }
            rooms.append(
                {
                    "room_id": room_id,
                    "membership": membership,
                    "messages": {
                        "chunk": [in_room(event, room_id) for event in timeline["events"]],
                        "start": timeline["prev_batch"],
                        "end": answer["next_batch"],
                    },
                    "state": [in_room(event, room_id) for event in current.values()],
                    "account_data": room["account_data"]["events"],
                }
            )
            receipts += [
                in_room(event, room_id)
                for event in room.get("ephemeral", {}).get("events", [])
                if event["type"] == "m.receipt"
            ]
    for section, name in (("invite", "invite_state"), ("knock", "knock_state")):
        for room_id, room in sections.get(section, {}).items():
            state = [in_room(event, room_id) for event in room[name]["events"]]
            entry = {"room_id": room_id, "membership": section, "state": state}
            if room_id in invites and section == "invite":
                invite = invites[room_id]
                entry |= {"invite": invite, "inviter": invite["sender"]}
            rooms.append(entry)
    return {
        "end": answer["next_batch"],
        "rooms": rooms,
        "presence": answer.get("presence", {}).get("events", []),
        "account_data": answer.get("account_data", {}).get("events", []),
        "receipts": receipts,
    }


def event_chunk(answer: dict[str, Any], only_room: str | None) -> list[Any]:
    """Return the events of an incremental `/sync` answer as one list."""
    chunk: list[Any] = [] if only_room else list(answer.get("presence", {}).get("events", []))
    sections = answer.get("rooms", {})
    for section in ("join", "leave"):
        for room_id, room in sections.get(section, {}).items():
            if only_room in (None, room_id):
                events = [*room["timeline"]["events"], *room.get("ephemeral", {}).get("events", [])]
                chunk += [in_room(event, room_id) for event in events]
    for section, name in (("invite", "invite_state"), ("knock", "knock_state")):
        for room_id, room in sections.get(section, {}).items():
            if only_room in (None, room_id):
                chunk += [in_room(event, room_id) for event in room[name]["events"]]
    return chunk


async def _now(edge: Edge, caller: Caller) -> str:
    filter_ = parse_filter({"room": {"timeline": {"limit": 1}}})
    body = await edge.engine.answer(SyncRequest(caller.user_id, caller.device_id, filter_))
    token: str = orjson.loads(body)["next_batch"]
    return token


async def _peek(
    edge: Edge, caller: Caller, room_id: str, since: SyncToken, timeout_ms: int
) -> tuple[bytes, bytes]:
    """Wait for events of a room that anybody may read; returns the token behind them, and them.

    Raises:
        MatrixError: M_FORBIDDEN.
    """
    deadline_s = time.monotonic() + timeout_ms / 1000
    while True:
        sequence, found = await edge.read(load_peeked, caller, room_id, since.position)
        left_s = deadline_s - time.monotonic()
        if found or left_s <= 0 or edge.engine.stopping:
            return orjson.dumps(
                str(since._replace(output_sequence=max(sequence, since.output_sequence)))
            ), found
        await edge.reads.wait_for_sequence(sequence + 1, min(left_s, PEEK_STEP_S))
        # Any room may have moved OUTPUT on.
        await asyncio.sleep(min(left_s, PEEK_PAUSE_S))


def load_peeked(connection: Connection, caller: Caller, room_id: str, after: int) -> tuple[int, bytes]:
    """Return up to where OUTPUT is applied, and what was said in a world-readable room since a position.

    Raises:
        MatrixError: M_FORBIDDEN.
    """
    if not access.is_world_readable(connection, room_id):
        raise access.no_access()
    allowed = access.find_access(connection, room_id, caller.user_id)
    _, sequence = accounts.load_position(connection)
    found = event_storage.load_timeline(connection, room_id, after, last_position(sequence), MAX_LIMIT)
    seen, outside = visible(connection, allowed.past, found[::-1])
    return sequence, render_list(connection, caller, seen, allowed.past, outside)


def add_routes(router: Router, edge: Edge) -> None:
    """Add the endpoints."""

    async def initial_sync(request: Request) -> Response:
        caller = await edge.caller(request)
        limit = request.query_int("limit", 20, maximum=MAX_LIMIT)
        leave = request.query_bool("archived")
        filter_ = parse_filter({"room": {"timeline": {"limit": limit}, "include_leave": leave}})
        body = await edge.engine.answer(SyncRequest(caller.user_id, caller.device_id, filter_))
        return json_response(initial_answer(orjson.loads(body), await edge.read(load_invites, caller)))

    async def events(request: Request) -> Response:
        caller = await edge.caller(request)
        room_id = request.query.get("room_id")
        timeout_ms = request.query_int("timeout", 0, maximum=MAX_TIMEOUT_MS)
        # Without a token: from now on.
        start = request.query.get("from") or await _now(edge, caller)
        since = parse_sync_token(start, "from")
        if room_id is not None and not await edge.read(is_joined, caller.user_id, room_id):
            end, peeked = await _peek(edge, caller, room_id, since, timeout_ms)
            return json_response(b'{"start":%b,"end":%b,"chunk":[%b]}' % (orjson.dumps(start), end, peeked))
        filter_ = parse_filter({"room": {"timeline": {"limit": MAX_LIMIT}}})
        body = await edge.engine.answer(
            SyncRequest(caller.user_id, caller.device_id, filter_, since=since, timeout_ms=timeout_ms)
        )
        answer = orjson.loads(body)
        chunk = event_chunk(answer, room_id)
        return json_response({"start": start, "end": answer["next_batch"], "chunk": chunk})

    router.add("GET", "/_matrix/client/v3/initialSync", initial_sync)
    router.add("GET", "/_matrix/client/v3/events", events)

"""`GET /initialSync` and `GET /events`: what was there before `/sync`, made of its answers.

NOTSPEC: `archived` rooms are those that `include_leave` shows. The specification has no `receipts` in
`/initialSync`; servers have them, as the ephemeral events that they are.
"""

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
from syncapi.http.rendering import render_one
from syncapi.storage import events as event_storage
from syncapi.storage import members, state
from syncapi.storage.tables import MAX_POSITION
from syncapi.sync.request import MAX_TIMEOUT_MS, SyncRequest
from syncapi.tokens import parse_sync_token
from syncapi.visibility import Past


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
        if room_id is not None and not await edge.read(is_joined, caller.user_id, room_id):
            raise access.no_access()
        filter_ = parse_filter({"room": {"timeline": {"limit": MAX_LIMIT}}})
        start = request.query.get("from")
        # Without a token: from now on.
        since = (
            start
            or orjson.loads(
                await edge.engine.answer(
                    SyncRequest(
                        caller.user_id, caller.device_id, parse_filter({"room": {"timeline": {"limit": 1}}})
                    )
                )
            )["next_batch"]
        )
        body = await edge.engine.answer(
            SyncRequest(
                caller.user_id,
                caller.device_id,
                filter_,
                since=parse_sync_token(since, "from"),
                timeout_ms=request.query_int("timeout", 0, maximum=MAX_TIMEOUT_MS),
            )
        )
        answer = orjson.loads(body)
        chunk = event_chunk(answer, room_id)
        return json_response({"start": since, "end": answer["next_batch"], "chunk": chunk})

    router.add("GET", "/_matrix/client/v3/initialSync", initial_sync)
    router.add("GET", "/_matrix/client/v3/events", events)

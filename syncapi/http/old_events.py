"""`GET /initialSync` and `GET /events`: what was there before `/sync`, made of its answers.

NOTSPEC: `archived` rooms are those that `include_leave` shows; there are no receipts in `/initialSync`.
"""

from typing import Any

import orjson

from servicekit.http import Request, Response, Router, json_response
from syncapi.filters import parse_filter
from syncapi.http.edge import Edge
from syncapi.sync.request import MAX_TIMEOUT_MS, SyncRequest
from syncapi.tokens import parse_sync_token

MAX_LIMIT = 100


def _with_room(event: Any, room_id: str) -> Any:
    return {**event, "room_id": room_id}


def initial_answer(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an initial `/sync` answer in the form of `/initialSync`."""
    rooms: list[dict[str, Any]] = []
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
                        "chunk": [_with_room(event, room_id) for event in timeline["events"]],
                        "start": timeline["prev_batch"],
                        "end": answer["next_batch"],
                    },
                    "state": [_with_room(event, room_id) for event in current.values()],
                    "account_data": room["account_data"]["events"],
                }
            )
    for section, name in (("invite", "invite_state"), ("knock", "knock_state")):
        for room_id, room in sections.get(section, {}).items():
            state = [_with_room(event, room_id) for event in room[name]["events"]]
            rooms.append({"room_id": room_id, "membership": section, "state": state})
    return {
        "end": answer["next_batch"],
        "rooms": rooms,
        "presence": answer.get("presence", {}).get("events", []),
        "account_data": answer.get("account_data", {}).get("events", []),
    }


def event_chunk(answer: dict[str, Any], only_room: str | None) -> list[Any]:
    """Return the events of an incremental `/sync` answer as one list."""
    chunk: list[Any] = [] if only_room else list(answer.get("presence", {}).get("events", []))
    sections = answer.get("rooms", {})
    for section in ("join", "leave"):
        for room_id, room in sections.get(section, {}).items():
            if only_room in (None, room_id):
                events = [*room["timeline"]["events"], *room.get("ephemeral", {}).get("events", [])]
                chunk += [_with_room(event, room_id) for event in events]
    for section, name in (("invite", "invite_state"), ("knock", "knock_state")):
        for room_id, room in sections.get(section, {}).items():
            if only_room in (None, room_id):
                chunk += [_with_room(event, room_id) for event in room[name]["events"]]
    return chunk


def add_routes(router: Router, edge: Edge) -> None:
    """Add the endpoints."""

    async def initial_sync(request: Request) -> Response:
        caller = await edge.caller(request)
        limit = max(request.query_int("limit", 20, maximum=MAX_LIMIT), 1)
        leave = request.query_bool("archived")
        filter_ = parse_filter({"room": {"timeline": {"limit": limit}, "include_leave": leave}})
        body = await edge.engine.answer(SyncRequest(caller.user_id, caller.device_id, filter_))
        return json_response(initial_answer(orjson.loads(body)))

    async def events(request: Request) -> Response:
        caller = await edge.caller(request)
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
        chunk = event_chunk(answer, request.query.get("room_id"))
        return json_response({"start": since, "end": answer["next_batch"], "chunk": chunk})

    router.add("GET", "/_matrix/client/v3/initialSync", initial_sync)
    router.add("GET", "/_matrix/client/v3/events", events)

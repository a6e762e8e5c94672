"""`GET /rooms/{roomId}/state` and `/state/{type}/{key}`: as of now, or as of leaving."""

import orjson
from sqlalchemy import Connection

from servicekit.errors import invalid_param
from servicekit.http import Request, Response, Router, json_response
from syncapi import access
from syncapi.auth import Caller
from syncapi.http.edge import Edge, not_found
from syncapi.http.rendering import render_list, render_one
from syncapi.storage import state


def load_all(connection: Connection, caller: Caller, room_id: str) -> bytes:
    """Return the whole state as a JSON array."""
    allowed = access.find_access(connection, room_id, caller.user_id)
    found = state.load_state(connection, room_id, allowed.at)
    return b"[" + render_list(connection, caller, found, allowed.past, {}) + b"]"


def load_one(
    connection: Connection, caller: Caller, room_id: str, type_: str, state_key: str, whole: bool
) -> bytes:
    """Return one entry: its content, or the whole event.

    Raises:
        MatrixError: M_FORBIDDEN; M_NOT_FOUND where nothing stands.
    """
    allowed = access.find_access(connection, room_id, caller.user_id)
    event = state.load_state_event(connection, room_id, type_, state_key, allowed.at)
    if event is None:
        raise not_found("No such state")
    if whole:
        return render_one(caller, event, allowed.past, {})
    return orjson.dumps(orjson.loads(event.body + b"}")["content"])


def add_routes(router: Router, edge: Edge) -> None:
    """Add the endpoints."""

    async def get_all(request: Request) -> Response:
        caller = await edge.caller(request)
        await edge.members(caller, request.path_params["room_id"])
        return json_response(await edge.read(load_all, caller, request.path_params["room_id"]))

    async def get_one(request: Request) -> Response:
        caller = await edge.caller(request)
        format_ = request.query.get("format", "content")
        if format_ not in ("content", "event"):
            raise invalid_param("format must be content or event")
        params = request.path_params
        if params["event_type"] == "m.room.member" and params.get("state_key") != caller.user_id:
            await edge.members(caller, params["room_id"])
        return json_response(
            await edge.read(
                load_one,
                caller,
                params["room_id"],
                params["event_type"],
                params.get("state_key", ""),
                format_ == "event",
            )
        )

    router.add("GET", "/_matrix/client/v3/rooms/{room_id}/state", get_all)
    router.add("GET", "/_matrix/client/v3/rooms/{room_id}/state/{event_type}", get_one)
    router.add("GET", "/_matrix/client/v3/rooms/{room_id}/state/{event_type}/{state_key?}", get_one)

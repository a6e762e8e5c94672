"""`GET /rooms/{roomId}/timestamp_to_event`: the event nearest to a time, of those we have."""

import orjson
from sqlalchemy import Connection

from servicekit.errors import invalid_param, missing_param
from servicekit.http import Request, Response, Router, json_response
from syncapi import access
from syncapi.auth import Caller
from syncapi.http.edge import Edge, not_found
from syncapi.storage import events as event_storage
from syncapi.visibility import visible

TRIED = 100


def load_nearest(
    connection: Connection, caller: Caller, room_id: str, timestamp_ms: int, backwards: bool
) -> bytes:
    """Return the nearest event that the caller may see.

    Raises:
        MatrixError: M_FORBIDDEN; M_NOT_FOUND, there is none.
    """
    allowed = access.find_access(connection, room_id, caller.user_id)
    found = event_storage.load_nearest(
        connection, room_id, timestamp_ms, allowed.through, backwards=backwards, count=TRIED
    )
    seen, _ = visible(connection, allowed.past, [event for event, _ in found])
    times = {event.position: time_ms for event, time_ms in found}
    for event in seen:
        return orjson.dumps({"event_id": event.event_id, "origin_server_ts": times[event.position]})
    raise not_found("No event near that time")


def add_routes(router: Router, edge: Edge) -> None:
    """Add the endpoint."""

    async def timestamp_to_event(request: Request) -> Response:
        caller = await edge.caller(request)
        query = request.query
        if "ts" not in query or "dir" not in query:
            raise missing_param("ts and dir are needed")
        if query["dir"] not in ("b", "f"):
            raise invalid_param("dir must be b or f")
        timestamp_ms = request.query_int("ts", 0)
        room_id = request.path_params["room_id"]
        return json_response(
            await edge.read(load_nearest, caller, room_id, min(timestamp_ms, 2**62), query["dir"] == "b")
        )

    router.add("GET", "/_matrix/client/v1/rooms/{room_id}/timestamp_to_event", timestamp_to_event)

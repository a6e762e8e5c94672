"""`GET /rooms/{roomId}/timestamp_to_event`: the event nearest to a time, of those we have."""

from collections.abc import Sequence
from dataclasses import dataclass

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
NEARER = 100


@dataclass(frozen=True, slots=True)
class Nearest:
    """The body of the answer, None if there is no event; and whether others may know a nearer one."""

    body: bytes | None
    maybe_nearer: bool


def find_nearest(
    connection: Connection,
    caller: Caller,
    room_id: str,
    timestamp_ms: int,
    backwards: bool,
    edges: Sequence[str],
) -> Nearest:
    """Return the nearest event that the caller may see.

    Args:
        edges: events whose prev events are missing here.

    Raises:
        MatrixError: M_FORBIDDEN.
    """
    allowed = access.find_access(connection, room_id, caller.user_id)
    found = event_storage.load_nearest(
        connection, room_id, timestamp_ms, allowed.through, backwards=backwards, count=TRIED
    )
    seen, _ = visible(connection, allowed.past, [event for event, _ in found])
    times = {event.position: time_ms for event, time_ms in found}
    if not seen:
        return Nearest(None, bool(edges))
    # What is missing is older than the edge it is missing at.
    edge_times = [
        orjson.loads(event.body + b"}")["origin_server_ts"]
        for event in event_storage.load_events_by_id(connection, edges).values()
        if event.room_id == room_id
    ]
    body = {"event_id": seen[0].event_id, "origin_server_ts": times[seen[0].position]}
    return Nearest(orjson.dumps(body), any(time_ms >= timestamp_ms for time_ms in edge_times))


def load_nearest(
    connection: Connection, caller: Caller, room_id: str, timestamp_ms: int, backwards: bool
) -> bytes:
    """Return the body of the answer, by what is here.

    Raises:
        MatrixError: M_FORBIDDEN; M_NOT_FOUND, there is none.
    """
    found = find_nearest(connection, caller, room_id, timestamp_ms, backwards, ())
    if found.body is None:
        raise not_found("No event near that time")
    return found.body


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
        backwards = query["dir"] == "b"
        asked = (caller, room_id, min(timestamp_ms, 2**62), backwards)
        edges = await edge.remote.edges(room_id)
        found = await edge.read(find_nearest, *asked, edges)
        if found.maybe_nearer:
            # Nothing of before our join is fetched until it is known who was in the room then.
            await edge.members(caller, room_id)
            await edge.remote.fetch_nearest(room_id, asked[2], backwards)
            if (await edge.read(find_nearest, *asked, edges)).body == found.body:
                # An event far from those that are here has no place among them: come nearer from here.
                await edge.remote.fetch_before(room_id, caller.user_id, edges, NEARER)
        elif found.body is not None:
            return json_response(found.body)
        return json_response(await edge.read(load_nearest, *asked))

    router.add("GET", "/_matrix/client/v1/rooms/{room_id}/timestamp_to_event", timestamp_to_event)

"""`GET /rooms/{roomId}/event/{eventId}`, `/context/{eventId}`, and `/events/{eventId}` of clients before them."""

import orjson
from sqlalchemy import Connection

from servicekit.errors import MatrixError
from servicekit.http import Request, Response, Router, json_response
from syncapi import access
from syncapi.applied import StoredEvent
from syncapi.auth import Caller
from syncapi.filters import EventFilter, parse_room_event_filter
from syncapi.http.edge import Edge, not_found
from syncapi.http.rendering import render_list
from syncapi.storage import events as event_storage
from syncapi.storage import relations, state
from syncapi.storage.accounts import load_account_entry
from syncapi.tokens import TopologicalToken
from syncapi.visibility import visible
from syncapi.window import parse_ignored

MAX_CONTEXT = 100
MAX_SCANNED = 1000


def find_event(
    connection: Connection, caller: Caller, room_id: str, event_id: str
) -> tuple[StoredEvent, access.Access, dict[int, str]]:
    """Return an event that the caller may see.

    Raises:
        MatrixError: M_NOT_FOUND; whether it exists is not said to who may not see it.
    """
    event = event_storage.load_event(connection, event_id)
    if event is None or event.room_id != room_id:
        access.find_access(connection, room_id, caller.user_id)
        raise not_found("No such event")
    allowed = access.find_access(connection, room_id, caller.user_id)
    seen, members = visible(connection, allowed.past, [event])
    if not seen or event.position > allowed.through or not _readable(connection, event, allowed):
        raise not_found("No such event")
    return seen[0], allowed, dict(members)


def _readable(connection: Connection, event: StoredEvent, allowed: access.Access) -> bool:
    """What is known as state only is readable if it is, or was in the reader's time, state."""
    return event.placement in (1, 2) or event.state_key is not None


def load_one(connection: Connection, caller: Caller, room_id: str, event_id: str) -> bytes:
    """Return the event.

    Raises:
        MatrixError: M_NOT_FOUND, the one refusal of this endpoint: also in a room that the caller may not read.
    """
    try:
        event, allowed, members = find_event(connection, caller, room_id, event_id)
    except MatrixError as error:
        if error.errcode != "M_FORBIDDEN":
            raise
        raise not_found("No such event") from error
    return render_list(connection, caller, [event], allowed.past, members)


def load_anywhere(connection: Connection, caller: Caller, event_id: str) -> bytes:
    """Return an event of whatever room.

    Raises:
        MatrixError: M_NOT_FOUND, also for an event that the caller may not see.
    """
    event = event_storage.load_event(connection, event_id)
    if event is None:
        raise not_found("No such event")
    return load_one(connection, caller, event.room_id, event_id)


def load_side(
    connection: Connection,
    allowed: access.Access,
    event: StoredEvent,
    memberships: dict[int, str],
    filter_: EventFilter,
    ignored: frozenset[str],
    *,
    backwards: bool,
    count: int,
) -> tuple[list[StoredEvent], TopologicalToken]:
    """Return the events next to one, on one side, and where to go on; adds to `memberships`."""
    place = (event.depth, event.position if backwards else event.position + 1)
    chosen: list[StoredEvent] = []
    scanned = 0
    while len(chosen) < count and scanned < MAX_SCANNED:
        wanted = max(count - len(chosen), 1)
        found = event_storage.load_page(
            connection, event.room_id, backwards=backwards, start=place, through=allowed.through, count=wanted
        )
        scanned += len(found)
        seen, outside = visible(connection, allowed.past, found)
        memberships.update(outside)
        chosen += [
            other
            for other in relations.keep_related(connection, seen, filter_)
            if filter_.passes_room(event.room_id)
            and filter_.passes(other.type, other.sender, other.flags)
            and not (other.sender in ignored and other.state_key is None)
        ]
        if found:
            last = found[-1]
            place = (last.depth, last.position if backwards else last.position + 1)
        if len(found) < wanted:
            break
    return chosen, TopologicalToken(*place)


def load_context(
    connection: Connection, caller: Caller, room_id: str, event_id: str, limit: int, filter_: EventFilter
) -> bytes:
    """Return the event with what came before and after it, and the state at the last of these."""
    event, allowed, members = find_event(connection, caller, room_id, event_id)
    ignored = parse_ignored(load_account_entry(connection, caller.user_id, "m.ignored_user_list"))
    memberships = dict(members)
    sides: dict[bool, tuple[list[StoredEvent], TopologicalToken]] = {}
    for backwards, count in ((True, limit // 2), (False, limit - limit // 2)):
        sides[backwards] = load_side(
            connection, allowed, event, memberships, filter_, ignored, backwards=backwards, count=count
        )
    before, start = sides[True]
    after, end = sides[False]
    at = (after[-1] if after else event).position
    if at < 0:
        at = 0
    if allowed.at is not None:
        at = min(at, allowed.at)
    if filter_.lazy_load_members:
        senders = sorted({other.sender for other in [*before, event, *after]})
        current = state.load_state(connection, room_id, at, members=False)
        current += state.load_members(connection, room_id, senders, at)
    else:
        current = state.load_state(connection, room_id, at)
    past = allowed.past
    return b'{"start":%b,"end":%b,"event":%b,"events_before":[%b],"events_after":[%b],"state":[%b]}' % (
        orjson.dumps(str(start)),
        orjson.dumps(str(end)),
        render_list(connection, caller, [event], past, memberships),
        render_list(connection, caller, before, past, memberships),
        render_list(connection, caller, after, past, memberships),
        render_list(connection, caller, current, past, {}),
    )


def add_routes(router: Router, edge: Edge) -> None:
    """Add the endpoints."""

    async def get_event(request: Request) -> Response:
        caller = await edge.caller(request)
        params = request.path_params
        return json_response(await edge.read(load_one, caller, params["room_id"], params["event_id"]))

    async def get_context(request: Request) -> Response:
        caller = await edge.caller(request)
        params = request.path_params
        limit = request.query_int("limit", 10, maximum=MAX_CONTEXT)
        filter_ = parse_room_event_filter(request.query.get("filter"))
        if not filter_.lazy_load_members:
            await edge.members(caller, params["room_id"])
        return json_response(
            await edge.read(load_context, caller, params["room_id"], params["event_id"], limit, filter_)
        )

    async def get_anywhere(request: Request) -> Response:
        caller = await edge.caller(request)
        return json_response(await edge.read(load_anywhere, caller, request.path_params["event_id"]))

    router.add("GET", "/_matrix/client/v3/rooms/{room_id}/event/{event_id}", get_event)
    router.add("GET", "/_matrix/client/v3/events/{event_id}", get_anywhere)
    router.add("GET", "/_matrix/client/v3/rooms/{room_id}/context/{event_id}", get_context)

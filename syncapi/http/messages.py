"""`GET /rooms/{roomId}/messages`: history in the order of (depth, position), paged both ways.

A page that holds nothing the reader may or wants to see still leads on: its `end` lies behind what was passed
over, until there is no more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import Connection

from servicekit.errors import invalid_param, missing_param, unavailable
from servicekit.http import Request, Response, Router, json_response
from syncapi import access
from syncapi.applied import StoredEvent
from syncapi.auth import Caller
from syncapi.filters import MAX_MESSAGES_LIMIT, NO_FILTER, EventFilter, parse_room_event_filter
from syncapi.http.edge import Edge, place_of
from syncapi.http.rendering import render_list
from syncapi.partial_rooms import RETRY_MS
from syncapi.storage import events as event_storage
from syncapi.storage import relations, state
from syncapi.storage.accounts import load_account_entry
from syncapi.tokens import TopologicalToken
from syncapi.visibility import visible
from syncapi.window import parse_ignored

MAX_SCANNED = 2000
MIN_FETCHED = 50
PARTIAL_WAIT_S = 5.0
FIRST = (-1, 0)
LAST = (2**62, 0)


@dataclass(frozen=True, slots=True)
class Page:
    """What is asked for. `start` None: from the end that lies behind."""

    room_id: str
    backwards: bool
    start: str | None
    to: str | None
    limit: int
    filter: EventFilter


def _after(event: StoredEvent, backwards: bool) -> TopologicalToken:
    """Return the place behind an event, in the direction of reading."""
    return TopologicalToken(event.depth, event.position if backwards else event.position + 1)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A page as it is here.

    Attributes:
        body: of the answer.
        through: the place it reaches to; None: there is no more here.
        edges: those of the events asked about that the page passed.
    """

    body: bytes
    through: TopologicalToken | None
    edges: tuple[str, ...] = ()


def load_page(connection: Connection, caller: Caller, page: Page) -> bytes:
    """Return the body of the answer. Raises as `load_with_edges`."""
    return load_with_edges(connection, caller, page, ()).body


def load_with_edges(
    connection: Connection, caller: Caller, page: Page, edges: Sequence[str], *, more: bool = False
) -> Loaded:
    """Return a page, and which of some events with missing prev events it passed, going backwards.

    Args:
        more: other servers may have more where there is none here: the reader is told where to go on, unless
            the page is empty.

    Raises:
        MatrixError: M_FORBIDDEN, or M_INVALID_PARAM for a token that is not ours.
    """
    allowed = access.find_access(connection, page.room_id, caller.user_id)
    default = LAST if page.backwards else FIRST
    start = default if page.start is None else place_of(connection, page.room_id, page.start, "from")
    to = None if page.to is None else place_of(connection, page.room_id, page.to, "to")
    ignored = parse_ignored(load_account_entry(connection, caller.user_id, "m.ignored_user_list"))
    chosen: list[StoredEvent] = []
    outside: dict[int, str] = {}
    place = start
    scanned = 0
    reached = TopologicalToken(*_shown(start))
    exhausted = not page.filter.passes_room(page.room_id)
    while not exhausted and len(chosen) < page.limit and scanned < MAX_SCANNED:
        count = page.limit - len(chosen) if not scanned else max(page.limit, 100)
        found = event_storage.load_page(
            connection,
            page.room_id,
            backwards=page.backwards,
            start=place,
            through=allowed.through,
            count=count,
        )
        full = len(found) == count
        if to is not None:
            found, stopped = _up_to(found, to, page.backwards)
            full = full and not stopped
        scanned += len(found)
        seen, memberships = visible(connection, allowed.past, found)
        outside.update(memberships)
        kept = {
            event.position: event
            for event in relations.keep_related(connection, seen, page.filter)
            if page.filter.passes(event.type, event.sender, event.flags)
            and not (event.sender in ignored and event.state_key is None)
        }
        for event in found:
            reached = _after(event, page.backwards)
            if event.position in kept:
                chosen.append(kept[event.position])
                if len(chosen) == page.limit:
                    break
        else:
            if not full:
                exhausted = True
                break
        place = (reached.depth, reached.position)
    start_token = page.start or str(TopologicalToken(*_shown(start)))
    parts = [
        b'{"start":%b' % orjson.dumps(start_token),
        b'"chunk":[%b]' % render_list(connection, caller, chosen, allowed.past, outside),
    ]
    if not exhausted or (more and chosen):
        parts.append(b'"end":%b' % orjson.dumps(str(reached)))
    if page.filter.lazy_load_members and chosen:
        senders = sorted({event.sender for event in chosen})
        found = state.load_members(connection, page.room_id, senders, allowed.at)
        parts.append(b'"state":[%b]' % render_list(connection, caller, found, allowed.past, {}))
    low = (0, 0) if exhausted else (reached.depth, reached.position)
    passed = [
        event.event_id
        for event in event_storage.load_events_by_id(connection, edges).values()
        if event.room_id == page.room_id and low[0] <= event.depth and event.depth <= start[0]
    ]
    return Loaded(b",".join(parts) + b"}", None if exhausted else reached, tuple(sorted(passed)))


def _shown(place: tuple[int, int]) -> tuple[int, int]:
    return (max(place[0], 0), place[1])


def _up_to(found: list[StoredEvent], to: tuple[int, int], backwards: bool) -> tuple[list[StoredEvent], bool]:
    """Cut a page at a token; returns what is before it, and whether something was cut."""
    kept = [
        event
        for event in found
        if ((event.depth, event.position) >= to if backwards else (event.depth, event.position) < to)
    ]
    return kept, len(kept) < len(found)


async def _answer(edge: Edge, caller: Caller, page: Page) -> bytes:
    """Return a page, once other servers gave what is missing on it, if they do in a few seconds."""
    may_reach_back = page.backwards and page.filter.passes_room(page.room_id)
    if may_reach_back and edge.partial_rooms.is_partial(page.room_id):
        # Nothing of before our join is fetched until it is known who was in the room then.
        await edge.read(access.find_access, page.room_id, caller.user_id)
        if not await edge.partial_rooms.wait(page.room_id, PARTIAL_WAIT_S):
            loaded = await edge.read(load_with_edges, caller, page, (), more=True)
            if loaded.through is None and b'"chunk":[]' in loaded.body:
                # Nothing, and no end, would say that the room began there.
                raise unavailable("What was before the join is not known yet", RETRY_MS)
            return loaded.body
    edges = await edge.remote.edges(page.room_id) if may_reach_back else ()
    loaded = await edge.read(load_with_edges, caller, page, edges)
    if not loaded.edges or not page.limit:
        return loaded.body
    count = max(page.limit, MIN_FETCHED)
    if await edge.remote.fetch_before(page.room_id, caller.user_id, loaded.edges, count):
        edges = await edge.remote.edges(page.room_id)
        loaded = await edge.read(load_with_edges, caller, page, edges, more=bool(edges))
    return loaded.body


def add_routes(router: Router, edge: Edge) -> None:
    """Add the endpoint."""

    async def messages(request: Request) -> Response:
        caller = await edge.caller(request)
        query = request.query
        direction = query.get("dir")
        if direction is None:
            raise missing_param("dir is missing")
        if direction not in ("b", "f"):
            raise invalid_param("dir must be b or f")
        filter_ = parse_room_event_filter(query.get("filter")) if "filter" in query else NO_FILTER.timeline
        limit = request.query_int("limit", 10, minimum=0, maximum=MAX_MESSAGES_LIMIT)
        if filter_.limit is not None and "limit" not in query:
            limit = filter_.capped_limit(maximum=MAX_MESSAGES_LIMIT)
        page = Page(
            request.path_params["room_id"],
            direction == "b",
            query.get("from") or None,
            query.get("to") or None,
            limit,
            filter_,
        )
        return json_response(await _answer(edge, caller, page))

    router.add("GET", "/_matrix/client/v3/rooms/{room_id}/messages", messages)

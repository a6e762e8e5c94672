"""`GET /rooms/{roomId}/relations/{eventId}[/{relType}[/{eventType}]]` and `/rooms/{roomId}/threads`."""

from dataclasses import dataclass

import orjson
from sqlalchemy import Connection

from servicekit.errors import invalid_param
from servicekit.http import Request, Response, Router, json_response
from syncapi import access
from syncapi.applied import StoredEvent
from syncapi.auth import Caller
from syncapi.http.edge import Edge, place_of
from syncapi.http.event import find_event
from syncapi.http.rendering import render_list
from syncapi.storage import events as event_storage
from syncapi.storage import relations
from syncapi.storage.accounts import load_account_entry
from syncapi.tokens import TopologicalToken, parse_token
from syncapi.visibility import visible
from syncapi.window import parse_ignored

MAX_LIMIT = 100
MAX_RECURSION = 3
MAX_SCANNED = 1000
MAX_PARENTS = 900


@dataclass(frozen=True, slots=True)
class RelationsPage:
    """What is asked for."""

    room_id: str
    event_id: str
    rel_type: str | None
    type: str | None
    backwards: bool
    start: str | None
    to: str | None
    limit: int
    recurse: bool


def load_relations(connection: Connection, caller: Caller, page: RelationsPage) -> bytes:
    """Return the body of the answer.

    Raises:
        MatrixError: M_NOT_FOUND, the caller does not see the event; M_FORBIDDEN.
    """
    event, allowed, _ = find_event(connection, caller, page.room_id, page.event_id)
    ignored = parse_ignored(load_account_entry(connection, caller.user_id, "m.ignored_user_list"))
    parents = [event.event_id]
    if page.recurse:
        newest = parents
        for _ in range(MAX_RECURSION - 1):
            children = relations.load_all_children(connection, newest, allowed.through)
            newest = [child for child in children if child not in parents][: MAX_PARENTS - len(parents)]
            parents = parents + newest
            if not newest:
                break
    default = (2**62, 0) if page.backwards else (0, 0)
    start = place_of(connection, page.room_id, page.start, "from") if page.start else default
    to = place_of(connection, page.room_id, page.to, "to") if page.to else None
    chosen: list[StoredEvent] = []
    members: dict[int, str] = {}
    place, scanned, exhausted = start, 0, False
    while len(chosen) < page.limit and scanned < MAX_SCANNED and not exhausted:
        count = page.limit - len(chosen)
        found = relations.load_page(
            connection,
            page.room_id,
            parents,
            rel_type=page.rel_type,
            type_=page.type,
            backwards=page.backwards,
            start=place,
            through=allowed.through,
            count=count,
        )
        exhausted = len(found) < count
        scanned += len(found)
        for other in found:
            if to is not None and (
                (other.depth, other.position) < to if page.backwards else (other.depth, other.position) >= to
            ):
                exhausted = True
                break
            place = (other.depth, other.position if page.backwards else other.position + 1)
            seen, outside = visible(connection, allowed.past, [other])
            members.update(outside)
            if other.sender not in ignored:
                chosen += seen
    parts = [b'{"chunk":[%b]' % render_list(connection, caller, chosen, allowed.past, members)]
    if not exhausted:
        parts.append(b'"next_batch":%b' % orjson.dumps(str(TopologicalToken(*place))))
    if page.start:
        parts.append(b'"prev_batch":%b' % orjson.dumps(page.start))
    if page.recurse:
        parts.append(b'"recursion_depth":%d' % MAX_RECURSION)
    return b",".join(parts) + b"}"


def load_threads(
    connection: Connection, caller: Caller, room_id: str, participated: bool, start: str | None, limit: int
) -> bytes:
    """Return the roots of a room's threads, those with the latest replies first.

    Raises:
        MatrixError: M_FORBIDDEN; M_INVALID_PARAM for a token that is not ours.
    """
    allowed = access.find_access(connection, room_id, caller.user_id)
    ignored = parse_ignored(load_account_entry(connection, caller.user_id, "m.ignored_user_list"))
    before = 2**62
    if start:
        token = parse_token(start)
        if not isinstance(token, TopologicalToken):
            raise invalid_param("from is not a token of this endpoint")
        before = token.position
    found = relations.load_threads(
        connection, room_id, before, allowed.through, caller.user_id if participated else None, limit
    )
    roots = event_storage.load_events_by_id(connection, [root for root, _ in found])
    seen, members = visible(
        connection,
        allowed.past,
        [roots[root] for root, _ in found if root in roots and roots[root].room_id == room_id],
    )
    shown = [event for event in seen if event.sender not in ignored]
    parts = [b'{"chunk":[%b]' % render_list(connection, caller, shown, allowed.past, members)]
    if len(found) == limit:
        parts.append(b'"next_batch":%b' % orjson.dumps(str(TopologicalToken(0, found[-1][1]))))
    return b",".join(parts) + b"}"


def add_routes(router: Router, edge: Edge) -> None:
    """Add the endpoints."""

    async def get_relations(request: Request) -> Response:
        caller = await edge.caller(request)
        query, params = request.query, request.path_params
        direction = query.get("dir", "b")
        if direction not in ("b", "f"):
            raise invalid_param("dir must be b or f")
        page = RelationsPage(
            params["room_id"],
            params["event_id"],
            params.get("rel_type"),
            params.get("event_type"),
            direction == "b",
            query.get("from"),
            query.get("to"),
            request.query_int("limit", 5, maximum=MAX_LIMIT),
            request.query_bool("recurse") or request.query_bool("org.matrix.msc3981.recurse"),
        )
        return json_response(await edge.read(load_relations, caller, page))

    async def get_threads(request: Request) -> Response:
        caller = await edge.caller(request)
        include = request.query.get("include", "all")
        if include not in ("all", "participated"):
            raise invalid_param("include must be all or participated")
        limit = request.query_int("limit", 20, minimum=1, maximum=MAX_LIMIT)
        return json_response(
            await edge.read(
                load_threads,
                caller,
                request.path_params["room_id"],
                include == "participated",
                request.query.get("from"),
                limit,
            )
        )

    base = "/_matrix/client/v1/rooms/{room_id}/relations/{event_id}"
    for suffix in ("", "/{rel_type}", "/{rel_type}/{event_type}"):
        unstable = base.replace("/v1/", "/unstable/") + suffix
        router.add("GET", base + suffix, get_relations, aliases=(unstable,))
    router.add(
        "GET",
        "/_matrix/client/v1/rooms/{room_id}/threads",
        get_threads,
        aliases=("/_matrix/client/unstable/org.matrix.msc3856/rooms/{room_id}/threads",),
    )

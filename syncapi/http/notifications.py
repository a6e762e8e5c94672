"""`GET /notifications`: the events that notified the user, newest first, in the rooms where the user is joined.

What an event made of the room's running totals is what the class of predefined rules said; the user's exceptions come
on top. So the list agrees with the unread counts.
"""

import heapq
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import orjson
from sqlalchemy import Connection

from servicekit.errors import invalid_param
from servicekit.http import Request, Response, Router, json_response
from syncapi.applied import StoredEvent, UserRoom
from syncapi.auth import Caller
from syncapi.http.edge import Edge
from syncapi.http.rendering import render_one
from syncapi.notifications import Outcome
from syncapi.push_actions import PushActions
from syncapi.storage import events as event_storage
from syncapi.storage import members, state, threads
from syncapi.storage.accounts import load_account_entry
from syncapi.storage.tables import MAX_POSITION
from syncapi.visibility import Past, visible
from syncapi.window import parse_ignored

MAX_SCANNED = 5_000
MAX_LIMIT = 100
PAGE = 50


class _Counted(NamedTuple):
    event: StoredEvent
    time_ms: int
    notify: int
    highlight: int


def _walk(connection: Connection, row: UserRoom, through: int) -> Iterator[_Counted]:
    """Walk a stay in a room, newest first, with what each event added to the room's totals."""
    after = (row.joined_since or 1) - 1
    while True:
        # One more than is given out: totals are told from those of the event before.
        page = event_storage.load_counted(connection, row.room_id, after, through, PAGE + 1)
        for (event, time_ms, notify, highlight), older in pairwise(page):
            yield _Counted(event, time_ms, notify - older[2], highlight - older[3])
        # The first of a stay is the user's own joining.
        if len(page) <= PAGE:
            return
        through = page[PAGE][0].position


def load_notifications(
    connection: Connection, caller: Caller, before: int | None, limit: int, *, highlights: bool
) -> bytes:
    """Return the body of the answer. `before`: only what came before that position."""
    user_id = caller.user_id
    ignored = parse_ignored(load_account_entry(connection, user_id, "m.ignored_user_list"))
    exceptions = members.load_exceptions(connection, user_id)
    joined = {
        row.room_id: row
        for row in members.load_rooms_of_user(connection, user_id)
        if row.joined_until == MAX_POSITION
    }
    threaded = threads.load_threaded_among(connection, list(joined))
    read_places = {
        room_id: threads.load_read_places(connection, joined[room_id]) for room_id in sorted(threaded)
    }
    through = MAX_POSITION if before is None else before - 1
    histories = state.load_member_history(connection, list(joined), user_id)
    actions = PushActions(connection, user_id)
    found: list[bytes] = []
    next_token: int | None = None
    merged = heapq.merge(
        *[_walk(connection, row, through) for row in joined.values()],
        key=lambda counted: -counted.event.position,
    )
    for scanned, (event, time_ms, class_notify, class_highlight) in enumerate(merged):
        if len(found) == limit or scanned == MAX_SCANNED:
            next_token = event.position + 1
            break
        extra = exceptions.get((event.room_id, event.position), (0, 0))
        notify, highlight = class_notify + extra[0], class_highlight + extra[1]
        if notify <= 0 or event.sender == user_id or event.sender in ignored:
            continue
        if highlights and highlight <= 0:
            continue
        past = Past(user_id, histories.get(event.room_id, []))
        seen, outside = visible(connection, past, [event])
        if not seen:
            continue
        found.append(
            b'{"actions":%b,"event":%b,"read":%b,"room_id":%b,"ts":%d}'
            % (
                orjson.dumps(actions.of(event, Outcome(True, highlight > 0))),
                render_one(caller, event, past, outside),
                b"true" if _is_read(event, joined[event.room_id], read_places) else b"false",
                orjson.dumps(event.room_id),
                time_ms,
            )
        )
    token = b"" if next_token is None else b',"next_token":"%d"' % next_token
    return b'{"notifications":[%b]%b}' % (b",".join(found), token)


def _is_read(event: StoredEvent, row: UserRoom, places: Mapping[str, Mapping[str, int]]) -> bool:
    if event.thread_id is None:
        return event.position <= row.read_position
    of_room = places.get(event.room_id, {})
    return event.position <= max(of_room.get("", 0), of_room.get(event.thread_id, 0))


def add_routes(router: Router, edge: Edge) -> None:
    """Add the endpoint."""

    async def get_notifications(request: Request) -> Response:
        caller = await edge.caller(request)
        token = request.query.get("from")
        if token and not (token.isascii() and token.isdigit() and len(token) <= 18):
            raise invalid_param("from is not a token of this endpoint")
        limit = request.query_int("limit", 20, minimum=0, maximum=MAX_LIMIT)
        return json_response(
            await edge.read(
                load_notifications,
                caller,
                int(token) if token else None,
                limit,
                highlights=request.query.get("only") == "highlight",
            )
        )

    router.add("GET", "/_matrix/client/v3/notifications", get_notifications)

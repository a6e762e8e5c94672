"""`GET /rooms/{roomId}/initialSync`; `old_events` has the ones without a room."""

from collections.abc import Sequence
from typing import Any

import orjson
from sqlalchemy import Connection

from servicekit.http import Request, Response, Router, json_response
from syncapi import access
from syncapi.auth import Caller
from syncapi.filters import NO_FILTER, EventFilter
from syncapi.http.edge import Edge
from syncapi.http.messages import Page, load_page
from syncapi.http.rendering import render_list
from syncapi.live import Live
from syncapi.storage import accounts, members, receipts, state
from syncapi.sync.account_data import render_account_data
from syncapi.sync.context import Reader
from syncapi.sync.presence import presence_in_room
from syncapi.sync.receipts import render_receipts
from syncapi.window import Window, parse_ignored

MAX_LIMIT = 100
ALL = 2**62


def in_room(event: dict[str, Any], room_id: str) -> dict[str, Any]:
    """Return an event of a room's section in `/sync` as one that says its room itself."""
    return {**event, "room_id": room_id}


def load_room(
    connection: Connection, caller: Caller, room_id: str, limit: int, present: Sequence[bytes] = ()
) -> bytes:
    """Return a room's last messages, state, receipts and account data.

    Args:
        present: the presence events of those who are in it.

    Raises:
        MatrixError: M_FORBIDDEN.
    """
    allowed = access.find_access(connection, room_id, caller.user_id)
    row = members.load_user_room(connection, caller.user_id, room_id)
    page = orjson.loads(load_page(connection, caller, Page(room_id, True, None, None, limit, EventFilter())))
    messages = {
        "chunk": page["chunk"][::-1],
        "start": page.get("end", page["start"]),
        "end": page["start"],
    }
    current = state.load_state(connection, room_id, allowed.at)
    data = render_account_data(
        accounts.load_room_account_data(connection, caller.user_id, room_id, ALL),
        EventFilter(),
        deleted=False,
    )
    parts = [
        b'{"room_id":%b' % orjson.dumps(room_id),
        b'"messages":%b' % orjson.dumps(messages),
        b'"state":[%b]' % render_list(connection, caller, current, allowed.past, {}),
        b'"account_data":[%b]' % b",".join(data),
    ]
    if row is not None:
        parts.append(b'"membership":%b' % orjson.dumps(row.membership))
    parts.append(b'"presence":[%b]' % b",".join(present))
    found = _receipts(connection, caller, room_id) if allowed.joined else []
    parts.append(b'"receipts":%b' % orjson.dumps(found))
    return b",".join(parts) + b"}"


def _receipts(connection: Connection, caller: Caller, room_id: str) -> list[dict[str, Any]]:
    ignored = parse_ignored(accounts.load_account_entry(connection, caller.user_id, "m.ignored_user_list"))
    moved = receipts.load_receipts(connection, [room_id], -1, ALL).get(room_id, [])
    rendered = render_receipts(moved, Reader(caller.user_id, caller.device_id, NO_FILTER, ignored))
    return [in_room(orjson.loads(rendered), room_id)] if rendered else []


class RoomInitialSync:
    """See the module."""

    def __init__(self, edge: Edge, window: Window, live: Live) -> None:
        self._edge = edge
        self._window = window
        self._live = live

    def add_routes(self, router: Router) -> None:
        """Add the endpoint."""
        router.add("GET", "/_matrix/client/v3/rooms/{room_id}/initialSync", self.get)

    async def get(self, request: Request) -> Response:
        """Return the room, with who of those in it is present, to who is in it, too."""
        caller = await self._edge.caller(request)
        room_id = request.path_params["room_id"]
        limit = request.query_int("limit", 20, maximum=MAX_LIMIT)
        await self._edge.members(caller, room_id)
        present = presence_in_room(self._window, self._live, caller.user_id, room_id)
        return json_response(await self._edge.read(load_room, caller, room_id, limit, present))

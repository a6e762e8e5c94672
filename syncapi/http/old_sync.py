"""`GET /rooms/{roomId}/initialSync`; `old_events` has the ones without a room."""

import orjson
from sqlalchemy import Connection

from servicekit.http import Request, Response, Router, json_response
from syncapi import access
from syncapi.auth import Caller
from syncapi.filters import EventFilter
from syncapi.http.edge import Edge
from syncapi.http.messages import Page, load_page
from syncapi.http.rendering import render_list
from syncapi.storage import accounts, members, state
from syncapi.sync.account_data import render_account_data


def load_room(connection: Connection, caller: Caller, room_id: str, limit: int) -> bytes:
    """Return a room's last messages, state and account data.

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
        accounts.load_room_account_data(connection, caller.user_id, room_id, 2**62),
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
    return b",".join(parts) + b"}"


def add_routes(router: Router, edge: Edge) -> None:
    """Add the endpoint."""

    async def room_initial_sync(request: Request) -> Response:
        caller = await edge.caller(request)
        limit = max(request.query_int("limit", 20, maximum=100), 1)
        return json_response(await edge.read(load_room, caller, request.path_params["room_id"], limit))

    router.add("GET", "/_matrix/client/v3/rooms/{room_id}/initialSync", room_initial_sync)

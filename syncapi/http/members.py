"""`GET /rooms/{roomId}/members` and `/joined_members`."""

import orjson
from sqlalchemy import Connection

from servicekit.errors import invalid_param
from servicekit.http import Request, Response, Router, json_response
from syncapi import access
from syncapi.auth import Caller
from syncapi.http.edge import Edge
from syncapi.http.rendering import render_list
from syncapi.storage import accounts, state
from syncapi.storage.sql import rows
from syncapi.storage.tables import MAX_POSITION
from syncapi.tokens import SyncToken, TopologicalToken, parse_token

MEMBERSHIPS = ("join", "invite", "knock", "leave", "ban")


def load_members(
    connection: Connection,
    caller: Caller,
    room_id: str,
    at: str | None,
    membership: str | None,
    not_membership: str | None,
) -> bytes:
    """Return the members as of a token, as of leaving, or now.

    Raises:
        MatrixError: M_FORBIDDEN; M_INVALID_PARAM.
    """
    allowed = access.find_access(connection, room_id, caller.user_id)
    when = allowed.at
    if at:
        position = _position(connection, room_id, at)
        when = position if when is None else min(when, position)
    found = state.load_all_members(connection, room_id, when)
    events = [
        event
        for event, kind in found
        if (membership is None or kind == membership) and (not_membership is None or kind != not_membership)
    ]
    return b'{"chunk":[' + render_list(connection, caller, events, allowed.past, {}) + b"]}"


def _position(connection: Connection, room_id: str, at: str) -> int:
    token = parse_token(at, "at")
    if isinstance(token, SyncToken):
        if token.output_sequence > accounts.load_position(connection)[1]:
            raise invalid_param("at is not a token of this server")
        return token.position
    assert isinstance(token, TopologicalToken)
    found = rows(
        connection,
        "SELECT max(position) FROM event WHERE room_id = ? AND placement = 1 AND depth < ?",
        (room_id, token.depth),
    )
    return found[0][0] or 0


def load_joined(connection: Connection, caller: Caller, room_id: str) -> bytes:
    """Return the joined members' names and avatars; for those who are joined themselves.

    Raises:
        MatrixError: M_FORBIDDEN.
    """
    allowed = access.find_access(connection, room_id, caller.user_id, peek=False)
    if not allowed.joined:
        raise access.no_access()
    joined = {}
    for user_id, body in state.load_joined_bodies(connection, room_id):
        content = orjson.loads(body + b"}")["content"]
        profile = {"display_name": content.get("displayname"), "avatar_url": content.get("avatar_url")}
        joined[user_id] = {key: value for key, value in profile.items() if isinstance(value, str)}
    return orjson.dumps({"joined": joined})


def load_joined_rooms(connection: Connection, caller: Caller) -> bytes:
    """Return the rooms that the caller is joined to."""
    found = rows(
        connection,
        f"SELECT room_id FROM user_room WHERE user_id = ? AND joined_until = {MAX_POSITION} ORDER BY room_id",
        (caller.user_id,),
    )
    return orjson.dumps({"joined_rooms": [room_id for (room_id,) in found]})


def add_routes(router: Router, edge: Edge) -> None:
    """Add the endpoints."""

    async def get_members(request: Request) -> Response:
        caller = await edge.caller(request)
        query = request.query
        for name in ("membership", "not_membership"):
            if name in query and query[name] not in MEMBERSHIPS:
                raise invalid_param(f"{name} is no membership")
        await edge.members(caller, request.path_params["room_id"])
        return json_response(
            await edge.read(
                load_members,
                caller,
                request.path_params["room_id"],
                query.get("at"),
                query.get("membership"),
                query.get("not_membership"),
            )
        )

    async def get_joined_members(request: Request) -> Response:
        caller = await edge.caller(request)
        await edge.members(caller, request.path_params["room_id"])
        return json_response(await edge.read(load_joined, caller, request.path_params["room_id"]))

    async def get_joined_rooms(request: Request) -> Response:
        caller = await edge.caller(request)
        return json_response(await edge.read(load_joined_rooms, caller))

    router.add("GET", "/_matrix/client/v3/rooms/{room_id}/members", get_members)
    router.add("GET", "/_matrix/client/v3/rooms/{room_id}/joined_members", get_joined_members)
    router.add("GET", "/_matrix/client/v3/joined_rooms", get_joined_rooms)

"""Aliases and profiles for other servers (server-server API, "Querying for information")."""

from collections.abc import Callable

from federation.http.authentication import Caller
from federation.http.endpoints import Endpoint
from federation.local_users import LocalUsers
from federation.rooms import Rooms
from matrixlib.identifiers import IdentifierError, parse_room_alias, parse_user_id, server_name_of
from servicekit.errors import invalid_param, missing_param, not_found
from servicekit.http import Request, Response, json_response

MAX_SERVERS = 200


class QueryRoutes:
    """See the module."""

    ENDPOINTS = (
        Endpoint("GET", "/_matrix/federation/v1/query/directory", "directory"),
        Endpoint("GET", "/_matrix/federation/v1/query/profile", "profile"),
    )

    def __init__(self, users: LocalUsers, rooms: Rooms, is_local: Callable[[str], bool]) -> None:
        self._users = users
        self._rooms = rooms
        self._is_local = is_local

    async def directory(self, request: Request, caller: Caller) -> Response:
        """GET /query/directory: the room behind one of our aliases."""
        alias = request.query.get("room_alias")
        if not alias:
            raise missing_param("room_alias is missing")
        try:
            parse_room_alias(alias)
        except IdentifierError:
            raise invalid_param("Not a room alias") from None
        room_id = await self._users.room_of_alias(alias) if self._is_local(server_name_of(alias)) else None
        if room_id is None:
            raise not_found("Room alias not found")
        servers = await self._rooms.servers(room_id)
        # Ours first: whoever asks us can join through us.
        ordered = sorted(servers, key=lambda name: (not self._is_local(name), name))
        return json_response({"room_id": room_id, "servers": ordered[:MAX_SERVERS]})

    async def profile(self, request: Request, caller: Caller) -> Response:
        """GET /query/profile: a user's profile, or one field of it."""
        user_id, field = request.query.get("user_id"), request.query.get("field")
        if not user_id:
            raise missing_param("user_id is missing")
        try:
            parse_user_id(user_id)
        except IdentifierError:
            raise invalid_param("Not a user id") from None
        profile = await self._users.profile(user_id) if self._is_local(server_name_of(user_id)) else None
        if profile is None:
            raise not_found("There is no such user")
        if field is None:
            return json_response(profile)
        return json_response({field: profile[field]} if field in profile else {})

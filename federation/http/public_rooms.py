"""Our directory for other servers (server-server API, "Published Room Directory"). Open only where the operator
says so: `room_directory.public_over_federation`.
"""

from typing import Any

from federation.http.authentication import Caller
from federation.http.endpoints import Endpoint
from federation.local_users import DirectoryQuery, LocalUsers
from servicekit.errors import bad_json, forbidden, invalid_param
from servicekit.http import Request, Response, json_response

MAX_LIMIT = 500
MAX_TEXT = 255
MAX_ROOM_TYPES = 50


class PublicRoomRoutes:
    """See the module.

    Args:
        is_open: whether other servers may ask at all.
    """

    ENDPOINTS = (
        Endpoint("GET", "/_matrix/federation/v1/publicRooms", "get_public_rooms"),
        Endpoint("POST", "/_matrix/federation/v1/publicRooms", "search_public_rooms"),
    )

    def __init__(self, users: LocalUsers, *, is_open: bool) -> None:
        self._users = users
        self._is_open = is_open

    async def get_public_rooms(self, request: Request, caller: Caller) -> Response:
        """GET /publicRooms."""
        asked: dict[str, Any] = {"limit": request.query_int("limit", 0, minimum=0)}
        for key in ("since", "third_party_instance_id"):
            if key in request.query:
                asked[key] = request.query[key]
        asked["include_all_networks"] = request.query_bool("include_all_networks")
        return await self._page(asked)

    async def search_public_rooms(self, request: Request, caller: Caller) -> Response:
        """POST /publicRooms."""
        return await self._page(caller.content)

    async def _page(self, asked: dict[str, Any]) -> Response:
        if not self._is_open:
            raise forbidden("This server does not list its rooms to others")
        query = read_query(asked)
        return json_response(await self._users.public_rooms(query))


def read_query(asked: dict[str, Any]) -> DirectoryQuery:
    """Read what is asked for, as in the body of `POST /publicRooms`. Raises MatrixError."""
    limit = asked.get("limit", 0)
    if type(limit) is not int:
        raise bad_json("limit must be an integer")
    if limit < 0:
        raise invalid_param("limit must not be negative")
    every = asked.get("include_all_networks", False)
    if not isinstance(every, bool):
        raise bad_json("include_all_networks must be a boolean")
    network = _text(asked, "third_party_instance_id")
    if every and network:
        raise invalid_param("third_party_instance_id goes without include_all_networks")
    chosen = asked.get("filter", {})
    if not isinstance(chosen, dict):
        raise bad_json("filter must be an object")
    # No bridge lists rooms of other networks here: of one of those there are none.
    types = () if network else _room_types(chosen.get("room_types"))
    return DirectoryQuery(
        min(limit, MAX_LIMIT), _text(asked, "since"), _text(chosen, "generic_search_term"), types
    )


def _text(asked: dict[str, Any], key: str) -> str:
    value = asked.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise bad_json(f"{key} must be a string")
    if len(value) > MAX_TEXT:
        raise invalid_param(f"{key} is too long")
    return value


def _room_types(value: Any) -> tuple[str | None, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(item is None or isinstance(item, str) for item in value):
        raise bad_json("room_types must be an array of strings and null")
    if len(value) > MAX_ROOM_TYPES:
        raise invalid_param("room_types is too long")
    return tuple(value)

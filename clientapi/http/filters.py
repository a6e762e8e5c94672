"""Filters (client-server API, "Filtering"). A filter never changes; its id is made of its content."""

import base64
import hashlib
from typing import Any

from clientapi.http.edge import Edge
from clientapi.storage import settings
from matrixlib.canonical_json import CanonicalJsonError, encode_canonical
from servicekit.database import Database
from servicekit.errors import MatrixError, bad_json, not_found, too_much
from servicekit.http import Request, Response, Router, json_response

MAX_FILTER_BYTES = 65_536
MAX_FILTERS = 1000
MAX_TOTAL_BYTES = 4 * 1024 * 1024

_LISTS_OF_STRINGS = {
    "types",
    "not_types",
    "senders",
    "not_senders",
    "rooms",
    "not_rooms",
    "event_fields",
    "related_by_senders",
    "related_by_rel_types",
}
_BOOLEANS = {
    "lazy_load_members",
    "include_redundant_members",
    "unread_thread_notifications",
    "contains_url",
    "include_leave",
}
_EVENT_FILTERS = ("presence", "account_data")
_ROOM_FILTERS = ("state", "timeline", "ephemeral", "account_data")


class FilterEndpoints:
    """`/user/{userId}/filter`."""

    def __init__(self, edge: Edge, db: Database) -> None:
        self._edge = edge
        self._db = db

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("POST", "/_matrix/client/v3/user/{user_id}/filter", self.store)
        router.add("GET", "/_matrix/client/v3/user/{user_id}/filter/{filter_id}", self.get)

    async def store(self, request: Request) -> Response:
        """Store a filter and say its id."""
        session = await self._edge.authenticate_setting_as(request)
        content = await request.json()
        check_filter(content)
        try:
            filter_json = encode_canonical(content)
        except CanonicalJsonError as error:
            raise bad_json(str(error)) from None
        if len(filter_json) > MAX_FILTER_BYTES:
            raise MatrixError("M_TOO_LARGE", 413, "The filter is too large")
        filter_id = filter_id_of(filter_json)
        if not await self._db.write(
            settings.store_filter, session.user_id, filter_id, filter_json, MAX_FILTERS, MAX_TOTAL_BYTES
        ):
            raise too_much(f"A user has at most {MAX_FILTERS} filters of {MAX_TOTAL_BYTES} bytes together")
        return json_response({"filter_id": filter_id})

    async def get(self, request: Request) -> Response:
        """Return a filter."""
        session = await self._edge.authenticate_as(request)
        filter_json = await self._db.read(
            settings.load_filter, session.user_id, request.path_params["filter_id"]
        )
        if filter_json is None:
            raise not_found("There is no such filter")
        return json_response(filter_json)


def filter_id_of(filter_json: bytes) -> str:
    """Return the id of a filter in canonical form: never begins with `{`, as the specification demands."""
    return base64.urlsafe_b64encode(hashlib.sha256(filter_json).digest()[:12]).decode()


def check_filter(content: dict[str, Any]) -> None:
    """Check the form of a filter. Raises MatrixError M_BAD_JSON; unknown keys pass."""
    _check_event_filter(content, "filter")
    event_format = content.get("event_format", "client")
    if event_format not in ("client", "federation"):
        raise bad_json("event_format must be client or federation")
    for name in _EVENT_FILTERS:
        _check_event_filter(content.get(name, {}), name)
    room = content.get("room", {})
    _check_event_filter(room, "room")
    for name in _ROOM_FILTERS:
        _check_event_filter(room.get(name, {}), f"room.{name}")


def _check_event_filter(value: Any, path: str) -> None:
    if not isinstance(value, dict):
        raise bad_json(f"{path} is not an object")
    for key, item in value.items():
        if key in _LISTS_OF_STRINGS:
            if not isinstance(item, list) or not all(isinstance(text, str) for text in item):
                raise bad_json(f"{path}.{key} is not a list of strings")
            if key in ("rooms", "not_rooms") and not all(text.startswith("!") for text in item):
                raise bad_json(f"{path}.{key} holds something else than room ids")
            if key in ("senders", "not_senders", "related_by_senders") and not all(
                text.startswith("@") for text in item
            ):
                raise bad_json(f"{path}.{key} holds something else than user ids")
        elif key in _BOOLEANS and not isinstance(item, bool):
            raise bad_json(f"{path}.{key} is not true or false")
        elif key == "limit" and (type(item) is not int or item < 0):
            raise bad_json(f"{path}.limit is not a whole number of at least 0")

"""Account data and tags (client-server API, "Client Config", "Room Tagging")."""

import math
from typing import Any

import orjson

from clientapi.accounts import push_rules
from clientapi.accounts.account_data import MAX_TYPE_BYTES, AccountDataStore
from clientapi.http.edge import EMPTY, Edge, check_room_id
from clientapi.storage import settings
from servicekit.errors import MatrixError, bad_json, invalid_param, not_found, too_much
from servicekit.http import Request, Response, Router, json_response

MAX_TAGS = 100

# Kept by endpoints of their own.
SERVER_MANAGED = ("m.fully_read", "m.push_rules")


class AccountDataEndpoints:
    """`/user/{userId}/account_data/…`, `/user/{userId}/rooms/{roomId}/account_data/…` and `…/tags`."""

    def __init__(self, edge: Edge, store: AccountDataStore) -> None:
        self._edge = edge
        self._store = store
        self._db = store.db

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        user = "/_matrix/client/v3/user/{user_id}"
        router.add("PUT", user + "/account_data/{type}", self.put_global)
        router.add("GET", user + "/account_data/{type}", self.get_global)
        room = user + "/rooms/{room_id}"
        router.add("PUT", room + "/account_data/{type}", self.put_in_room)
        router.add("GET", room + "/account_data/{type}", self.get_in_room)
        router.add("GET", room + "/tags", self.get_tags)
        router.add("PUT", room + "/tags/{tag}", self.put_tag)
        router.add("DELETE", room + "/tags/{tag}", self.delete_tag)

    async def put_global(self, request: Request) -> Response:
        """Set global account data."""
        return await self._put(request, "")

    async def put_in_room(self, request: Request) -> Response:
        """Set account data of a room."""
        return await self._put(request, check_room_id(request.path_params["room_id"]))

    async def _put(self, request: Request, room_id: str) -> Response:
        session = await self._edge.authenticate_setting_as(request)
        type_ = request.path_params["type"]
        if type_ in SERVER_MANAGED:
            raise MatrixError("M_BAD_JSON", 405, f"{type_} is set through an endpoint of its own")
        content = await request.json()
        await self._db.write(self._store.store, session.user_id, room_id, type_, orjson.dumps(content))
        return EMPTY

    async def get_global(self, request: Request) -> Response:
        """Return global account data."""
        return await self._get(request, "")

    async def get_in_room(self, request: Request) -> Response:
        """Return account data of a room."""
        return await self._get(request, check_room_id(request.path_params["room_id"]))

    async def _get(self, request: Request, room_id: str) -> Response:
        session = await self._edge.authenticate_as(request)
        type_ = request.path_params["type"]
        content_json = await self._db.read(settings.load_account_data, session.user_id, room_id, type_)
        if type_ == "m.push_rules" and not room_id:
            # There from the beginning, also where nobody changed them.
            ruleset = push_rules.load_ruleset(session.user_id, content_json)
            return json_response(push_rules.dump_ruleset(ruleset))
        if content_json is None:
            raise not_found("There is no such account data")
        return json_response(content_json)

    async def get_tags(self, request: Request) -> Response:
        """Return the tags of a room."""
        session = await self._edge.authenticate_as(request)
        room_id = check_room_id(request.path_params["room_id"])
        content_json = await self._db.read(settings.load_account_data, session.user_id, room_id, "m.tag")
        content = {} if content_json is None else orjson.loads(content_json)
        tags = content.get("tags")
        return json_response({"tags": tags if isinstance(tags, dict) else {}})

    async def put_tag(self, request: Request) -> Response:
        """Tag a room."""
        session = await self._edge.authenticate_setting_as(request)
        room_id = check_room_id(request.path_params["room_id"])
        tag = request.path_params["tag"]
        if len(tag.encode()) > MAX_TYPE_BYTES:
            raise invalid_param(f"A tag has at most {MAX_TYPE_BYTES} bytes")
        info = await request.json()
        order = info.get("order")
        if order is not None and (
            isinstance(order, bool) or not isinstance(order, int | float) or not math.isfinite(order)
        ):
            raise bad_json("order is not a number")

        def add(content: dict[str, Any]) -> dict[str, Any]:
            tags = _tags_of(content)
            if tag not in tags and len(tags) >= MAX_TAGS:
                raise too_much(f"A room has at most {MAX_TAGS} tags")
            return {**content, "tags": {**tags, tag: info}}

        await self._db.write(self._store.change, session.user_id, room_id, "m.tag", add)
        return EMPTY

    async def delete_tag(self, request: Request) -> Response:
        """Take a tag off a room."""
        session = await self._edge.authenticate_setting_as(request)
        room_id = check_room_id(request.path_params["room_id"])
        tag = request.path_params["tag"]

        def remove(content: dict[str, Any]) -> dict[str, Any]:
            tags = _tags_of(content)
            return {**content, "tags": {name: info for name, info in tags.items() if name != tag}}

        await self._db.write(self._store.change, session.user_id, room_id, "m.tag", remove)
        return EMPTY


def _tags_of(content: dict[str, Any]) -> dict[str, Any]:
    tags = content.get("tags")
    return tags if isinstance(tags, dict) else {}

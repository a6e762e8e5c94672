"""Aliases and the directory of public rooms."""

from typing import Any

import msgspec

from clientapi.clock import Clock
from clientapi.http.edge import EMPTY, Edge, check_alias, check_room_id, read_body, room_id_of
from clientapi.rooms.parts import Rooms
from clientapi.rooms.public_rooms import MAX_LIMIT
from clientapi.storage import directory
from matrixlib.identifiers import is_valid_server_name, server_name_of
from servicekit.errors import forbidden, invalid_param, not_found
from servicekit.http import Request, Response, Router, json_response


class AliasBody(msgspec.Struct):
    """`PUT /directory/room/{roomAlias}`."""

    room_id: str


class VisibilityBody(msgspec.Struct):
    """`PUT /directory/list/room/{roomId}`."""

    visibility: str = "public"


class SearchFilter(msgspec.Struct):
    """`filter` of `POST /publicRooms`."""

    generic_search_term: str | None = None
    room_types: list[str | None] | None = None


class PublicRoomsBody(msgspec.Struct):
    """`POST /publicRooms`."""

    limit: int | None = None
    since: str | None = None
    filter: SearchFilter | None = None
    include_all_networks: bool = False
    third_party_instance_id: str | None = None


class DirectoryEndpoints:
    """`/directory/room`, `/directory/list/room`, `/rooms/{roomId}/aliases`, `/publicRooms`."""

    def __init__(self, edge: Edge, rooms: Rooms, clock: Clock) -> None:
        self._edge = edge
        self._rooms = rooms
        self._clock = clock

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        alias = "/_matrix/client/v3/directory/room/{room_alias}"
        router.add("GET", alias, self.resolve)
        router.add("PUT", alias, self.make)
        router.add("DELETE", alias, self.delete)
        listed = "/_matrix/client/v3/directory/list/room/{room_id}"
        router.add("GET", listed, self.get_visibility)
        router.add("PUT", listed, self.put_visibility)
        router.add(
            "GET",
            "/_matrix/client/v3/rooms/{room_id}/aliases",
            self.list_aliases,
            aliases=["/_matrix/client/unstable/org.matrix.msc2432/rooms/{room_id}/aliases"],
        )
        router.add("GET", "/_matrix/client/v3/publicRooms", self.get_public_rooms)
        router.add("POST", "/_matrix/client/v3/publicRooms", self.search_public_rooms)

    async def resolve(self, request: Request) -> Response:
        """Say which room an alias points to."""
        alias = check_alias(request.path_params["room_alias"])
        if not self._edge.config.is_local(server_name_of(alias)):
            room_id, servers = await self._rooms.remote.resolve_alias(alias)
            return json_response({"room_id": room_id, "servers": servers})
        room_id = await self._rooms.aliases.resolve(alias)
        return json_response({"room_id": room_id, "servers": list(self._edge.config.server_names)})

    async def make(self, request: Request) -> Response:
        """Let an alias point to a room."""
        session = await self._edge.authenticate_writer(request)
        self._edge.settings.check(session.user_id)
        alias = check_alias(request.path_params["room_alias"])
        body = await read_body(request, AliasBody)
        room_id = check_room_id(body.room_id)
        await self._rooms.aliases.make(alias, room_id, session.user_id, admin=session.admin)
        return EMPTY

    async def delete(self, request: Request) -> Response:
        """Delete an alias."""
        session = await self._edge.authenticate_writer(request)
        self._edge.settings.check(session.user_id)
        alias = check_alias(request.path_params["room_alias"])
        await self._rooms.aliases.delete(alias, session.user_id, admin=session.admin)
        return EMPTY

    async def list_aliases(self, request: Request) -> Response:
        """List a room's local aliases."""
        session = await self._edge.authenticate(request)
        return json_response(
            {"aliases": await self._rooms.aliases.list_for(room_id_of(request), session.user_id)}
        )

    async def get_visibility(self, request: Request) -> Response:
        """Say whether a room stands in the directory."""
        room_id = room_id_of(request)
        published = await self._rooms.db.read(directory.is_published, room_id)
        if not published and await self._rooms.sender.queries.latest(room_id) is None:
            raise not_found("There is no such room here")
        return json_response({"visibility": "public" if published else "private"})

    async def put_visibility(self, request: Request) -> Response:
        """Put a room into the directory or take it out."""
        session = await self._edge.authenticate_writer(request)
        self._edge.settings.check(session.user_id)
        room_id = room_id_of(request)
        body = await read_body(request, VisibilityBody, allow_empty=True)
        if body.visibility not in ("public", "private"):
            raise invalid_param("visibility must be public or private")
        if not session.admin:
            await self._rooms.aliases.check_may_publish(room_id, session.user_id)
        if body.visibility == "public":
            rows = await self._rooms.db.read(directory.load_aliases, [], [room_id])
            names = [row.alias for row in rows]
            self._rooms.public_rooms.check_may_list(session.user_id, room_id, names)
            await self._rooms.db.write(directory.store_published, room_id, session.user_id, self._clock())
        else:
            await self._rooms.db.write(directory.delete_published, room_id)
        self._rooms.public_rooms.forget()
        return EMPTY

    async def get_public_rooms(self, request: Request) -> Response:
        """List public rooms."""
        if not self._edge.config.room_directory.public_without_auth:
            await self._edge.authenticate(request)
        limit = request.query_int("limit", 0) or None
        return await self._page(request, PublicRoomsBody(limit, request.query.get("since")))

    async def search_public_rooms(self, request: Request) -> Response:
        """List public rooms that fit a filter."""
        await self._edge.authenticate(request)
        body = await read_body(request, PublicRoomsBody, allow_empty=True)
        if body.limit is not None and body.limit < 0:
            raise invalid_param("limit must not be negative")
        if body.include_all_networks and body.third_party_instance_id is not None:
            raise invalid_param("third_party_instance_id goes without include_all_networks")
        return await self._page(request, body)

    async def _page(self, request: Request, body: PublicRoomsBody) -> Response:
        server = request.query.get("server")
        if server is not None and not self._edge.config.is_local(server):
            return await self._remote_page(request, server, body)
        wanted = body.filter or SearchFilter()
        # No bridge lists rooms of other networks here.
        room_types = wanted.room_types if body.third_party_instance_id is None else []
        page = await self._rooms.public_rooms.page(
            body.limit, body.since, wanted.generic_search_term, room_types
        )
        answer: dict[str, Any] = {"chunk": page.chunk, "total_room_count_estimate": page.total}
        if page.next_batch is not None:
            answer["next_batch"] = page.next_batch
        if page.prev_batch is not None:
            answer["prev_batch"] = page.prev_batch
        return json_response(answer)

    async def _remote_page(self, request: Request, server: str, body: PublicRoomsBody) -> Response:
        # Other servers are asked for people of ours only, also where our own list is open to all.
        await self._edge.authenticate(request)
        if not self._rooms.remote.enabled:
            raise forbidden("Other servers' rooms cannot be listed")
        if not is_valid_server_name(server):
            raise invalid_param("server is not a server name")
        wanted = body.filter or SearchFilter()
        search = {"generic_search_term": wanted.generic_search_term, "room_types": wanted.room_types}
        query: dict[str, Any] = {
            "limit": min(body.limit or MAX_LIMIT, MAX_LIMIT),
            "since": body.since,
            "filter": {key: value for key, value in search.items() if value is not None} or None,
            "include_all_networks": body.include_all_networks or None,
            "third_party_instance_id": body.third_party_instance_id,
        }
        asked = {key: value for key, value in query.items() if value is not None}
        return json_response(await self._rooms.remote.public_rooms(server, asked))

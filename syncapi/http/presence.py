"""`GET /presence/{userId}/status`: of whom one shares a room with."""

from typing import Any

from servicekit.errors import MatrixError
from servicekit.http import Request, Response, Router, json_response
from syncapi.http.edge import Edge
from syncapi.live import Live
from syncapi.storage.state import is_in_one_of
from syncapi.sync.presence import shares_room
from syncapi.window import Window


class PresenceStatus:
    """See the module."""

    def __init__(self, edge: Edge, window: Window, live: Live) -> None:
        self._edge = edge
        self._window = window
        self._live = live

    def add_routes(self, router: Router) -> None:
        """Add the endpoint."""
        router.add("GET", "/_matrix/client/v3/presence/{user_id}/status", self.get)

    async def get(self, request: Request) -> Response:
        """Return what is known; of who has told nothing, that they are offline."""
        caller = await self._edge.caller(request)
        user_id = request.path_params["user_id"]
        if user_id != caller.user_id and not await self._shares_room(caller.user_id, user_id):
            raise MatrixError("M_FORBIDDEN", 403, "You share no room with this user")
        told = self._live.presence.get(user_id)
        if told is None:
            return json_response({"presence": "offline"})
        content: dict[str, Any] = {"presence": told.presence, "currently_active": told.currently_active}
        if told.last_active_ms:
            content["last_active_ago"] = max(self._live.clock_ms() - told.last_active_ms, 0)
        if told.status_msg is not None:
            content["status_msg"] = told.status_msg
        return json_response(content)

    async def _shares_room(self, user_id: str, other: str) -> bool:
        if shares_room(self._window, self._live, user_id, other):
            return True
        view = self._window.users.get(user_id)
        # Of users of other servers who have told nothing yet memory does not know the rooms.
        return view is not None and await self._edge.read(is_in_one_of, list(view.joined), other)

"""Telling one's presence (client-server API, "Presence"). Who is told, syncapi and federation know."""

from collections import OrderedDict
from typing import Literal

import msgspec

from arbor.log.v1 import live_pb2
from clientapi.clock import Clock
from clientapi.http.edge import EMPTY, Edge, read_body
from clientapi.rooms.parts import Rooms
from servicekit.errors import invalid_param, unavailable
from servicekit.http import Request, Response, Router
from servicekit.log.errors import LogError
from servicekit.log.subjects import presence_subject

MAX_STATUS_CHARS = 500
# What is told again unchanged within this time is not told: clients repeat it with every request.
REPEAT_MS = 25_000
MAX_REMEMBERED = 50_000


class PresenceBody(msgspec.Struct):
    """`PUT /presence/{userId}/status`."""

    presence: Literal["online", "offline", "unavailable"]
    status_msg: str | None = None


class PresenceEndpoints:
    """`PUT /presence/{userId}/status`."""

    def __init__(self, edge: Edge, rooms: Rooms, clock: Clock) -> None:
        self._edge = edge
        self._rooms = rooms
        self._clock = clock
        # user -> (presence, status message, when it was told)
        self._told: OrderedDict[str, tuple[str, str | None, int]] = OrderedDict()

    def add_routes(self, router: Router) -> None:
        """Add the route."""
        router.add("PUT", "/_matrix/client/v3/presence/{user_id}/status", self.put)

    async def put(self, request: Request) -> Response:
        """Say how present one is. Where presence is off it is taken and not told."""
        session = await self._edge.authenticate_as(request)
        self._edge.ephemeral.check(session.user_id)
        body = await read_body(request, PresenceBody)
        if body.status_msg is not None and len(body.status_msg) > MAX_STATUS_CHARS:
            raise invalid_param(f"status_msg has at most {MAX_STATUS_CHARS} characters")
        if not self._edge.config.presence.enabled:
            return EMPTY
        now = self._clock()
        last = self._told.get(session.user_id)
        if last is not None and last[:2] == (body.presence, body.status_msg) and now - last[2] < REPEAT_MS:
            return EMPTY
        presence = live_pb2.Presence(
            user_id=session.user_id,
            presence=body.presence,
            status_msg=body.status_msg,
            last_active_ms=now,
            currently_active=body.presence == "online",
        )
        connection = self._rooms.sender.writer.connection
        try:
            await connection.publish(
                presence_subject(session.user_id, connection.partitions),
                live_pb2.LiveMessage(presence=presence).SerializeToString(),
                timeout_s=2.0,
            )
        except LogError as error:
            raise unavailable() from error
        self._told[session.user_id] = (body.presence, body.status_msg, now)
        self._told.move_to_end(session.user_id)
        if len(self._told) > MAX_REMEMBERED:
            self._told.popitem(last=False)
        return EMPTY

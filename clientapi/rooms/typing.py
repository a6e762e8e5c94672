"""Who of our users types where: told on LIVE, and taken back when the time is over or the user leaves the room.

Readers and other servers are told of the end like of the beginning: nobody has to keep the time of others.
"""

import asyncio
from typing import Final

from arbor.log.v1 import live_pb2
from clientapi.clock import Clock
from clientapi.rooms.send import RoomSender
from servicekit.errors import unavailable
from servicekit.log.errors import LogError
from servicekit.log.subjects import typing_subject
from servicekit.logging import get_logger

log = get_logger("clientapi.rooms")

PUBLISH_TIMEOUT_S: Final = 2.0


class Typing:
    """See the module."""

    def __init__(self, sender: RoomSender, clock: Clock) -> None:
        self._sender = sender
        self._clock = clock
        # (room, user) -> until when, in milliseconds since 1970
        self._until_ms: dict[tuple[str, str], int] = {}
        self._changed = asyncio.Event()
        sender.on_left = self._left

    async def begin(self, room_id: str, user_id: str, for_ms: int) -> None:
        """Tell that a user types, and take it back after a time. Raises MatrixError 503."""
        until_ms = self._clock() + for_ms
        await self._tell(room_id, user_id, until_ms)
        self._until_ms[room_id, user_id] = until_ms
        self._changed.set()

    async def end(self, room_id: str, user_id: str) -> None:
        """Tell that a user does not type. Raises MatrixError 503."""
        self._until_ms.pop((room_id, user_id), None)
        await self._tell(room_id, user_id, 0)

    def _left(self, room_id: str, user_id: str) -> None:
        if (room_id, user_id) in self._until_ms:
            self._until_ms[room_id, user_id] = 0
            self._changed.set()

    async def run(self) -> None:
        """Take back what is over, for ever."""
        while True:
            self._changed.clear()
            now_ms = self._clock()
            for key in [key for key, until_ms in self._until_ms.items() if until_ms <= now_ms]:
                del self._until_ms[key]
                try:
                    await self._publish(*key, 0)
                except LogError as error:
                    # True for a moment only, and readers keep the time, too.
                    log.info("typing_not_ended", room_id=key[0], error=str(error))
            next_ms = min(self._until_ms.values(), default=None)
            try:
                async with asyncio.timeout(None if next_ms is None else max(next_ms - now_ms, 0) / 1000):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _tell(self, room_id: str, user_id: str, until_ms: int) -> None:
        try:
            await self._publish(room_id, user_id, until_ms)
        except LogError as error:
            raise unavailable() from error

    async def _publish(self, room_id: str, user_id: str, until_ms: int) -> None:
        typing = live_pb2.Typing(room_id=room_id, user_id=user_id, typing=until_ms > 0, until_ms=until_ms)
        connection = self._sender.writer.connection
        await connection.publish(
            typing_subject(room_id, connection.partitions),
            live_pb2.LiveMessage(typing=typing).SerializeToString(),
            timeout_s=PUBLISH_TIMEOUT_S,
        )

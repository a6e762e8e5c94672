"""Rooms joined with partial state: who reads their members waits until those are here.

`/sync` shows such a room at once to a client that loads members lazily, and to others once it is whole.
"""

import asyncio

from servicekit.errors import unavailable
from syncapi.window import Window

WAIT_S = 20.0
LOOK_S = 0.05
RETRY_MS = 2000


class PartialRooms:
    """See the module."""

    def __init__(self, window: Window) -> None:
        self._window = window

    def is_partial(self, room_id: str) -> bool:
        """Whether a room's members are not all here yet."""
        return self._window.is_partial(room_id)

    async def wait(self, room_id: str, seconds: float) -> bool:
        """Wait until a room's members are here; False: not within the time."""
        try:
            async with asyncio.timeout(seconds):
                while self.is_partial(room_id):  # noqa: ASYNC110 - rare, and no hurry
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            return False
        return True

    async def require_whole(self, room_id: str) -> None:
        """Wait until a room's members are here.

        Raises:
            MatrixError: 503, it takes too long.
        """
        if not await self.wait(room_id, WAIT_S):
            raise unavailable("The room's members are not all known yet", RETRY_MS)

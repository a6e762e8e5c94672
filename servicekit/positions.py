"""Reads follow writes, inside one process: the OUTPUT positions of the verdicts that were told to its users.

The writer notes the position when a verdict comes; a reader in the same process waits until it has applied
it. What has no verdict (settings, receipts) is committed first and told on OUTPUT a moment later: there the reader
waits for that, too. Memory only: another edge knows nothing, which costs at most a read that is some milliseconds
old. A reader that starts notes the end of the log.
"""

import asyncio
from collections import OrderedDict

DEFAULT_CAPACITY = 100_000


class UserPositions:
    """The last OUTPUT stream sequence of all, and per user. Bounded: those not noted for longest are forgotten.

    Attributes:
        newest: the furthest of all.
    """

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        self._capacity = capacity
        self.newest = 0
        self._positions: OrderedDict[str, int] = OrderedDict()

    def note(self, user_id: str, position: int) -> None:
        """Remember that the user's own writes reach to `position`; an older one changes nothing."""
        self.newest = max(self.newest, position)
        self._positions[user_id] = max(self._positions.get(user_id, 0), position)
        self._positions.move_to_end(user_id)
        if len(self._positions) > self._capacity:
            self._positions.popitem(last=False)

    def note_told(self, position: int) -> None:
        """Remember that what was written here, by whomever, reaches to `position`."""
        self.newest = max(self.newest, position)

    def last(self, user_id: str) -> int:
        """Return how far the user's own writes reach; 0: none is known."""
        return self._positions.get(user_id, 0)


class Untold:
    """What is committed in this process and not told on OUTPUT yet. Only used on the event loop."""

    def __init__(self) -> None:
        self._expected = 0
        self._told = 0
        self._waiting: list[asyncio.Future[None]] = []
        # OUTPUT is away: nobody waits before it is back.
        self._stalled = False

    @property
    def mark(self) -> int:
        """A number for all that is committed by now."""
        return self._expected

    def expect(self) -> None:
        """Something was committed, or may have been."""
        self._expected += 1

    def told(self, mark: int) -> None:
        """All that had been committed at a mark is told."""
        self._told = max(self._told, mark)
        self._stalled = False
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self, timeout_s: float) -> None:
        """Wait until all is told that is committed by now, but not for long."""
        mark = self._expected
        if self._told >= mark or self._stalled:
            return
        try:
            async with asyncio.timeout(timeout_s):
                while self._told < mark and not self._stalled:
                    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._waiting.append(future)
                    await future
        except TimeoutError:
            self._stalled = True
            self._waiting.clear()


user_positions = UserPositions()
"""The one of this process."""

untold = Untold()
"""The one of this process."""

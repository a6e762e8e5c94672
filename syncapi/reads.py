"""Reads follow writes: a read waits until what was written through this process is applied here.

Not only what the same user wrote: a user who was told of another's write, by whatever way, expects to find it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection

from servicekit.database import Database
from servicekit.errors import unavailable
from servicekit.positions import Untold, UserPositions
from syncapi.storage.accounts import CatchingUp, check_caught_up

WAIT_S = 5.0
TOLD_S = 1.0
CATCH_UP_S = 10.0
P = ParamSpec("P")
R = TypeVar("R")
WaitFor = Callable[[int, float], Awaitable[bool]]


class ReadsFollowWrites:
    """Waits for the last write.

    Args:
        positions: of the verdicts that came to this process.
        untold: what this process committed and has to tell yet.
        wait_for: of the OUTPUT follower.
        position: says up to which sequence the memory has applied OUTPUT.
        flush: returns when the database has what the memory has.
    """

    def __init__(
        self,
        positions: UserPositions,
        untold: Untold,
        wait_for: WaitFor,
        position: Callable[[], int],
        flush: Callable[[], Awaitable[None]],
    ) -> None:
        self._positions = positions
        self._untold = untold
        self._wait_for = wait_for
        self._position = position
        self._flush = flush

    def last_write(self, user_id: str) -> int:
        """Return the sequence of the user's last write; 0: none known."""
        return self._positions.last(user_id)

    async def wait(self) -> None:
        """Wait, but not for ever: a read that is a little old is better than none."""
        await self._untold.wait(TOLD_S)
        wanted = self._positions.newest
        if wanted > self._position():
            await self._wait_for(wanted, WAIT_S)

    async def read(
        self,
        database: Database,
        work: Callable[Concatenate[Connection, P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run `work(connection, …)` in one snapshot that is not behind the memory, once nothing is missing after
        a rebuild.

        Raises:
            MatrixError: 503, it takes too long.
        """
        deadline_s = time.monotonic() + CATCH_UP_S
        await self._flush()
        while True:
            try:
                return await database.read(_caught_up, work, *args, **kwargs)
            except CatchingUp as behind:
                if time.monotonic() > deadline_s:
                    raise unavailable("The server is catching up") from behind
                await self._wait_for(behind.sequence, 1.0)
                # It may be another process that makes it up.
                await asyncio.sleep(0.02)

    async def wait_for_sequence(self, sequence: int, timeout_s: float) -> bool:
        """Wait for a sequence that a token names; False: it did not come."""
        return sequence <= self._position() or await self._wait_for(sequence, timeout_s)


def _caught_up(connection: Connection, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    check_caught_up(connection)
    return work(connection, *args, **kwargs)

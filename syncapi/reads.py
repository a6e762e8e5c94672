"""Reads follow writes: a read waits until what the same user wrote through this process is applied here."""

from collections.abc import Awaitable, Callable

from servicekit.positions import UserPositions

WAIT_S = 5.0
WaitFor = Callable[[int, float], Awaitable[bool]]


class ReadsFollowWrites:
    """Waits for a user's own last write.

    Args:
        positions: of the verdicts that came to this process.
        wait_for: of the OUTPUT follower.
        position: says up to which sequence the memory has applied OUTPUT.
    """

    def __init__(self, positions: UserPositions, wait_for: WaitFor, position: Callable[[], int]) -> None:
        self._positions = positions
        self._wait_for = wait_for
        self._position = position

    def last_write(self, user_id: str) -> int:
        """Return the sequence of the user's last write; 0: none known."""
        return self._positions.last(user_id)

    async def wait(self, user_id: str) -> None:
        """Wait, but not for ever: a read that is a little old is better than none."""
        wanted = self._positions.last(user_id)
        if wanted > self._position():
            await self._wait_for(wanted, WAIT_S)

    async def wait_for_sequence(self, sequence: int, timeout_s: float) -> bool:
        """Wait for a sequence that a token names; False: it did not come."""
        return sequence <= self._position() or await self._wait_for(sequence, timeout_s)

"""Reads follow writes, inside one process: the OUTPUT positions of the verdicts that were told to its users.

The writer notes the position when a verdict comes; a reader in the same process waits until it has applied
it. Memory only: a restart or another edge knows nothing, which costs at most a read that is some milliseconds
old.
"""

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

    def last(self, user_id: str) -> int:
        """Return how far the user's own writes reach; 0: none is known."""
        return self._positions.get(user_id, 0)


user_positions = UserPositions()
"""The one of this process."""

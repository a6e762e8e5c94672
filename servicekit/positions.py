"""Reads follow writes, inside one process: the OUTPUT position of each user's and each room's last verdict.

The writer notes the position when a verdict comes; a reader in the same process waits until it has applied
it. Memory only: a restart or another edge knows nothing, which costs at most a read that is some milliseconds
old.
"""

from collections import OrderedDict

DEFAULT_CAPACITY = 100_000


class UserPositions:
    """The last OUTPUT stream sequence per user, and per room. Bounded: those not noted for longest are forgotten."""

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        self._capacity = capacity
        self._positions: OrderedDict[str, int] = OrderedDict()

    def note(self, user_id: str, position: int, room_id: str = "") -> None:
        """Remember that the user's own writes reach to `position`, and what was written to the room; an older
        one changes nothing.
        """
        self._note(user_id, position)
        if room_id:
            self._note(room_id, position)

    def _note(self, id_: str, position: int) -> None:
        known = self._positions.get(id_, 0)
        self._positions[id_] = max(known, position)
        self._positions.move_to_end(id_)
        if len(self._positions) > self._capacity:
            self._positions.popitem(last=False)

    def last(self, id_: str) -> int:
        """Return the position to wait for before answering the user, or about the room; 0: nothing to wait
        for.
        """
        return self._positions.get(id_, 0)


user_positions = UserPositions()
"""The one of this process."""

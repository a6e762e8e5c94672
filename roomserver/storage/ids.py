"""Numbers for events, rooms, snapshots and state keys, reserved in blocks.

A block is reserved inside the transaction that uses it first: rolled back, it was never taken. Whoever keeps
an `Allocator` works on a copy and swaps it in after the commit, like everything else that is held in memory.
Several owners share the counters; a block keeps them apart.
"""

from sqlalchemy import Connection

from servicekit.database.raw import Sql

BLOCK = {"event": 5000, "room": 50, "snapshot": 2000, "key": 500}

_TAKE = Sql("UPDATE id_block SET next_id = next_id + ? WHERE name = ? RETURNING next_id")
_MAKE = Sql("INSERT INTO id_block (name, next_id) VALUES (?, 1) ON CONFLICT (name) DO NOTHING")


class Allocator:
    """What is left of the blocks reserved so far."""

    __slots__ = ("_left",)

    def __init__(self, left: dict[str, tuple[int, int]] | None = None) -> None:
        self._left = left or {}

    def copy(self) -> "Allocator":
        """Return a copy to work on."""
        return Allocator(dict(self._left))

    def take(self, conn: Connection, name: str, count: int = 1) -> int:
        """Return the first of `count` consecutive numbers that nobody else has."""
        first, end = self._left.get(name, (0, 0))
        if end - first < count:
            size = max(BLOCK[name], count)
            end = _reserve(conn, name, size)
            first = end - size
        self._left[name] = (first + count, end)
        return first


def _reserve(conn: Connection, name: str, count: int) -> int:
    row = _TAKE.row(conn, count, name)
    if row is None:
        _MAKE.change(conn, name)
        row = _TAKE.row(conn, count, name)
    return int(row[0])

"""Partition rows: who owns which partition until when, what was judged, and the last number told.

The row is the lease and the fence: each batch begins with an UPDATE that demands my epoch and the position
where I left it (architecture, rule 7).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from servicekit.database.raw import Sql

_COLUMNS = "id, owner, address, epoch, lease_until, input_epoch, input_position, output_no"
_LOAD = Sql(f"SELECT {_COLUMNS} FROM partition ORDER BY id")
_MAKE = Sql(
    f"INSERT INTO partition ({_COLUMNS}) VALUES (?, '', '', 0, 0, '', 0, 0) ON CONFLICT (id) DO NOTHING"
)
_CLAIM = Sql(
    "UPDATE partition SET owner = ?, address = ?, epoch = epoch + 1, lease_until = ?"
    " WHERE id = ? AND epoch = ? AND (lease_until < ? OR owner = ?)"
)
_RENEW = Sql("UPDATE partition SET lease_until = ? WHERE id = ? AND owner = ? AND epoch = ?")
_GIVE_UP = Sql(
    "UPDATE partition SET lease_until = 0, owner = '', address = '' WHERE id = ? AND owner = ? AND epoch = ?"
)
_ADVANCE = Sql(
    "UPDATE partition SET input_position = ?, input_epoch = ? WHERE id = ? AND epoch = ? AND"
    " input_position = ?"
)
_NUMBER = Sql("UPDATE partition SET output_no = ? WHERE id = ? AND epoch = ?")


@dataclass(slots=True)
class PartitionRow:
    """One row."""

    id: int
    owner: str
    address: str
    epoch: int
    lease_until: int
    input_epoch: str
    input_position: int
    output_no: int


def ensure_partitions(conn: Connection, count: int) -> None:
    """Make the rows that are missing."""
    known = {row.id for row in load_partitions(conn)}
    _MAKE.many(conn, [(number,) for number in range(count) if number not in known])


def load_partitions(conn: Connection) -> list[PartitionRow]:
    """Return all rows by id."""
    return [PartitionRow(*row) for row in _LOAD.rows(conn)]


def claim(conn: Connection, row: PartitionRow, owner: str, address: str, now_ms: int, until_ms: int) -> bool:
    """Take a partition that is free or expired (or ours from before); False: somebody else was faster."""
    return _CLAIM.change(conn, owner, address, until_ms, row.id, row.epoch, now_ms, owner) == 1


def renew(conn: Connection, owner: str, held: Iterable[tuple[int, int]], until_ms: int) -> list[int]:
    """Prolong leases, given as (partition, epoch); returns those that are lost."""
    return [number for number, epoch in held if _RENEW.change(conn, until_ms, number, owner, epoch) != 1]


def give_up(conn: Connection, owner: str, held: Iterable[tuple[int, int]]) -> None:
    """Free partitions for whoever wants them."""
    _GIVE_UP.many(conn, [(number, owner, epoch) for number, epoch in held])


def advance(
    conn: Connection, moves: Sequence[tuple[int, int, int]], input_epoch: str, position: int
) -> list[int]:
    """Move partitions, given as (partition, epoch, old position), to `position`; returns those lost."""
    parameters = [(position, input_epoch, number, epoch, old) for number, epoch, old in moves]
    if _ADVANCE.many(conn, parameters) == len(parameters):
        return []
    rows = {row.id: row for row in load_partitions(conn)}
    return [
        number
        for number, epoch, _ in moves
        if rows[number].epoch != epoch or rows[number].input_position != position
    ]


def store_output_numbers(conn: Connection, numbers: Iterable[tuple[int, int, int]]) -> None:
    """Store (partition, epoch, last output_no)."""
    _NUMBER.many(conn, [(output_no, number, epoch) for number, epoch, output_no in numbers])


_RESET = Sql("UPDATE partition SET input_position = ?, input_epoch = ? WHERE id = ? AND epoch = ?")
_META = Sql("SELECT value FROM meta WHERE name = ?")
_STORE_META = Sql(
    "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)


def reset_positions(
    conn: Connection, held: Iterable[tuple[int, int]], input_epoch: str, position: int
) -> None:
    """Begin anew on INPUT with partitions given as (partition, epoch)."""
    _RESET.many(conn, [(position, input_epoch, number, epoch) for number, epoch in held])


def load_meta(conn: Connection, name: str) -> str:
    """Return a remembered text; empty: none."""
    row = _META.row(conn, name)
    return str(row[0]) if row else ""


def store_meta(conn: Connection, name: str, value: str) -> None:
    """Remember a text."""
    _STORE_META.change(conn, name, value)


_MEMBERS = Sql("SELECT name, value FROM meta")
_FORGET = Sql("DELETE FROM meta WHERE name = ?")


def announce(conn: Connection, process: str, now_ms: int, until_ms: int) -> int:
    """Say that a process (a short name) shares in the partitions until then; returns how many processes do."""
    alive = {process}
    for name, value in _MEMBERS.rows(conn):
        if not name.startswith("process:"):
            continue
        if int(value) >= now_ms:
            alive.add(str(name).removeprefix("process:"))
        elif name != f"process:{process}":
            _FORGET.change(conn, name)
    store_meta(conn, f"process:{process}", str(until_ms))
    return len(alive)


def depart(conn: Connection, process: str) -> None:
    """A process takes no part any longer."""
    _FORGET.change(conn, f"process:{process}")

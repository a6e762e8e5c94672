"""Entries that could not be applied, and the rooms quarantined for them."""

from dataclasses import dataclass

from sqlalchemy import Connection

from servicekit.database.raw import Sql

_COLUMNS = "id, stream, epoch, sequence, entry_index, subject, about, data, error, traceback, created_ms"
_LIST = Sql(f"SELECT {_COLUMNS} FROM dead_letter ORDER BY id LIMIT 1000")
_LIST_OF = Sql(f"SELECT {_COLUMNS} FROM dead_letter WHERE about = ? ORDER BY id LIMIT 1000")
_DELETE = Sql("DELETE FROM dead_letter WHERE id IN ?")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One row."""

    id: int
    stream: str
    epoch: str
    sequence: int
    entry_index: int
    subject: str
    room_id: str
    data: bytes
    error: str
    trace: str
    created_ms: int


def load_dead_letters(conn: Connection, room_id: str = "") -> list[DeadLetter]:
    """Dead letters of a room, or all; oldest first."""
    rows = _LIST_OF.rows(conn, room_id) if room_id else _LIST.rows(conn)
    return [DeadLetter(*row) for row in rows]


def take(conn: Connection, room_id: str) -> list[DeadLetter]:
    """Remove a room's dead letters and return them."""
    letters = load_dead_letters(conn, room_id)
    if letters:
        _DELETE.change(conn, [letter.id for letter in letters])
    return letters

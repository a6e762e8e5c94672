"""What was told on OUTPUT, kept without what the events themselves can give back, for `Export`; the
outbox.
"""

from collections.abc import Iterable

from sqlalchemy import Connection

from servicekit.database.raw import Sql

_INSERT = Sql(
    "INSERT INTO output_message (partition, output_no, room_nid, sequence, skeleton) VALUES (?, ?,"
    " ?, NULL, ?)"
)
_PLACED = Sql("UPDATE output_message SET sequence = ? WHERE partition = ? AND output_no = ?")
_AFTER = Sql(
    "SELECT partition, output_no, room_nid, sequence, skeleton FROM output_message"
    " WHERE sequence > ? AND sequence <= ? ORDER BY sequence LIMIT ?"
)
_SEQUENCES = Sql("SELECT output_no, sequence FROM output_message WHERE partition = ? AND output_no IN ?")
_LAST = Sql("SELECT MAX(sequence) FROM output_message")
_OUTBOX = Sql(
    "INSERT INTO outbox (partition, output_no, epoch, subject, data, headers) VALUES (?, ?, ?, ?, ?, '')"
)
_OUTBOX_DELETE = Sql("DELETE FROM outbox WHERE partition = ? AND output_no <= ?")
_PROGRESS = Sql(
    "INSERT INTO outbox_progress (partition, last_no, published_no, sequence) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (partition) DO UPDATE SET published_no = excluded.published_no, sequence ="
    " excluded.sequence"
)
_OUTBOX_COUNT = Sql("SELECT COUNT(*) FROM outbox")

Told = tuple[int, int, int, str, bytes, bytes]
"""(partition, output_no, room number, subject, the message, its skeleton)."""


def store_outputs(conn: Connection, messages: Iterable[Told], epochs: dict[int, int]) -> None:
    """Store messages for `Export` and in the outbox."""
    messages = list(messages)
    _INSERT.many(conn, [(m[0], m[1], m[2], m[5]) for m in messages])
    _OUTBOX.many(conn, [(m[0], m[1], epochs[m[0]], m[3], m[4]) for m in messages])


def store_published(
    conn: Connection, placed: list[tuple[int, int, int]], through: Iterable[tuple[int, int, int]]
) -> None:
    """Store where messages stand, (sequence, partition, output_no), and empty the outbox through
    (partition, output_no, sequence)."""
    _PLACED.many(conn, placed)
    done = list(through)
    _OUTBOX_DELETE.many(conn, [(partition, output_no) for partition, output_no, _ in done])
    _PROGRESS.many(
        conn, [(partition, output_no, output_no, sequence) for partition, output_no, sequence in done]
    )


def load_outputs(
    conn: Connection, after: int, through: int, limit: int
) -> list[tuple[int, int, int, int, bytes]]:
    """(partition, output_no, room number, sequence, skeleton) in order of sequence."""
    return [tuple(row) for row in _AFTER.rows(conn, after, through, limit)]


def load_sequences(conn: Connection, partition: int, output_nos: list[int]) -> dict[int, int]:
    """output_no -> OUTPUT stream sequence, of those that are known."""
    return {row[0]: row[1] for row in _SEQUENCES.rows(conn, partition, output_nos) if row[1] is not None}


def load_last_sequence(conn: Connection) -> int:
    """The greatest OUTPUT sequence that is known; 0: none."""
    row = _LAST.row(conn)
    return int(row[0] or 0)


def count_outbox(conn: Connection) -> int:
    """How many messages the outbox holds."""
    return int(_OUTBOX_COUNT.row(conn)[0])

"""Receipts (primary)."""

from collections.abc import Sequence

from sqlalchemy import Connection

from syncapi.applied import ReceiptMoved
from syncapi.storage.sql import row, rows, rows_in, run

_COLUMNS = "room_id, position, user_id, receipt_type, event_id, thread_id, timestamp_ms"


def store_receipt(connection: Connection, moved: ReceiptMoved, event_position: int | None) -> bool:
    """Set a receipt, unless it would go backwards; returns whether it was set.

    Args:
        event_position: of the event read; None: the event is not known here.
    """
    key = (moved.room_id, moved.user_id, moved.receipt_type, moved.thread_id)
    old = row(
        connection,
        "SELECT r.position, e.position FROM receipt r LEFT JOIN event e ON e.event_id = r.event_id"
        " WHERE r.room_id = ? AND r.user_id = ? AND r.receipt_type = ? AND r.thread_id = ?",
        key,
    )
    if old is not None:
        if moved.position <= old[0]:
            return False  # applied before
        if event_position is not None and old[1] is not None and event_position < old[1]:
            return False
    run(
        connection,
        f"INSERT INTO receipt ({_COLUMNS}) VALUES (?,?,?,?,?,?,?)"
        " ON CONFLICT (room_id, user_id, receipt_type, thread_id) DO UPDATE SET position = excluded.position,"
        " event_id = excluded.event_id, timestamp_ms = excluded.timestamp_ms",
        tuple(moved),
    )
    return True


def load_receipts(
    connection: Connection, room_ids: Sequence[str], after: int, through: int
) -> dict[str, list[ReceiptMoved]]:
    """Return the receipts of rooms that moved within after < position <= through."""
    found: dict[str, list[ReceiptMoved]] = {}
    for values in rows_in(
        connection,
        f"SELECT {_COLUMNS} FROM receipt WHERE room_id IN ? AND position > ? AND position <= ?"
        " ORDER BY position",
        room_ids,
        after=(after, through),
    ):
        found.setdefault(values[0], []).append(ReceiptMoved(*values))
    return found


def load_all(connection: Connection) -> list[ReceiptMoved]:
    """Return every receipt, oldest first."""
    return [
        ReceiptMoved(*values)
        for values in rows(connection, f"SELECT {_COLUMNS} FROM receipt ORDER BY position")
    ]

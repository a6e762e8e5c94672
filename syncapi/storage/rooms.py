"""Rooms' rows."""

from collections.abc import Iterable

from sqlalchemy import Connection

from syncapi.applied import RoomCounters
from syncapi.storage.sql import row, rows, rows_in, run, run_many

_COLUMNS = ", ".join(RoomCounters._fields)
_PLACES = ",".join("?" for _ in RoomCounters._fields)


def load_room(connection: Connection, room_id: str) -> RoomCounters | None:
    """Return a room; None: unknown."""
    found = row(connection, f"SELECT {_COLUMNS} FROM room WHERE room_id = ?", (room_id,))
    return None if found is None else RoomCounters(*found)


def load_rooms(connection: Connection, room_ids: Iterable[str]) -> dict[str, RoomCounters]:
    """Return rooms by id."""
    return {
        found[0]: RoomCounters(*found)
        for found in rows_in(connection, f"SELECT {_COLUMNS} FROM room WHERE room_id IN ?", room_ids)
    }


def load_all_rooms(connection: Connection) -> list[RoomCounters]:
    """Return every room."""
    return [RoomCounters(*found) for found in rows(connection, f"SELECT {_COLUMNS} FROM room")]


def load_incomplete(connection: Connection, position: int) -> dict[str, int]:
    """Return the rooms whose members were not all known at a position -> where they came, as in the table."""
    return dict(
        rows(
            connection,
            "SELECT room_id, whole_since FROM room WHERE whole_since > 0 AND whole_since > ?",
            (position,),
        )
    )


def store_rooms(connection: Connection, values: Iterable[RoomCounters]) -> None:
    """Insert or replace rooms."""
    run_many(
        connection,
        f"INSERT INTO room ({_COLUMNS}) VALUES ({_PLACES}) ON CONFLICT (room_id) DO UPDATE SET "
        + ", ".join(f"{name} = excluded.{name}" for name in RoomCounters._fields[1:]),
        list(values),
    )


def purge_room(connection: Connection, room_id: str) -> None:
    """Delete everything about a room."""
    run(
        connection,
        "DELETE FROM event_member WHERE position IN (SELECT position FROM event WHERE room_id = ?)",
        (room_id,),
    )
    for table in (
        "relation",
        "event",
        "room_state",
        "user_room",
        "notification_exception",
        "thread_event",
        "receipt",
        "account_data",
        "room",
    ):
        run(connection, f"DELETE FROM {table} WHERE room_id = ?", (room_id,))

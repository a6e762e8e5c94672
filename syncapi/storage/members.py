"""Local users' rooms, and the events that notify them otherwise than their class."""

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection

from syncapi.applied import UserRoom
from syncapi.storage.sql import row, rows, run_many

_COLUMNS = ", ".join(UserRoom._fields)


def _user_room(values: Sequence[object]) -> UserRoom:
    made = UserRoom(*values)  # type: ignore[arg-type]
    return made._replace(forgotten=bool(made.forgotten))


def load_users_of_room(connection: Connection, room_id: str) -> list[UserRoom]:
    """Return the rows of all local users who have to do with a room."""
    return [
        _user_room(found)
        for found in rows(connection, f"SELECT {_COLUMNS} FROM user_room WHERE room_id = ?", (room_id,))
    ]


def load_rooms_of_user(connection: Connection, user_id: str) -> list[UserRoom]:
    """Return the rows of all rooms that a user has to do with."""
    return [
        _user_room(found)
        for found in rows(connection, f"SELECT {_COLUMNS} FROM user_room WHERE user_id = ?", (user_id,))
    ]


def load_user_room(connection: Connection, user_id: str, room_id: str) -> UserRoom | None:
    """Return a user's row of a room."""
    found = row(
        connection, f"SELECT {_COLUMNS} FROM user_room WHERE user_id = ? AND room_id = ?", (user_id, room_id)
    )
    return None if found is None else _user_room(found)


def load_all(connection: Connection) -> list[UserRoom]:
    """Return every row."""
    return [_user_room(found) for found in rows(connection, f"SELECT {_COLUMNS} FROM user_room")]


def store_user_rooms(connection: Connection, values: Iterable[UserRoom]) -> None:
    """Insert or replace rows."""
    run_many(
        connection,
        f"INSERT INTO user_room ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
        " ON CONFLICT (user_id, room_id) DO UPDATE SET "
        + ", ".join(f"{name} = excluded.{name}" for name in UserRoom._fields[2:]),
        list(values),
    )


def store_exceptions(connection: Connection, values: Sequence[tuple[str, str, int, int, int]]) -> None:
    """Insert (user, room, position, notify, highlight): how an event differs for a user from its class."""
    run_many(
        connection,
        "INSERT INTO notification_exception (user_id, room_id, position, notify, highlight)"
        " VALUES (?,?,?,?,?) ON CONFLICT DO NOTHING",
        values,
    )


def sum_exceptions(connection: Connection, user_id: str, room_id: str, after: int) -> tuple[int, int]:
    """Return the sums of a user's exceptions after a position."""
    found = row(
        connection,
        "SELECT coalesce(sum(notify), 0), coalesce(sum(highlight), 0) FROM notification_exception"
        " WHERE user_id = ? AND room_id = ? AND position > ?",
        (user_id, room_id, after),
    )
    return (0, 0) if found is None else (int(found[0]), int(found[1]))


def load_exceptions(connection: Connection, user_id: str) -> dict[tuple[str, int], tuple[int, int]]:
    """Return a user's exceptions: (room, position) -> (notify, highlight)."""
    return {
        (room_id, position): (notify, highlight)
        for room_id, position, notify, highlight in rows(
            connection,
            "SELECT room_id, position, notify, highlight FROM notification_exception WHERE user_id = ?",
            (user_id,),
        )
    }

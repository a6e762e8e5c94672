"""What users set: filters, account data, pushers, rooms forgotten."""

from collections.abc import Iterator

from sqlalchemy import Connection, delete, func, select

from clientapi.storage.tables import account_data, filters, forgotten_rooms, pushers
from clientapi.storage.upsert import insert_or_ignore, upsert
from servicekit.database.raw import Sql

_FORGOTTEN = Sql(f"SELECT 1 FROM {forgotten_rooms.name} WHERE user_id = ? AND room_id = ?")  # noqa: S608


def store_filter(
    conn: Connection, user_id: str, filter_id: str, filter_json: bytes, limit: int, limit_bytes: int
) -> bool:
    """Store a filter under an id made of its content; False if the user has too many."""
    if load_filter(conn, user_id, filter_id) is not None:
        return True
    count, size_bytes = conn.execute(
        select(func.count(), func.coalesce(func.sum(func.length(filters.c.filter_json)), 0)).where(
            filters.c.user_id == user_id
        )
    ).one()
    if count >= limit or size_bytes + len(filter_json) > limit_bytes:
        return False
    insert_or_ignore(conn, filters, {"user_id": user_id, "filter_id": filter_id, "filter_json": filter_json})
    return True


def load_filter(conn: Connection, user_id: str, filter_id: str) -> bytes | None:
    """Return a filter as JSON, or None."""
    return conn.execute(
        select(filters.c.filter_json).where(filters.c.user_id == user_id, filters.c.filter_id == filter_id)
    ).scalar()


def load_account_data(conn: Connection, user_id: str, room_id: str, type_: str) -> bytes | None:
    """Return account data as JSON, or None. An empty room id means global."""
    return conn.execute(
        select(account_data.c.content_json).where(
            account_data.c.user_id == user_id, account_data.c.room_id == room_id, account_data.c.type == type_
        )
    ).scalar()


def measure_account_data(conn: Connection, user_id: str) -> tuple[int, int]:
    """Return how many entries a user has, and how many bytes they are together."""
    row = conn.execute(
        select(func.count(), func.coalesce(func.sum(func.length(account_data.c.content_json)), 0)).where(
            account_data.c.user_id == user_id
        )
    ).one()
    return row[0], int(row[1])


def store_account_data(conn: Connection, user_id: str, room_id: str, type_: str, content_json: bytes) -> None:
    """Set account data."""
    upsert(
        conn,
        account_data,
        {"user_id": user_id, "room_id": room_id, "type": type_},
        {"content_json": content_json},
    )


def load_all_account_data(conn: Connection, user_id: str) -> list[tuple[str, str, bytes]]:
    """Return (room, type, JSON) of everything a user set; an empty room id means global."""
    rows = conn.execute(
        select(account_data.c.room_id, account_data.c.type, account_data.c.content_json)
        .where(account_data.c.user_id == user_id)
        .order_by(account_data.c.room_id, account_data.c.type)
    )
    return [(row.room_id, row.type, row.content_json) for row in rows]


def iterate_account_data(conn: Connection) -> Iterator[tuple[str, str, str, bytes]]:
    """Go over everybody's account data: (user, room, type, JSON), user by user."""
    rows = conn.execution_options(yield_per=1000).execute(
        select(
            account_data.c.user_id, account_data.c.room_id, account_data.c.type, account_data.c.content_json
        ).order_by(account_data.c.user_id, account_data.c.room_id, account_data.c.type)
    )
    for row in rows:
        yield row.user_id, row.room_id, row.type, row.content_json


def delete_settings(conn: Connection, user_id: str) -> list[tuple[str, str]]:
    """Delete a user's account data and filters; returns (room, type) of the account data."""
    gone = [(room_id, type_) for room_id, type_, _ in load_all_account_data(conn, user_id)]
    for table in (account_data, filters):
        conn.execute(delete(table).where(table.c.user_id == user_id))
    return gone


def store_forgotten(conn: Connection, user_id: str, room_id: str, now_ms: int) -> bool:
    """Note that a user forgot a room. True if it is new."""
    return insert_or_ignore(
        conn, forgotten_rooms, {"user_id": user_id, "room_id": room_id, "forgotten_ms": now_ms}
    )


def is_forgotten(conn: Connection, user_id: str, room_id: str) -> bool:
    """Say whether a user forgot a room."""
    return _FORGOTTEN.row(conn, user_id, room_id) is not None


def delete_forgotten(conn: Connection, user_id: str, room_id: str) -> None:
    """A user is back in a room."""
    conn.execute(
        delete(forgotten_rooms).where(
            forgotten_rooms.c.user_id == user_id, forgotten_rooms.c.room_id == room_id
        )
    )


def iterate_forgotten(conn: Connection) -> list[tuple[str, str]]:
    """Return (user, room) of everything forgotten."""
    rows = conn.execute(
        select(forgotten_rooms.c.user_id, forgotten_rooms.c.room_id).order_by(
            forgotten_rooms.c.user_id, forgotten_rooms.c.room_id
        )
    )
    return [(row.user_id, row.room_id) for row in rows]


def load_pushers(conn: Connection, user_id: str) -> list[bytes]:
    """Return the pushers of a user as JSON, oldest first."""
    return list(
        conn.execute(
            select(pushers.c.pusher_json)
            .where(pushers.c.user_id == user_id)
            .order_by(pushers.c.created_ms, pushers.c.app_id, pushers.c.pushkey)
        ).scalars()
    )


def store_pusher(
    conn: Connection,
    user_id: str,
    device_id: str,
    app_id: str,
    pushkey: str,
    pusher_json: bytes,
    now_ms: int,
    *,
    append: bool,
) -> None:
    """Set a pusher; without `append` other users lose the same app id and pushkey."""
    if not append:
        conn.execute(
            delete(pushers).where(
                pushers.c.app_id == app_id, pushers.c.pushkey == pushkey, pushers.c.user_id != user_id
            )
        )
    upsert(
        conn,
        pushers,
        {"user_id": user_id, "app_id": app_id, "pushkey": pushkey},
        {"pusher_json": pusher_json, "device_id": device_id, "created_ms": now_ms},
    )


def count_other_pushers(conn: Connection, user_id: str, app_id: str, pushkey: str) -> int:
    """Return how many pushers a user has beside this one."""
    this = (pushers.c.app_id == app_id) & (pushers.c.pushkey == pushkey)
    return conn.execute(
        select(func.count()).select_from(pushers).where(pushers.c.user_id == user_id, ~this)
    ).scalar_one()


def delete_pusher(conn: Connection, user_id: str, app_id: str, pushkey: str) -> None:
    """Remove a pusher."""
    conn.execute(
        delete(pushers).where(
            pushers.c.user_id == user_id, pushers.c.app_id == app_id, pushers.c.pushkey == pushkey
        )
    )


def delete_device_pushers(conn: Connection, user_id: str, device_ids: list[str] | None) -> None:
    """Remove what devices (None: all) set."""
    condition = pushers.c.user_id == user_id
    if device_ids is not None:
        condition = condition & pushers.c.device_id.in_(device_ids)
    conn.execute(delete(pushers).where(condition))

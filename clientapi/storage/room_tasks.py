"""What administrators have done about rooms: rooms that nobody may join, and tasks that take a while."""

from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson
from sqlalchemy import Connection, Row, delete, insert, select, update

from clientapi.storage.tables import blocked_rooms, room_tasks
from clientapi.storage.upsert import insert_or_ignore
from servicekit.database.raw import Sql

_BLOCKER = Sql(f"SELECT blocker FROM {blocked_rooms.name} WHERE room_id = ?")  # noqa: S608

Kind = Literal["purge_history", "delete_room"]
Status = Literal["active", "complete", "failed"]

# How long it can be asked what became of a task.
KEPT_MS: Final = 7 * 24 * 3600 * 1000
MAX_LISTED: Final = 100


@dataclass(frozen=True, slots=True)
class RoomTask:
    """A row of `room_tasks`."""

    task_id: str
    kind: Kind
    room_id: str
    request: dict[str, Any]
    result: dict[str, Any]
    status: Status
    error: str
    attempts: int


def is_blocked(conn: Connection, room_id: str) -> bool:
    """Say whether a room is blocked."""
    return load_blocker(conn, room_id) is not None


def load_blocked(conn: Connection, room_ids: list[str]) -> list[str]:
    """Return which of some rooms are blocked."""
    query = select(blocked_rooms.c.room_id).where(blocked_rooms.c.room_id.in_(room_ids))
    return list(conn.execute(query).scalars())


def load_blocker(conn: Connection, room_id: str) -> str | None:
    """Return who blocked a room; None: it is not blocked."""
    row = _BLOCKER.row(conn, room_id)
    return None if row is None else row[0]


def store_blocked(conn: Connection, room_id: str, blocker: str, now_ms: int) -> None:
    """Block a room."""
    insert_or_ignore(conn, blocked_rooms, {"room_id": room_id, "blocker": blocker, "blocked_ms": now_ms})


def delete_blocked(conn: Connection, room_id: str) -> None:
    """Block a room no longer."""
    conn.execute(delete(blocked_rooms).where(blocked_rooms.c.room_id == room_id))


def store_task(
    conn: Connection, task_id: str, kind: Kind, room_id: str, request: dict[str, Any], now_ms: int
) -> None:
    """Store a task that is to be done now; those that ended long ago are cleared away."""
    conn.execute(
        delete(room_tasks).where(room_tasks.c.status != "active", room_tasks.c.created_ms < now_ms - KEPT_MS)
    )
    conn.execute(
        insert(room_tasks).values(
            task_id=task_id,
            kind=kind,
            room_id=room_id,
            request_json=orjson.dumps(request),
            result_json=b"{}",
            status="active",
            error="",
            not_before_ms=now_ms,
            attempts=0,
            created_ms=now_ms,
        )
    )


def load_task(conn: Connection, task_id: str) -> RoomTask | None:
    """Return a task, or None."""
    row = conn.execute(select(room_tasks).where(room_tasks.c.task_id == task_id)).one_or_none()
    return None if row is None else _task(row)


def load_tasks_of(conn: Connection, room_id: str, kind: Kind) -> list[RoomTask]:
    """Return the latest tasks about a room, oldest first."""
    rows = conn.execute(
        select(room_tasks)
        .where(room_tasks.c.room_id == room_id, room_tasks.c.kind == kind)
        .order_by(room_tasks.c.created_ms.desc(), room_tasks.c.task_id)
        .limit(MAX_LISTED)
    )
    return [_task(row) for row in rows][::-1]


def claim_task(conn: Connection, now_ms: int, lease_ms: int) -> RoomTask | None:
    """Take the oldest task that is due, for `lease_ms`; None if there is none."""
    row = conn.execute(
        select(room_tasks)
        .where(room_tasks.c.status == "active", room_tasks.c.not_before_ms <= now_ms)
        .order_by(room_tasks.c.not_before_ms, room_tasks.c.task_id)
        .limit(1)
    ).one_or_none()
    if row is None:
        return None
    claimed = conn.execute(
        update(room_tasks)
        .where(room_tasks.c.task_id == row.task_id, room_tasks.c.not_before_ms == row.not_before_ms)
        .values(not_before_ms=now_ms + lease_ms, attempts=row.attempts + 1)
    )
    return _task(row, attempts=row.attempts + 1) if claimed.rowcount == 1 else None


def store_progress(
    conn: Connection, task_id: str, result: dict[str, Any], status: Status = "active", error: str = ""
) -> None:
    """Note what was done of a task, and whether that is all."""
    conn.execute(
        update(room_tasks)
        .where(room_tasks.c.task_id == task_id)
        .values(result_json=orjson.dumps(result), status=status, error=error)
    )


def postpone_task(conn: Connection, task_id: str, not_before_ms: int) -> None:
    """Try again later."""
    conn.execute(
        update(room_tasks).where(room_tasks.c.task_id == task_id).values(not_before_ms=not_before_ms)
    )


def _task(row: Row[Any], attempts: int | None = None) -> RoomTask:
    return RoomTask(
        task_id=row.task_id,
        kind=row.kind,
        room_id=row.room_id,
        request=orjson.loads(row.request_json),
        result=orjson.loads(row.result_json),
        status=row.status,
        error=row.error,
        attempts=row.attempts if attempts is None else attempts,
    )

"""Events that are awaited, and pulls that failed."""

from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import Connection, delete, insert, select, update

from federation.storage.tables import failed_pull, wanted_event


@dataclass(frozen=True, slots=True)
class Wanted:
    """An event that waits for others, and who sent it."""

    waiting_event_id: str
    room_id: str
    missing_event_ids: tuple[str, ...]
    origin: str
    attempts: int


def store_wanted(
    conn: Connection, waiting_event_id: str, room_id: str, missing: Sequence[str], origin: str, now_ms: int
) -> None:
    """Note that an event waits; told again, what it waits for is replaced."""
    table = wanted_event
    values = {"missing_json": orjson.dumps(list(missing)), "origin": origin}
    where = table.c.waiting_event_id == waiting_event_id
    if conn.execute(update(table).where(where).values(values)).rowcount == 0:
        conn.execute(
            insert(table).values(
                waiting_event_id=waiting_event_id,
                room_id=room_id,
                attempts=0,
                next_try_ms=0,
                cause="",
                created_ms=now_ms,
                **values,
            )
        )


def load_due(
    conn: Connection,
    now_ms: int,
    limit: int,
    *,
    without_rooms: Sequence[str] = (),
    without_origins: Sequence[str] = (),
) -> list[Wanted]:
    """What is to be fetched now, oldest first, some rooms and some servers left out."""
    table = wanted_event
    rows = conn.execute(
        select(table)
        .where(
            table.c.next_try_ms <= now_ms,
            table.c.room_id.not_in(without_rooms),
            table.c.origin.not_in(without_origins),
        )
        .order_by(table.c.next_try_ms, table.c.created_ms)
        .limit(limit)
    )
    return [
        Wanted(
            row.waiting_event_id,
            row.room_id,
            tuple(orjson.loads(row.missing_json)),
            row.origin,
            row.attempts,
        )
        for row in rows
    ]


def next_due_ms(conn: Connection) -> int | None:
    """When the next fetch is due; None: nothing is wanted."""
    table = wanted_event
    return conn.execute(
        select(table.c.next_try_ms).order_by(table.c.next_try_ms).limit(1)
    ).scalar_one_or_none()


def note_attempt(
    conn: Connection, waiting_event_id: str, attempts: int, next_try_ms: int, cause: str
) -> None:
    """Note a try that did not help, or at least not yet."""
    table = wanted_event
    conn.execute(
        update(table)
        .where(table.c.waiting_event_id == waiting_event_id)
        .values(attempts=attempts, next_try_ms=next_try_ms, cause=cause[:500])
    )


def is_anything_wanted(conn: Connection) -> bool:
    """Whether any event waits."""
    return conn.execute(select(wanted_event.c.waiting_event_id).limit(1)).first() is not None


def forget_wanted(conn: Connection, waiting_event_id: str) -> None:
    """The event waits no more."""
    conn.execute(delete(wanted_event).where(wanted_event.c.waiting_event_id == waiting_event_id))


def forget_room(conn: Connection, room_id: str) -> None:
    """Nothing of a room is wanted any more."""
    conn.execute(delete(wanted_event).where(wanted_event.c.room_id == room_id))


def load_pull(conn: Connection, subject: str) -> tuple[int, int]:
    """(failures in a row, not before: milliseconds since 1970) of a pull; (0, 0): none."""
    table = failed_pull
    row = conn.execute(
        select(table.c.attempts, table.c.next_try_ms).where(table.c.subject == subject)
    ).first()
    return (0, 0) if row is None else (row.attempts, row.next_try_ms)


def note_pull_failed(conn: Connection, subject: str, attempts: int, next_try_ms: int, cause: str) -> None:
    """Note a pull that failed."""
    table = failed_pull
    values = {"attempts": attempts, "next_try_ms": next_try_ms, "cause": cause[:500]}
    if conn.execute(update(table).where(table.c.subject == subject).values(values)).rowcount == 0:
        conn.execute(insert(table).values(subject=subject, **values))


def forget_pull(conn: Connection, subject: str) -> None:
    """The pull came through."""
    conn.execute(delete(failed_pull).where(failed_pull.c.subject == subject))


def forget_pulls_before(conn: Connection, before_ms: int) -> None:
    """Drop failures of long ago."""
    conn.execute(delete(failed_pull).where(failed_pull.c.next_try_ms < before_ms))

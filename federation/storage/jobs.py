"""Joins in progress."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from federation.storage.tables import join_job

SENT = "sent"
IMPORTING = "importing"
COMPLETING = "completing"
DONE = "done"
FAILED = "failed"


@dataclass(frozen=True, slots=True)
class JoinJob:
    """A join on its way to a resident server. `answer_json` is send_join's answer; None: it is not here, or no longer.

    `attempts` and `next_try_ms` are of the tries to complete it, once it was imported with partial state.
    """

    job_id: str
    user_id: str
    room_id: str
    room_version: str
    resident: str
    join_event_json: bytes
    answer_json: bytes | None
    attempts: int = 0
    next_try_ms: int = 0


@dataclass(frozen=True, slots=True)
class JobSummary:
    """A join, as operators see it."""

    user_id: str
    room_id: str
    resident: str
    state: str
    created_ms: int
    error: str
    attempts: int
    next_try_ms: int


def store_job(conn: Connection, job: JoinJob, now_ms: int) -> None:
    """Keep a join before it is sent, until it is done."""
    conn.execute(
        insert(join_job).values(
            job_id=job.job_id,
            user_id=job.user_id,
            room_id=job.room_id,
            room_version=job.room_version,
            resident=job.resident,
            join_event_json=job.join_event_json,
            answer_json=job.answer_json,
            state=SENT if job.answer_json is None else IMPORTING,
            created_ms=now_ms,
        )
    )


def store_answer(conn: Connection, job_id: str, answer_json: bytes) -> None:
    """Keep what the resident answered, until it is imported."""
    conn.execute(
        update(join_job).where(join_job.c.job_id == job_id).values(state=IMPORTING, answer_json=answer_json)
    )


def begin_completing(conn: Connection, job_id: str) -> None:
    """The join is imported with partial state: what is left is to complete that. The large answer goes."""
    conn.execute(
        update(join_job)
        .where(join_job.c.job_id == job_id)
        .values(state=COMPLETING, partial=True, answer_json=None)
    )


def load_completing(conn: Connection) -> list[JoinJob]:
    """Joins with partial state that is not complete yet."""
    table = join_job
    rows = conn.execute(select(table).where(table.c.state == COMPLETING).order_by(table.c.created_ms))
    return [_job(row) for row in rows]


def note_failed_try(conn: Connection, job_id: str, attempts: int, next_try_ms: int, cause: str) -> None:
    """Note a try to complete a join that came to nothing."""
    conn.execute(
        update(join_job)
        .where(join_job.c.job_id == job_id)
        .values(attempts=attempts, next_try_ms=next_try_ms, error=cause[:1000])
    )


def load_unfinished(conn: Connection) -> list[JoinJob]:
    """Joins that are not done yet; of one user and room, the one that got furthest first."""
    table = join_job
    rows = conn.execute(
        select(table)
        .where(table.c.state.in_((SENT, IMPORTING)))
        .order_by(table.c.answer_json.is_(None), table.c.created_ms)
    )
    return [_job(row) for row in rows]


def load_unfinished_of(conn: Connection, user_id: str, room_id: str) -> JoinJob | None:
    """A user's join of a room that is not done yet."""
    table = join_job
    row = conn.execute(
        select(table)
        .where(
            table.c.user_id == user_id,
            table.c.room_id == room_id,
            table.c.state.in_((SENT, IMPORTING)),
        )
        .order_by(table.c.created_ms.desc())
        .limit(1)
    ).first()
    return _job(row) if row is not None else None


def _job(row: Row[Any]) -> JoinJob:
    return JoinJob(
        row.job_id,
        row.user_id,
        row.room_id,
        row.room_version,
        row.resident,
        bytes(row.join_event_json),
        bytes(row.answer_json) if row.answer_json is not None else None,
        row.attempts,
        row.next_try_ms,
    )


def load_summaries(conn: Connection, limit: int) -> list[JobSummary]:
    """Joins that are not done yet, then the others, newest first."""
    table = join_job
    rows = conn.execute(
        select(
            table.c.user_id,
            table.c.room_id,
            table.c.resident,
            table.c.state,
            table.c.created_ms,
            table.c.error,
            table.c.attempts,
            table.c.next_try_ms,
        )
        .order_by(table.c.state.in_((DONE, FAILED)), table.c.created_ms.desc())
        .limit(limit)
    )
    return [JobSummary(*row) for row in rows]


def finish_job(conn: Connection, job_id: str, error: str = "") -> None:
    """Note how a join ended, and drop the large answer."""
    conn.execute(
        update(join_job)
        .where(join_job.c.job_id == job_id)
        .values(state=FAILED if error else DONE, error=error[:1000], answer_json=None)
    )


def forget_jobs(conn: Connection, before_ms: int) -> None:
    """Drop joins that ended long ago."""
    table = join_job
    conn.execute(delete(table).where(table.c.created_ms < before_ms, table.c.state.in_((DONE, FAILED))))

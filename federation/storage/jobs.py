"""Joins in progress."""

from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from federation.storage.tables import join_job

SENT = "sent"
IMPORTING = "importing"
DONE = "done"
FAILED = "failed"


@dataclass(frozen=True, slots=True)
class JoinJob:
    """A join whose event a resident server took. `answer_json` is send_join's answer."""

    job_id: str
    user_id: str
    room_id: str
    room_version: str
    resident: str
    join_event_json: bytes
    answer_json: bytes


def store_job(conn: Connection, job: JoinJob, now_ms: int) -> None:
    """Keep a join whose event was taken and whose answer is here, until it is imported."""
    conn.execute(
        insert(join_job).values(
            job_id=job.job_id,
            user_id=job.user_id,
            room_id=job.room_id,
            room_version=job.room_version,
            resident=job.resident,
            join_event_json=job.join_event_json,
            answer_json=job.answer_json,
            state=IMPORTING,
            created_ms=now_ms,
        )
    )


def load_unfinished(conn: Connection) -> list[JoinJob]:
    """Joins that were not imported yet, oldest first."""
    table = join_job
    rows = conn.execute(
        select(table)
        .where(table.c.state == IMPORTING, table.c.answer_json.is_not(None))
        .order_by(table.c.created_ms)
    )
    return [
        JoinJob(
            row.job_id,
            row.user_id,
            row.room_id,
            row.room_version,
            row.resident,
            bytes(row.join_event_json),
            bytes(row.answer_json),
        )
        for row in rows
    ]


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

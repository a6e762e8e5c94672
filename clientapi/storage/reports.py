"""Reports of events, rooms and users."""

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select

from clientapi.storage.tables import reports

Kind = Literal["event", "room", "user"]


@dataclass(frozen=True, slots=True)
class Report:
    """A row of `reports`."""

    report_id: str
    created_ms: int
    reporter: str
    room_id: str
    event_id: str
    user_id: str
    reason: str
    score: int | None


def store_report(conn: Connection, report: Report) -> None:
    """Store a report."""
    conn.execute(
        insert(reports).values(
            report_id=report.report_id,
            created_ms=report.created_ms,
            reporter=report.reporter,
            room_id=report.room_id,
            event_id=report.event_id,
            user_id=report.user_id,
            reason=report.reason,
            score=report.score,
        )
    )


def load_reports(
    conn: Connection,
    kind: Kind,
    *,
    reporter: str | None,
    about: str | None,
    backwards: bool,
    start: int,
    limit: int,
) -> tuple[list[Report], int]:
    """Return a page of the reports of a kind by time, and how many there are in all.

    Args:
        reporter: only those of users whose id holds this.
        about: only those of rooms, or of users, whose id holds this.
    """
    wanted = _is_of(kind)
    if reporter is not None:
        wanted &= reports.c.reporter.icontains(reporter, autoescape=True)
    if about is not None:
        column = reports.c.user_id if kind == "user" else reports.c.room_id
        wanted &= column.icontains(about, autoescape=True)
    total = conn.execute(select(func.count()).select_from(reports).where(wanted)).scalar_one()
    order = reports.c.created_ms.desc() if backwards else reports.c.created_ms.asc()
    rows = conn.execute(
        select(reports).where(wanted).order_by(order, reports.c.report_id).offset(start).limit(limit)
    )
    return [Report(**row._mapping) for row in rows], total


def load_report(conn: Connection, kind: Kind, report_id: str) -> Report | None:
    """Return a report of that kind, or None."""
    row: Any = conn.execute(
        select(reports).where(_is_of(kind), reports.c.report_id == report_id)
    ).one_or_none()
    return None if row is None else Report(**row._mapping)


def delete_report(conn: Connection, kind: Kind, report_id: str) -> bool:
    """Delete a report; False if there is none."""
    return conn.execute(delete(reports).where(_is_of(kind), reports.c.report_id == report_id)).rowcount == 1


def count_reports_by(conn: Connection, reporter: str) -> int:
    """Return how many reports of a user are kept."""
    return conn.execute(
        select(func.count()).select_from(reports).where(reports.c.reporter == reporter)
    ).scalar_one()


def _is_of(kind: Kind) -> ColumnElement[bool]:
    if kind == "user":
        return reports.c.user_id != ""
    if kind == "event":
        return reports.c.event_id != ""
    return (reports.c.event_id == "") & (reports.c.user_id == "")

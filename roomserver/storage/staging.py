"""Imports: a room's state and auth chain, staged in parts until an INPUT entry commits them."""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection

from servicekit.database.raw import Sql

_JOB = Sql("SELECT import_id, room_id, room_version, last_part, events FROM import_job WHERE import_id = ?")
_STORE_JOB = Sql(
    "INSERT INTO import_job (import_id, room_id, room_version, last_part, events, created_ms) VALUES"
    " (?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (import_id) DO UPDATE SET last_part = excluded.last_part, events = excluded.events"
)
_STORE = Sql(
    "INSERT INTO import_event (import_id, event_id, is_state, pdu) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (import_id, event_id) DO NOTHING"
)
_STORE_STATE = Sql(
    "INSERT INTO import_event (import_id, event_id, is_state, pdu) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (import_id, event_id) DO UPDATE SET is_state = excluded.is_state"
)
_COUNT = Sql("SELECT COUNT(*) FROM import_event WHERE import_id = ?")
_PAGE = Sql(
    "SELECT event_id, is_state, pdu FROM import_event WHERE import_id = ? AND event_id > ? ORDER BY"
    " event_id LIMIT ?"
)
_SOME = Sql("SELECT event_id, pdu FROM import_event WHERE import_id = ? AND event_id IN ?")
_DELETE_EVENTS = Sql("DELETE FROM import_event WHERE import_id = ?")
_DELETE_JOB = Sql("DELETE FROM import_job WHERE import_id = ?")

PAGE = 500


@dataclass(frozen=True, slots=True)
class ImportJob:
    """What is staged under an import id."""

    import_id: str
    room_id: str
    room_version: str
    last_part: int
    events: int


def load_job(conn: Connection, import_id: str) -> ImportJob | None:
    """Return an import, if there is one."""
    row = _JOB.row(conn, import_id)
    return ImportJob(*row) if row else None


def store_part(
    conn: Connection,
    import_id: str,
    room_id: str,
    room_version: str,
    part: int,
    state: Iterable[tuple[str, bytes]],
    auth_chain: Iterable[tuple[str, bytes]],
    now_ms: int,
) -> ImportJob:
    """Stage a part; one that is staged already changes nothing."""
    job = load_job(conn, import_id)
    if job is not None and part <= job.last_part:
        return job
    _STORE.many(conn, [(import_id, event_id, False, pdu) for event_id, pdu in auth_chain])
    _STORE_STATE.many(conn, [(import_id, event_id, True, pdu) for event_id, pdu in state])
    count = int(_COUNT.row(conn, import_id)[0])
    _STORE_JOB.change(conn, import_id, room_id, room_version, part, count, now_ms)
    return ImportJob(import_id, room_id, room_version, part, count)


def load_page(conn: Connection, import_id: str, after: str) -> list[tuple[str, bool, bytes]]:
    """(event id, is part of the state, body) of the next events by id."""
    return [(row[0], bool(row[1]), row[2]) for row in _PAGE.rows(conn, import_id, after, PAGE)]


def load_some(conn: Connection, import_id: str, event_ids: list[str]) -> dict[str, bytes]:
    """event id -> body."""
    return {row[0]: row[1] for row in _SOME.rows(conn, import_id, event_ids)}


def delete_import(conn: Connection, import_id: str) -> None:
    """The import is done, or given up."""
    _DELETE_EVENTS.change(conn, import_id)
    _DELETE_JOB.change(conn, import_id)

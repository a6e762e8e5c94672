"""Imports: what has come of a room's state and auth chain, until an INPUT entry commits it.

    import_job      the import, and the number of its room, which `room` may not have yet
    import_page     entries of the state, whose events are stored as outliers
    import_event    events that came before one of their auth events, as they came

Imports of one room share its number, so that each finds the events that another has brought. Whoever reads a job to
change something locks the jobs of its room (`lock_jobs`); the collector deletes none that is locked.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import Connection

from roomserver.storage.packing import pack_ids, unpack_ids
from servicekit.database.raw import Sql

_COLUMNS = "import_id, room_id, room_version, room_nid, last_part, events"
_JOB = Sql(f"SELECT {_COLUMNS} FROM import_job WHERE import_id = ?")
_LOCK = Sql(f"UPDATE import_job SET created_ms = ? WHERE room_id = ? RETURNING {_COLUMNS}")
_STORE_JOB = Sql(
    f"INSERT INTO import_job ({_COLUMNS}, created_ms) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (import_id) DO UPDATE"
    " SET room_nid = excluded.room_nid, last_part = excluded.last_part, events = excluded.events"
)
_COUNT_PAGES = Sql("SELECT COUNT(*) FROM import_page WHERE import_id = ?")
_STORE_PAGE = Sql("INSERT INTO import_page (import_id, page, state) VALUES (?, ?, ?)")
_PAGES = Sql("SELECT state FROM import_page WHERE import_id = ? ORDER BY page")
_STORE_ASIDE = Sql(
    "INSERT INTO import_event (import_id, event_id, is_state, pdu) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (import_id, event_id) DO UPDATE SET is_state = import_event.is_state OR excluded.is_state"
)
_ASIDE = Sql(
    "SELECT event_id, is_state, pdu FROM import_event WHERE import_id = ? AND event_id > ? ORDER BY event_id LIMIT ?"
)
_SOME_ASIDE = Sql("SELECT event_id, is_state, pdu FROM import_event WHERE import_id = ? AND event_id IN ?")
_DELETE_SOME_ASIDE = Sql("DELETE FROM import_event WHERE import_id = ? AND event_id IN ?")
_OF_IMPORT = [
    Sql("DELETE FROM import_event WHERE import_id = ?"),
    Sql("DELETE FROM import_page WHERE import_id = ?"),
    Sql("DELETE FROM import_job WHERE import_id = ?"),
]

PAGE = 500


@dataclass(slots=True)
class ImportJob:
    """What has come under an import id."""

    import_id: str
    room_id: str
    room_version: str
    room_nid: int
    last_part: int
    events: int


class StateEntry(NamedTuple):
    """An entry of an import's state."""

    key_id: int
    nid: int
    membership: int


class AsideEvent(NamedTuple):
    """An event that came before one of its auth events."""

    event_id: str
    is_state: bool
    pdu: bytes


def load_job(conn: Connection, import_id: str) -> ImportJob | None:
    """Return an import, if there is one."""
    row = _JOB.row(conn, import_id)
    return ImportJob(*row) if row else None


def lock_jobs(conn: Connection, room_id: str, now_ms: int) -> dict[str, ImportJob]:
    """Return the imports of a room by id, locked until the transaction ends."""
    return {row[0]: ImportJob(*row) for row in _LOCK.rows(conn, now_ms, room_id)}


def store_job(conn: Connection, job: ImportJob, now_ms: int) -> None:
    """Write an import's row."""
    _STORE_JOB.change(
        conn,
        job.import_id,
        job.room_id,
        job.room_version,
        job.room_nid,
        job.last_part,
        job.events,
        now_ms,
    )


def store_page(conn: Connection, import_id: str, state: Sequence[StateEntry]) -> None:
    """Add entries to an import's state; of several under one key the last one stands."""
    if state:
        page = int(_COUNT_PAGES.row(conn, import_id)[0]) + 1
        _STORE_PAGE.change(conn, import_id, page, pack_ids([number for entry in state for number in entry]))


def load_state(conn: Connection, import_id: str) -> dict[int, StateEntry]:
    """key number -> entry, of the state that an import has so far."""
    state: dict[int, StateEntry] = {}
    for (blob,) in _PAGES.rows(conn, import_id):
        numbers = unpack_ids(blob)
        entries = map(StateEntry, numbers[::3], numbers[1::3], numbers[2::3])
        state.update((entry.key_id, entry) for entry in entries)
    return state


def set_aside(conn: Connection, import_id: str, events: Iterable[AsideEvent]) -> None:
    """Keep events until what they need is here."""
    _STORE_ASIDE.many(conn, [(import_id, event.event_id, event.is_state, event.pdu) for event in events])


def load_aside(conn: Connection, import_id: str, after: str) -> list[AsideEvent]:
    """The next events that are set aside, by id."""
    return [AsideEvent(row[0], bool(row[1]), row[2]) for row in _ASIDE.rows(conn, import_id, after, PAGE)]


def take_aside(conn: Connection, import_id: str, event_ids: list[str]) -> list[AsideEvent]:
    """Delete events that are set aside and return them, in the order asked."""
    rows = _SOME_ASIDE.rows(conn, import_id, event_ids)
    found = {row[0]: AsideEvent(row[0], bool(row[1]), row[2]) for row in rows}
    _DELETE_SOME_ASIDE.change(conn, import_id, event_ids)
    return [found[event_id] for event_id in event_ids if event_id in found]


def delete_import(conn: Connection, import_id: str) -> None:
    """The import is done, or given up."""
    for statement in _OF_IMPORT:
        statement.change(conn, import_id)

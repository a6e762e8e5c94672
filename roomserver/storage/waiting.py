"""Events that wait for others, prev events that are not here, redactions that came before their target."""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection

from servicekit.database.raw import Sql

_STORE = Sql(
    "INSERT INTO waiting_event (event_id, room_id, origin, origin_server, room_version, pdu, created_ms)"
    " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING"
)
_REPLACE = Sql("UPDATE waiting_event SET pdu = ? WHERE event_id = ?")
_STORE_FOR = Sql(
    "INSERT INTO waiting_for (missing_event_id, waiting_event_id) VALUES (?, ?)"
    " ON CONFLICT (missing_event_id, waiting_event_id) DO NOTHING"
)
_DELETE = Sql("DELETE FROM waiting_event WHERE event_id = ?")
_DELETE_FOR = Sql("DELETE FROM waiting_for WHERE waiting_event_id = ?")
_COLUMNS = "event_id, room_id, origin, origin_server, room_version, pdu, created_ms"
_BY_ID = Sql(f"SELECT {_COLUMNS} FROM waiting_event WHERE event_id IN ?")
_OF_ROOM = Sql(f"SELECT {_COLUMNS} FROM waiting_event WHERE room_id = ? ORDER BY created_ms, event_id")
_WAITERS = Sql("SELECT DISTINCT waiting_event_id FROM waiting_for WHERE missing_event_id IN ?")
_MISSING = Sql(
    "SELECT missing_event_id FROM waiting_for WHERE waiting_event_id = ? ORDER BY missing_event_id"
)
_SOME_WAITERS = Sql(
    "SELECT w.event_id, w.room_id, w.origin, w.origin_server, w.room_version, w.pdu, w.created_ms"
    " FROM waiting_for f JOIN waiting_event w ON w.event_id = f.waiting_event_id"
    " WHERE f.missing_event_id = ? ORDER BY w.created_ms, w.event_id LIMIT ?"
)
_ANY = Sql("SELECT 1 FROM waiting_event WHERE room_id = ? LIMIT 1")

_PENDING_STORE = Sql(
    "INSERT INTO pending_redaction (target_event_id, redaction_nid, room_nid) VALUES (?, ?, ?)"
    " ON CONFLICT (target_event_id, redaction_nid) DO NOTHING"
)
_PENDING = Sql("SELECT redaction_nid FROM pending_redaction WHERE target_event_id = ? AND room_nid = ?")
_PENDING_DELETE = Sql("DELETE FROM pending_redaction WHERE target_event_id = ?")

_PREV_STORE = Sql(
    "INSERT INTO missing_prev (room_nid, prev_event_id, event_nid) VALUES (?, ?, ?)"
    " ON CONFLICT (room_nid, prev_event_id, event_nid) DO NOTHING"
)
_PREV_DELETE = Sql("DELETE FROM missing_prev WHERE room_nid = ? AND prev_event_id = ?")
_PREV_OF_ROOM = Sql(
    "SELECT m.prev_event_id, m.event_nid, e.event_id, e.depth FROM missing_prev m JOIN event e ON"
    " e.nid = m.event_nid"
    " WHERE m.room_nid = ? ORDER BY e.depth DESC, m.prev_event_id"
)


@dataclass(frozen=True, slots=True)
class WaitingEvent:
    """An event that waits."""

    event_id: str
    room_id: str
    origin: int
    origin_server: str
    room_version: str
    pdu: bytes
    created_ms: int


def store_waiting(conn: Connection, event: WaitingEvent, missing: Iterable[str]) -> None:
    """Keep an event until others are here."""
    _STORE.change(
        conn,
        event.event_id,
        event.room_id,
        event.origin,
        event.origin_server,
        event.room_version,
        event.pdu,
        event.created_ms,
    )
    _DELETE_FOR.change(conn, event.event_id)
    _STORE_FOR.many(conn, [(event_id, event.event_id) for event_id in missing])


def replace_pdu(conn: Connection, event_id: str, pdu: bytes) -> None:
    """Keep another form of an event that waits: one with more signatures."""
    _REPLACE.change(conn, pdu, event_id)


def delete_waiting(conn: Connection, event_id: str) -> None:
    """The wait is over."""
    _DELETE_FOR.change(conn, event_id)
    _DELETE.change(conn, event_id)


def load_waiting(conn: Connection, event_ids: Iterable[str]) -> dict[str, WaitingEvent]:
    """event id -> waiting event."""
    return {row[0]: WaitingEvent(*row) for row in _BY_ID.rows(conn, list(event_ids))}


def load_waiting_of_room(conn: Connection, room_id: str) -> list[WaitingEvent]:
    """What waits in a room, oldest first."""
    return [WaitingEvent(*row) for row in _OF_ROOM.rows(conn, room_id)]


def load_waiters(conn: Connection, event_ids: Iterable[str]) -> list[str]:
    """Events that wait for any of these."""
    return [row[0] for row in _WAITERS.rows(conn, list(event_ids))]


def load_some_waiters(conn: Connection, missing_id: str, limit: int) -> list[WaitingEvent]:
    """Some of the events that wait for one thing, oldest first."""
    return [WaitingEvent(*row) for row in _SOME_WAITERS.rows(conn, missing_id, limit)]


def load_missing(conn: Connection, waiting_event_id: str) -> list[str]:
    """What an event waits for."""
    return [row[0] for row in _MISSING.rows(conn, waiting_event_id)]


def is_anything_waiting(conn: Connection, room_id: str) -> bool:
    """Whether any event of a room waits."""
    return _ANY.row(conn, room_id) is not None


def store_pending_redactions(conn: Connection, rows: Iterable[tuple[str, int, int]]) -> None:
    """Remember (target event id, redaction's number, room's number) of redactions whose target is not
    here.
    """
    _PENDING_STORE.many(conn, rows)


def load_pending_redactions(conn: Connection, room_nid: int, event_id: str) -> list[int]:
    """The redactions of an event that came before it, of its own room: others have no say in it."""
    return [row[0] for row in _PENDING.rows(conn, event_id, room_nid)]


def delete_pending_redactions(conn: Connection, event_id: str) -> None:
    """They are dealt with."""
    _PENDING_DELETE.change(conn, event_id)


def store_missing_prevs(
    conn: Connection, missing: Iterable[tuple[int, str, int]], found: Iterable[tuple[int, str]]
) -> None:
    """Note (room, prev event id, event) that we lack, and forget (room, prev event id) that came."""
    _PREV_STORE.many(conn, missing)
    _PREV_DELETE.many(conn, found)


def load_missing_prevs(conn: Connection, room_nid: int) -> list[tuple[str, int, str, int]]:
    """(missing prev event id, event number, event id, depth) of a room's backward extremities, newest
    first.
    """
    return [tuple(row) for row in _PREV_OF_ROOM.rows(conn, room_nid)]

"""Events by number or id, their bodies, and why they were refused."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from roomserver.storage.packing import pack_ids, unpack_ids
from servicekit.database.raw import Sql, chunks

ACCEPTED: Final = 1
SOFT_FAILED: Final = 2
REJECTED: Final = 3
WAITING: Final = 4
OUTLIER: Final = 5

_COLUMNS = (
    "nid, event_id, room_nid, status, placement, key_id, depth, origin_server_ts, snapshot_before,"
    " snapshot_after, output_no, output_index, redacted_by, prev, auth, rejection"
)
_E_COLUMNS = ", ".join(f"e.{name.strip()}" for name in _COLUMNS.split(","))
_BY_ID = Sql(f"SELECT {_COLUMNS} FROM event WHERE event_id IN ?")
_BY_NID = Sql(f"SELECT {_COLUMNS} FROM event WHERE nid IN ?")
_KNOWN = Sql("SELECT event_id, nid FROM event WHERE event_id IN ?")
_IDS = Sql("SELECT nid, event_id FROM event WHERE nid IN ?")
_AUTH = Sql("SELECT nid, auth FROM event WHERE nid IN ?")
_BODIES = Sql("SELECT nid, pdu FROM event_body WHERE nid IN ?")
_WITH_BODY = Sql(
    f"SELECT {_E_COLUMNS}, b.pdu FROM event e JOIN event_body b ON b.nid = e.nid WHERE e.nid IN ?"
)
_IDS_AND_BODIES = Sql(
    "SELECT e.nid, e.event_id, b.pdu FROM event e JOIN event_body b ON b.nid = e.nid WHERE e.nid IN ?"
)
_WITH_BODY_BY_ID = Sql(
    f"SELECT {_E_COLUMNS}, b.pdu FROM event e JOIN event_body b ON b.nid = e.nid WHERE e.event_id IN ?"
)
_INSERT = Sql(f"INSERT INTO event ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
_INSERT_BODY = Sql("INSERT INTO event_body (nid, pdu) VALUES (?, ?)")
_REPLACE_BODY = Sql("UPDATE event_body SET pdu = ? WHERE nid = ?")
_REDACTED = Sql("UPDATE event SET redacted_by = ? WHERE nid = ?")
_UPDATE = Sql(
    "UPDATE event SET status = ?, placement = ?, snapshot_before = ?, snapshot_after = ?, output_no = ?,"
    " output_index = ?, prev = ?, rejection = ? WHERE nid = ?"
)


@dataclass(slots=True)
class EventRow:
    """One row of `event`; `prev` and `auth` are event numbers."""

    nid: int
    event_id: str
    room_nid: int
    status: int
    placement: int
    key_id: int
    depth: int
    origin_server_ts: int
    snapshot_before: int
    snapshot_after: int
    output_no: int = 0
    output_index: int = 0
    redacted_by: int = 0
    prev: tuple[int, ...] = ()
    auth: tuple[int, ...] = ()
    rejection: bytes | None = None

    @property
    def in_graph(self) -> bool:
        """Whether it has its place in the room's graph and a state of its own."""
        return self.status in (ACCEPTED, SOFT_FAILED, REJECTED) and self.snapshot_after != 0


def _row(row: tuple[object, ...]) -> EventRow:
    made = EventRow(*row)  # type: ignore[arg-type]
    made.prev = unpack_ids(made.prev)  # type: ignore[arg-type]
    made.auth = unpack_ids(made.auth)  # type: ignore[arg-type]
    return made


def load_events_by_id(conn: Connection, event_ids: Iterable[str]) -> dict[str, EventRow]:
    """event id -> row, those unknown left out."""
    wanted = list(event_ids)
    return {row[1]: _row(row) for row in _BY_ID.rows(conn, wanted)} if wanted else {}


def load_events_by_nid(conn: Connection, nids: Iterable[int]) -> dict[int, EventRow]:
    """number -> row."""
    wanted = list(nids)
    return {row[0]: _row(row) for row in _BY_NID.rows(conn, wanted)} if wanted else {}


def load_full_by_nid(conn: Connection, nids: Iterable[int]) -> dict[int, tuple[EventRow, bytes]]:
    """number -> row and body."""
    wanted = list(nids)
    return {row[0]: (_row(row[:-1]), row[-1]) for row in _WITH_BODY.rows(conn, wanted)} if wanted else {}


def load_full_by_id(conn: Connection, event_ids: Iterable[str]) -> dict[str, tuple[EventRow, bytes]]:
    """event id -> row and body."""
    wanted = list(event_ids)
    return (
        {row[1]: (_row(row[:-1]), row[-1]) for row in _WITH_BODY_BY_ID.rows(conn, wanted)} if wanted else {}
    )


def load_known(conn: Connection, event_ids: list[str]) -> dict[str, int]:
    """event id -> number, of those that are stored."""
    return {row[0]: row[1] for row in _KNOWN.rows(conn, event_ids)} if event_ids else {}


def load_event_ids(conn: Connection, nids: Iterable[int]) -> dict[int, str]:
    """number -> event id."""
    wanted = list(nids)
    found: dict[int, str] = {}
    for part in chunks(wanted, 20_000):
        found.update((row[0], row[1]) for row in _IDS.rows(conn, list(part)))
    return found


def load_auth(conn: Connection, nids: Iterable[int]) -> dict[int, tuple[int, ...]]:
    """number -> numbers of its auth events."""
    wanted = list(nids)
    return {row[0]: unpack_ids(row[1]) for row in _AUTH.rows(conn, wanted)} if wanted else {}


def load_bodies(conn: Connection, nids: Iterable[int]) -> dict[int, bytes]:
    """number -> body."""
    wanted = list(nids)
    return {row[0]: row[1] for row in _BODIES.rows(conn, wanted)} if wanted else {}


def load_ids_and_bodies(conn: Connection, nids: Iterable[int]) -> dict[int, tuple[str, bytes]]:
    """number -> event id and body: all that a reader of states is told, at a third of a whole row's cost."""
    wanted = list(nids)
    return {row[0]: (row[1], row[2]) for row in _IDS_AND_BODIES.rows(conn, wanted)} if wanted else {}


def store_events(conn: Connection, rows: Iterable[EventRow], bodies: list[tuple[int, bytes]]) -> None:
    """Insert events and their bodies, given as (number, canonical JSON)."""
    _INSERT.many(
        conn,
        [
            (
                row.nid,
                row.event_id,
                row.room_nid,
                row.status,
                row.placement,
                row.key_id,
                row.depth,
                row.origin_server_ts,
                row.snapshot_before,
                row.snapshot_after,
                row.output_no,
                row.output_index,
                row.redacted_by,
                pack_ids(row.prev),
                pack_ids(row.auth),
                row.rejection,
            )
            for row in rows
        ],
    )
    _INSERT_BODY.many(conn, bodies)


def update_events(conn: Connection, rows: Iterable[EventRow]) -> None:
    """Write what can change of events: how they stand, their state, their place on OUTPUT."""
    _UPDATE.many(
        conn,
        [
            (
                row.status,
                row.placement,
                row.snapshot_before,
                row.snapshot_after,
                row.output_no,
                row.output_index,
                pack_ids(row.prev),
                row.rejection,
                row.nid,
            )
            for row in rows
        ],
    )


def store_redactions(conn: Connection, redactions: list[tuple[int, int, bytes]]) -> None:
    """Put redacted forms in the place of bodies: (event, redaction, redacted body)."""
    _REPLACE_BODY.many(conn, [(body, nid) for nid, _, body in redactions])
    _REDACTED.many(conn, [(redaction, nid) for nid, redaction, _ in redactions])

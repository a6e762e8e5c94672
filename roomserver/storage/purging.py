"""Deleting a room, or its message events before a depth."""

from collections.abc import Callable

import orjson
from sqlalchemy import Connection

from matrixlib.identifiers import server_name_of
from servicekit.database.raw import Sql

_DELETE_LINKS = (
    "DELETE FROM auth_chain_link WHERE chain_id IN"
    " (SELECT a.chain_id FROM auth_chain a JOIN event e ON e.nid = a.event_nid WHERE e.room_nid = ?)"
)
_DELETE_WAITS = (
    "DELETE FROM waiting_for WHERE waiting_event_id IN (SELECT event_id FROM waiting_event WHERE room_id = ?)"
)
_OF_ROOM = (
    "DELETE FROM event_body WHERE nid IN (SELECT nid FROM event WHERE room_nid = ?)",
    "DELETE FROM transaction_key WHERE event_nid IN (SELECT nid FROM event WHERE room_nid = ?)",
    _DELETE_LINKS,
    "DELETE FROM auth_chain WHERE event_nid IN (SELECT nid FROM event WHERE room_nid = ?)",
    "DELETE FROM event WHERE room_nid = ?",
    "DELETE FROM current_state WHERE room_nid = ?",
    "DELETE FROM room_server WHERE room_nid = ?",
    "DELETE FROM snapshot WHERE room_nid = ?",
    "DELETE FROM told_snapshot WHERE room_nid = ?",
    "DELETE FROM resolved_snapshot WHERE room_nid = ?",
    "DELETE FROM missing_prev WHERE room_nid = ?",
    "DELETE FROM pending_redaction WHERE room_nid = ?",
    "DELETE FROM output_message WHERE room_nid = ?",
    "DELETE FROM room WHERE nid = ?",
)
_STATEMENTS = [Sql(text) for text in _OF_ROOM]
_BY_ID = [
    Sql(text)
    for text in (
        _DELETE_WAITS,
        "DELETE FROM import_event WHERE import_id IN (SELECT import_id FROM import_job WHERE room_id = ?)",
        "DELETE FROM import_page WHERE import_id IN (SELECT import_id FROM import_job WHERE room_id = ?)",
        "DELETE FROM import_job WHERE room_id = ?",
        "DELETE FROM waiting_event WHERE room_id = ?",
        "DELETE FROM outlier_membership WHERE room_id = ?",
        "DELETE FROM dead_letter WHERE about = ?",
    )
]
_OLD = Sql(
    "SELECT e.nid, e.event_id, b.pdu FROM event e JOIN event_body b ON b.nid = e.nid"
    " WHERE e.room_nid = ? AND e.key_id = 0 AND e.depth < ? AND e.nid > ? ORDER BY e.nid LIMIT 1000"
)
_DELETE_BODIES = Sql("DELETE FROM event_body WHERE nid IN ?")
_DELETE_KEYS = Sql("DELETE FROM transaction_key WHERE event_nid IN ?")
_DELETE_EVENTS = Sql("DELETE FROM event WHERE nid IN ?")
_DELETE_MISSING = Sql("DELETE FROM missing_prev WHERE room_nid = ? AND event_nid IN ?")


def delete_room(conn: Connection, room_nid: int, room_id: str) -> int:
    """Delete everything about a room; returns how many rows that was."""
    rows = sum(statement.change(conn, room_nid) for statement in _STATEMENTS)
    return rows + sum(statement.change(conn, room_id) for statement in _BY_ID)


def delete_history(
    conn: Connection, room_nid: int, depth: int, *, keep: set[int], is_kept: Callable[[str], bool] | None
) -> int:
    """Delete message events of less depth; returns how many. `is_kept`: servers whose users' events stay."""
    count = after = 0
    while rows := _OLD.rows(conn, room_nid, depth, after):
        after = rows[-1][0]
        gone = [
            nid
            for nid, _, pdu in rows
            if nid not in keep
            and (is_kept is None or not is_kept(server_name_of(orjson.loads(pdu).get("sender", ""))))
        ]
        for statement in (_DELETE_BODIES, _DELETE_KEYS, _DELETE_EVENTS):
            statement.change(conn, gone)
        _DELETE_MISSING.change(conn, room_nid, gone)
        count += len(gone)
    return count

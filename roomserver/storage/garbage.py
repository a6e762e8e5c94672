"""Collecting what nothing refers to any more; each statement checks the references itself.

A snapshot is kept while an event, a room, a resolved state or another snapshot's base refers to it, or what
readers were told; so chains of bases go from their ends, in a few rounds. Snapshots go only in partitions whose
owner collects: other owners have some of theirs in memory.
"""

from collections.abc import Collection

from sqlalchemy import Connection

from roomserver.storage import auth_chains, rooms
from servicekit.database.raw import Sql

DAY_MS = 24 * 3600 * 1000
STAGING_MS = 2 * DAY_MS
WAITING_MS = 7 * DAY_MS
DEAD_MS = 30 * DAY_MS

_UNUSED_RESOLVED = (
    "room_nid IN (SELECT nid FROM room WHERE partition IN ?) AND"
    " snapshot_id NOT IN (SELECT snapshot_id FROM room) AND NOT EXISTS (SELECT 1 FROM event e"
    " WHERE e.room_nid = resolved_snapshot.room_nid AND e.snapshot_before = resolved_snapshot.snapshot_id)"
)
# One pass over the events, not one for each snapshot.
_USED = (
    "SELECT snapshot_before FROM event UNION SELECT snapshot_after FROM event UNION SELECT"
    " snapshot_id FROM room"
    " UNION SELECT snapshot_id FROM resolved_snapshot UNION SELECT base_id FROM snapshot"
    " UNION SELECT snapshot_id FROM told_snapshot"
)
_RULES: dict[str, str] = {
    "transaction_key": "created_ms < ?",
    "waiting_for": "waiting_event_id IN (SELECT event_id FROM waiting_event WHERE created_ms < ?)",
    "waiting_event": "created_ms < ?",
    "dead_letter": "created_ms < ?",
}
_AGES = {
    "transaction_key": DAY_MS,
    "waiting_for": WAITING_MS,
    "waiting_event": WAITING_MS,
    "dead_letter": DEAD_MS,
}
_OLD_IMPORT = Sql(
    "SELECT import_id FROM import_job WHERE created_ms < ? ORDER BY created_ms, import_id LIMIT 1"
)
_RESET_IMPORT = Sql(
    "UPDATE import_job SET last_part = 0, events = 0 WHERE import_id = ? AND created_ms < ? RETURNING room_nid"
)
_IS_KEPT = Sql(
    "SELECT 1 FROM room WHERE nid = ? UNION ALL SELECT 1 FROM import_job WHERE import_id <> ? AND room_nid = ? LIMIT 1"
)
_NEWEST = Sql("SELECT nid FROM event WHERE room_nid = ? ORDER BY nid DESC LIMIT ?")
_DELETE_EVENTS = Sql("DELETE FROM event WHERE nid IN ?")
_DELETE_BODIES = Sql("DELETE FROM event_body WHERE nid IN ?")
_DELETE_ASIDE = Sql("DELETE FROM import_event WHERE import_id = ?")
_DELETE_PAGES = Sql("DELETE FROM import_page WHERE import_id = ?")
_DELETE_JOB = Sql("DELETE FROM import_job WHERE import_id = ?")
IMPORT_PAGE = 1000

_OUTBOX = "output_no <= (SELECT p.published_no FROM outbox_progress p WHERE p.partition = outbox.partition)"
_ORPHANS = {
    "pending_redaction": "redaction_nid NOT IN (SELECT nid FROM event)",
    "missing_prev": "event_nid NOT IN (SELECT nid FROM event)",
}

TABLES = (
    "room",
    "event",
    "state_key",
    "current_state",
    "snapshot",
    "resolved_snapshot",
    "auth_chain",
    "auth_chain_link",
    "transaction_key",
    "output_message",
    "outbox",
    "waiting_event",
    "import_event",
    "import_page",
    "dead_letter",
    "outlier_membership",
    "erasure",
)


def collect(
    conn: Connection, now_ms: int, held: Collection[int], *, dry_run: bool, deep: bool = True
) -> dict[str, int]:
    """Delete, or only count, what is not needed; returns rows by table.

    Without `deep` only what has an age; what takes a look at every event is left alone. `held`: partitions
    that nobody else writes to meanwhile.
    """
    collected: dict[str, int] = {}
    for table, rule in _RULES.items():
        collected[table] = _apply(conn, table, rule, dry_run, now_ms - _AGES[table])
    collected["outbox"] = _apply(conn, "outbox", _OUTBOX, dry_run)
    if not deep:
        return collected
    for table, rule in _ORPHANS.items():
        collected[table] = _apply(conn, table, rule, dry_run)
    mine = sorted(held)
    collected["resolved_snapshot"] = _apply(conn, "resolved_snapshot", _UNUSED_RESOLVED, dry_run, mine)
    unused = f"room_nid IN (SELECT nid FROM room WHERE partition IN ?) AND id NOT IN ({_USED})"
    collected["snapshot"] = 0
    while True:
        rows = _apply(conn, "snapshot", unused, dry_run, mine)
        collected["snapshot"] += rows
        if dry_run or not rows:
            break
    return collected


def collect_import_page(conn: Connection, before_ms: int) -> tuple[bool, dict[str, int]]:
    """Delete some of one import that nobody has gone on with since.

    Returns whether there may be more, and rows by table.

    The events go from the newest: what is left is whole at any time, should the import be taken up again from its
    first part. Those of a room that we were ever in stay, for others may cite them.
    """
    found = _OLD_IMPORT.row(conn, before_ms)
    if found is None:
        return False, {}
    import_id = found[0]
    locked = _RESET_IMPORT.row(conn, import_id, before_ms)
    if locked is None:
        return True, {}  # somebody has gone on with it just now
    room_nid = locked[0]
    deleted = {
        "import_event": _DELETE_ASIDE.change(conn, import_id),
        "import_page": _DELETE_PAGES.change(conn, import_id),
        "event": 0,
        "import_job": 0,
    }
    if room_nid and _IS_KEPT.row(conn, room_nid, import_id, room_nid) is None:
        nids = [row[0] for row in _NEWEST.rows(conn, room_nid, IMPORT_PAGE)]
        if nids:
            auth_chains.remove(conn, nids)
            _DELETE_BODIES.change(conn, nids)
            deleted["event"] = _DELETE_EVENTS.change(conn, nids)
        if len(nids) == IMPORT_PAGE:
            return True, deleted
    deleted["import_job"] = _DELETE_JOB.change(conn, import_id)
    return True, deleted


def count_imports(conn: Connection, before_ms: int) -> dict[str, int]:
    """What `collect_import_page` would delete in the end, by table."""
    of = "import_id IN (SELECT import_id FROM import_job WHERE created_ms < ?)"
    rules = {
        "import_event": of,
        "import_page": of,
        "event": "room_nid IN (SELECT room_nid FROM import_job GROUP BY room_nid HAVING MAX(created_ms) < ?)"
        " AND room_nid NOT IN (SELECT nid FROM room)",
        "import_job": "created_ms < ?",
    }
    return {table: _apply(conn, table, rule, True, before_ms) for table, rule in rules.items()}


def _apply(conn: Connection, table: str, rule: str, dry_run: bool, *parameters: int | list[int]) -> int:
    if dry_run:
        return int(Sql(f"SELECT COUNT(*) FROM {table} WHERE {rule}").row(conn, *parameters)[0])
    return Sql(f"DELETE FROM {table} WHERE {rule}").change(conn, *parameters)


def count_rows(conn: Connection) -> dict[str, int]:
    """How many rows tables have."""
    return {table: int(Sql(f"SELECT COUNT(*) FROM {table}").row(conn)[0]) for table in TABLES}


def measure(conn: Connection) -> tuple[dict[str, int], dict[str, int]]:
    """How many rows tables have, and the forward extremities of the rooms that have most."""
    return count_rows(conn), rooms.load_most_heads(conn)

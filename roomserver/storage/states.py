"""State keys as numbers, and the current state of rooms."""

from collections.abc import Iterable
from typing import Final

from sqlalchemy import Connection

from servicekit.database.raw import Sql, chunks

StateKey = tuple[str, str]

MEMBERSHIPS: Final = ("", "join", "invite", "leave", "ban", "knock")
MEMBERSHIP_NUMBERS: Final = {name: number for number, name in enumerate(MEMBERSHIPS) if name}
JOIN: Final = 1
INVITE: Final = 2
LEAVE: Final = 3

# Types and state keys are two lists side by side: looked up by type first, which few are.
_BY_KEYS = Sql("SELECT id, type, state_key FROM state_key WHERE type IN ? AND state_key IN ?")
_BY_IDS = Sql("SELECT id, type, state_key FROM state_key WHERE id IN ?")
_OTHERS_BY_IDS = Sql("SELECT id, type, state_key FROM state_key WHERE id IN ? AND type <> ?")
_INSERT = Sql(
    "INSERT INTO state_key (id, type, state_key) VALUES (?, ?, ?) ON CONFLICT (type, state_key) DO NOTHING"
)
_CURRENT = Sql("SELECT key_id, event_nid FROM current_state WHERE room_nid = ? AND key_id IN ?")
_CURRENT_ALL = Sql("SELECT key_id, event_nid FROM current_state WHERE room_nid = ?")
_MEMBERS = Sql(
    "SELECT c.key_id, c.event_nid, c.membership, k.state_key, e.event_id FROM current_state c"
    " JOIN state_key k ON k.id = c.key_id JOIN event e ON e.nid = c.event_nid"
    " WHERE c.room_nid = ? AND c.membership > 0 ORDER BY c.key_id"
)
_MEMBERS_OF = Sql(
    "SELECT c.key_id, c.event_nid, c.membership, k.state_key, e.event_id FROM current_state c"
    " JOIN state_key k ON k.id = c.key_id JOIN event e ON e.nid = c.event_nid"
    " WHERE c.room_nid = ? AND c.membership > 0 AND c.key_id IN ? ORDER BY c.key_id"
)
_MEMBERSHIPS = Sql("SELECT event_nid, membership FROM current_state WHERE room_nid = ? AND membership > 0")
_ROOMS_OF = Sql(
    "SELECT r.room_id, c.membership, k.state_key, e.event_id FROM current_state c"
    " JOIN state_key k ON k.id = c.key_id JOIN room r ON r.nid = c.room_nid JOIN event e ON e.nid ="
    " c.event_nid"
    " WHERE c.key_id IN ? AND c.membership > 0 ORDER BY r.nid, c.key_id"
)
_JOINED_USERS = Sql(
    "SELECT c.room_nid, k.state_key FROM current_state c JOIN state_key k ON k.id = c.key_id"
    " WHERE c.room_nid IN ? AND c.membership = 1 ORDER BY c.room_nid, c.key_id"
)
_STORE = Sql(
    "INSERT INTO current_state (room_nid, key_id, event_nid, membership) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (room_nid, key_id) DO UPDATE SET event_nid = excluded.event_nid,"
    " membership = excluded.membership"
)
_DELETE = Sql("DELETE FROM current_state WHERE room_nid = ? AND key_id = ?")
_DELETE_ALL = Sql("DELETE FROM current_state WHERE room_nid = ?")


def load_key_ids(conn: Connection, keys: Iterable[StateKey]) -> dict[StateKey, int]:
    """Numbers of the state keys that have one."""
    wanted = set(keys)
    if not wanted:
        return {}
    types = sorted({key[0] for key in wanted})
    found: dict[StateKey, int] = {}
    for part in chunks(sorted({key[1] for key in wanted}), 5000):
        for number, type_, state_key in _BY_KEYS.rows(conn, types, list(part)):
            if (type_, state_key) in wanted:
                found[type_, state_key] = number
    return found


def load_keys(conn: Connection, key_ids: Iterable[int]) -> dict[int, StateKey]:
    """number -> state key."""
    found: dict[int, StateKey] = {}
    for part in chunks(list(key_ids), 20_000):
        found.update((row[0], (row[1], row[2])) for row in _BY_IDS.rows(conn, list(part)))
    return found


def load_keys_of_other_types(conn: Connection, key_ids: Iterable[int], type_: str) -> dict[int, StateKey]:
    """number -> state key, those of a type left out."""
    return {row[0]: (row[1], row[2]) for row in _OTHERS_BY_IDS.rows(conn, list(key_ids), type_)}


def store_keys(conn: Connection, keys: Iterable[tuple[int, StateKey]]) -> dict[StateKey, int]:
    """Give numbers to keys that have none and return the numbers that hold: another owner may be faster.

    In order of the keys, so that two owners never wait for each other crosswise.
    """
    rows = sorted(keys, key=lambda item: item[1])
    if _INSERT.many(conn, [(number, type_, state_key) for number, (type_, state_key) in rows]) == len(rows):
        return {key: number for number, key in rows}
    return load_key_ids(conn, [key for _, key in rows])


def load_membership_numbers(conn: Connection, room_nid: int) -> dict[int, int]:
    """Of the member events in a room's current state: event number -> membership number."""
    return {row[0]: row[1] for row in _MEMBERSHIPS.rows(conn, room_nid)}


def load_current(conn: Connection, room_nid: int, key_ids: list[int]) -> dict[int, int]:
    """key number -> event number, of some entries of a room's current state."""
    return {row[0]: row[1] for row in _CURRENT.rows(conn, room_nid, key_ids)}


def load_current_all(conn: Connection, room_nid: int) -> dict[int, int]:
    """key number -> event number, of the whole current state."""
    return {row[0]: row[1] for row in _CURRENT_ALL.rows(conn, room_nid)}


def load_members(
    conn: Connection, room_nid: int, key_ids: list[int] | None = None
) -> list[tuple[int, int, int, str, str]]:
    """(key number, event number, membership number, user id, event id) of a room's member entries."""
    rows = _MEMBERS.rows(conn, room_nid) if key_ids is None else _MEMBERS_OF.rows(conn, room_nid, key_ids)
    return [tuple(row) for row in rows]


def load_rooms_of(conn: Connection, key_ids: list[int]) -> list[tuple[str, int, str, str]]:
    """(room id, membership number, user id, event id) of users given by their member keys."""
    return [tuple(row) for row in _ROOMS_OF.rows(conn, key_ids)]


def load_joined_users(conn: Connection, room_nids: list[int]) -> dict[int, list[str]]:
    """room number -> joined users."""
    found: dict[int, list[str]] = {}
    for room_nid, user_id in _JOINED_USERS.rows(conn, room_nids):
        found.setdefault(room_nid, []).append(user_id)
    return found


def store_current(conn: Connection, changes: Iterable[tuple[int, int, int, int]]) -> None:
    """Write (room number, key number, event number or 0 for none, membership number)."""
    stored, deleted = [], []
    for room_nid, key_id, event_nid, membership in changes:
        if event_nid:
            stored.append((room_nid, key_id, event_nid, membership))
        else:
            deleted.append((room_nid, key_id))
    _STORE.many(conn, stored)
    _DELETE.many(conn, deleted)


def delete_current(conn: Connection, room_nid: int) -> None:
    """Delete a room's current state."""
    _DELETE_ALL.change(conn, room_nid)

"""Room state over time: each entry with the positions between which it held.

State "at P" is the state after everything up to position P.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection

from syncapi.applied import EVENT_COLUMNS, StoredEvent
from syncapi.storage.sql import row, rows, rows_in, run, run_many
from syncapi.storage.tables import MAX_POSITION

_CURRENT = f"until_position = {MAX_POSITION}"

Key = tuple[str, str, str]
"""(room, type, state key)."""


class StateWriter:
    """Collects a batch's state changes and writes them together."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        # What stands now by this batch: key -> [since, event position, id, membership]; None: nothing.
        self._current: dict[Key, list[Any] | None] = {}
        self._opened: list[tuple[Any, ...]] = []
        self._closed: list[tuple[int, str, str, str]] = []
        self._events: dict[Key, StoredEvent | None] = {}

    def set(
        self,
        room_id: str,
        type_: str,
        state_key: str,
        event: StoredEvent | None,
        membership: str | None,
        position: int,
        *,
        stands: bool = True,
    ) -> str | None:
        """Put an event under a key (None: nothing). Returns the membership that stood there, for members.

        `stands`: whether anything may be stored under the key.
        """
        key = (room_id, type_, state_key)
        replaced: str | None = None
        if key in self._current:
            old = self._current[key]
            if old is not None:
                replaced = old[3]
                if old[0] != position:
                    self._opened.append((*key, old[0], position, old[1], old[2], old[3]))
        elif stands:
            if membership is not None:
                found = row(
                    self.connection,
                    "SELECT membership FROM room_state WHERE room_id = ? AND type = ? AND state_key = ?"
                    f" AND {_CURRENT}",
                    key,
                )
                replaced = None if found is None else found[0]
            self._closed.append((position, *key))
        self._current[key] = (
            None if event is None else [position, event.position, event.event_id, membership or None]
        )
        self._events[key] = event
        return replaced

    def pending_members(self, room_id: str) -> dict[str, StoredEvent | None]:
        """Return the member entries of a room that `flush` has yet to write."""
        return {
            key[2]: event
            for key, event in self._events.items()
            if key[0] == room_id and key[1] == "m.room.member" and key in self._current
        }

    def pending_event(self, room_id: str, type_: str, state_key: str) -> StoredEvent | None:
        """Return what this batch put under a key, if `flush` has yet to write it."""
        key = (room_id, type_, state_key)
        return self._events.get(key) if key in self._current else None

    def current(self, room_id: str) -> dict[tuple[str, str], str]:
        """Return the current state: (type, state key) -> event id."""
        self.flush()
        return {
            (type_, state_key): event_id
            for type_, state_key, event_id in rows(
                self.connection,
                f"SELECT type, state_key, event_id FROM room_state WHERE room_id = ? AND {_CURRENT}",
                (room_id,),
            )
        }

    def close_all(self, room_id: str, position: int) -> None:
        """End everything that holds in a room."""
        self.flush()
        run(
            self.connection,
            f"UPDATE room_state SET until_position = ? WHERE room_id = ? AND {_CURRENT}",
            (position, room_id),
        )

    def flush(self) -> None:
        """Write what was collected."""
        for key, value in self._current.items():
            if value is not None:
                self._opened.append((*key, value[0], MAX_POSITION, *value[1:]))
        run_many(
            self.connection,
            "UPDATE room_state SET until_position = ? WHERE room_id = ? AND type = ? AND state_key = ?"
            f" AND {_CURRENT}",
            self._closed,
        )
        run_many(
            self.connection,
            "INSERT INTO room_state (room_id, type, state_key, since_position, until_position,"
            " event_position, event_id, membership) VALUES (?,?,?,?,?,?,?,?)",
            self._opened,
        )
        self._current.clear()
        self._opened.clear()
        self._closed.clear()


def load_state_event(
    connection: Connection, room_id: str, type_: str, state_key: str, at: int | None = None
) -> StoredEvent | None:
    """Return one entry of the state at a position; None: now."""
    when, parameters = _at(at)
    found = row(
        connection,
        f"SELECT {EVENT_COLUMNS} FROM room_state s JOIN event e ON e.position = s.event_position"
        f" WHERE s.room_id = ? AND s.type = ? AND s.state_key = ? AND {when}",
        (room_id, type_, state_key, *parameters),
    )
    return None if found is None else StoredEvent(*found)


def load_since(connection: Connection, room_id: str, type_: str, state_key: str, event_id: str) -> int | None:
    """Return from where on an event has been holding under its key; None: it does not hold now."""
    found = row(
        connection,
        "SELECT since_position FROM room_state WHERE room_id = ? AND type = ? AND state_key = ?"
        f" AND event_id = ? AND {_CURRENT}",
        (room_id, type_, state_key, event_id),
    )
    return None if found is None else int(found[0])


def _at(at: int | None) -> tuple[str, tuple[int, ...]]:
    if at is None:
        return f"s.until_position = {MAX_POSITION}", ()
    return "s.until_position > ? AND s.since_position <= ?", (at, at)


def load_state(
    connection: Connection, room_id: str, at: int | None = None, *, members: bool = True
) -> list[StoredEvent]:
    """Return the state at a position (None: now), with or without the members."""
    when, parameters = _at(at)
    without = "" if members else " AND s.type <> 'm.room.member'"
    return [
        StoredEvent(*found)
        for found in rows(
            connection,
            f"SELECT {EVENT_COLUMNS} FROM room_state s JOIN event e ON e.position = s.event_position"
            f" WHERE s.room_id = ? AND {when}{without}",
            (room_id, *parameters),
        )
    ]


def load_changes(connection: Connection, room_id: str, after: int, through: int) -> list[StoredEvent]:
    """Return the entries of the state at `through` that were set after position `after`."""
    return [
        StoredEvent(*found)
        for found in rows(
            connection,
            f"SELECT {EVENT_COLUMNS} FROM room_state s JOIN event e ON e.position = s.event_position"
            " WHERE s.room_id = ? AND s.since_position > ? AND s.since_position <= ?"
            " AND s.until_position > ?",
            (room_id, after, through, through),
        )
    ]


def load_entries(
    connection: Connection, room_id: str, keys: Iterable[tuple[str, str]], at: int
) -> list[StoredEvent]:
    """Return some entries of the state at a position."""
    wanted = list(dict.fromkeys(keys))
    if not wanted:
        return []
    # The plus keeps SQLite from walking the whole state of the room by its index over positions.
    when, parameters = _at(at)
    events = (
        StoredEvent(*found)
        for found in rows(
            connection,
            f"SELECT {EVENT_COLUMNS} FROM room_state s JOIN event e ON e.position = s.event_position"
            f" WHERE s.room_id = ? AND s.type IN ? AND s.state_key IN ? AND +{when}",
            (
                room_id,
                list({type_ for type_, _ in wanted}),
                list({state_key for _, state_key in wanted}),
                *parameters,
            ),
        )
    )
    by_key = {(event.type, event.state_key or ""): event for event in events}
    return [by_key[key] for key in wanted if key in by_key]


def load_members(
    connection: Connection, room_id: str, user_ids: Iterable[str], at: int | None = None
) -> list[StoredEvent]:
    """Return the membership events of some users at a position (None: now)."""
    # The plus keeps SQLite from walking the whole state of the room by its index over positions.
    when, parameters = _at(at)
    return [
        StoredEvent(*found)
        for found in rows_in(
            connection,
            f"SELECT {EVENT_COLUMNS} FROM room_state s JOIN event e ON e.position = s.event_position"
            f" WHERE s.room_id = ? AND s.type = 'm.room.member' AND s.state_key IN ? AND +{when}",
            user_ids,
            before=(room_id,),
            after=parameters,
        )
    ]


def count_joined(connection: Connection, room_id: str, joined: int, at: int) -> int:
    """Return how many were joined at a position, by how many are now: looks at what changed since."""
    member = "FROM room_state WHERE room_id = ? AND type = 'm.room.member' AND membership = 'join'"
    found = row(
        connection,
        f"SELECT (SELECT count(*) {member} AND since_position <= ? AND until_position > ? AND NOT {_CURRENT})"
        f" - (SELECT count(*) {member} AND since_position > ? AND {_CURRENT})",
        (room_id, at, at, room_id, at),
    )
    return joined + (int(found[0]) if found else 0)


def load_member_bodies(
    connection: Connection, room_id: str, user_ids: Iterable[str]
) -> list[tuple[str, bytes]]:
    """Return (user, body of the membership event) of some users now."""
    return [
        (user_id, body)
        for user_id, body in rows_in(
            connection,
            "SELECT s.state_key, e.body FROM room_state s JOIN event e ON e.position = s.event_position"
            f" WHERE s.room_id = ? AND s.type = 'm.room.member' AND s.state_key IN ? AND +s.{_CURRENT}",
            user_ids,
            before=(room_id,),
        )
    ]


def load_member_history(
    connection: Connection, room_ids: Sequence[str], user_id: str
) -> dict[str, list[tuple[int, int, str]]]:
    """Return a user's memberships over time: room -> [(since, until, membership)], oldest first."""
    history: dict[str, list[tuple[int, int, str]]] = {}
    for room_id, since, until, membership in rows_in(
        connection,
        "SELECT room_id, since_position, until_position, membership FROM room_state WHERE room_id IN ?"
        " AND type = 'm.room.member' AND state_key = ? ORDER BY since_position",
        room_ids,
        after=(user_id,),
    ):
        history.setdefault(room_id, []).append((since, until, membership))
    return history


def load_join_time(connection: Connection, room_id: str, user_id: str, after: int) -> int | None:
    """Return when a user first came into a room, of the stays that lasted beyond a position; None: never."""
    found = row(
        connection,
        "SELECT min(e.origin_server_ts) FROM room_state s JOIN event e ON e.position = s.event_position"
        " WHERE s.room_id = ? AND s.type = 'm.room.member' AND s.state_key = ? AND s.membership = 'join'"
        " AND s.until_position > ?",
        (room_id, user_id, after),
    )
    return None if found is None else found[0]


def is_in_one_of(connection: Connection, room_ids: Iterable[str], user_id: str) -> bool:
    """Whether a user is joined to one of some rooms now."""
    sql = (
        "SELECT 1 FROM room_state WHERE room_id IN ? AND type = 'm.room.member' AND state_key = ?"
        f" AND until_position = {MAX_POSITION} AND membership = 'join' LIMIT 1"
    )
    return bool(rows_in(connection, sql, room_ids, after=(user_id,)))


def load_heroes(connection: Connection, room_id: str, at: int, count: int) -> tuple[list[str], list[str]]:
    """Return the first few users who are joined or invited, and who have left, in the order of joining."""
    when, parameters = _at(at)
    found: list[list[str]] = []
    for memberships in ("'join', 'invite'", "'leave', 'ban'"):
        users = rows(
            connection,
            "SELECT s.state_key FROM room_state s WHERE s.room_id = ? AND s.type = 'm.room.member'"
            f" AND {when} AND s.membership IN ({memberships})"
            " ORDER BY s.since_position, s.event_position LIMIT ?",
            (room_id, *parameters, count),
        )
        found.append([user for (user,) in users])
    return found[0], found[1]


def load_joined_bodies(connection: Connection, room_id: str) -> list[tuple[str, bytes]]:
    """Return (user, body of the membership event) of everybody who is joined now."""
    return rows(
        connection,
        "SELECT s.state_key, e.body FROM room_state s JOIN event e ON e.position = s.event_position"
        f" WHERE s.room_id = ? AND s.type = 'm.room.member' AND s.membership = 'join' AND +s.{_CURRENT}",
        (room_id,),
    )


def load_all_members(connection: Connection, room_id: str, at: int | None) -> list[tuple[StoredEvent, str]]:
    """Return every membership event of the state at a position (None: now), with its membership."""
    when, parameters = _at(at)
    return [
        (StoredEvent(*found[:-1]), found[-1])
        for found in rows(
            connection,
            f"SELECT {EVENT_COLUMNS}, s.membership FROM room_state s"
            " JOIN event e ON e.position = s.event_position"
            f" WHERE s.room_id = ? AND s.type = 'm.room.member' AND {when}",
            (room_id, *parameters),
        )
    ]


def load_state_of_type(connection: Connection, room_id: str, type_: str) -> list[StoredEvent]:
    """Return the current state events of one type."""
    when, _ = _at(None)
    return [
        StoredEvent(*found)
        for found in rows(
            connection,
            f"SELECT {EVENT_COLUMNS} FROM room_state s JOIN event e ON e.position = s.event_position"
            f" WHERE s.room_id = ? AND s.type = ? AND {when}",
            (room_id, type_),
        )
    ]

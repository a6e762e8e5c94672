"""Events: stored by the consumer in bulk, read by position, by id, along the timeline and by depth."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection

from syncapi.applied import EVENT_COLUMNS, StoredEvent
from syncapi.storage.sql import row, rows, rows_in, run, run_many

STATE_PLACEMENT = 3

_INSERT = """INSERT INTO event (position, event_id, room_id, type, state_key, sender, depth, depth_before,
    placement, visibility, visibility_after, flags, body, "unsigned", txn_device, txn_id, thread_id,
    origin_server_ts, notify_total, highlight_total) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"""


class EventWriter:
    """Collects a batch's events and writes them together."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.known: dict[str, tuple[int, int]] = {}
        """Events stored, or to be by `flush`, among those asked for: id -> (position, placement)."""
        self.members: list[tuple[int, str, str]] = []
        self.relations: list[tuple[Any, ...]] = []
        self._absent: set[str] = set()
        self._pending: dict[str, tuple[Any, ...]] = {}
        self._lowest: int | None = None

    def learn(self, event_ids: Iterable[str]) -> None:
        """Look up which of the events are stored already."""
        wanted = {event_id for event_id in event_ids if event_id not in self.known}
        self._absent |= wanted
        for event_id, position, placement in rows_in(
            self.connection, "SELECT event_id, position, placement FROM event WHERE event_id IN ?", wanted
        ):
            self.known[event_id] = (position, placement)
            self._absent.discard(event_id)

    def load(self, event_id: str) -> StoredEvent | None:
        """Return an event, stored or yet to be by `flush`."""
        if event_id in self._absent:
            return None
        known = self.known.get(event_id)
        if known is None:
            return load_event(self.connection, event_id)
        return self.pending(event_id) or load_event_by_position(self.connection, known[0])

    def pending(self, event_id: str) -> StoredEvent | None:
        """Return an event that `flush` has yet to write."""
        found = self._pending.get(event_id)
        return None if found is None else StoredEvent(*found[:17])

    def next_without_place(self) -> int:
        """Return the number of an event that has no position of its own: below all that were given."""
        if self._lowest is None:
            found = row(self.connection, "SELECT min(position) FROM event")
            self._lowest = min(found[0] or 0, 0) if found else 0
        self._lowest -= 1
        return self._lowest

    def add(
        self,
        event: StoredEvent,
        origin_server_ts: int,
        notify_total: int,
        highlight_total: int,
        known: tuple[int, int] | None,
    ) -> None:
        """Store an event; `known` is where it was stored before, as state: it moves to its new place."""
        if known is not None:
            self.flush()
            run(self.connection, "DELETE FROM event WHERE position = ?", (known[0],))
            run(
                self.connection,
                "UPDATE room_state SET event_position = ? WHERE room_id = ? AND event_position = ?",
                (event.position, event.room_id, known[0]),
            )
        self._pending[event.event_id] = (*event, origin_server_ts, notify_total, highlight_total)
        self.known[event.event_id] = (event.position, event.placement)
        self._absent.discard(event.event_id)

    def flush(self) -> None:
        """Write what was collected."""
        self.take().write(self.connection)

    def take(self) -> "EventRows":
        """Return what was collected, for the caller to write."""
        taken = EventRows(list(self._pending.values()), self.members, self.relations)
        self._pending, self.members, self.relations = {}, [], []
        return taken


class EventRows(NamedTuple):
    """Rows of events, of members who could see them, and of relations."""

    events: list[tuple[Any, ...]]
    members: list[tuple[int, str, str]]
    relations: list[tuple[Any, ...]]

    def add(self, others: "EventRows") -> None:
        """Take over others' rows."""
        for mine, theirs in zip(self, others, strict=True):
            mine.extend(theirs)

    def write(self, connection: Connection) -> None:
        """Insert them."""
        run_many(connection, _INSERT, self.events)
        run_many(
            connection,
            "INSERT INTO event_member (position, user_id, membership) VALUES (?,?,?) ON CONFLICT DO NOTHING",
            self.members,
        )
        run_many(
            connection,
            "INSERT INTO relation (child_position, child_id, room_id, parent_id, rel_type, type, sender)"
            " VALUES (?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",
            self.relations,
        )


def load_event(connection: Connection, event_id: str) -> StoredEvent | None:
    """Return an event by its id."""
    found = row(connection, f"SELECT {EVENT_COLUMNS} FROM event e WHERE event_id = ?", (event_id,))
    return None if found is None else StoredEvent(*found)


def load_event_by_position(connection: Connection, position: int) -> StoredEvent | None:
    """Return an event by its number."""
    found = row(connection, f"SELECT {EVENT_COLUMNS} FROM event e WHERE position = ?", (position,))
    return None if found is None else StoredEvent(*found)


def load_events(connection: Connection, positions: Iterable[int]) -> dict[int, StoredEvent]:
    """Return events by their numbers."""
    return {
        found[0]: StoredEvent(*found)
        for found in rows_in(
            connection, f"SELECT {EVENT_COLUMNS} FROM event e WHERE position IN ?", positions
        )
    }


def load_events_by_id(connection: Connection, event_ids: Iterable[str]) -> dict[str, StoredEvent]:
    """Return events by their ids."""
    return {
        found[1]: StoredEvent(*found)
        for found in rows_in(
            connection, f"SELECT {EVENT_COLUMNS} FROM event e WHERE event_id IN ?", event_ids
        )
    }


def load_totals(connection: Connection, event_id: str) -> tuple[int, int, int] | None:
    """Return an event's position and the room's running totals (notifications, highlights) at it."""
    found = row(
        connection,
        "SELECT position, notify_total, highlight_total FROM event WHERE event_id = ? AND position > 0",
        (event_id,),
    )
    return None if found is None else (found[0], found[1], found[2])


def load_timeline(
    connection: Connection, room_id: str, after: int, through: int, count: int
) -> list[StoredEvent]:
    """Return the last `count` timeline events with after < position <= through, newest first."""
    return [
        StoredEvent(*found)
        for found in rows(
            connection,
            f"SELECT {EVENT_COLUMNS} FROM event e WHERE e.room_id = ? AND e.position > ? AND e.position <= ?"
            " AND e.placement = 1 ORDER BY e.position DESC LIMIT ?",
            (room_id, after, through, count),
        )
    ]


def load_counted(
    connection: Connection, room_id: str, after: int, through: int, count: int
) -> list[tuple[StoredEvent, int, int, int]]:
    """Return the last `count` timeline events of a stretch, newest first: (event, time, running totals)."""
    return [
        (StoredEvent(*found[:-3]), found[-3], found[-2], found[-1])
        for found in rows(
            connection,
            f"SELECT {EVENT_COLUMNS}, e.origin_server_ts, e.notify_total, e.highlight_total FROM event e"
            " WHERE e.room_id = ? AND e.position > ? AND e.position <= ? AND e.placement = 1"
            " ORDER BY e.position DESC LIMIT ?",
            (room_id, after, through, count),
        )
    ]


def load_page(
    connection: Connection,
    room_id: str,
    *,
    backwards: bool,
    start: tuple[int, int],
    through: int,
    count: int,
) -> list[StoredEvent]:
    """Return a page of a room's history in the order of (depth, position), from `start` on.

    Backwards: those smaller than `start`, greatest first; forwards: those not smaller, smallest first.
    Nothing told after position `through`, nothing that is known as state only.
    """
    comparison, order = ("<", "DESC") if backwards else (">=", "ASC")
    return [
        StoredEvent(*found)
        for found in rows(
            connection,
            f"SELECT {EVENT_COLUMNS} FROM event e WHERE e.room_id = ?"
            f" AND (e.depth, e.position) {comparison} (?, ?)"
            " AND e.position <= ? AND e.placement IN (1, 2)"
            f" ORDER BY e.depth {order}, e.position {order} LIMIT ?",
            (room_id, *start, through, count),
        )
    ]


def load_depth_at(connection: Connection, room_id: str, position: int) -> int:
    """Return the greatest depth that the room's timeline had reached at a position; 0: it had not begun."""
    found = row(
        connection,
        "SELECT depth, depth_before FROM event WHERE room_id = ? AND position <= ? AND placement = 1"
        " ORDER BY position DESC LIMIT 1",
        (room_id, position),
    )
    return 0 if found is None else max(found)


def load_members_at(connection: Connection, positions: Sequence[int], user_id: str) -> dict[int, str]:
    """Return a user's membership at events outside the timeline: position -> membership."""
    return dict(
        rows_in(
            connection,
            "SELECT position, membership FROM event_member WHERE position IN ? AND user_id = ?",
            positions,
            after=(user_id,),
        )
    )


def load_nearest(
    connection: Connection, room_id: str, timestamp_ms: int, through: int, *, backwards: bool, count: int
) -> list[tuple[StoredEvent, int]]:
    """Return the events nearest to a time, in one direction, with their times."""
    comparison, order = ("<=", "DESC") if backwards else (">=", "ASC")
    return [
        (StoredEvent(*found[:-1]), found[-1])
        for found in rows(
            connection,
            f"SELECT {EVENT_COLUMNS}, e.origin_server_ts FROM event e WHERE e.room_id = ?"
            f" AND e.origin_server_ts {comparison} ? AND e.position <= ? AND e.placement IN (1, 2)"
            f" ORDER BY e.origin_server_ts {order}, e.depth {order}, e.position {order} LIMIT ?",
            (room_id, timestamp_ms, through, count),
        )
    ]


def store_redaction(connection: Connection, event: StoredEvent) -> None:
    """Replace an event's body, flags and unsigned, and forget what it related to."""
    run(
        connection,
        'UPDATE event SET body = ?, "unsigned" = ?, flags = ?, thread_id = thread_id WHERE position = ?',
        (event.body, event.unsigned, event.flags, event.position),
    )
    run(connection, "DELETE FROM relation WHERE child_position = ?", (event.position,))


def strip_prev_content(connection: Connection, redacted: StoredEvent) -> list[StoredEvent]:
    """Take a redacted state event's content out of the `unsigned` of the event that replaced it."""
    if redacted.state_key is None:
        return []
    found = [
        StoredEvent(*values)
        for values in rows(
            connection,
            f"SELECT {EVENT_COLUMNS} FROM room_state old JOIN room_state new ON new.room_id = old.room_id"
            " AND new.type = old.type AND new.state_key = old.state_key"
            " AND new.since_position = old.until_position JOIN event e ON e.position = new.event_position"
            " WHERE old.room_id = ? AND old.type = ? AND old.state_key = ? AND old.event_id = ?",
            (redacted.room_id, redacted.type, redacted.state_key, redacted.event_id),
        )
    ]
    changed = []
    for event in found:
        if event.unsigned is None or b'"prev_content"' not in event.unsigned:
            continue
        replaces = event.unsigned.rfind(b',"replaces_state":')
        new = event._replace(unsigned=event.unsigned[replaces:] if replaces >= 0 else None)
        run(connection, 'UPDATE event SET "unsigned" = ? WHERE position = ?', (new.unsigned, new.position))
        changed.append(new)
    return changed


def purge_history(
    connection: Connection, before: StoredEvent, is_kept: Callable[[str], bool] | None = None
) -> None:
    """Delete a room's events before one, except those that are current state.

    Args:
        is_kept: whether events of this sender stay; None: none do.
    """
    condition = (
        "room_id = ? AND (depth, position) < (?, ?) AND position NOT IN"
        " (SELECT event_position FROM room_state WHERE room_id = ? AND until_position > ?)"
    )
    parameters: tuple[Any, ...] = (
        before.room_id,
        before.depth,
        before.position,
        before.room_id,
        before.position,
    )
    if is_kept is not None:
        found = rows(connection, f"SELECT DISTINCT sender FROM event WHERE {condition}", parameters)
        condition += " AND sender IN ?"
        parameters = (*parameters, [sender for (sender,) in found if not is_kept(sender)])
    for table, column in (("relation", "child_position"), ("event_member", "position")):
        run(
            connection,
            f"DELETE FROM {table} WHERE {column} IN (SELECT position FROM event WHERE {condition})",
            parameters,
        )
    run(
        connection,
        "DELETE FROM room_state WHERE room_id = ? AND until_position <= ?",
        (before.room_id, before.position),
    )
    run(
        connection,
        "DELETE FROM thread_event WHERE room_id = ? AND position IN"
        f" (SELECT position FROM event WHERE {condition})",
        (before.room_id, *parameters),
    )
    run(connection, f"DELETE FROM event WHERE {condition}", parameters)

"""A batch of OUTPUT messages being applied: what it collects, the rooms it touches, and what is kept after it.

What is written late, at the end of the batch (`Batch.flush`), is looked up in the batch first. A batch without a
database can only do what the memory suffices for; its rows are for a later transaction to write.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from sqlalchemy import Connection

from servicekit.log.errors import StopFollowing
from syncapi import notifications
from syncapi.applied import Applied, RoomCounters, ThreadEvent, UserRoom
from syncapi.storage import accounts, events, members, rooms, state, threads

SnapshotEvents = Mapping[int, Sequence[tuple[str, bytes]]]


class NeedsDatabase(Exception):
    """A batch without a database would have to ask one."""


class _NoDatabase:
    """Stands where a batch's connection would."""

    def __getattr__(self, name: str) -> Any:
        raise NeedsDatabase(name)


class SnapshotWanted(StopFollowing):
    """A message refers to a snapshot that was not handed in: fetch it and apply again."""

    def __init__(self, snapshot_id: int) -> None:
        super().__init__(f"snapshot {snapshot_id} was not handed in")
        self.snapshot_id = snapshot_id


@dataclass(slots=True)
class RoomCache:
    """A room as the writer thread knows it: the room's row, and what evaluating notifications needs."""

    room_id: str
    version: str
    joined: int = 0
    invited: int = 0
    participation: int = 0
    timeline_floor: int = 0
    max_depth: int = 0
    notify_total: int = 0
    highlight_total: int = 0
    last_position: int = 0
    whole_since: int = 0
    # local users -> their rows
    members: dict[str, UserRoom] = field(default_factory=dict)
    # joined local users -> display names; None: not looked up yet
    names: dict[str, str | None] | None = None
    # content of the power levels; None: not looked up yet
    power_levels: dict[str, Any] | None = None
    creators: frozenset[str] = frozenset()
    # local users with edited push rules; None: not looked up yet
    edited: set[str] | None = None

    def counters(self) -> RoomCounters:
        """Return the row."""
        return RoomCounters(
            self.room_id,
            self.version,
            self.joined,
            self.invited,
            self.participation,
            self.timeline_floor,
            self.max_depth,
            self.notify_total,
            self.highlight_total,
            self.last_position,
            self.whole_since,
        )


class Kept:
    """What is kept in memory between batches.

    Args:
        is_local: whether a user id is one of ours.
        raise_on_type: for tests: events of this type raise.
    """

    def __init__(self, is_local: Callable[[str], bool], raise_on_type: str = "") -> None:
        self.is_local = is_local
        self.raise_on_type = raise_on_type
        self.rooms: dict[str, RoomCache] = {}
        # user -> edited push rules; None: not loaded yet
        self.push_rules: dict[str, notifications.Ruleset] | None = None
        # user -> who ignores them; None: to be read
        self.ignored_by: dict[str, set[str]] | None = None
        # Counts rebuilds; None: not known yet.
        self.generation: int | None = None
        # What a rebuild had from the RoomServer's export need not be taken from the log again.
        self.rooms_through = 0
        # Rooms of which nothing is applied; None: not loaded yet.
        self.quarantined: frozenset[str] | None = None

    def forget(self) -> None:
        """Drop it."""
        self.rooms.clear()
        self.push_rules = None
        self.ignored_by = None
        self.generation = None
        self.quarantined = None


@dataclass(slots=True)
class Rows:
    """What batches without a database leave to be written."""

    event_rows: events.EventRows = field(default_factory=lambda: events.EventRows([], [], []))
    rooms: dict[str, RoomCounters] = field(default_factory=dict)
    user_rooms: dict[tuple[str, str], UserRoom] = field(default_factory=dict)
    exceptions: list[tuple[str, str, int, int, int]] = field(default_factory=list)
    threaded: list[ThreadEvent] = field(default_factory=list)

    def add(self, batch: "Batch") -> None:
        """Take over what a batch collected, in the order of batches."""
        self.event_rows.add(batch.writer.take())
        self.rooms |= batch.applied.rooms
        self.user_rooms |= batch.applied.user_rooms
        self.exceptions += batch.exceptions
        self.threaded += batch.applied.threaded

    def write(self, connection: Connection) -> None:
        """Write all of it."""
        self.event_rows.write(connection)
        rooms.store_rooms(connection, self.rooms.values())
        members.store_user_rooms(connection, self.user_rooms.values())
        members.store_exceptions(connection, self.exceptions)
        threads.store_thread_events(connection, self.threaded)


class Batch:
    """One batch being applied: what it has collected so far, and the rooms as it leaves them.

    Args:
        connection: of the transaction; None: the batch has to do without.
    """

    def __init__(
        self, applier: Kept, connection: Connection | None, snapshots: SnapshotEvents | None = None
    ) -> None:
        self.applier = applier
        self.connection = cast("Connection", _NoDatabase()) if connection is None else connection
        self.snapshots = snapshots or {}
        self.applied = Applied()
        self.writer = events.EventWriter(self.connection)
        self.state = state.StateWriter(self.connection)
        self.touched: dict[str, RoomCache] = {}
        self.exceptions: list[tuple[str, str, int, int, int]] = []
        # The to-device inbox is primary: a rebuild must not deliver again what clients have taken.
        self.primary_through = 0
        if connection is not None:
            self._look_at_markers(connection)

    def _look_at_markers(self, connection: Connection) -> None:
        markers = accounts.load_markers(connection)
        applier = self.applier
        if applier.generation not in (None, markers.get("generation", 0)):
            # Another process has made the tables anew.
            applier.forget()
            self.applied.rebuilt = True
        applier.generation = markers.get("generation", 0)
        applier.rooms_through = markers.get("rooms_through", 0)
        self.primary_through = markers.get("primary", 0)

    def room(self, room_id: str, version: str = "") -> RoomCache:
        """Return the room, made when it is new."""
        cached = self.applier.rooms.get(room_id)
        if cached is None:
            row = rooms.load_room(self.connection, room_id)
            cached = RoomCache(room_id, version) if row is None else RoomCache(*row)
            cached.members = {
                row.user_id: row for row in members.load_users_of_room(self.connection, room_id)
            }
            self.applier.rooms[room_id] = cached
        self.touched[room_id] = cached
        return cached

    def set_user_room(self, room: RoomCache, row: UserRoom) -> None:
        """Note a local user's new row."""
        if row.user_id not in room.members:
            room.edited = None
        room.members[row.user_id] = row
        self.applied.user_rooms[row.user_id, row.room_id] = row

    def flush(self) -> None:
        """Write what was collected."""
        self.flush_room_parts()
        self.tell_rooms()
        rows = Rows()
        rows.add(self)
        rows.write(self.connection)
        if self.applied.to_device and self.applied.sequence > self.primary_through:
            accounts.store_marker(self.connection, "primary", self.applied.sequence)

    def tell_rooms(self) -> None:
        """Add the rooms as the batch leaves them to what it tells."""
        for room_id, room in self.touched.items():
            self.applied.rooms[room_id] = room.counters()

    def flush_room_parts(self) -> None:
        """Write events and state now, so that a statement on whole tables finds them."""
        self.writer.flush()
        self.state.flush()

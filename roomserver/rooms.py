"""Memory of hot rooms: a cache of committed rows.

A batch works on `RoomWork` copies and swaps them in after its commit; on any failure they are dropped, and
with them nothing is lost. `Room.state` holds only the entries of current state that somebody needed, so a
message into a large room costs the same as one into a small one.

    RoomCache ── Room (committed) ◄── absorb after the commit ── RoomWork (one batch)
"""

import copy
from collections import OrderedDict
from typing import NamedTuple

from arbor.log.v1.output_pb2 import OutputEntry
from matrixlib.events import Event, StateKey
from matrixlib.room_versions import RoomVersion, get_room_version
from roomserver.storage.events import EventRow
from roomserver.storage.rooms import RoomRow

MAX_ROOMS = 5_000
MAX_ENTRIES = 200_000


class Head(NamedTuple):
    """A forward extremity."""

    nid: int
    depth: int
    snapshot_after: int


class Entry(NamedTuple):
    """An event in the current state."""

    nid: int
    event: Event


class Told(NamedTuple):
    """An entry for OUTPUT: as readers get it, as it is kept for `Export`, and the event it tells, if one."""

    entry: OutputEntry
    skeleton: OutputEntry
    row: EventRow | None
    size_bytes: int


class Room:
    """A room as committed."""

    __slots__ = ("heads", "row", "servers", "state", "version")

    def __init__(self, row: RoomRow, heads: dict[str, Head]) -> None:
        version = get_room_version(row.version)
        if version is None:
            raise ValueError(f"room {row.room_id} has the unknown version {row.version}")
        self.version: RoomVersion = version
        self.row = row
        self.heads = heads
        # What is known of the current state; None: there is no such entry.
        self.state: dict[StateKey, Entry | None] = {}
        self.servers: dict[str, int] = {}


class RoomWork:
    """A room as a batch changes it."""

    __slots__ = (
        "base",
        "current",
        "heads",
        "is_new",
        "outputs",
        "room_id",
        "row",
        "server_counts",
        "state",
        "touched",
        "version",
    )

    def __init__(self, base: Room, *, is_new: bool = False) -> None:
        self.base = base
        self.version = base.version
        self.room_id = base.row.room_id
        self.is_new = is_new
        self.row = base.row.copy()
        self.heads = dict(base.heads)
        # Changed entries of current state; None: removed.
        self.state: dict[StateKey, Entry | None] = {}
        # key number -> (event number or 0, membership number): rows to write.
        self.current: dict[int, tuple[int, int]] = {}
        self.server_counts: dict[str, int] = {}
        self.outputs: list[Told] = []
        self.touched = is_new

    def known(self, key: StateKey) -> bool:
        """Whether `entry` can answer without the database."""
        return key in self.state or key in self.base.state

    def entry(self, key: StateKey) -> Entry | None:
        """What stands under a key in the current state; only for keys that are `known`."""
        if key in self.state:
            return self.state[key]
        return self.base.state.get(key)

    def mark(self) -> "RoomWork":
        """Return a copy to go back to."""
        made = copy.copy(self)
        made.row = self.row.copy()
        made.heads = dict(self.heads)
        made.state = dict(self.state)
        made.current = dict(self.current)
        made.server_counts = dict(self.server_counts)
        made.outputs = list(self.outputs)
        return made

    def commit(self) -> Room:
        """After the commit: make the base what this has become."""
        base = self.base
        base.row = self.row
        base.heads = self.heads
        base.state.update(self.state)
        base.servers.update(self.server_counts)
        return base


class RoomCache:
    """Rooms by id, those used last at the end; bounded by rooms and by entries of state."""

    def __init__(self, max_rooms: int = MAX_ROOMS, max_entries: int = MAX_ENTRIES) -> None:
        self._rooms: OrderedDict[str, Room] = OrderedDict()
        self._weights: dict[str, int] = {}
        self._entries = 0
        self._max_rooms = max_rooms
        self._max_entries = max_entries

    def __len__(self) -> int:
        return len(self._rooms)

    def get(self, room_id: str) -> Room | None:
        """Return a room if it is hot."""
        room = self._rooms.get(room_id)
        if room is not None:
            self._rooms.move_to_end(room_id)
        return room

    def put(self, room: Room) -> None:
        """Keep a committed room; those not used for longest go."""
        room_id = room.row.room_id
        self._rooms[room_id] = room
        self._rooms.move_to_end(room_id)
        weight = len(room.state)
        self._entries += weight - self._weights.get(room_id, 0)
        self._weights[room_id] = weight
        while len(self._rooms) > self._max_rooms or (
            self._entries > self._max_entries and len(self._rooms) > 1
        ):
            self.drop(next(iter(self._rooms)))
        if self._entries > self._max_entries:
            room.state = {key: entry for key, entry in room.state.items() if key[0] != "m.room.member"}
            self._entries = self._weights[room_id] = len(room.state)

    def drop(self, room_id: str) -> None:
        """Forget a room."""
        if self._rooms.pop(room_id, None) is not None:
            self._entries -= self._weights.pop(room_id)

    def drop_partition(self, partition: int) -> None:
        """Forget the rooms of a partition."""
        for room_id in [key for key, room in self._rooms.items() if room.row.partition == partition]:
            self.drop(room_id)

    def clear(self) -> None:
        """Forget everything."""
        self._rooms.clear()
        self._weights.clear()
        self._entries = 0

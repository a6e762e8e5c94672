"""What is recent, in memory: answers incremental `/sync` on the event loop, without the database.

    floor ........................ sequence
      | everything told after the floor is here: timelines, state changes, receipts, account data |

Loaded at start (rooms' counters, users' rooms, who is ignored, whose inbox is not empty) and kept right by the
`Applied` of each committed batch, on the loop. Who waits in `/sync` is woken by what concerns them.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import orjson
from sqlalchemy import Connection

from servicekit import metrics
from servicekit.log.subjects import POSITION_FACTOR
from syncapi.applied import (
    AccountDataSet,
    Applied,
    ReceiptMoved,
    Redacted,
    RoomCounters,
    StateChanged,
    StoredEvent,
    ThreadCounts,
    ThreadEvent,
    UserRoom,
)
from syncapi.storage import accounts, dead_letters, members, rooms, threads, to_device
from syncapi.storage.tables import MAX_POSITION

MAX_ENTRIES = 50_000
MAX_MEMBERS = 50_000
MAX_STEPS = 256
NOTHING: frozenset[str] = frozenset()

_entries = metrics.gauge("syncapi_window_entries", "Entries of OUTPUT held in memory")


def last_position(sequence: int) -> int:
    """Return the greatest position that an entry at or before a sequence may have."""
    return sequence * POSITION_FACTOR + POSITION_FACTOR - 1


@dataclass(slots=True)
class RoomView:
    """A room in memory."""

    counters: RoomCounters
    joined: set[str] = field(default_factory=set)
    """Local users who are joined."""
    events: deque[StoredEvent] = field(default_factory=deque)
    changes: deque[StateChanged] = field(default_factory=deque)
    receipts: deque[ReceiptMoved] = field(default_factory=deque)
    floor: int = 0
    """Of this room, when it is higher than the window's."""
    last_change: int = 0
    rendered: dict[object, object] = field(default_factory=dict)
    """Parts of answers that users share; emptied whenever the room changes."""
    threads: dict[str, ThreadCounts] = field(default_factory=dict)
    """What users who asked lately have not read of the room's threads."""


@dataclass(slots=True)
class UserView:
    """A local user in memory."""

    rooms: dict[str, UserRoom] = field(default_factory=dict)
    joined: set[str] = field(default_factory=set)
    account_data: deque[AccountDataSet] = field(default_factory=deque)
    memberships: deque[tuple[int, str]] = field(default_factory=deque)
    inboxes: dict[str, int] = field(default_factory=dict)
    """Devices that have messages, or had some lately -> position of the last one; 0: of before the start."""
    ignored: frozenset[str] = NOTHING
    waiters: set["asyncio.Future[None]"] = field(default_factory=set)


@dataclass(slots=True)
class Snapshot:
    """What the window is loaded from, read in one snapshot."""

    epoch: str
    sequence: int
    rooms: list[RoomCounters]
    user_rooms: list[UserRoom]
    ignored: list[tuple[str, bytes]]
    inboxes: list[tuple[str, str]]
    rooms_through: int = 0
    threaded: Sequence[str] = ()
    told_anew: Mapping[str, int] = field(default_factory=dict)


def load_snapshot(connection: Connection) -> Snapshot:
    """Read what the window begins with."""
    epoch, sequence = accounts.load_position(connection)
    return Snapshot(
        epoch,
        sequence,
        rooms.load_all_rooms(connection),
        members.load_all(connection),
        accounts.load_global(connection, "m.ignored_user_list"),
        to_device.load_pending(connection),
        accounts.load_marker(connection, "rooms_through"),
        threads.load_threaded_rooms(connection),
        dead_letters.load_told_anew(connection),
    )


def parse_ignored(content: bytes | None) -> frozenset[str]:
    """Return the users whom an `m.ignored_user_list` names."""
    value = orjson.loads(content) if content else None
    ignored = value.get("ignored_users") if isinstance(value, dict) else None
    return frozenset(ignored) if isinstance(ignored, dict) else NOTHING


class Window:
    """See the module. Only used on the event loop."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self.sequence = 0
        """OUTPUT is applied up to there."""
        self.floor = 0
        """Position after which everything is here."""
        self.valid = False
        self.rooms: dict[str, RoomView] = {}
        self.users: dict[str, UserView] = {}
        self.members: dict[tuple[str, str], StoredEvent] = {}
        """Membership events lately asked for: (room, user) -> event, kept right by what is applied."""
        self.threaded: set[str] = set()
        """Rooms that have threads."""
        self.told_anew: Mapping[str, int] = {}
        """Rooms that clients with older tokens get as if they were new."""
        self.incomplete: dict[str, int] = {}
        """Rooms whose members are not here (`MAX_POSITION`), or came lately: where that was."""
        self.recent: deque[tuple[int, str]] = deque()
        """(position, room) of everything that changed a room."""
        self.device_lists: deque[tuple[int, str]] = deque()
        self._max_entries = max_entries
        # In order: every entry held, as (position, the deque whose first it will be).
        self._held: deque[tuple[int, deque]] = deque()  # type: ignore[type-arg]
        self._missed: list[Applied] = []
        _entries.set_function(lambda: len(self._held))

    # -- loading

    def invalidate(self) -> None:
        """Forget everything: what follows is kept until `load`."""
        self.valid = False
        self._missed.clear()

    def load(self, snapshot: Snapshot) -> None:
        """Begin with a snapshot of the database; what was applied since is added."""
        waiting = {user: view.waiters for user, view in self.users.items() if view.waiters}
        self.rooms = {counters.room_id: RoomView(counters) for counters in snapshot.rooms}
        self.users = {}
        self.members.clear()
        self.threaded = set(snapshot.threaded)
        self.told_anew = snapshot.told_anew
        for deque_ in (self.recent, self.device_lists, self._held):
            deque_.clear()
        self.sequence = snapshot.sequence
        # What a rebuild had from the export is not told again.
        self.floor = last_position(max(snapshot.sequence, snapshot.rooms_through))
        self.incomplete.clear()
        for counters in snapshot.rooms:
            self._note_whole(counters)
        for row in snapshot.user_rooms:
            self._set_user_room(row)
        for user, content in snapshot.ignored:
            self.user(user).ignored = parse_ignored(content)
        for user, device in snapshot.inboxes:
            self.user(user).inboxes[device] = 0
        for user, waiters in waiting.items():
            self.user(user).waiters = waiters
        self.valid = True
        missed, self._missed = self._missed, []
        for applied in missed:
            if applied.sequence > snapshot.sequence:
                self.apply(applied)
        for user in waiting:
            self.wake_user(user)

    def user(self, user_id: str) -> UserView:
        """Return a user's view, made when it is new."""
        view = self.users.get(user_id)
        if view is None:
            view = self.users[user_id] = UserView()
        return view

    # -- what was committed

    def apply(self, applied: Applied) -> None:
        """Take in a committed batch and wake those whom it concerns."""
        if not self.valid:
            self._missed.append(applied)
            return
        touched: dict[str, int] = {}
        for room_id in applied.dropped_rooms:
            self._drop_room(room_id, applied)
        for room_id, counters in applied.rooms.items():
            self._room(room_id, counters)
            self._note_whole(counters)
        for event in applied.events:
            self._hold(self._room(event.room_id).events, event.position, event)
            touched[event.room_id] = event.position
        for change in applied.changes:
            room = self._room(change.room_id)
            self._hold(room.changes, change.position, change)
            touched[change.room_id] = max(change.position, touched.get(change.room_id, 0))
            if change.type == "m.room.member" and (change.room_id, change.state_key) in self.members:
                if change.event is None:
                    del self.members[change.room_id, change.state_key]
                else:
                    self.members[change.room_id, change.state_key] = change.event
        for threaded in applied.threaded:
            self._count_in_thread(threaded)
        for receipt in applied.receipts:
            room = self._room(receipt.room_id)
            room.threads.pop(receipt.user_id, None)
            self._hold(room.receipts, receipt.position, receipt)
            touched[receipt.room_id] = max(receipt.position, touched.get(receipt.room_id, 0))
        for redacted in applied.redactions:
            self._redact(redacted)
        users: set[str] = set()
        for row in applied.user_rooms.values():
            self._set_user_room(row)
        for user, room_id, position in applied.memberships:
            self._hold(self.user(user).memberships, position, (position, room_id))
            users.add(user)
        for changed in applied.account_data:
            self._hold(self.user(changed.user_id).account_data, changed.position, changed)
            users.add(changed.user_id)
            if changed.type == "m.ignored_user_list" and not changed.room_id:
                self.user(changed.user_id).ignored = parse_ignored(changed.content)
        for user, device, position in applied.to_device:
            self.user(user).inboxes[device] = position
            users.add(user)
        for position, user in applied.device_lists:
            self._hold(self.device_lists, position, (position, user))
            users.update(self._who_shares_rooms_with(user))
        # In order: a token may name a place within the batch.
        for room_id, position in sorted(touched.items(), key=lambda item: item[1]):
            room = self.rooms[room_id]
            room.last_change = max(room.last_change, position)
            room.rendered.clear()
            self._hold(self.recent, position, (position, room_id))
        self.sequence = max(self.sequence, applied.sequence)
        self._trim()
        for user in users:
            self.wake_user(user)
        for room_id in touched:
            self.wake_room(room_id)

    def wake_room(self, room_id: str) -> None:
        """Wake the joined users of a room who wait."""
        room = self.rooms.get(room_id)
        if room is not None:
            for user in room.joined:
                self.wake_user(user)

    def wake_user(self, user_id: str) -> None:
        view = self.users.get(user_id)
        if view is not None and view.waiters:
            for waiter in view.waiters:
                if not waiter.done():
                    waiter.set_result(None)
            view.waiters.clear()

    def wake_all(self) -> None:
        """Wake everybody: the service stops, or positions are worth looking at again."""
        for user in list(self.users):
            self.wake_user(user)

    def _who_shares_rooms_with(self, user_id: str) -> set[str]:
        view = self.users.get(user_id)
        if view is None:
            # Of a remote user memory does not know the rooms: everybody looks.
            return {user for user, other in self.users.items() if other.waiters}
        found = {user_id}
        for room_id in view.joined:
            found |= self.rooms[room_id].joined
        return found

    # -- parts

    def _room(self, room_id: str, counters: RoomCounters | None = None) -> RoomView:
        room = self.rooms.get(room_id)
        if room is None:
            made = counters or RoomCounters(room_id, "", 0, 0, 0, 0, 0, 0, 0, 0)
            room = self.rooms[room_id] = RoomView(made)
        elif counters is not None:
            room.counters = counters
        return room

    def _note_whole(self, counters: RoomCounters) -> None:
        """Remember where a room's members came, as long as a client answered from here may lack them."""
        if counters.whole_since > self.floor:
            self.incomplete[counters.room_id] = counters.whole_since
        elif self.incomplete:
            self.incomplete.pop(counters.room_id, None)

    def is_partial(self, room_id: str) -> bool:
        """Whether a room's members are not all here yet."""
        return self.incomplete.get(room_id) == MAX_POSITION

    def lacks_members(self, room_ids: AbstractSet[str], position: int) -> bool:
        """Whether the members of one of the rooms were not all here at a position."""
        return any(
            whole_since > position and room_id in room_ids for room_id, whole_since in self.incomplete.items()
        )

    def _set_user_room(self, row: UserRoom) -> None:
        view = self.user(row.user_id)
        view.rooms[row.room_id] = row
        room = self._room(row.room_id)
        # The user has read on, or an event is something else to this user than to others.
        room.threads.pop(row.user_id, None)
        if row.joined_until == MAX_POSITION:
            view.joined.add(row.room_id)
            room.joined.add(row.user_id)
        else:
            view.joined.discard(row.room_id)
            room.joined.discard(row.user_id)

    def _count_in_thread(self, event: ThreadEvent) -> None:
        self.threaded.add(event.room_id)
        room = self._room(event.room_id)
        room.threads.pop(event.sender, None)  # writing is reading
        if not event.notify:
            return
        for user, (inside, by_thread) in room.threads.items():
            known = by_thread.get(event.thread_id, (0, 0))
            counted = known[0] + event.notify, known[1] + event.highlight
            room.threads[user] = ThreadCounts(
                (inside[0] + event.notify, inside[1] + event.highlight),
                {**by_thread, event.thread_id: counted},
            )

    def _drop_room(self, room_id: str, applied: Applied) -> None:
        old = self.rooms.get(room_id)
        if old is None:
            return
        if room_id not in applied.rooms:  # purged
            for user in list(old.joined):
                self.user(user).joined.discard(room_id)
            for view in self.users.values():
                view.rooms.pop(room_id, None)
            del self.rooms[room_id]
            self.incomplete.pop(room_id, None)
        old.threads.clear()
        for key in [key for key in self.members if key[0] == room_id]:
            del self.members[key]
        # Whatever a client has of it came before: it is answered from the database.
        self.floor = max(self.floor, last_position(applied.sequence - 1))

    def _redact(self, redacted: Redacted) -> None:
        room = self.rooms.get(redacted.room_id)
        if room is None:
            return

        def replaced(event: StoredEvent) -> StoredEvent:
            return event._replace(body=redacted.body, unsigned=redacted.unsigned, flags=redacted.flags)

        for index, event in enumerate(room.events):
            if event.event_id == redacted.event_id:
                room.events[index] = replaced(event)
        for index, change in enumerate(room.changes):
            if change.event is not None and change.event.event_id == redacted.event_id:
                room.changes[index] = change._replace(event=replaced(change.event))
        for key, event in self.members.items():
            if key[0] == redacted.room_id and event.event_id == redacted.event_id:
                self.members[key] = replaced(event)
        room.rendered.clear()

    def _hold(self, held: deque, position: int, value: object) -> None:  # type: ignore[type-arg]
        held.append(value)
        self._held.append((position, held))

    def _trim(self) -> None:
        while len(self._held) > self._max_entries:
            position, held = self._held.popleft()
            held.popleft()
            # The whole message goes: positions of different kinds within it are not in order.
            self.floor = max(self.floor, last_position(position // POSITION_FACTOR))
        if len(self.members) > MAX_MEMBERS:
            self.members.clear()

    def remember_members(self, sequence: int, events: Iterable[StoredEvent]) -> None:
        """Keep membership events that were read from a snapshot at `sequence`, unless that is old by now."""
        if self.valid and sequence >= self.sequence:
            for event in events:
                if event.type == "m.room.member" and event.state_key is not None:
                    self.members[event.room_id, event.state_key] = event

    def changed_rooms(self, user: UserView, after: int) -> list[str]:
        """Return the user's joined rooms in which something happened after a position."""
        found: dict[str, None] = {}
        for steps, (position, room_id) in enumerate(reversed(self.recent)):
            if position <= after and position // POSITION_FACTOR <= after // POSITION_FACTOR:
                return list(found)
            if room_id in user.joined:
                found[room_id] = None
            if steps >= MAX_STEPS:
                break
        else:
            return list(found)
        return [room_id for room_id in user.joined if self.rooms[room_id].last_change > after]

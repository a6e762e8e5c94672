"""The state that belongs with a timeline, so that state ⊕ timeline is the state at the end.

    since ------------------ start [ timeline ] through
          changes before start       |
                                     +-- a key that the timeline sets: its value at start, if that is new
                                     +-- any other key: its value at through, if that is new

With `use_state_after` it is the values at `through`, whatever the timeline holds. `Source` is where the values
come from: the database, or the window.
"""

from collections.abc import Iterable
from typing import Protocol

from sqlalchemy import Connection

from syncapi.applied import StoredEvent
from syncapi.storage import state as state_storage
from syncapi.storage.events import STATE_PLACEMENT
from syncapi.sync.context import Reader
from syncapi.sync.sent_members import NOBODY
from syncapi.sync.timeline import Timeline

MEMBER = "m.room.member"


class NotInMemory(Exception):
    """The window cannot answer: the database must."""


class Source(Protocol):
    """Where state comes from."""

    def changes(self, room_id: str, after: int, through: int) -> list[StoredEvent]:
        """Return the entries of the state at `through` that were set after a position."""
        ...

    def full(self, room_id: str, at: int, *, members: bool) -> list[StoredEvent]:
        """Return the state at a position."""
        ...

    def entries(self, room_id: str, keys: Iterable[tuple[str, str]], at: int) -> list[StoredEvent]:
        """Return some entries of the state at a position."""
        ...

    def members(self, room_id: str, users: Iterable[str], at: int) -> list[StoredEvent]:
        """Return some users' membership events at a position."""
        ...


class DatabaseSource:
    """State from the database."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.seen_members: list[StoredEvent] = []

    def changes(self, room_id: str, after: int, through: int) -> list[StoredEvent]:
        """See Source."""
        return state_storage.load_changes(self.connection, room_id, after, through)

    def full(self, room_id: str, at: int, *, members: bool) -> list[StoredEvent]:
        """See Source."""
        return state_storage.load_state(self.connection, room_id, at, members=members)

    def entries(self, room_id: str, keys: Iterable[tuple[str, str]], at: int) -> list[StoredEvent]:
        """See Source."""
        return state_storage.load_entries(self.connection, room_id, keys, at)

    def members(self, room_id: str, users: Iterable[str], at: int) -> list[StoredEvent]:
        """See Source."""
        return state_storage.load_members(self.connection, room_id, users, at)


def _key(event: StoredEvent) -> tuple[str, str]:
    return event.type, event.state_key or ""


def select_state(
    source: Source,
    reader: Reader,
    room_id: str,
    timeline: Timeline,
    *,
    since: int | None,
    through: int,
    state_after: bool,
    heroes: Iterable[str] = (),
) -> list[StoredEvent]:
    """Return the state events to send.

    Args:
        since: what the client has of the room; None: nothing, so the state is sent in full.
        heroes: users of the summary, whose membership events a lazy-loading client needs.
    """
    filter_ = reader.filter
    lazy = filter_.lazy_load_members
    if since is None:
        now = source.full(room_id, through, members=not lazy)
        if lazy and (users := _member_keys(timeline)):
            now += source.members(room_id, users, through)
    else:
        now = source.changes(room_id, since, through)
        if lazy:
            now = _without_unasked_members(reader, room_id, timeline, now)
    if state_after:
        chosen = now
    else:
        _drop_superseded(timeline, now)
        in_timeline = {_key(event) for event in timeline.events if event.state_key is not None}
        chosen = [event for event in now if _key(event) not in in_timeline]
        if in_timeline and since is None:
            chosen += source.entries(room_id, sorted(in_timeline), timeline.start)
        elif in_timeline and since is not None and not timeline.complete:
            # Only before the timeline's start can these keys have had another new value.
            before = source.changes(room_id, since, timeline.start)
            chosen += [event for event in before if _key(event) in in_timeline]
    if lazy:
        have = {event.state_key for event in chosen if event.type == MEMBER}
        needed = {event.sender for event in timeline.events} | set(heroes)
        if since is None:
            needed.add(reader.user_id)
        at = through if state_after else timeline.start
        own_event_first = {
            event.sender
            for event in timeline.events[:1]
            if not state_after and event.type == MEMBER and event.state_key == event.sender
        }
        missing = needed - have - own_event_first
        if since is not None and filter_.remembers_members:
            missing -= reader.known_members.get(room_id, NOBODY)
        if missing:
            chosen = chosen + source.members(room_id, sorted(missing), at)
    state_filter = filter_.state
    if not state_filter.passes_all:
        if not state_filter.passes_room(room_id):
            return []
        chosen = [event for event in chosen if state_filter.passes(event.type, event.sender, event.flags)]
    return chosen


def _without_unasked_members(
    reader: Reader, room_id: str, timeline: Timeline, changes: list[StoredEvent]
) -> list[StoredEvent]:
    """Leave out members that came with a state as a whole, as after a join with partial state.

    They are no news but what was there before: a client that loads members lazily gets them like all others.
    """
    have = {reader.user_id, *_member_keys(timeline), *reader.known_members.get(room_id, NOBODY)}
    return [
        event
        for event in changes
        if event.type != MEMBER or event.placement != STATE_PLACEMENT or event.state_key in have
    ]


def _member_keys(timeline: Timeline) -> list[str]:
    return sorted({event.state_key for event in timeline.events if event.type == MEMBER and event.state_key})


def _drop_superseded(timeline: Timeline, now: Iterable[StoredEvent]) -> None:
    """Take state events out of a timeline that would leave the client with a state that does not hold.

    Such a one lost in state resolution, or what followed it is hidden from the reader. Clients that apply the
    timeline to their state would believe it; the entry that holds is sent as state instead.
    """
    last = {_key(event): event.event_id for event in timeline.events if event.state_key is not None}
    if not last:
        return
    holds = {_key(event): event.event_id for event in now}
    wrong = {key for key, event_id in last.items() if holds.get(key) != event_id}
    if not wrong:
        return
    first = timeline.events[0]
    timeline.events = [
        event for event in timeline.events if event.state_key is None or _key(event) not in wrong
    ]
    timeline.complete = False
    if timeline.events and timeline.events[0] is not first:
        timeline.start = timeline.events[0].position - 1

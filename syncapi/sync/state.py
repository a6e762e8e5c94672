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
from syncapi.sync.context import Reader
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
    in_timeline = (
        set() if state_after else {_key(event) for event in timeline.events if event.state_key is not None}
    )
    if since is None:
        chosen = _full(source, room_id, timeline, through, in_timeline, lazy)
    else:
        chosen = _changed(source, room_id, timeline, since, through, in_timeline)
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
        if missing:
            chosen = chosen + source.members(room_id, sorted(missing), at)
    state_filter = filter_.state
    if not state_filter.passes_all:
        if not state_filter.passes_room(room_id):
            return []
        chosen = [event for event in chosen if state_filter.passes(event.type, event.sender, event.flags)]
    return chosen


def _changed(
    source: Source,
    room_id: str,
    timeline: Timeline,
    since: int,
    through: int,
    in_timeline: set[tuple[str, str]],
) -> list[StoredEvent]:
    chosen = [event for event in source.changes(room_id, since, through) if _key(event) not in in_timeline]
    if in_timeline and not timeline.complete:
        # Only before the timeline's start can these keys have had another new value.
        chosen += [
            event for event in source.changes(room_id, since, timeline.start) if _key(event) in in_timeline
        ]
    return chosen


def _full(
    source: Source,
    room_id: str,
    timeline: Timeline,
    through: int,
    in_timeline: set[tuple[str, str]],
    lazy: bool,
) -> list[StoredEvent]:
    chosen = [
        event for event in source.full(room_id, through, members=not lazy) if _key(event) not in in_timeline
    ]
    keys = sorted(key for key in in_timeline if not (lazy and key[0] == MEMBER))
    if keys:
        chosen += source.entries(room_id, keys, timeline.start)
    return chosen

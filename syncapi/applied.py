"""What one unit of work of the consumer did, told to the memory on the event loop after the commit.

Values only: the writer thread keeps nothing of it. `StoredEvent` is also what queries return: a row of the
`event` table, its columns in the order of `EVENT_COLUMNS`.
"""

from dataclasses import dataclass, field
from typing import NamedTuple


class StoredEvent(NamedTuple):
    """An event as readers keep it; see `storage.tables.event`."""

    position: int
    event_id: str
    room_id: str
    type: str
    state_key: str | None
    sender: str
    depth: int
    depth_before: int
    placement: int
    visibility: str
    visibility_after: str | None
    flags: int
    body: bytes
    unsigned: bytes | None
    txn_device: str | None
    txn_id: str | None
    thread_id: str | None


EVENT_COLUMNS = ", ".join(f"e.{name}" for name in StoredEvent._fields)
"""For queries that call the event table `e`."""


class RoomCounters(NamedTuple):
    """A room's row; see `storage.tables.room`."""

    room_id: str
    version: str
    joined: int
    invited: int
    participation: int
    timeline_floor: int
    max_depth: int
    notify_total: int
    highlight_total: int
    last_position: int
    whole_since: int = 0


class UserRoom(NamedTuple):
    """A local user's row of a room; see `storage.tables.user_room`."""

    user_id: str
    room_id: str
    membership: str
    event_id: str
    position: int
    joined_since: int | None
    joined_until: int | None
    forgotten: bool
    stripped_state: bytes | None
    read_position: int
    read_notify: int
    read_highlight: int
    extra_notify: int
    extra_highlight: int


class StateChanged(NamedTuple):
    """An entry of current state changed; `event` None: nothing stands there any more."""

    room_id: str
    position: int
    type: str
    state_key: str
    event: StoredEvent | None


class ReceiptMoved(NamedTuple):
    """A user read up to an event."""

    room_id: str
    position: int
    user_id: str
    receipt_type: str
    event_id: str
    thread_id: str
    timestamp_ms: int


class ThreadEvent(NamedTuple):
    """An event of a thread, and what it is to users with the predefined push rules: 1 or 0."""

    room_id: str
    position: int
    thread_id: str
    sender: str
    notify: int
    highlight: int


class ThreadCounts(NamedTuple):
    """What a user has not read of a room's threads.

    `inside`: (notifications, highlights) that threads added to the room's totals since the user's place in the
    main timeline. `threads`: thread -> (notifications, highlights).
    """

    inside: tuple[int, int]
    threads: dict[str, tuple[int, int]]


NO_THREADS = ThreadCounts((0, 0), {})


class AccountDataSet(NamedTuple):
    """A user's account data changed; `content` None: deleted."""

    user_id: str
    room_id: str
    type: str
    content: bytes | None
    position: int


class Redacted(NamedTuple):
    """An event lost its content."""

    room_id: str
    event_id: str
    body: bytes
    unsigned: bytes | None
    flags: int


@dataclass(slots=True)
class Applied:
    """Everything that one batch changed. `sequence`: OUTPUT is applied up to there; 0: not known here."""

    sequence: int = 0
    events: list[StoredEvent] = field(default_factory=list)
    changes: list[StateChanged] = field(default_factory=list)
    rooms: dict[str, RoomCounters] = field(default_factory=dict)
    user_rooms: dict[tuple[str, str], UserRoom] = field(default_factory=dict)
    # (user, room, position) of each change of a local user's membership, or of its being forgotten
    memberships: list[tuple[str, str, int]] = field(default_factory=list)
    receipts: list[ReceiptMoved] = field(default_factory=list)
    threaded: list[ThreadEvent] = field(default_factory=list)
    account_data: list[AccountDataSet] = field(default_factory=list)
    # (user, device, position)
    to_device: list[tuple[str, str, int]] = field(default_factory=list)
    # (position, user)
    device_lists: list[tuple[int, str]] = field(default_factory=list)
    # users whose tokens must be asked for again
    accounts: set[str] = field(default_factory=set)
    redactions: list[Redacted] = field(default_factory=list)
    # rooms of which nothing older may be answered from memory: purged, or begun anew
    dropped_rooms: set[str] = field(default_factory=set)
    # the tables were made anew by another process: memory has to be loaded again
    rebuilt: bool = False

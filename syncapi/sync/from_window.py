"""An answer from memory: for a client whose token is recent and whose memberships have not changed since.

What users of a room share is rendered once and kept until the room changes (`RoomView.rendered`): the
timeline and state, unless the reader sent one of the events, ignores somebody or has a filter of an own kind.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple, TypeVar

from syncapi.applied import (
    NO_THREADS,
    AccountDataSet,
    ReceiptMoved,
    StateChanged,
    StoredEvent,
    ThreadCounts,
)
from syncapi.sync.account_data import by_room, render_account_data
from syncapi.sync.context import Reader
from syncapi.sync.joined import render_events, render_room
from syncapi.sync.receipts import PRIVATE, render_receipts
from syncapi.sync.request import SyncRequest
from syncapi.sync.response import Answer
from syncapi.sync.sent_members import NOBODY
from syncapi.sync.state import NotInMemory, select_state
from syncapi.sync.summary import SUMMARY_TYPES, SummaryParts, make_summary
from syncapi.sync.timeline import make_timeline, wanted
from syncapi.sync.unread import render_unread
from syncapi.visibility import always_joined
from syncapi.window import RoomView, UserView, Window

T = TypeVar("T", StoredEvent, StateChanged, ReceiptMoved, AccountDataSet)
SUMMARY = "summary"


def after(held: "deque[T]", position: int) -> list[T]:
    """Return those after a position, in order. They are few, and at the end."""
    found = list(takewhile(lambda item: item.position > position, reversed(held)))
    found.reverse()
    return found


class _Shared(NamedTuple):
    """A room's timeline and state, rendered, and whose membership events are in it."""

    rendered: bytes | None
    members: AbstractSet[str]


@dataclass(slots=True)
class _WindowSource:
    """State from the window: only what changed lately, and members that were asked for lately."""

    window: Window
    room: RoomView

    def changes(self, room_id: str, after_position: int, through: int) -> list[StoredEvent]:
        """See state.Source."""
        latest: dict[tuple[str, str], StateChanged] = {}
        for change in after(self.room.changes, after_position):
            if change.position <= through:
                latest[change.type, change.state_key] = change
        return [change.event for change in latest.values() if change.event is not None]

    def full(self, room_id: str, at: int, *, members: bool) -> list[StoredEvent]:
        """See state.Source."""
        raise NotInMemory

    def entries(self, room_id: str, keys: Iterable[tuple[str, str]], at: int) -> list[StoredEvent]:
        """See state.Source."""
        raise NotInMemory

    def members(self, room_id: str, users: Iterable[str], at: int) -> list[StoredEvent]:
        """See state.Source."""
        found = []
        for user in users:
            event = self.window.members.get((room_id, user))
            if event is None or event.position > at:
                raise NotInMemory
            found.append(event)
        return found


def known_summaries(window: Window, user_id: str) -> tuple[int, dict[str, SummaryParts]]:
    """Return what the summaries of a user's rooms are made of, as far as it is known, and at which sequence."""
    view = window.users.get(user_id)
    if view is None or not window.valid:
        return 0, {}
    found = {room_id: window.rooms[room_id].rendered.get(SUMMARY) for room_id in view.joined}
    return window.sequence, {
        room_id: parts for room_id, parts in found.items() if isinstance(parts, SummaryParts)
    }


def make_answer(
    window: Window, request: SyncRequest, reader: Reader, typing: Mapping[str, bytes]
) -> Answer | None:
    """Return the answer from memory; None: the database must.

    Raises:
        NotInMemory: the database must, and what it reads will serve others who wait for the same.
    """
    view = window.users.get(reader.user_id)
    if request.since is None or request.full_state or not window.valid or view is None:
        return None
    since = request.since.position
    if since < window.floor or reader.filter.federation_format or reader.filter.timeline.by_relations:
        return None
    if view.memberships and view.memberships[-1][0] > since:
        return None
    if reader.device_id in view.inboxes:
        return None
    if window.device_lists and window.device_lists[-1][0] > since:
        return None
    if window.told_anew and any(
        through >= request.since.output_sequence and room_id in view.rooms
        for room_id, through in window.told_anew.items()
    ):
        return None
    if not reader.filter.lazy_load_members and window.lacks_members(view.joined, since):
        return None
    reader.ignored = view.ignored
    return _answer(window, view, request, reader, typing, since)


def _answer(
    window: Window,
    view: UserView,
    request: SyncRequest,
    reader: Reader,
    typing: Mapping[str, bytes],
    since: int,
) -> Answer:
    answer = Answer()
    filter_ = reader.filter
    room_data: dict[str, list[bytes]] = {}
    if view.account_data and view.account_data[-1].position > since:
        grouped = by_room(after(view.account_data, since))
        answer.account_data = render_account_data(grouped.pop("", ()), filter_.account_data, deleted=True)
        room_data = {
            room_id: render_account_data(entries, filter_.room_account_data, deleted=True)
            for room_id, entries in grouped.items()
            if room_id in view.joined
            and filter_.passes_room(room_id)
            and filter_.room_account_data.passes_room(room_id)
        }
    rooms = dict.fromkeys(window.changed_rooms(view, since))
    rooms.update(dict.fromkeys(room_data))
    rooms.update(dict.fromkeys(room_id for room_id in typing if room_id in view.joined))
    for room_id in rooms:
        if filter_.passes_room(room_id):
            rendered = _room(
                window, view, request, reader, room_id, since, typing, room_data.get(room_id, [])
            )
            if rendered is not None:
                answer.join[room_id] = rendered
    return answer


def _room(
    window: Window,
    view: UserView,
    request: SyncRequest,
    reader: Reader,
    room_id: str,
    since: int,
    typing: Mapping[str, bytes],
    data: list[bytes],
) -> bytes | None:
    room = window.rooms[room_id]
    summary, heroes = _summary(room, reader, since)
    events = _events(window, room, request, reader, since, heroes)
    ephemeral: list[bytes] = []
    # Who has read further has other counts, even if nothing else is to be shown.
    own_receipt = view.rooms[room_id].read_position > since
    if reader.filter.ephemeral.passes_room(room_id):
        if room_id in typing:
            ephemeral.append(typing[room_id])
        if room.receipts and room.receipts[-1].position > since:
            receipts = after(room.receipts, since)
            own_receipt = own_receipt or any(receipt.user_id == reader.user_id for receipt in receipts)
            if rendered := _receipts(room, receipts, reader):
                ephemeral.append(rendered)
    if events is None and not ephemeral and not data and not own_receipt:
        return None
    return render_room(
        events or _nothing(request),
        summary=summary,
        unread=render_unread(
            room.counters,
            view.rooms[room_id],
            _threads(window, room, reader.user_id),
            by_thread=reader.filter.timeline.unread_thread_notifications,
        ),
        account_data=data,
        ephemeral=ephemeral,
    )


def _threads(window: Window, room: RoomView, user_id: str) -> ThreadCounts:
    if room.counters.room_id not in window.threaded:
        return NO_THREADS
    found = room.threads.get(user_id)
    if found is None:
        raise NotInMemory
    return found


def _summary(room: RoomView, reader: Reader, since: int) -> tuple[bytes | None, list[str]]:
    """Return the summary if it may have changed, and its heroes."""
    if not any(change.type in SUMMARY_TYPES for change in after(room.changes, since)):
        return None, []
    parts = room.rendered.get(SUMMARY)
    if not isinstance(parts, SummaryParts):
        raise NotInMemory
    return make_summary(parts, room.counters, reader.user_id)


def _nothing(request: SyncRequest) -> bytes:
    return b'"timeline":{"events":[],"limited":false,"prev_batch":"%b"},"%b":{"events":[]}' % (
        str(request.since).encode(),
        request.state_key,
    )


def _receipts(room: RoomView, receipts: list[ReceiptMoved], reader: Reader) -> bytes | None:
    if reader.ignored or any(receipt.receipt_type == PRIVATE for receipt in receipts):
        return render_receipts(receipts, reader)
    key = ("receipts", receipts[0].position, reader.filter.key)
    if key not in room.rendered:
        room.rendered[key] = render_receipts(receipts, reader)
    rendered = room.rendered[key]
    assert rendered is None or isinstance(rendered, bytes)
    return rendered


def _events(
    window: Window, room: RoomView, request: SyncRequest, reader: Reader, since: int, heroes: list[str]
) -> bytes | None:
    """Return the room's timeline and state; None: there is nothing in either."""
    found = after(room.events, since)
    changed = bool(room.changes) and room.changes[-1].position > since
    if not found and not changed:
        return None
    first = found[0].position if found else 0
    first_change = next(iter(after(room.changes, since))).position if changed else 0
    shared = not reader.ignored and not any(
        event.sender == reader.user_id and event.txn_id is not None for event in found
    )
    room_id = room.counters.room_id
    lacking = (
        frozenset(event.sender for event in found) - reader.known_members.get(room_id, NOBODY)
        if reader.filter.remembers_members
        else NOBODY
    )
    key = ("events", first, first_change, reader.filter.key, request.state_key, lacking)
    if shared and reader.filter.rooms is None and key in room.rendered:
        known = room.rendered[key]
        assert isinstance(known, _Shared)
        reader.note_users(room_id, known.members)
        return known.rendered
    shared = shared and not (heroes and reader.filter.lazy_load_members)
    rendered = _render_events(window, room, request, reader, found, since, heroes)
    if shared:
        room.rendered[key] = _Shared(rendered, reader.sent_members.rooms.get(room_id, NOBODY))
    return rendered


def _render_events(
    window: Window,
    room: RoomView,
    request: SyncRequest,
    reader: Reader,
    found: list[StoredEvent],
    since: int,
    heroes: list[str],
) -> bytes | None:
    through = max(room.last_change, since)
    room_id = room.counters.room_id
    filter_ = reader.filter
    passing = (
        [event for event in found if wanted(event, filter_, reader.ignored)]
        if filter_.timeline.passes_room(room_id)
        else []
    )
    limit = filter_.timeline.capped_limit()
    limited = len(passing) > limit
    if limited and any(b'"m.relates_to"' in event.body for event in found):
        raise NotInMemory  # events of a limited timeline come with what relates to them
    chosen = passing[len(passing) - limit :] if limited else passing
    timeline = make_timeline(
        chosen,
        limited=limited,
        complete=len(chosen) == len(found),
        empty_prev_batch=str(request.since),
        end_depth=room.counters.max_depth,
        through=through,
    )
    source = _WindowSource(window, room)
    state = select_state(
        source,
        reader,
        room_id,
        timeline,
        since=since,
        through=through,
        state_after=request.use_state_after,
        heroes=heroes,
    )
    if not timeline.events and not timeline.limited and not state:
        return None
    reader.note_members(room_id, (*state, *timeline.events), whole=False)
    return render_events(reader, always_joined(reader.user_id), timeline, state, state_key=request.state_key)

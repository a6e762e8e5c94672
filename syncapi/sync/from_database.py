"""An answer from the database: initial, after a change of the user's own memberships, or from long ago.

Everything is read in one unit of work, from one snapshot, whose own position the answer leads to.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import orjson
from sqlalchemy import Connection

from matrixlib.invite_permission import INVITE_PERMISSION, blocks_invites
from syncapi.applied import NO_THREADS, ReceiptMoved, RoomCounters, StoredEvent, ThreadCounts, UserRoom
from syncapi.bundles import load_bundles
from syncapi.storage import accounts, dead_letters, members, receipts, rooms, state, threads, to_device
from syncapi.storage import events as event_storage
from syncapi.storage.tables import MAX_POSITION
from syncapi.sync.account_data import by_room, render_account_data, with_push_rules
from syncapi.sync.context import Reader
from syncapi.sync.device_lists import load_device_lists
from syncapi.sync.invited import render_stripped
from syncapi.sync.joined import render_events, render_room
from syncapi.sync.left import render_left
from syncapi.sync.receipts import render_receipts
from syncapi.sync.request import SyncRequest
from syncapi.sync.response import Answer
from syncapi.sync.state import DatabaseSource, select_state
from syncapi.sync.summary import SUMMARY_TYPES, SummaryParts, load_parts, make_summary
from syncapi.sync.timeline import load_timeline
from syncapi.sync.unread import render_unread
from syncapi.visibility import Past, always_joined
from syncapi.window import last_position, parse_ignored

MAX_TO_DEVICE = 100


@dataclass(slots=True)
class DatabaseAnswer:
    """An answer with the position it leads to.

    `members`: membership events that a lazy-loading client was given, and `summaries`: what rooms' summaries
    were made of, and what is not read of rooms' threads, all for the window to remember.
    `inbox`: the last to-device message in it, if there are more; else 0.
    """

    answer: Answer
    epoch: str
    sequence: int
    members: list[StoredEvent] = field(default_factory=list)
    summaries: dict[str, SummaryParts] = field(default_factory=dict)
    threads: dict[str, ThreadCounts] = field(default_factory=dict)
    inbox: int = 0


def load_answer(
    connection: Connection,
    request: SyncRequest,
    reader: Reader,
    typing: Mapping[str, bytes],
    known: tuple[int, Mapping[str, SummaryParts]] = (0, {}),
) -> DatabaseAnswer:
    """Make the answer to a request.

    Args:
        typing: rooms whose `m.typing` is new to the client -> the event.
        known: what rooms' summaries are made of at a sequence; used if it is the snapshot's.
    """
    epoch, sequence = accounts.load_position(connection)
    since = request.since.position if request.since is not None else None
    result = DatabaseAnswer(Answer(), epoch, sequence)
    builder = _Builder(connection, request, reader, typing, result, since, last_position(sequence))
    if known[0] == sequence:
        builder.summaries = known[1]
    builder.build()
    return result


class _Builder:
    def __init__(
        self,
        connection: Connection,
        request: SyncRequest,
        reader: Reader,
        typing: Mapping[str, bytes],
        result: DatabaseAnswer,
        since: int | None,
        through: int,
    ) -> None:
        self.connection = connection
        self.request = request
        self.reader = reader
        self.typing = typing
        self.result = result
        self.answer = result.answer
        self.since = since
        self.through = through
        self.source = DatabaseSource(connection)
        self.room_data: dict[str, list[bytes]] = {}
        self.summaries: Mapping[str, SummaryParts] = {}
        self.threaded: set[str] = set()
        self.told_anew: set[str] = set()
        # Rooms that were not shown at since, for their members were not here -> where those came.
        self.hidden: Mapping[str, int] = {}

    def build(self) -> None:
        reader, filter_ = self.reader, self.reader.filter
        data = by_room(
            accounts.load_account_data(
                self.connection, reader.user_id, -1 if self.since is None else self.since, self.through
            )
        )
        ignored = accounts.load_account_entry(self.connection, reader.user_id, "m.ignored_user_list")
        reader.ignored = parse_ignored(ignored)
        mine = data.pop("", [])
        if self.since is None:
            mine = with_push_rules(mine, reader.user_id)
        self.answer.account_data = render_account_data(
            mine, filter_.account_data, deleted=self.since is not None
        )
        self.room_data = {
            room_id: render_account_data(entries, filter_.room_account_data, deleted=self.since is not None)
            for room_id, entries in data.items()
            if filter_.room_account_data.passes_room(room_id)
        }
        self._rooms()
        if reader.device_id:
            messages = to_device.load_messages(
                self.connection, reader.user_id, reader.device_id, self.through, MAX_TO_DEVICE + 1
            )
            if len(messages) > MAX_TO_DEVICE:
                del messages[MAX_TO_DEVICE:]
                self.result.inbox = messages[-1][0]
            self.answer.to_device = [message for _, message in messages]

    def _rooms(self) -> None:
        filter_ = self.reader.filter
        if self.request.since is not None:
            known = self.request.since.output_sequence
            told = dead_letters.load_told_anew(self.connection)
            self.told_anew = {room_id for room_id, through in told.items() if through >= known}
        if not filter_.lazy_load_members:
            # A client that wants all members gets the room once they are here.
            self.hidden = rooms.load_incomplete(self.connection, self.since or 0)
        rows = [
            row
            for row in members.load_rooms_of_user(self.connection, self.reader.user_id)
            if not row.forgotten and filter_.passes_room(row.room_id) and row.position <= self.through
        ]
        joined = [
            row for row in rows if row.joined_until == MAX_POSITION and not self._lacks_members(row.room_id)
        ]
        changed = [row.room_id for row in rows if self._is_new(row)]
        histories = state.load_member_history(self.connection, changed, self.reader.user_id)
        newly_joined, newly_left = self._memberships(rows, histories)
        if self.since is not None:
            for room_id in newly_joined:
                # Set while the client did not have the room, say before an earlier stay ended.
                entries = accounts.load_room_account_data(
                    self.connection, self.reader.user_id, room_id, self.through
                )
                if entries and filter_.room_account_data.passes_room(room_id):
                    self.room_data[room_id] = render_account_data(
                        entries, filter_.room_account_data, deleted=False
                    )
        self._joined(joined, histories, newly_joined)
        if self.since is not None:
            self.answer.changed, self.answer.left = load_device_lists(
                self.connection,
                self.reader.user_id,
                [row.room_id for row in joined],
                [room_id for room_id in newly_joined if self.since is not None],
                newly_left,
                since=self.since,
                through=self.through,
            )

    def _lacks_members(self, room_id: str) -> bool:
        """Whether a room is not to be shown yet."""
        return self.hidden.get(room_id) == MAX_POSITION

    def _is_new(self, row: UserRoom) -> bool:
        """Whether the user's membership is new to the client."""
        return (
            self.since is None
            or row.position > self.since
            or row.room_id in self.told_anew
            or (row.room_id in self.hidden and row.joined_until == MAX_POSITION)
        )

    def _was_joined(self, history: list[tuple[int, int, str]]) -> bool:
        """Whether the client has the room from before: joined at since."""
        if self.since is None:
            return False
        return any(m == "join" and since <= self.since < until for since, until, m in history)

    def _memberships(
        self, rows: list[UserRoom], histories: Mapping[str, list[tuple[int, int, str]]]
    ) -> tuple[set[str], list[tuple[str, int]]]:
        """Make invites, knocks and left rooms; returns rooms that are new to the client, and left ones."""
        newly_joined: set[str] = set()
        newly_left: list[tuple[str, int]] = []
        for row in rows:
            is_new = self._is_new(row)
            history = histories.get(row.room_id, [])
            if row.joined_until == MAX_POSITION:
                # A stay that began after since is new, even if an earlier one was known: state may be missed.
                began = row.joined_since or 0
                if self._lacks_members(row.room_id):
                    continue
                if (
                    self.since is None
                    or began > self.since
                    or row.room_id in self.told_anew
                    or row.room_id in self.hidden
                ):
                    newly_joined.add(row.room_id)
            elif not is_new:
                continue
            elif row.membership in ("invite", "knock"):
                self._invited(row)
                if self.since is not None and self._was_joined(history):
                    newly_left.append((row.room_id, row.joined_until or row.position))
            elif self.since is not None or self.reader.filter.include_leave:
                was_joined = self._was_joined(history) and row.room_id not in self.hidden
                rendered = render_left(
                    self.connection,
                    self.request,
                    self.reader,
                    row,
                    history,
                    since=self.since if was_joined else None,
                    told_since=self.since,
                    account_data=self.room_data.get(row.room_id, []),
                )
                if rendered is not None:
                    self.answer.leave[row.room_id] = rendered
                if was_joined:
                    newly_left.append((row.room_id, row.joined_until or row.position))
        return newly_joined, newly_left

    def _invited(self, row: UserRoom) -> None:
        own = event_storage.load_event(self.connection, row.event_id)
        if row.membership == "invite" and (
            self._blocks_invites or (own is not None and own.sender in self.reader.ignored)
        ):
            return
        section = self.answer.knock if row.membership == "knock" else self.answer.invite
        section[row.room_id] = render_stripped(row, own)

    @cached_property
    def _blocks_invites(self) -> bool:
        """Whether the reader takes no invites: those that came are not shown."""
        content = accounts.load_account_entry(self.connection, self.reader.user_id, INVITE_PERMISSION)
        return content is not None and blocks_invites(orjson.loads(content))

    def _joined(
        self,
        joined: list[UserRoom],
        histories: Mapping[str, list[tuple[int, int, str]]],
        newly_joined: set[str],
    ) -> None:
        ids = [row.room_id for row in joined]
        counters = rooms.load_rooms(self.connection, ids)
        self.threaded = threads.load_threaded_among(self.connection, ids)
        ephemeral = self.reader.filter.ephemeral
        receipts_of: dict[str, list[ReceiptMoved]] = {}
        if ephemeral.passes("m.receipt", ""):
            old_ids = [room_id for room_id in ids if room_id not in newly_joined]
            receipts_of = receipts.load_receipts(
                self.connection, old_ids, -1 if self.since is None else self.since, self.through
            )
            if newly_joined:
                receipts_of |= receipts.load_receipts(self.connection, sorted(newly_joined), -1, self.through)
        for row in joined:
            room = counters[row.room_id]
            is_new = row.room_id in newly_joined
            room_receipts = receipts_of.get(row.room_id, [])
            if (
                not is_new
                and not self.request.full_state
                and self.since is not None
                and room.last_position <= self.since
                and row.room_id not in self.room_data
                and row.room_id not in self.typing
                and not room_receipts
            ):
                continue
            rendered = self._joined_room(row, room, histories.get(row.room_id), room_receipts, is_new)
            if rendered is not None:
                self.answer.join[row.room_id] = rendered

    def _joined_room(
        self,
        row: UserRoom,
        room: RoomCounters,
        history: list[tuple[int, int, str]] | None,
        room_receipts: list[ReceiptMoved],
        is_new: bool,
    ) -> bytes | None:
        request, reader = self.request, self.reader
        since = None if is_new else self.since
        past = always_joined(reader.user_id) if history is None else Past(reader.user_id, history)
        if is_new:
            after = room.timeline_floor - 1
        else:
            after = max(since or 0, room.timeline_floor - 1)
        timeline = load_timeline(
            self.connection,
            reader,
            past,
            row.room_id,
            after=after,
            through=self.through,
            empty_prev_batch=str(request.since) if request.since else f"t1_{room.max_depth + 1}_0",
            end_depth=room.max_depth,
        )
        summary: bytes | None = None
        heroes: list[str] = []
        full = since is None or request.full_state
        changes = [] if full or since is None else self.source.changes(row.room_id, since, self.through)
        if full or any(event.type in SUMMARY_TYPES for event in changes):
            parts = self.summaries.get(row.room_id) or load_parts(self.connection, row.room_id, self.through)
            self.result.summaries[row.room_id] = parts
            summary, heroes = make_summary(parts, room, reader.user_id)
        chosen = select_state(
            self.source,
            reader,
            row.room_id,
            timeline,
            since=None if full else since,
            through=self.through,
            state_after=request.use_state_after,
            heroes=heroes,
        )
        reader.note_members(row.room_id, (*chosen, *timeline.events), whole=full)
        if reader.filter.lazy_load_members and not full:
            self.result.members += [event for event in chosen if event.type == "m.room.member"]
        reader.bundles |= load_bundles(
            self.connection,
            [event for event in timeline.events if event.state_key is None],
            past,
            through=self.through,
            ignored=reader.ignored,
            with_room_id=False,
        )
        ephemeral: list[bytes] = []
        if reader.filter.ephemeral.passes_room(row.room_id):
            if row.room_id in self.typing:
                ephemeral.append(self.typing[row.room_id])
            if rendered := render_receipts(room_receipts, reader):
                ephemeral.append(rendered)
        data = self.room_data.get(row.room_id, [])
        has_read = row.read_position > (since or 0)
        if not (
            full
            or has_read
            or timeline.events
            or timeline.limited
            or chosen
            or ephemeral
            or data
            or room_receipts
            or summary
        ):
            return None
        return render_room(
            render_events(reader, past, timeline, chosen, state_key=request.state_key),
            summary=summary,
            unread=render_unread(
                room,
                row,
                self._threads(row),
                by_thread=reader.filter.timeline.unread_thread_notifications,
            ),
            account_data=data,
            ephemeral=ephemeral,
        )

    def _threads(self, row: UserRoom) -> ThreadCounts:
        if row.room_id not in self.threaded:
            return NO_THREADS
        counts = self.result.threads[row.room_id] = threads.load_thread_counts(self.connection, row)
        return counts

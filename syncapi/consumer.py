"""Applies OUTPUT messages to the database: one unit of work a batch, on the writer thread, with executemany.

`Applier.apply(connection, messages)` writes everything and returns an `Applied` for the memory; `committed()`
is called when the transaction is safe. Rooms that are busy are kept as rows in memory between batches; after
a batch that failed they are read again.

What is written late, at the end of the batch (`_Batch.flush`), is looked up in the batch first.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson
from sqlalchemy import Connection

from arbor.log.v1 import output_pb2
from servicekit.log.errors import StopFollowing, UndecodableEntry, UnknownEntryKind
from servicekit.log.subjects import POSITION_FACTOR
from servicekit.logging import get_logger
from syncapi import notifications, rendering
from syncapi.applied import (
    AccountDataSet,
    Applied,
    ReceiptMoved,
    Redacted,
    RoomCounters,
    StateChanged,
    StoredEvent,
    UserRoom,
)
from syncapi.storage import accounts, events, members, receipts, rooms, state, to_device
from syncapi.storage.tables import MAX_POSITION

log = get_logger(__name__)

TIMELINE = output_pb2.PLACEMENT_TIMELINE
HISTORY = output_pb2.PLACEMENT_HISTORY
STATE = output_pb2.PLACEMENT_STATE
HIDDEN = output_pb2.PLACEMENT_HIDDEN

NAMING_TYPES = ("m.room.name", "m.room.canonical_alias")
MAX_CACHED_ROOMS = 5_000
SnapshotEvents = Mapping[int, Sequence[tuple[str, bytes]]]


class SnapshotWanted(StopFollowing):
    """A message refers to a snapshot that was not handed in: fetch it and apply again."""

    def __init__(self, snapshot_id: int) -> None:
        super().__init__(f"snapshot {snapshot_id} was not handed in")
        self.snapshot_id = snapshot_id


class OutputEnvelope(Protocol):
    """A message of the OUTPUT stream, as the log reader gives it."""

    @property
    def sequence(self) -> int:
        """Its stream sequence."""

    @property
    def data(self) -> bytes:
        """An `OutputMessage`."""


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
        )


class Applier:
    """Turns OUTPUT messages into rows.

    Args:
        is_local: whether a user id is one of ours.
    """

    def __init__(self, is_local: Callable[[str], bool]) -> None:
        self.is_local = is_local
        self.rooms: dict[str, RoomCache] = {}
        # user -> edited push rules; None: not loaded yet
        self.push_rules: dict[str, notifications.Ruleset] | None = None
        # Counts rebuilds; None: not known yet.
        self.generation: int | None = None
        self._clean = True

    def forget(self) -> None:
        """Drop what is kept between batches."""
        self.rooms.clear()
        self.push_rules = None
        self.generation = None
        self._clean = True

    def committed(self) -> None:
        """Say that what the last `apply` wrote is committed."""
        self._clean = True

    def apply(
        self,
        connection: Connection,
        messages: Iterable[OutputEnvelope],
        snapshots: SnapshotEvents | None = None,
    ) -> Applied:
        """Apply messages in order and return what changed.

        Raises:
            UndecodableEntry: an envelope does not decode.
            SnapshotWanted: a snapshot is missing in `snapshots`.
            UnknownEntryKind: an entry of a kind this version does not know, not marked skippable.
        """
        if not self._clean or len(self.rooms) > MAX_CACHED_ROOMS:
            self.forget()
        batch = _Batch(self, connection, snapshots or {})
        self._clean = False
        batch.apply(messages)
        return batch.applied

    def read_receipts(self, connection: Connection, moved: Iterable[ReceiptMoved]) -> None:
        """Take receipts that are stored into account for unread counts, after a rebuild."""
        batch = _Batch(self, connection, {})
        for receipt in moved:
            batch.read_receipt(receipt)
        batch.flush()


class _Batch:
    """One batch being applied."""

    def __init__(self, applier: Applier, connection: Connection, snapshots: SnapshotEvents) -> None:
        self.applier = applier
        self.connection = connection
        self.snapshots = snapshots
        self.applied = Applied()
        self.writer = events.EventWriter(connection)
        self.state = state.StateWriter(connection)
        self.touched: dict[str, RoomCache] = {}
        self.exceptions: list[tuple[str, str, int, int, int]] = []
        markers = accounts.load_markers(connection)
        if applier.generation not in (None, markers.get("generation", 0)):
            # Another process has made the tables anew.
            applier.forget()
            self.applied.rebuilt = True
        applier.generation = markers.get("generation", 0)
        # The to-device inbox is primary: a rebuild must not deliver again what clients have taken.
        # What a rebuild had from the RoomServer's export need not be taken from the log again.
        self.primary_through = markers.get("primary", 0)
        self.rooms_through = markers.get("rooms_through", 0)

    # -- messages

    def apply(self, messages: Iterable[OutputEnvelope]) -> None:
        decoded: list[tuple[int, output_pb2.OutputMessage]] = []
        for envelope in messages:
            self.applied.sequence = max(self.applied.sequence, envelope.sequence)
            message = output_pb2.OutputMessage()
            try:
                message.ParseFromString(envelope.data)
            except Exception as error:
                raise UndecodableEntry(f"OUTPUT {envelope.sequence} is no OutputMessage") from error
            decoded.append((envelope.sequence, message))
        self.writer.learn(_event_ids(decoded))
        for sequence, message in decoded:
            exported = sequence <= self.rooms_through and bool(message.room_id)
            for index, entry in enumerate(message.entries):
                if not exported or entry.HasField("receipt"):
                    self._entry(message, entry, sequence * POSITION_FACTOR + index)
        self.flush()

    def _entry(self, message: output_pb2.OutputMessage, entry: output_pb2.OutputEntry, position: int) -> None:
        kind = entry.WhichOneof("kind")
        if kind is None:
            if entry.skippable:
                return
            raise UnknownEntryKind(f"OUTPUT entry {position} is of a kind that this version does not know")
        handler = _HANDLERS.get(kind)
        if handler is not None:
            handler(self, message, getattr(entry, kind), position)

    def flush(self) -> None:
        """Write what was collected."""
        self.writer.flush()
        self.state.flush()
        rooms.store_rooms(self.connection, [room.counters() for room in self.touched.values()])
        members.store_user_rooms(self.connection, list(self.applied.user_rooms.values()))
        members.store_exceptions(self.connection, self.exceptions)
        if self.applied.to_device and self.applied.sequence > self.primary_through:
            accounts.store_marker(self.connection, "primary", self.applied.sequence)
        for room_id, room in self.touched.items():
            self.applied.rooms[room_id] = room.counters()

    # -- rooms

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

    def room_event(
        self, message: output_pb2.OutputMessage, entry: output_pb2.RoomEvent, position: int
    ) -> None:
        room = self.room(message.room_id, entry.room_version)
        if entry.participation_began:
            self._begin_participation(room, entry.participation, position)
        if entry.placement == HIDDEN:
            self._state_changes(room, entry, None, {}, position)
            return
        known = self.writer.known.get(entry.event_id)
        if known is not None and known[0] == position:
            return  # applied before
        if known is not None and (known[1] != STATE or entry.placement == STATE):
            # Told before, at that place; what it changes in the state may still be new.
            stored = events.load_event_by_position(self.connection, known[0]) or self.writer.pending(
                entry.event_id
            )
            self._state_changes(room, entry, stored, None, position)
            return
        rendered = rendering.render_event(entry.event_id, entry.pdu_json)
        content = rendered.content
        timeline = entry.placement == TIMELINE
        thread_id = _thread_of(content)
        stored = StoredEvent(
            position,
            entry.event_id,
            message.room_id,
            entry.type,
            entry.state_key if entry.HasField("state_key") else None,
            entry.sender,
            entry.depth,
            room.max_depth,
            entry.placement,
            entry.visibility.history_visibility or "shared",
            entry.visibility.history_visibility_after or None,
            rendered.flags,
            rendered.body,
            rendering.unsigned_members(entry.prev_content_json, entry.replaces_state),
            entry.transaction_key.device_id or None if entry.HasField("transaction_key") else None,
            entry.transaction_key.txn_id or None if entry.HasField("transaction_key") else None,
            thread_id,
        )
        self._state_changes(room, entry, stored, content, position)
        if timeline:
            self._notify(room, stored, content, entry)
            room.max_depth = max(room.max_depth, entry.depth)
            room.last_position = position
            self.applied.events.append(stored)
        elif entry.visibility.local_members:
            self.writer.members += [
                (position, member.user_id, member.membership) for member in entry.visibility.local_members
            ]
        self.writer.add(stored, entry.origin_server_ts, room.notify_total, room.highlight_total, known)
        relation = content.get("m.relates_to")
        if isinstance(relation, dict) and entry.placement != STATE:
            parent, rel_type = relation.get("event_id"), relation.get("rel_type")
            if isinstance(parent, str) and isinstance(rel_type, str):
                self.writer.relations.append(
                    (position, entry.event_id, message.room_id, parent, rel_type, entry.type, entry.sender)
                )
        if timeline:
            sender = room.members.get(entry.sender)
            if sender is not None and sender.joined_until == MAX_POSITION:
                # Sending an event is reading up to it.
                self._read_up_to(room, sender, position, room.notify_total, room.highlight_total)

    def _state_changes(
        self,
        room: RoomCache,
        entry: output_pb2.RoomEvent,
        own: StoredEvent | None,
        content: dict[str, Any] | None,
        position: int,
    ) -> None:
        """Apply an entry's changes of the current state; `own` is the entry's event."""
        counted = 0, 0
        for change in entry.state_changes:
            event: StoredEvent | None = None
            event_content: dict[str, Any] | None = None
            if change.event_id:
                if own is not None and change.event_id == own.event_id:
                    event, event_content = own, content
                else:
                    event = self._other_event(room, change.event_id, change.pdu_json, position)
            replaced = self._set_state(
                room, change.type, change.state_key, event, event_content, position, entry
            )
            if change.type == "m.room.member":
                now = "" if event is None else self._membership(event, event_content)
                counted = (
                    counted[0] + (now == "join") - (replaced == "join"),
                    counted[1] + (now == "invite") - (replaced == "invite"),
                )
        if entry.HasField("member_counts"):
            room.joined, room.invited = entry.member_counts.joined, entry.member_counts.invited
        else:
            room.joined += counted[0]
            room.invited += counted[1]

    def _other_event(self, room: RoomCache, event_id: str, pdu_json: bytes, position: int) -> StoredEvent:
        """Return an event that is not the entry's own, stored now if it is new."""
        found = self.writer.pending(event_id)
        if found is None:
            known = self.writer.known.get(event_id)
            found = (
                events.load_event_by_position(self.connection, known[0])
                if known is not None
                else events.load_event(self.connection, event_id)
            )
        if found is not None:
            return found
        if not pdu_json:
            raise LookupError(f"table event has no {event_id}, which room {room.room_id} names as state")
        return self.store_state_event(room, event_id, pdu_json)

    def store_state_event(self, room: RoomCache, event_id: str, pdu_json: bytes) -> StoredEvent:
        """Store a state event that has no place of its own on OUTPUT."""
        rendered = rendering.render_event(event_id, pdu_json)
        pdu = orjson.loads(pdu_json)
        stored = StoredEvent(
            self.writer.next_without_place(),
            event_id,
            room.room_id,
            pdu["type"],
            pdu.get("state_key"),
            pdu["sender"],
            int(pdu.get("depth", 0)),
            room.max_depth,
            STATE,
            "shared",
            None,
            rendered.flags,
            rendered.body,
            None,
            None,
            None,
            None,
        )
        self.writer.add(stored, int(pdu["origin_server_ts"]), room.notify_total, room.highlight_total, None)
        return stored

    def _membership(self, event: StoredEvent, content: dict[str, Any] | None) -> str:
        if content is None:
            content = orjson.loads(event.body + b"}")["content"]
        membership = content.get("membership") if isinstance(content, dict) else None
        return membership if isinstance(membership, str) else "leave"

    def _set_state(
        self,
        room: RoomCache,
        type_: str,
        state_key: str,
        event: StoredEvent | None,
        content: dict[str, Any] | None,
        position: int,
        entry: output_pb2.RoomEvent | None,
    ) -> str | None:
        """Set one entry of current state; returns the membership that stood there, for members."""
        membership: str | None = None
        if type_ == "m.room.member":
            if event is not None and content is None:
                content = orjson.loads(event.body + b"}")["content"]
            membership = "" if event is None else self._membership(event, content)
        replaced = self.state.set(room.room_id, type_, state_key, event, membership, position)
        room.last_position = max(room.last_position, position)
        self.applied.changes.append(StateChanged(room.room_id, position, type_, state_key, event))
        if type_ == "m.room.member":
            if self.applier.is_local(state_key):
                name = content.get("displayname") if content else None
                self._set_membership(room, state_key, event, membership or "leave", position, entry)
                if room.names is not None:
                    if membership == "join":
                        room.names[state_key] = name if isinstance(name, str) else None
                    else:
                        room.names.pop(state_key, None)
        elif type_ == "m.room.power_levels" and state_key == "":
            room.power_levels = (
                None if event is None else content or orjson.loads(event.body + b"}")["content"]
            )
            if event is None:
                room.power_levels = {}
        return replaced

    def _set_membership(
        self,
        room: RoomCache,
        user_id: str,
        event: StoredEvent | None,
        membership: str,
        position: int,
        entry: output_pb2.RoomEvent | None,
    ) -> None:
        """Change a local user's row after a change of its membership (or profile) in the room."""
        old = room.members.get(user_id)
        joined = membership == "join"
        joined_since = old.joined_since if old else None
        joined_until = old.joined_until if old else None
        if old is not None and old.forgotten:
            joined_since = joined_until = None
        reading = (
            (old.read_position, old.read_notify, old.read_highlight, old.extra_notify, old.extra_highlight)
            if old
            else (position, room.notify_total, room.highlight_total, 0, 0)
        )
        if joined and joined_until != MAX_POSITION:
            joined_since, joined_until = position, MAX_POSITION
            reading = (position, room.notify_total, room.highlight_total, 0, 0)
        elif not joined and joined_until == MAX_POSITION:
            joined_until = position
        stripped: bytes | None = None
        if membership in ("invite", "knock"):
            stripped = old.stripped_state if old else None
            if (
                entry is not None
                and entry.stripped_state_json
                and event is not None
                and entry.event_id == event.event_id
            ):
                stripped = join_array(entry.stripped_state_json)
        # A changed profile is no change of membership: the stay goes on where it was.
        same = old is not None and old.membership == membership == "join"
        row = UserRoom(
            user_id,
            room.room_id,
            membership,
            event.event_id if event is not None else "",
            old.position if same and old is not None else position,
            joined_since,
            joined_until,
            False if old is None or membership != old.membership else old.forgotten,
            stripped,
            *reading,
        )
        self.set_user_room(room, row)
        if not same:
            self.applied.memberships.append((user_id, room.room_id, position))

    def _begin_participation(self, room: RoomCache, participation: int, position: int) -> None:
        """Drop the old view of a room that we are back in."""
        if room.participation == participation and room.last_position:
            return
        self.state.close_all(room.room_id, position)
        room.participation = participation
        room.timeline_floor = position
        room.joined = room.invited = 0
        room.names = {} if room.names is not None else None
        room.power_levels = None
        self.applied.dropped_rooms.add(room.room_id)

    # -- notifications

    def _notify(
        self, room: RoomCache, event: StoredEvent, content: dict[str, Any], entry: output_pb2.RoomEvent
    ) -> None:
        """Count an event: the class outcome into the room's totals, exceptions as rows."""
        if not room.members:
            return
        may_ping = notifications.pings_room(content) and notifications.may_notify_room(
            event.sender, self._power_levels(room), room.creators
        )
        outcome = notifications.class_outcome(
            event.type, event.state_key, content, sender_may_notify_room=may_ping
        )
        room.notify_total += outcome.notify
        room.highlight_total += outcome.highlight
        found = dict.fromkeys(notifications.mentioned_users(event.type, content), notifications.HIGHLIGHT)
        self._edited_rules(room, entry, found)
        for user, exception in found.items():
            if user == event.sender:
                continue
            row = room.members.get(user)
            if row is None or row.joined_until != MAX_POSITION:
                continue
            notify = exception.notify - outcome.notify
            highlight = exception.highlight - outcome.highlight
            if notify or highlight:
                self.exceptions.append((user, room.room_id, event.position, notify, highlight))
                self.set_user_room(
                    room,
                    row._replace(
                        extra_notify=row.extra_notify + notify,
                        extra_highlight=row.extra_highlight + highlight,
                    ),
                )

    def _edited_rules(
        self,
        room: RoomCache,
        entry: output_pb2.RoomEvent,
        found: dict[str, notifications.Outcome],
    ) -> None:
        """Evaluate the event for the joined members who have edited their rules."""
        if self.applier.push_rules is None:
            self.applier.push_rules = {
                user: notifications.parse_rules(content)
                for user, content in accounts.load_global(self.connection, "m.push_rules")
            }
        rules = self.applier.push_rules
        if not rules:
            return
        if room.edited is None:
            room.edited = (
                {user for user in rules if user in room.members}
                if len(rules) < len(room.members)
                else {user for user in room.members if user in rules}
            )
        if not room.edited:
            return
        levels = self._power_levels(room)
        evaluate = notifications.evaluator(
            entry.pdu_json, entry.event_id, room.version, room.room_id, room.joined, levels, room.creators
        )
        if evaluate is None:
            return
        names = self._names(room)
        for user in room.edited:
            if user in names:
                found[user] = evaluate(rules[user], user, names[user])

    def _names(self, room: RoomCache) -> Mapping[str, str | None]:
        if room.names is None:
            room.names = {
                user: None for user, row in room.members.items() if row.joined_until == MAX_POSITION
            }
            pending = self.state.pending_members(room.room_id)
            for user, body in state.load_member_bodies(self.connection, room.room_id, list(room.names)):
                room.names[user] = _display_name(body)
            for user, event in pending.items():
                if user in room.names and event is not None:
                    room.names[user] = _display_name(event.body)
        return room.names

    def _power_levels(self, room: RoomCache) -> dict[str, Any]:
        if room.power_levels is None:
            event = self._state_event(room, "m.room.power_levels")
            room.power_levels = {} if event is None else orjson.loads(event.body + b"}")["content"]
        if not room.creators and room.version not in _WITHOUT_CREATOR_POWER:
            create = self._state_event(room, "m.room.create")
            if create is not None:
                content = orjson.loads(create.body + b"}")["content"]
                others = content.get("additional_creators")
                room.creators = frozenset(
                    {create.sender, *(user for user in others or () if isinstance(user, str))}
                )
        return room.power_levels

    def _state_event(self, room: RoomCache, type_: str) -> StoredEvent | None:
        return self.state.pending_event(room.room_id, type_, "") or state.load_state_event(
            self.connection, room.room_id, type_, ""
        )

    def _read_up_to(
        self, room: RoomCache, row: UserRoom, position: int, notify_total: int, highlight_total: int
    ) -> None:
        if position <= row.read_position:
            return
        extra = (0, 0)
        if row.extra_notify or row.extra_highlight:
            extra = members.sum_exceptions(self.connection, row.user_id, room.room_id, position)
            for user, room_id, place, notify, highlight in self.exceptions:
                if user == row.user_id and room_id == room.room_id and place > position:
                    extra = extra[0] + notify, extra[1] + highlight
        self.set_user_room(
            room,
            row._replace(
                read_position=position,
                read_notify=notify_total,
                read_highlight=highlight_total,
                extra_notify=extra[0],
                extra_highlight=extra[1],
            ),
        )

    # -- other entries about rooms

    def state_rewritten(
        self, message: output_pb2.OutputMessage, entry: output_pb2.StateRewritten, position: int
    ) -> None:
        room = self.room(message.room_id, entry.room_version)
        if entry.snapshot_id not in self.snapshots:
            raise SnapshotWanted(entry.snapshot_id)
        if entry.participation_began:
            self._begin_participation(room, entry.participation, position)
        snapshot = self.snapshots[entry.snapshot_id]
        self.writer.learn([event_id for event_id, _ in snapshot])
        old = self.state.current(room.room_id)
        joined = invited = 0
        for event_id, pdu_json in snapshot:
            event = self._other_event(room, event_id, pdu_json, position)
            key = event.type, event.state_key or ""
            if event.type == "m.room.member":
                membership = self._membership(event, None)
                joined += membership == "join"
                invited += membership == "invite"
            if old.pop(key, None) != event_id:
                self._set_state(room, *key, event, None, position, None)
        for type_, state_key in old:
            self._set_state(room, type_, state_key, None, None, position, None)
        room.joined, room.invited = joined, invited

    def room_purged(
        self, message: output_pb2.OutputMessage, entry: output_pb2.RoomPurged, position: int
    ) -> None:
        self.flush_room_parts()
        self.applied.dropped_rooms.add(message.room_id)
        if entry.before_event_id:
            event = events.load_event(self.connection, entry.before_event_id)
            if event is not None:
                events.purge_history(self.connection, event)
            return
        for user in self.room(message.room_id).members:
            self.applied.memberships.append((user, message.room_id, position))
            self.applied.user_rooms.pop((user, message.room_id), None)
        rooms.purge_room(self.connection, message.room_id)
        self.touched.pop(message.room_id, None)
        self.applier.rooms.pop(message.room_id, None)

    def flush_room_parts(self) -> None:
        """Write events and state now, so that a statement on whole tables finds them."""
        self.writer.flush()
        self.state.flush()

    def outlier_membership(
        self, message: output_pb2.OutputMessage, entry: output_pb2.OutlierMembership, position: int
    ) -> None:
        room = self.room(message.room_id, entry.room_version)
        if self.writer.known.get(entry.event.event_id) is None:
            rendered = rendering.render_event(entry.event.event_id, entry.event.pdu_json)
            pdu = orjson.loads(entry.event.pdu_json)
            self.writer.add(
                StoredEvent(
                    position,
                    entry.event.event_id,
                    message.room_id,
                    pdu["type"],
                    pdu.get("state_key"),
                    pdu["sender"],
                    int(pdu.get("depth", 0)),
                    room.max_depth,
                    STATE,
                    "invited",
                    None,
                    rendered.flags,
                    rendered.body,
                    None,
                    None,
                    None,
                    None,
                ),
                int(pdu["origin_server_ts"]),
                room.notify_total,
                room.highlight_total,
                None,
            )
        old = room.members.get(entry.user_id)
        self.set_user_room(
            room,
            UserRoom(
                entry.user_id,
                message.room_id,
                entry.membership,
                entry.event.event_id,
                position,
                old.joined_since if old else None,
                (position if old.joined_until == MAX_POSITION else old.joined_until) if old else None,
                False,
                join_array(entry.stripped_state_json) if entry.stripped_state_json else None,
                position,
                room.notify_total,
                room.highlight_total,
                0,
                0,
            ),
        )
        self.applied.memberships.append((entry.user_id, message.room_id, position))

    def event_redacted(
        self, message: output_pb2.OutputMessage, entry: output_pb2.EventRedacted, position: int
    ) -> None:
        self.flush_room_parts()
        old = events.load_event(self.connection, entry.redacted_event_id)
        if old is None:
            return
        rendered = rendering.render_event(entry.redacted_event_id, entry.redacted_pdu_json)
        because = rendering.redacted_because(
            entry.redaction.event_id, entry.redaction.pdu_json, message.room_id
        )
        flags = rendered.flags | rendering.REDACTED
        new = old._replace(body=rendered.body, unsigned=because, flags=flags)
        events.store_redaction(self.connection, new)
        self.applied.redactions.append(Redacted(old.room_id, old.event_id, new.body, new.unsigned, flags))
        for following in events.strip_prev_content(self.connection, old):
            self.applied.redactions.append(
                Redacted(
                    following.room_id, following.event_id, following.body, following.unsigned, following.flags
                )
            )
        self._replace_applied(new)
        self._renew_naming(new, position)

    def _renew_naming(self, redacted: StoredEvent, position: int) -> None:
        """A room that lost its name has other heroes: its naming state counts as set anew."""
        if redacted.type not in NAMING_TYPES or redacted.state_key != "":
            return
        since = state.load_since(self.connection, redacted.room_id, redacted.type, "", redacted.event_id)
        if since is not None and since < position:
            self._set_state(self.room(redacted.room_id), redacted.type, "", redacted, None, position, None)

    def _replace_applied(self, new: StoredEvent) -> None:
        """The batch's own list must not tell the memory what was redacted in the same batch."""
        self.applied.events = [
            new if event.event_id == new.event_id else event for event in self.applied.events
        ]
        self.applied.changes = [
            change._replace(event=new)
            if change.event is not None and change.event.event_id == new.event_id
            else change
            for change in self.applied.changes
        ]

    def receipt(self, message: output_pb2.OutputMessage, entry: output_pb2.Receipt, position: int) -> None:
        moved = ReceiptMoved(
            message.room_id,
            position,
            entry.user_id,
            entry.receipt_type,
            entry.event_id,
            entry.thread_id,
            entry.timestamp_ms,
        )
        pending = self.writer.pending(entry.event_id)
        if pending is not None:
            self.flush_room_parts()
        place = events.load_totals(self.connection, entry.event_id)
        if receipts.store_receipt(self.connection, moved, None if place is None else place[0]):
            self.applied.receipts.append(moved)
            self.read_receipt(moved)

    def read_receipt(self, moved: ReceiptMoved) -> None:
        """Let a receipt count as having read."""
        room = self.room(moved.room_id)
        row = room.members.get(moved.user_id)
        place = events.load_totals(self.connection, moved.event_id)
        if row is not None and place is not None and moved.thread_id in ("", "main"):
            self._read_up_to(room, row, *place)

    # -- entries about users

    def account_data(
        self, message: output_pb2.OutputMessage, entry: output_pb2.AccountDataChanged, position: int
    ) -> None:
        changed = AccountDataSet(
            message.user_id, entry.room_id, entry.type, entry.content_json or None, position
        )
        accounts.store_account_data(self.connection, changed)
        self.applied.account_data.append(changed)
        if entry.type == "m.push_rules" and not entry.room_id:
            if self.applier.push_rules is not None:
                if entry.content_json:
                    self.applier.push_rules[message.user_id] = notifications.parse_rules(entry.content_json)
                else:
                    self.applier.push_rules.pop(message.user_id, None)
            for room in self.applier.rooms.values():
                room.edited = None

    def room_forgotten(
        self, message: output_pb2.OutputMessage, entry: output_pb2.RoomForgotten, position: int
    ) -> None:
        room = self.room(entry.room_id)
        row = room.members.get(message.user_id)
        if row is not None and row.membership in ("leave", "ban"):
            self.set_user_room(room, row._replace(forgotten=True))
            self.applied.memberships.append((message.user_id, entry.room_id, position))

    def device_changed(
        self, message: output_pb2.OutputMessage, entry: output_pb2.DeviceChanged, position: int
    ) -> None:
        accounts.store_device(self.connection, message.user_id, entry.device_id, deleted=entry.deleted)
        if entry.deleted:
            to_device.delete_inbox(self.connection, message.user_id, entry.device_id)
        self.applied.accounts.add(message.user_id)

    def account_changed(
        self, message: output_pb2.OutputMessage, entry: output_pb2.AccountChanged, position: int
    ) -> None:
        if entry.access_changed:
            self.applied.accounts.add(message.user_id)

    def to_device(self, message: output_pb2.OutputMessage, entry: output_pb2.ToDevice, position: int) -> None:
        if position // POSITION_FACTOR <= self.primary_through:
            return  # a replay after a rebuild: the inbox has had it, and the client may have taken it
        devices = (
            accounts.load_devices(self.connection, message.user_id)
            if entry.device_id == "*"
            else [entry.device_id]
        )
        data = b'{"content":%b,"sender":%b,"type":%b}' % (
            entry.content_json,
            orjson.dumps(entry.sender),
            orjson.dumps(entry.type),
        )
        for device_id in devices:
            if to_device.store_message(
                self.connection, message.user_id, device_id, position, data, entry.message_id
            ):
                self.applied.to_device.append((message.user_id, device_id, position))

    def device_list(
        self, message: output_pb2.OutputMessage, entry: output_pb2.DeviceListChanged, position: int
    ) -> None:
        accounts.store_device_list(self.connection, message.user_id, position)
        self.applied.device_lists.append((position, message.user_id))


_WITHOUT_CREATOR_POWER = frozenset(str(version) for version in range(1, 12))

_HANDLERS: dict[str, Callable[[_Batch, output_pb2.OutputMessage, Any, int], None]] = {
    "room_event": _Batch.room_event,
    "state_rewritten": _Batch.state_rewritten,
    "room_purged": _Batch.room_purged,
    "outlier_membership": _Batch.outlier_membership,
    "event_redacted": _Batch.event_redacted,
    "receipt": _Batch.receipt,
    "account_data_changed": _Batch.account_data,
    "room_forgotten": _Batch.room_forgotten,
    "device_changed": _Batch.device_changed,
    "account_changed": _Batch.account_changed,
    "to_device": _Batch.to_device,
    "device_list_changed": _Batch.device_list,
}
"""`room_missing` and `participation_ended` are for others."""


def join_array(items: Iterable[bytes]) -> bytes:
    """Return the JSON array of values that are JSON already."""
    return b"[" + b",".join(items) + b"]"


def _thread_of(content: dict[str, Any]) -> str | None:
    relation = content.get("m.relates_to")
    if isinstance(relation, dict) and relation.get("rel_type") == "m.thread":
        root = relation.get("event_id")
        return root if isinstance(root, str) else None
    return None


def _display_name(body: bytes) -> str | None:
    content = orjson.loads(body + b"}")["content"]
    name = content.get("displayname") if isinstance(content, dict) else None
    return name if isinstance(name, str) else None


def _event_ids(decoded: Iterable[tuple[int, output_pb2.OutputMessage]]) -> list[str]:
    ids = []
    for _, message in decoded:
        for entry in message.entries:
            kind = entry.WhichOneof("kind")
            if kind == "room_event":
                ids.append(entry.room_event.event_id)
                ids += [change.event_id for change in entry.room_event.state_changes if change.event_id]
            elif kind == "outlier_membership":
                ids.append(entry.outlier_membership.event.event_id)
    return ids

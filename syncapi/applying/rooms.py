"""Entries about rooms other than their events: state rewritten, purges, outliers, redactions, receipts."""

from arbor.log.v1 import output_pb2
from syncapi import rendering
from syncapi.applied import ReceiptMoved, Redacted, StoredEvent, UserRoom
from syncapi.applying.batch import Batch, RoomCache, SnapshotWanted
from syncapi.applying.notifications import read_up_to
from syncapi.applying.timeline import (
    STATE,
    begin_participation,
    join_array,
    membership_of,
    other_event,
    set_state,
)
from syncapi.storage import events, receipts, rooms, state
from syncapi.storage.tables import MAX_POSITION

NAMING_TYPES = ("m.room.name", "m.room.canonical_alias")


def state_rewritten(
    batch: Batch, message: output_pb2.OutputMessage, entry: output_pb2.StateRewritten, position: int
) -> None:
    room = batch.room(message.room_id, entry.room_version)
    if entry.snapshot_id not in batch.snapshots:
        raise SnapshotWanted(entry.snapshot_id)
    if entry.participation_began:
        begin_participation(batch, room, entry.participation, position)
    snapshot = batch.snapshots[entry.snapshot_id]
    batch.writer.learn([event_id for event_id, _ in snapshot])
    old = batch.state.current(room.room_id)
    joined = invited = 0
    for event_id, pdu_json in snapshot:
        event, content = other_event(batch, room, event_id, pdu_json)
        key = event.type, event.state_key or ""
        if event.type == "m.room.member":
            membership = membership_of(event, content)
            joined += membership == "join"
            invited += membership == "invite"
        before = old.pop(key, None)
        if before != event_id:
            set_state(batch, room, *key, event, content, position, None, stands=before is not None)
    for type_, state_key in old:
        set_state(batch, room, type_, state_key, None, None, position, None)
    room.joined, room.invited = joined, invited
    if entry.partial:
        room.whole_since = MAX_POSITION
    elif entry.participation_began:
        room.whole_since = 0
    else:
        _complete(room, position)


def participation_ended(
    batch: Batch, message: output_pb2.OutputMessage, entry: output_pb2.ParticipationEnded, position: int
) -> None:
    # Nobody completes it any more: what is here is what is known of it.
    _complete(batch.room(message.room_id), position)


def _complete(room: RoomCache, position: int) -> None:
    if room.whole_since == MAX_POSITION:
        room.whole_since = position


def room_purged(
    batch: Batch, message: output_pb2.OutputMessage, entry: output_pb2.RoomPurged, position: int
) -> None:
    batch.flush_room_parts()
    batch.applied.dropped_rooms.add(message.room_id)
    if entry.before_event_id:
        event = events.load_event(batch.connection, entry.before_event_id)
        if event is not None:
            is_kept = batch.applier.is_local if entry.local_events_kept else None
            events.purge_history(batch.connection, event, is_kept)
        return
    for user in batch.room(message.room_id).members:
        batch.applied.memberships.append((user, message.room_id, position))
        batch.applied.user_rooms.pop((user, message.room_id), None)
    rooms.purge_room(batch.connection, message.room_id)
    batch.touched.pop(message.room_id, None)
    batch.applier.rooms.pop(message.room_id, None)


def outlier_membership(
    batch: Batch, message: output_pb2.OutputMessage, entry: output_pb2.OutlierMembership, position: int
) -> None:
    room = batch.room(message.room_id, entry.room_version)
    if batch.writer.known.get(entry.event.event_id) is None:
        rendered = rendering.render_event(entry.event.event_id, entry.event.pdu_json)
        pdu = rendered.pdu
        batch.writer.add(
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
    batch.set_user_room(
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
    batch.applied.memberships.append((entry.user_id, message.room_id, position))


def event_redacted(
    batch: Batch, message: output_pb2.OutputMessage, entry: output_pb2.EventRedacted, position: int
) -> None:
    batch.flush_room_parts()
    old = events.load_event(batch.connection, entry.redacted_event_id)
    if old is None:
        return
    rendered = rendering.render_event(entry.redacted_event_id, entry.redacted_pdu_json)
    because = rendering.redacted_because(entry.redaction.event_id, entry.redaction.pdu_json, message.room_id)
    flags = rendered.flags | rendering.REDACTED | (old.flags & rendering.MEMBERS_DIFFER)
    new = old._replace(body=rendered.body, unsigned=because, flags=flags)
    events.store_redaction(batch.connection, new)
    batch.applied.redactions.append(Redacted(old.room_id, old.event_id, new.body, new.unsigned, flags))
    for following in events.strip_prev_content(batch.connection, old):
        batch.applied.redactions.append(
            Redacted(
                following.room_id, following.event_id, following.body, following.unsigned, following.flags
            )
        )
    _replace_applied(batch, new)
    _renew_naming(batch, new, position)


def _renew_naming(batch: Batch, redacted: StoredEvent, position: int) -> None:
    """A room that lost its name has other heroes: its naming state counts as set anew."""
    if redacted.type not in NAMING_TYPES or redacted.state_key != "":
        return
    since = state.load_since(batch.connection, redacted.room_id, redacted.type, "", redacted.event_id)
    if since is not None and since < position:
        set_state(batch, batch.room(redacted.room_id), redacted.type, "", redacted, None, position, None)


def _replace_applied(batch: Batch, new: StoredEvent) -> None:
    """The batch's own list must not tell the memory what was redacted in the same batch."""
    batch.applied.events = [
        new if event.event_id == new.event_id else event for event in batch.applied.events
    ]
    batch.applied.changes = [
        change._replace(event=new)
        if change.event is not None and change.event.event_id == new.event_id
        else change
        for change in batch.applied.changes
    ]


def receipt(
    batch: Batch, message: output_pb2.OutputMessage, entry: output_pb2.Receipt, position: int
) -> None:
    moved = ReceiptMoved(
        message.room_id,
        position,
        entry.user_id,
        entry.receipt_type,
        entry.event_id,
        entry.thread_id,
        entry.timestamp_ms,
    )
    pending = batch.writer.pending(entry.event_id)
    if pending is not None:
        batch.flush_room_parts()
    place = events.load_totals(batch.connection, entry.event_id)
    if receipts.store_receipt(batch.connection, moved, None if place is None else place[0]):
        batch.applied.receipts.append(moved)
        read_receipt(batch, moved)


def read_receipt(batch: Batch, moved: ReceiptMoved) -> None:
    """Let a receipt count as having read."""
    room = batch.room(moved.room_id)
    row = room.members.get(moved.user_id)
    place = events.load_totals(batch.connection, moved.event_id)
    if row is not None and place is not None and moved.thread_id in ("", "main"):
        read_up_to(batch, room, row, *place)

"""Events of a room: stored at their place, with what they change in the room's state and its memberships."""

from collections.abc import Iterable
from typing import Any

import orjson

from arbor.log.v1 import output_pb2
from syncapi import rendering
from syncapi.applied import StateChanged, StoredEvent, UserRoom
from syncapi.applying.batch import Batch, RoomCache
from syncapi.applying.notifications import notify, read_up_to
from syncapi.storage import events
from syncapi.storage.tables import MAX_POSITION

TIMELINE = output_pb2.PLACEMENT_TIMELINE
STATE = output_pb2.PLACEMENT_STATE
HIDDEN = output_pb2.PLACEMENT_HIDDEN


def room_event(
    batch: Batch, message: output_pb2.OutputMessage, entry: output_pb2.RoomEvent, position: int
) -> None:
    room = batch.room(message.room_id, entry.room_version)
    if batch.applier.raise_on_type and entry.type == batch.applier.raise_on_type:
        raise RuntimeError(f"a test wants events of type {entry.type} to raise")
    if entry.participation_began:
        begin_participation(batch, room, entry.participation, position)
    if entry.placement == HIDDEN:
        _state_changes(batch, room, entry, None, {}, position)
        return
    known = batch.writer.known.get(entry.event_id)
    if known is not None and known[0] == position:
        return  # applied before
    if known is not None and (known[1] != STATE or entry.placement == STATE):
        # Told before, at that place; what it changes in the state may still be new.
        stored = events.load_event_by_position(batch.connection, known[0]) or batch.writer.pending(
            entry.event_id
        )
        _state_changes(batch, room, entry, stored, None, position)
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
        rendered.flags | (rendering.MEMBERS_DIFFER if entry.visibility.local_members_differ else 0),
        rendered.body,
        rendering.unsigned_members(entry.prev_content_json, entry.replaces_state),
        entry.transaction_key.device_id or None if entry.HasField("transaction_key") else None,
        entry.transaction_key.txn_id or None if entry.HasField("transaction_key") else None,
        thread_id,
    )
    _state_changes(batch, room, entry, stored, content, position)
    if timeline:
        notify(batch, room, stored, content, entry)
        room.max_depth = max(room.max_depth, entry.depth)
        room.last_position = position
        batch.applied.events.append(stored)
    elif entry.visibility.local_members:
        batch.writer.members += [
            (position, member.user_id, member.membership) for member in entry.visibility.local_members
        ]
    batch.writer.add(stored, entry.origin_server_ts, room.notify_total, room.highlight_total, known)
    relation = content.get("m.relates_to")
    if isinstance(relation, dict) and entry.placement != STATE:
        parent, rel_type = relation.get("event_id"), relation.get("rel_type")
        if isinstance(parent, str) and isinstance(rel_type, str):
            batch.writer.relations.append(
                (position, entry.event_id, message.room_id, parent, rel_type, entry.type, entry.sender)
            )
    if timeline and thread_id is None:
        sender = room.members.get(entry.sender)
        if sender is not None and sender.joined_until == MAX_POSITION:
            # Sending an event is reading up to it. In a thread it is that of the thread (`storage.threads`).
            read_up_to(batch, room, sender, position, room.notify_total, room.highlight_total)


def _state_changes(
    batch: Batch,
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
                event, event_content = other_event(batch, room, change.event_id, change.pdu_json)
        replaced = set_state(
            batch, room, change.type, change.state_key, event, event_content, position, entry
        )
        if change.type == "m.room.member":
            now = "" if event is None else membership_of(event, event_content)
            counted = (
                counted[0] + (now == "join") - (replaced == "join"),
                counted[1] + (now == "invite") - (replaced == "invite"),
            )
    if entry.HasField("member_counts"):
        room.joined, room.invited = entry.member_counts.joined, entry.member_counts.invited
    else:
        room.joined += counted[0]
        room.invited += counted[1]


def other_event(
    batch: Batch, room: RoomCache, event_id: str, pdu_json: bytes
) -> tuple[StoredEvent, dict[str, Any] | None]:
    """Return an event that is not the entry's own, stored now if it is new, and its content if that is at hand."""
    found = batch.writer.load(event_id)
    if found is not None:
        return found, None
    if not pdu_json:
        raise LookupError(f"table event has no {event_id}, which room {room.room_id} names as state")
    return _store_state_event(batch, room, event_id, pdu_json)


def _store_state_event(
    batch: Batch, room: RoomCache, event_id: str, pdu_json: bytes
) -> tuple[StoredEvent, dict[str, Any]]:
    """Store a state event that has no place of its own on OUTPUT."""
    rendered = rendering.render_event(event_id, pdu_json)
    pdu = rendered.pdu
    stored = StoredEvent(
        batch.writer.next_without_place(),
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
    batch.writer.add(stored, int(pdu["origin_server_ts"]), room.notify_total, room.highlight_total, None)
    return stored, rendered.content


def membership_of(event: StoredEvent, content: dict[str, Any] | None) -> str:
    if content is None:
        content = orjson.loads(event.body + b"}")["content"]
    membership = content.get("membership") if isinstance(content, dict) else None
    return membership if isinstance(membership, str) else "leave"


def set_state(
    batch: Batch,
    room: RoomCache,
    type_: str,
    state_key: str,
    event: StoredEvent | None,
    content: dict[str, Any] | None,
    position: int,
    entry: output_pb2.RoomEvent | None,
    *,
    stands: bool = True,
) -> str | None:
    """Set one entry of current state; returns the membership that stood there, for members.

    `stands`: whether anything may stand there; without it nothing is looked for.
    """
    membership: str | None = None
    if type_ == "m.room.member":
        if event is not None and content is None:
            content = orjson.loads(event.body + b"}")["content"]
        membership = "" if event is None else membership_of(event, content)
    replaced = batch.state.set(room.room_id, type_, state_key, event, membership, position, stands=stands)
    room.last_position = max(room.last_position, position)
    batch.applied.changes.append(StateChanged(room.room_id, position, type_, state_key, event))
    if type_ == "m.room.member":
        if batch.applier.is_local(state_key):
            name = content.get("displayname") if content else None
            _set_membership(batch, room, state_key, event, membership or "leave", position, entry)
            if room.names is not None:
                if membership == "join":
                    room.names[state_key] = name if isinstance(name, str) else None
                else:
                    room.names.pop(state_key, None)
    elif type_ == "m.room.power_levels" and state_key == "":
        room.power_levels = None if event is None else content or orjson.loads(event.body + b"}")["content"]
        if event is None:
            room.power_levels = {}
    return replaced


def _set_membership(
    batch: Batch,
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
    batch.set_user_room(room, row)
    if not same:
        batch.applied.memberships.append((user_id, room.room_id, position))


def begin_participation(batch: Batch, room: RoomCache, participation: int, position: int) -> None:
    """Drop the old view of a room that we are back in."""
    if room.participation == participation and room.last_position:
        return
    batch.state.close_all(room.room_id, position)
    room.participation = participation
    room.timeline_floor = position
    room.joined = room.invited = 0
    room.whole_since = 0
    room.names = {} if room.names is not None else None
    room.power_levels = None
    batch.applied.dropped_rooms.add(room.room_id)


def join_array(items: Iterable[bytes]) -> bytes:
    """Return the JSON array of values that are JSON already."""
    return b"[" + b",".join(items) + b"]"


def _thread_of(content: dict[str, Any]) -> str | None:
    relation = content.get("m.relates_to")
    if isinstance(relation, dict) and relation.get("rel_type") == "m.thread":
        root = relation.get("event_id")
        return root if isinstance(root, str) else None
    return None

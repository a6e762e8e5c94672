"""Whom an event notifies: counted into the room's totals, with a row for who differs; and what counts as read."""

from collections.abc import Mapping
from typing import Any

import orjson

from arbor.log.v1 import output_pb2
from syncapi import notifications
from syncapi.applied import StoredEvent, ThreadEvent, UserRoom
from syncapi.applying.batch import Batch, RoomCache
from syncapi.storage import accounts, members, state
from syncapi.storage.tables import MAX_POSITION
from syncapi.window import parse_ignored

_WITHOUT_CREATOR_POWER = frozenset(str(version) for version in range(1, 12))


def notify(
    batch: Batch, room: RoomCache, event: StoredEvent, content: dict[str, Any], entry: output_pb2.RoomEvent
) -> None:
    """Count an event: the class outcome into the room's totals, exceptions as rows."""
    if not room.members:
        return
    may_ping = notifications.pings_room(content) and notifications.may_notify_room(
        event.sender, _power_levels(batch, room), room.creators
    )
    outcome = notifications.class_outcome(
        event.type, event.state_key, content, sender_may_notify_room=may_ping
    )
    room.notify_total += outcome.notify
    room.highlight_total += outcome.highlight
    if event.thread_id is not None:
        batch.applied.threaded.append(
            ThreadEvent(
                room.room_id,
                event.position,
                event.thread_id,
                event.sender,
                int(outcome.notify),
                int(outcome.highlight),
            )
        )
    found = dict.fromkeys(notifications.mentioned_users(event.type, content), notifications.HIGHLIGHT)
    _edited_rules(batch, room, entry, found)
    found |= dict.fromkeys(_ignoring(batch, event.sender), notifications.SILENT)
    for user, exception in found.items():
        if user == event.sender:
            continue
        row = room.members.get(user)
        if row is None or row.joined_until != MAX_POSITION:
            continue
        notify = exception.notify - outcome.notify
        highlight = exception.highlight - outcome.highlight
        if notify or highlight:
            batch.exceptions.append((user, room.room_id, event.position, notify, highlight))
            batch.set_user_room(
                room,
                row._replace(
                    extra_notify=row.extra_notify + notify,
                    extra_highlight=row.extra_highlight + highlight,
                ),
            )


def _ignoring(batch: Batch, sender: str) -> set[str]:
    """Return who ignores a user: they are not notified of what they are not shown."""
    if batch.applier.ignored_by is None:
        batch.applier.ignored_by = {}
        for user, content in accounts.load_global(batch.connection, "m.ignored_user_list"):
            for ignored in parse_ignored(content):
                batch.applier.ignored_by.setdefault(ignored, set()).add(user)
    return batch.applier.ignored_by.get(sender, set())


def _edited_rules(
    batch: Batch,
    room: RoomCache,
    entry: output_pb2.RoomEvent,
    found: dict[str, notifications.Outcome],
) -> None:
    """Evaluate the event for the joined members who have edited their rules."""
    if batch.applier.push_rules is None:
        batch.applier.push_rules = {
            user: notifications.parse_rules(content)
            for user, content in accounts.load_global(batch.connection, "m.push_rules")
        }
    rules = batch.applier.push_rules
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
    levels = _power_levels(batch, room)
    evaluate = notifications.evaluator(
        entry.pdu_json, entry.event_id, room.version, room.room_id, room.joined, levels, room.creators
    )
    if evaluate is None:
        return
    names = _names(batch, room)
    for user in room.edited:
        if user in names:
            found[user] = evaluate(rules[user], user, names[user])


def _names(batch: Batch, room: RoomCache) -> Mapping[str, str | None]:
    if room.names is None:
        room.names = {user: None for user, row in room.members.items() if row.joined_until == MAX_POSITION}
        pending = batch.state.pending_members(room.room_id)
        for user, body in state.load_member_bodies(batch.connection, room.room_id, list(room.names)):
            room.names[user] = _display_name(body)
        for user, event in pending.items():
            if user in room.names and event is not None:
                room.names[user] = _display_name(event.body)
    return room.names


def _power_levels(batch: Batch, room: RoomCache) -> dict[str, Any]:
    if room.power_levels is None:
        event = _state_event(batch, room, "m.room.power_levels")
        room.power_levels = {} if event is None else orjson.loads(event.body + b"}")["content"]
    if not room.creators and room.version not in _WITHOUT_CREATOR_POWER:
        create = _state_event(batch, room, "m.room.create")
        if create is not None:
            content = orjson.loads(create.body + b"}")["content"]
            room.creators = notifications.creators_with_power(room.version, create.sender, content)
    return room.power_levels


def _state_event(batch: Batch, room: RoomCache, type_: str) -> StoredEvent | None:
    return batch.state.pending_event(room.room_id, type_, "") or state.load_state_event(
        batch.connection, room.room_id, type_, ""
    )


def read_up_to(
    batch: Batch, room: RoomCache, row: UserRoom, position: int, notify_total: int, highlight_total: int
) -> None:
    if position <= row.read_position:
        return
    extra = (0, 0)
    if row.extra_notify or row.extra_highlight:
        extra = members.sum_exceptions(batch.connection, row.user_id, room.room_id, position)
        for user, room_id, place, notify, highlight in batch.exceptions:
            if user == row.user_id and room_id == room.room_id and place > position:
                extra = extra[0] + notify, extra[1] + highlight
    batch.set_user_room(
        room,
        row._replace(
            read_position=position,
            read_notify=notify_total,
            read_highlight=highlight_total,
            extra_notify=extra[0],
            extra_highlight=extra[1],
        ),
    )


def _display_name(body: bytes) -> str | None:
    content = orjson.loads(body + b"}")["content"]
    name = content.get("displayname") if isinstance(content, dict) else None
    return name if isinstance(name, str) else None

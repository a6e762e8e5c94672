"""Bundled aggregations: what an event's `unsigned.m.relations` says of the events that relate to it.

Threads (count, latest event, whether the reader took part), the latest edit, and references. Only what the
reader may see counts.
"""

from collections.abc import Iterable, Mapping

import orjson
from sqlalchemy import Connection

from syncapi.applied import StoredEvent
from syncapi.rendering import REDACTED, full_event
from syncapi.storage import events as event_storage
from syncapi.storage import relations
from syncapi.storage.relations import REFERENCE, REPLACE, THREAD, Child
from syncapi.storage.tables import MAX_POSITION
from syncapi.visibility import Past, membership_at, visible


def load_bundles(
    connection: Connection,
    events: Iterable[StoredEvent],
    past: Past,
    *,
    through: int = MAX_POSITION,
    ignored: frozenset[str] = frozenset(),
    with_room_id: bool = True,
) -> dict[str, bytes]:
    """Return the `m.relations` of those events that have any: event id -> JSON."""
    parents = {event.event_id: event for event in events}
    children: dict[str, dict[str, list[Child]]] = {}
    through = min(through, past.sees_until)
    for child in relations.load_children(connection, parents, (THREAD, REPLACE, REFERENCE), through):
        if child.sender not in ignored:
            children.setdefault(child.parent_id, {}).setdefault(child.rel_type, []).append(child)
    if not children:
        return {}
    wanted: dict[int, tuple[str, str]] = {}
    for parent_id, by_type in children.items():
        parent = parents[parent_id]
        edits = [
            child
            for child in by_type.get(REPLACE, ())
            if child.sender == parent.sender
            and child.type == parent.type
            and parent.state_key is None
            # What a redacted event said is gone, its edits too; a thread below it goes on.
            and not parent.flags & REDACTED
        ]
        if edits:
            wanted[edits[-1].position] = (parent_id, REPLACE)
        if THREAD in by_type:
            wanted[by_type[THREAD][-1].position] = (parent_id, THREAD)
    loaded, members = visible(connection, past, event_storage.load_events(connection, wanted).values())
    found: dict[str, dict[str, bytes]] = {}
    for event in loaded:
        parent_id, rel_type = wanted[event.position]
        rendered = full_event(
            event.body,
            event.unsigned,
            membership_at(past, event, members),
            room_id=event.room_id if with_room_id else None,
        )
        if rel_type == THREAD:
            thread = children[parent_id][THREAD]
            took_part = parents[parent_id].sender == past.user_id or any(
                child.sender == past.user_id for child in thread
            )
            rendered = b'{"latest_event":%b,"count":%d,"current_user_participated":%b}' % (
                rendered,
                len(thread),
                b"true" if took_part else b"false",
            )
        found.setdefault(parent_id, {})[rel_type] = rendered
    for parent_id, by_type in children.items():
        if REFERENCE in by_type:
            chunk = [{"event_id": child.event_id} for child in by_type[REFERENCE]]
            found.setdefault(parent_id, {})[REFERENCE] = orjson.dumps({"chunk": chunk})
    return {parent_id: join_object(by_type) for parent_id, by_type in found.items()}


def join_object(members: Mapping[str, bytes]) -> bytes:
    """Return the JSON object of values that are JSON already."""
    return b"{" + b",".join([b"%b:%b" % (orjson.dumps(key), value) for key, value in members.items()]) + b"}"

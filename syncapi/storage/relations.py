"""Which events relate to which (client-server API, "Forming relationships between events")."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from syncapi.applied import EVENT_COLUMNS, StoredEvent
from syncapi.filters import EventFilter
from syncapi.storage.sql import rows, rows_in

THREAD = "m.thread"
REPLACE = "m.replace"
REFERENCE = "m.reference"


class Child(NamedTuple):
    """An event that relates to another."""

    parent_id: str
    position: int
    event_id: str
    rel_type: str
    type: str
    sender: str


def load_children(
    connection: Connection, parent_ids: Iterable[str], rel_types: Sequence[str], through: int
) -> list[Child]:
    """Return the events that relate to any of these in one of the ways, oldest first by position."""
    return [
        Child(*found)
        for found in rows_in(
            connection,
            "SELECT parent_id, child_position, child_id, rel_type, type, sender FROM relation"
            " WHERE parent_id IN ? AND rel_type IN ?"
            " AND child_position <= ? ORDER BY child_position",
            parent_ids,
            after=(list(rel_types), through),
        )
    ]


def load_page(
    connection: Connection,
    room_id: str,
    parent_ids: Sequence[str],
    *,
    rel_type: str | None,
    type_: str | None,
    backwards: bool,
    start: tuple[int, int],
    through: int,
    count: int,
) -> list[StoredEvent]:
    """Return the events of a room that relate to any of these, in the order of (depth, position)."""
    comparison, order = ("<", "DESC") if backwards else (">=", "ASC")
    conditions = ""
    parameters: list[object] = [room_id, list(parent_ids), *start, through]
    for column, value in (("rel_type", rel_type), ("type", type_)):
        if value is not None:
            conditions += f" AND r.{column} = ?"
            parameters.append(value)
    return [
        StoredEvent(*found)
        for found in rows(
            connection,
            f"SELECT {EVENT_COLUMNS} FROM relation r JOIN event e ON e.position = r.child_position"
            # So that the index by parents serves, not one by rooms.
            " WHERE r.room_id || '' = ? AND r.parent_id IN ?"
            f" AND (e.depth, e.position) {comparison} (?, ?) AND e.position <= ?{conditions}"
            f" ORDER BY e.depth {order}, e.position {order} LIMIT ?",
            (*parameters, count),
        )
    ]


def load_threads(
    connection: Connection, room_id: str, before: int, through: int, sender: str | None, count: int
) -> list[tuple[str, int]]:
    """Return (root, position of the latest event) of a room's threads, latest first.

    Args:
        before: only those whose latest event stands before that position.
        sender: only those in which this user has written (or whose root is theirs).
    """
    participated = ""
    parameters: list[object] = [room_id, through]
    if sender is not None:
        participated = (
            " AND (EXISTS (SELECT 1 FROM relation p WHERE p.parent_id = r.parent_id"
            " AND p.rel_type = 'm.thread' AND p.sender = ?) OR EXISTS"
            " (SELECT 1 FROM event root WHERE root.event_id = r.parent_id AND root.sender = ?))"
        )
        parameters += [sender, sender]
    return [
        (root, position)
        for root, position in rows(
            connection,
            "SELECT r.parent_id, max(r.child_position) FROM relation r WHERE r.room_id = ?"
            f" AND r.rel_type = 'm.thread' AND r.child_position <= ?{participated}"
            " GROUP BY r.parent_id HAVING max(r.child_position) < ?"
            " ORDER BY max(r.child_position) DESC LIMIT ?",
            (*parameters, before, count),
        )
    ]


def load_all_children(connection: Connection, parent_ids: Iterable[str], through: int) -> list[str]:
    """Return the ids of all events that relate to any of these."""
    return [
        child_id
        for (child_id,) in rows_in(
            connection,
            "SELECT child_id FROM relation WHERE parent_id IN ? AND child_position <= ?"
            " ORDER BY child_position",
            parent_ids,
            after=(through,),
        )
    ]


def keep_related(
    connection: Connection, events: Sequence[StoredEvent], filter_: EventFilter
) -> list[StoredEvent]:
    """Return those events to which others relate as a filter wants it; all of them if it does not care."""
    if not filter_.by_relations or not events:
        return list(events)
    conditions = ""
    parameters: list[object] = []
    for column, values in (
        ("sender", filter_.related_by_senders),
        ("rel_type", filter_.related_by_rel_types),
    ):
        if values is not None:
            conditions += f" AND {column} IN ?"
            parameters.append(sorted(values))
    related = {
        parent_id
        for (parent_id,) in rows(
            connection,
            f"SELECT DISTINCT parent_id FROM relation WHERE parent_id IN ?{conditions}",
            ([event.event_id for event in events], *parameters),
        )
    }
    return [event for event in events if event.event_id in related]

"""A room's summary: heroes and counts (client-server API, "RoomSummary")."""

from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection

from syncapi.applied import RoomCounters, StoredEvent
from syncapi.storage import state as state_storage

HEROES = 5
SUMMARY_TYPES = frozenset({"m.room.member", "m.room.name", "m.room.canonical_alias"})
_NAMING = (("m.room.name", "name"), ("m.room.canonical_alias", "alias"))


def has_name(events: list[StoredEvent]) -> bool:
    """Whether the name or the canonical alias among these state events is set and not empty."""
    for event in events:
        for type_, key in _NAMING:
            if event.type == type_ and event.state_key == "":
                value = orjson.loads(event.body + b"}")["content"].get(key)
                if isinstance(value, str) and value:
                    return True
    return False


@dataclass(frozen=True, slots=True)
class SummaryParts:
    """What all members' summaries of a room are made of.

    `active`, `gone`: the first few who are joined or invited, and who have left; None: the room has a name.
    """

    active: tuple[str, ...] | None
    gone: tuple[str, ...] | None


def load_parts(connection: Connection, room_id: str, through: int) -> SummaryParts:
    """Read the parts as of a position."""
    naming = state_storage.load_entries(connection, room_id, [(type_, "") for type_, _ in _NAMING], through)
    if has_name(naming):
        return SummaryParts(None, None)
    active, gone = state_storage.load_heroes(connection, room_id, through, HEROES + 1)
    return SummaryParts(tuple(active), tuple(gone))


def make_summary(parts: SummaryParts, room: RoomCounters, user_id: str) -> tuple[bytes, list[str]]:
    """Return a user's summary as JSON, and its heroes (none where the room has a name)."""
    summary: dict[str, Any] = {"m.joined_member_count": room.joined, "m.invited_member_count": room.invited}
    heroes: list[str] = []
    if parts.active is not None:
        heroes = [user for user in parts.active if user != user_id][:HEROES]
        if not heroes:
            heroes = [user for user in parts.gone or () if user != user_id][:HEROES]
        summary["m.heroes"] = heroes
    return orjson.dumps(summary), heroes

"""A room's summary: heroes and counts (client-server API, "RoomSummary")."""

from typing import Any

import orjson
from sqlalchemy import Connection

from syncapi.applied import RoomCounters, StoredEvent
from syncapi.storage import state as state_storage

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


def load_summary(
    connection: Connection, room: RoomCounters, user_id: str, through: int
) -> tuple[bytes, list[str]]:
    """Return the summary as JSON, and its heroes (none where the room has a name)."""
    naming = state_storage.load_entries(
        connection, room.room_id, [(type_, "") for type_, _ in _NAMING], through
    )
    summary: dict[str, Any] = {"m.joined_member_count": room.joined, "m.invited_member_count": room.invited}
    heroes: list[str] = []
    if not has_name(naming):
        heroes = state_storage.load_heroes(connection, room.room_id, user_id, through)
        summary["m.heroes"] = heroes
    return orjson.dumps(summary), heroes

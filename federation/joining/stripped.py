"""The room state that comes with invites and knocks: checked, and as clients see it.

Since v1.16 each entry is a whole event, `m.room.create` among them. For room versions 1 to 11 servers still
send stripped events, which are let through with a warning; for version 12 that is refused.
"""

from collections.abc import Sequence
from typing import Any

import orjson

from federation.receipt.pdu_checks import PduChecker
from matrixlib.events import Event
from matrixlib.identifiers import is_valid_user_id
from matrixlib.room_versions import RoomVersion
from servicekit.errors import invalid_param
from servicekit.logging import get_logger

log = get_logger("federation.invites")

MAX_EVENTS = 60
MAX_BYTES = 256 * 1024
# What we tell of a room to somebody invited or knocking (client-server API, "Stripped state").
STRIPPED_TYPES = (
    "m.room.create",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.join_rules",
    "m.room.canonical_alias",
    "m.room.encryption",
)


async def check_invite_state(
    entries: Any, checker: PduChecker, version: RoomVersion, room_id: str
) -> list[bytes]:
    """Check the state that came with an invite and return it as stripped events, JSON each.

    Raises:
        MatrixError: 400 M_INVALID_PARAM, where the room version is strict about it.
    """
    strict = version.room_id_is_create_hash
    if not isinstance(entries, list):
        entries = []
    if len(entries) > MAX_EVENTS:
        raise invalid_param(f"invite_room_state has more than {MAX_EVENTS} events")
    events = await _whole_events(entries, checker, version, room_id)
    if strict:
        if len(events) != len(entries):
            raise invalid_param("invite_room_state holds events that are not valid in this room")
        if not any(event.is_create for event in events):
            raise invalid_param("invite_room_state lacks the m.room.create event")
    elif len(events) != len(entries) or not any(event.is_create for event in events):
        log.info("invite_state_lenient", room=room_id, given=len(entries), valid=len(events))
    return strip_all(entries)


async def check_knock_state(
    entries: Any, checker: PduChecker, version: RoomVersion, room_id: str
) -> list[bytes]:
    """Return the state that came with our knock as stripped events; what is not right is left out."""
    given = entries[:MAX_EVENTS] if isinstance(entries, list) else []
    if version.room_id_is_create_hash:
        return [_dump(strip_event(event)) for event in await _whole_events(given, checker, version, room_id)]
    return strip_all(given)


async def _whole_events(
    entries: Sequence[Any], checker: PduChecker, version: RoomVersion, room_id: str
) -> list[Event]:
    checked = await checker.check(entries, version, room_id=room_id)
    return [event for event in checked if isinstance(event, Event) and event.is_state]


def strip_all(entries: Sequence[Any]) -> list[bytes]:
    """Return the entries that can be shown to a client as stripped events, JSON each."""
    stripped = []
    size = 0
    for entry in entries:
        if (
            isinstance(entry, dict)
            and isinstance(entry.get("type"), str)
            and isinstance(entry.get("state_key"), str)
            and is_valid_user_id(entry.get("sender"))
            and isinstance(entry.get("content"), dict)
        ):
            data = _dump({key: entry[key] for key in ("type", "state_key", "sender", "content")})
            size += len(data)
            if size > MAX_BYTES:
                break
            stripped.append(data)
    return stripped


def strip_event(event: Event) -> dict[str, Any]:
    """An event in stripped form."""
    return {
        "type": event.type,
        "state_key": event.state_key,
        "sender": event.sender,
        "content": event.content,
    }


def _dump(value: Any) -> bytes:
    return orjson.dumps(value)

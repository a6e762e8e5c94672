"""The client formats of an event (client-server API, "Room event format", "Stripped state")."""

from collections.abc import Mapping
from typing import Any

from matrixlib.events import Event


def client_event(
    event: Event, *, unsigned: Mapping[str, Any] | None = None, with_room_id: bool = True
) -> dict[str, Any]:
    """The event as clients get it; ``with_room_id`` off is the form of /sync."""
    raise NotImplementedError


def client_event_json(
    event: Event, *, unsigned: Mapping[str, Any] | None = None, with_room_id: bool = True
) -> bytes:
    """``client_event`` as JSON bytes."""
    raise NotImplementedError


def splice_unsigned(event_json: bytes, unsigned: bytes) -> bytes:
    """Add an `unsigned` object (JSON bytes) to a ``client_event_json`` made without one."""
    return event_json[:-1] + b',"unsigned":' + unsigned + b"}"


def stripped_state_event(event: Event) -> dict[str, Any]:
    """The four keys of a stripped state event: type, state_key, sender, content."""
    return {
        "type": event.type,
        "state_key": event.state_key,
        "sender": event.sender,
        "content": event.content,
    }

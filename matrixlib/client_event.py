"""The formats in which clients get events (client-server API, "Room event format", "Stripped state"; room
version 11, "Moving the `redacts` property").

``client_event_json`` is made once per event and kept as bytes; what differs per reader goes in with
``splice_unsigned``.
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from matrixlib.canonical_json import encode_canonical
from matrixlib.events import Event

_UNSIGNED: Final = b',"unsigned":'


def client_event(
    event: Event, *, unsigned: Mapping[str, Any] | None = None, with_room_id: bool = True
) -> dict[str, Any]:
    """The event as clients get it.

    ``unsigned`` is ours alone: what came with the event from elsewhere was dropped when it was parsed.
    ``with_room_id`` off gives the form of /sync timelines and state.
    """
    result: dict[str, Any] = {
        "content": event.content,
        "event_id": event.event_id,
        "origin_server_ts": event.origin_server_ts,
        "sender": event.sender,
        "type": event.type,
    }
    if with_room_id:
        result["room_id"] = event.room_id
    if event.state_key is not None:
        result["state_key"] = event.state_key
    if event.redacts is not None:
        # "servers should add a `redacts` property to the top level of `m.room.redaction` events when serving
        # such
        # events over the Client-Server API", and to the `content` in older room versions.
        result["redacts"] = event.redacts
        result["content"] = {**event.content, "redacts": event.redacts}
    if unsigned is not None:
        result["unsigned"] = dict(unsigned)
    return result


def client_event_json(
    event: Event, *, unsigned: Mapping[str, Any] | None = None, with_room_id: bool = True
) -> bytes:
    """``client_event`` as JSON bytes."""
    value = client_event(event, unsigned=unsigned, with_room_id=with_room_id)
    try:
        return orjson.dumps(value)
    except TypeError:
        # Room versions 1 to 5 may hold integers that only the slower encoder writes.
        return encode_canonical(value)


def splice_unsigned(event_json: bytes, unsigned: bytes) -> bytes:
    """Add an `unsigned` object, as JSON bytes, to a ``client_event_json`` that was made without one."""
    return event_json[:-1] + _UNSIGNED + unsigned + b"}"


def stripped_state_event(event: Event) -> dict[str, Any]:
    """The four keys of a stripped state event: type, state_key, sender, content."""
    return {
        "type": event.type,
        "state_key": event.state_key,
        "sender": event.sender,
        "content": event.content,
    }

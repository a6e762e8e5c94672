"""An event's client JSON (client-server API, "Room event format"), made once, as bytes.

    body      {"content":…,"event_id":…,"origin_server_ts":…,"sender":…,"type":…      no brace at the end
    unsigned  ,"prev_content":…,"replaces_state":…                                   what every reader sees
    full      body [,"room_id":…] ,"unsigned":{"membership":…[unsigned][,"transaction_id":…]} }

`age` is optional and left out: it would make every rendering different.
"""

from typing import Any, NamedTuple

import orjson

from matrixlib.redaction import redact_content
from matrixlib.room_versions import RoomVersion

CONTENT_HAS_URL = 1
REDACTED = 2
MEMBERS_DIFFER = 4
"""An event outside the timeline, told with those memberships only that were not what they are at its position."""


class Rendered(NamedTuple):
    """An event made ready for readers."""

    body: bytes
    content: dict[str, Any]
    flags: int
    pdu: dict[str, Any]


def render_event(event_id: str, pdu_json: bytes) -> Rendered:
    """Make the body of an event from its PDU.

    Raises:
        ValueError: the PDU is not the JSON object of an event.
    """
    pdu = orjson.loads(pdu_json)
    content = pdu["content"]
    if not isinstance(content, dict):
        raise ValueError("content is not an object")
    client: dict[str, Any] = {
        "content": content,
        "event_id": event_id,
        "origin_server_ts": pdu["origin_server_ts"],
        "sender": pdu["sender"],
        "type": pdu["type"],
    }
    if "state_key" in pdu:
        client["state_key"] = pdu["state_key"]
    if pdu["type"] == "m.room.redaction":
        # Room version 11 moved `redacts` into the content; clients get it at both places.
        redacts = pdu.get("redacts", content.get("redacts"))
        if isinstance(redacts, str):
            client["redacts"] = redacts
            if "redacts" not in content:
                client["content"] = {**content, "redacts": redacts}
    return Rendered(orjson.dumps(client)[:-1], content, CONTENT_HAS_URL if "url" in content else 0, pdu)


def redacted_body(body: bytes, room_version: RoomVersion) -> bytes:
    """Return the body that an event has once it is redacted."""
    client = orjson.loads(body + b"}")
    client["content"] = redact_content(client["type"], client["content"], room_version)
    client.pop("redacts", None)
    return orjson.dumps(client)[:-1]


def unsigned_members(prev_content_json: bytes, replaces_state: str) -> bytes | None:
    """Return the members of `unsigned` that a state event has for every reader; None: none."""
    parts = b""
    if prev_content_json:
        parts += b',"prev_content":' + prev_content_json
    if replaces_state:
        parts += b',"replaces_state":' + orjson.dumps(replaces_state)
    return parts or None


def redacted_because(redaction_id: str, redaction_pdu_json: bytes, room_id: str) -> bytes:
    """Return the member of `unsigned` that a redacted event has."""
    body = render_event(redaction_id, redaction_pdu_json).body
    return b',"redacted_because":' + body + b',"room_id":' + orjson.dumps(room_id) + b"}"


def full_event(
    body: bytes,
    unsigned: bytes | None,
    membership: str,
    *,
    room_id: str | None = None,
    transaction_id: str | None = None,
    relations: bytes | None = None,
) -> bytes:
    """Join an event's parts.

    Args:
        membership: the reader's at the event (client-server API, `unsigned.membership`).
        room_id: set where the answer is not already grouped by room.
        transaction_id: for the device that sent the event.
        relations: bundled aggregations, JSON.
    """
    room = b"" if room_id is None else b',"room_id":' + orjson.dumps(room_id)
    txn = b"" if transaction_id is None else b',"transaction_id":' + orjson.dumps(transaction_id)
    bundled = b"" if relations is None else b',"m.relations":' + relations
    return b'%b%b,"unsigned":{"membership":"%b"%b%b%b}}' % (
        body,
        room,
        membership.encode(),
        unsigned or b"",
        bundled,
        txn,
    )


def select_fields(event_json: bytes, fields: list[list[str]]) -> bytes:
    """Return an event with only the fields that a filter's `event_fields` name (paths already split)."""
    event = orjson.loads(event_json)
    picked: dict[str, Any] = {}
    for path in fields:
        value: Any = event
        for part in path:
            if not isinstance(value, dict) or part not in value:
                break
            value = value[part]
        else:
            target = picked
            for part in path[:-1]:
                existing = target.get(part)
                if not isinstance(existing, dict):
                    existing = target[part] = {}
                target = existing
            last = path[-1]
            if not (isinstance(target.get(last), dict) and isinstance(value, dict) and target[last] is value):
                target[last] = value
    return orjson.dumps(picked)

"""An event as every service holds it, made only by ``parse_event`` (or ``event_builder.build_event``).

Spec v1.19, server-server API, "PDUs" and "Checks performed on receipt of a PDU", step 1 (validity); room
versions, "Event format"; client-server API, "Size limits".

``Event`` is immutable by contract: nobody changes ``pdu`` or ``content`` after parsing. Unknown keys stay in
``pdu``, because the hash covers what we do not understand; ``unsigned`` does not, because nothing signs it.

``parse_event`` does not check signatures or hashes (see ``signing`` and ``hashes``) and judges nothing.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import force_setattr

from matrixlib.canonical_json import CanonicalJsonError, encode_canonical, encode_strict, parse_json
from matrixlib.hashes import hashed_event_id
from matrixlib.identifiers import is_hash_room_id, is_valid_server_name, is_valid_user_id
from matrixlib.redaction import redact_pdu, redacts_of
from matrixlib.room_versions import RoomVersion

MAX_EVENT_BYTES: Final = 65_536
MAX_FIELD_BYTES: Final = 255
MAX_PREV_EVENTS: Final = 20
MAX_AUTH_EVENTS: Final = 10
MAX_STORED_INTEGER: Final = 2**63 - 1
MAX_DEPTH: Final = 2**63 - 1

StateKey = tuple[str, str]
"""`(type, state_key)`: what an entry of a room's state is known by."""


class EventFormatError(ValueError):
    """A PDU is not an event of its room version. It is to be dropped; it cannot be stored or referenced."""


class EventTooLargeError(EventFormatError):
    """A PDU or one of its fields exceeds the size limits (client errcode `M_TOO_LARGE`)."""


class Event(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """One event of a room.

    ``auth_event_ids`` are the ids as signed; ``auth_links`` adds the create event that room version 12
    implies. Compared by identity; use ``event_id`` as key.
    """

    event_id: str
    room_id: str
    type: str
    state_key: str | None
    sender: str
    content: dict[str, Any]
    depth: int
    origin_server_ts: int
    prev_event_ids: tuple[str, ...]
    auth_event_ids: tuple[str, ...]
    redacts: str | None
    """Target of a redaction, wherever the room version keeps it; ``None`` for other types."""
    pdu: dict[str, Any]
    """The event in federation format, without ``unsigned``. Never changed."""
    room_version: RoomVersion
    _pdu_json: bytes | None = None

    @property
    def is_state(self) -> bool:
        """Whether the event has a state key (which may be empty)."""
        return self.state_key is not None

    @property
    def key(self) -> StateKey:
        """`(type, state_key)` of a state event. Raises ``ValueError`` for a message event."""
        state_key = self.state_key
        if state_key is None:
            raise ValueError(f"{self.event_id} is not a state event")
        return (self.type, state_key)

    @property
    def pdu_json(self) -> bytes:
        """The event in federation format as canonical JSON, without ``unsigned``."""
        encoded = self._pdu_json
        if encoded is None:
            encoded = encode_canonical(self.pdu)
            force_setattr(self, "_pdu_json", encoded)
        return encoded

    @property
    def membership(self) -> str | None:
        """`content.membership` of a member event, if it is a string; else ``None``."""
        if self.type != "m.room.member":
            return None
        membership = self.content.get("membership")
        return membership if isinstance(membership, str) else None

    @property
    def is_create(self) -> bool:
        """Whether this is a room's `m.room.create` event (by type; its state key is checked by
        ``parse_event``).
        """
        return self.type == "m.room.create" and self.state_key is not None

    @property
    def implied_create_event_id(self) -> str | None:
        """In room version 12, the id of the create event that the room id implies; else ``None``."""
        if not self.room_version.room_id_is_create_hash or self.type == "m.room.create":
            return None
        return "$" + self.room_id[1:]

    @property
    def auth_links(self) -> tuple[str, ...]:
        """``auth_event_ids`` and, in room version 12, the implied create event: the edges of the auth DAG."""
        implied = self.implied_create_event_id
        if implied is None or implied in self.auth_event_ids:
            return self.auth_event_ids
        return (*self.auth_event_ids, implied)


def parse_event(
    pdu: Mapping[str, Any] | bytes | str,
    room_version: RoomVersion,
    *,
    event_id: str | None = None,
    verify_size: bool = True,
) -> Event:
    """Make an event of a PDU in federation format.

    ``event_id`` is what the caller expects; where the id is a hash and the caller has checked it before (a
    row of our own database), passing it saves computing it. It is trusted then. In room versions 1 and 2 it
    must match the PDU's. ``verify_size`` off skips the limits of sizes and counts, for events stored before.

    Raises ``EventFormatError`` (``EventTooLargeError`` for sizes) and nothing else, whatever the input.
    """
    if isinstance(pdu, bytes | str):
        try:
            parsed = parse_json(pdu)
        except CanonicalJsonError as error:
            raise EventFormatError(str(error)) from None
    else:
        parsed = pdu
    if not isinstance(parsed, dict):
        raise EventFormatError("not an object")
    if "unsigned" in parsed:
        parsed = {key: value for key, value in parsed.items() if key != "unsigned"}
    try:
        encoded = encode_strict(parsed) if room_version.strict_canonical_json else encode_canonical(parsed)
    except CanonicalJsonError as error:
        raise EventFormatError(str(error)) from None
    if verify_size and len(encoded) > MAX_EVENT_BYTES:
        raise EventTooLargeError("event exceeds 65536 bytes")
    return _make_event(parsed, room_version, event_id, verify_size, encoded)


def redact_event(event: Event) -> Event:
    """The redacted form of an event: same id, only what its room version keeps."""
    redacted = redact_pdu(event.pdu, event.room_version)
    return parse_event(redacted, event.room_version, event_id=event.event_id, verify_size=False)


def _make_event(
    pdu: dict[str, Any], version: RoomVersion, event_id: str | None, verify_size: bool, encoded: bytes
) -> Event:
    event_type = _text(pdu, "type", verify_size)
    sender = _text(pdu, "sender", verify_size)
    if not is_valid_user_id(sender):
        raise EventFormatError("sender is not a user id")
    state_key = _text(pdu, "state_key", verify_size) if "state_key" in pdu else None
    content = pdu.get("content")
    if not isinstance(content, dict):
        raise EventFormatError("content is not an object")
    depth = _integer(pdu, "depth")
    if not 0 <= depth <= MAX_DEPTH:
        raise EventFormatError("depth is out of range")
    prev_event_ids = _references(pdu, "prev_events", version)
    auth_event_ids = _references(pdu, "auth_events", version)
    if verify_size and (len(prev_event_ids) > MAX_PREV_EVENTS or len(auth_event_ids) > MAX_AUTH_EVENTS):
        raise EventTooLargeError("more than 20 prev_events or 10 auth_events")
    _check_signature_shapes(pdu)
    event_id = _event_id(pdu, version, event_id, verify_size)
    redacts = redacts_of(pdu, version)
    return Event(
        event_id=event_id,
        room_id=_room_id(pdu, version, event_type, event_id, verify_size),
        type=event_type,
        state_key=state_key,
        sender=sender,
        content=content,
        depth=depth,
        origin_server_ts=_integer(pdu, "origin_server_ts"),
        prev_event_ids=prev_event_ids,
        auth_event_ids=auth_event_ids,
        redacts=redacts,
        pdu=pdu,
        room_version=version,
        _pdu_json=encoded,
    )


def _text(pdu: dict[str, Any], key: str, verify_size: bool) -> str:
    value = pdu.get(key)
    if not isinstance(value, str):
        raise EventFormatError(f"{key} is not a string")
    # At most four bytes a character: measure in bytes only what may be too long.
    if verify_size and len(value) * 4 > MAX_FIELD_BYTES and len(value.encode()) > MAX_FIELD_BYTES:
        raise EventTooLargeError(f"{key} exceeds 255 bytes")
    # No room has such a type or key, and databases that end texts at NUL would take two keys for one.
    if "\0" in value:
        raise EventFormatError(f"{key} contains NUL")
    return value


def _integer(pdu: dict[str, Any], key: str) -> int:
    value = pdu.get(key)
    if type(value) is not int:
        raise EventFormatError(f"{key} is not an integer")
    # Early room versions allow any; no database or message of ours holds more.
    if not -MAX_STORED_INTEGER <= value <= MAX_STORED_INTEGER:
        raise EventFormatError(f"{key} is out of range")
    return value


def _references(pdu: dict[str, Any], key: str, version: RoomVersion) -> tuple[str, ...]:
    value = pdu.get(key)
    if not isinstance(value, list):
        raise EventFormatError(f"{key} is not an array")
    if version.references_carry_hashes:
        ids = []
        for pair in value:
            if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[1], dict):
                raise EventFormatError(f"{key} holds something else than [event id, hashes]")
            ids.append(pair[0])
        value = ids
    for reference in value:
        if (
            not isinstance(reference, str)
            or reference[:1] != "$"
            or len(reference) > MAX_FIELD_BYTES
            or "\0" in reference
        ):
            raise EventFormatError(f"{key} holds something else than event ids")
    return tuple(value)


def _event_id(pdu: dict[str, Any], version: RoomVersion, expected: str | None, verify_size: bool) -> str:
    if version.hashed_event_ids:
        if expected is not None:
            return expected
        try:
            return hashed_event_id(pdu, version, checked=version.strict_canonical_json)
        except CanonicalJsonError as error:  # pragma: no cover - encoded once already
            raise EventFormatError(str(error)) from None
    event_id = _text(pdu, "event_id", verify_size)
    if event_id[:1] != "$" or not is_valid_server_name(event_id.partition(":")[2]):
        raise EventFormatError("event_id is not an event id of this room version")
    if expected is not None and event_id != expected:
        raise EventFormatError("event_id is not the expected one")
    return event_id


def _room_id(
    pdu: dict[str, Any], version: RoomVersion, event_type: str, event_id: str, verify_size: bool
) -> str:
    if not version.room_id_is_create_hash:
        room_id = _text(pdu, "room_id", verify_size)
        if room_id[:1] != "!" or not is_valid_server_name(room_id.partition(":")[2]):
            raise EventFormatError("room_id is not a room id of this room version")
        return room_id
    if event_type == "m.room.create" and pdu.get("state_key") == "":
        # Rule 1.2 of version 12: "If the event has a `room_id`, reject." Such an event belongs to no room.
        if "room_id" in pdu:
            raise EventFormatError("a create event must not have a room_id in this room version")
        return "!" + event_id[1:]
    room_id = _text(pdu, "room_id", verify_size)
    if not is_hash_room_id(room_id):
        raise EventFormatError("room_id is not a room id of this room version")
    return room_id


def _check_signature_shapes(pdu: dict[str, Any]) -> None:
    # Plain loops: a generator for each of these small objects would cost more than the checks.
    hashes = pdu.get("hashes")
    if not isinstance(hashes, dict):
        raise EventFormatError("hashes is not an object")
    for value in hashes.values():
        if not isinstance(value, str):
            raise EventFormatError("hashes is not an object of strings")
    signatures = pdu.get("signatures")
    if not isinstance(signatures, dict):
        raise EventFormatError("signatures is not an object")
    for keys in signatures.values():
        if not isinstance(keys, dict):
            raise EventFormatError("signatures is not an object of objects")
        for value in keys.values():
            if not isinstance(value, str):
                raise EventFormatError("signatures is not an object of objects of strings")

"""Building this server's own events: filled in, hashed, signed, parsed.

Spec v1.19, server-server API, "PDUs", "Signing events"; room versions, "Event format". What goes into
``auth_event_ids`` is chosen by ``event_auth.auth_types_for_event``; depth is the greatest of the previous
events' plus one, at most the room version's limit (``next_depth``).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matrixlib.canonical_json import MAX_SAFE_INTEGER, CanonicalJsonError, check_strict
from matrixlib.events import MAX_DEPTH, Event, EventFormatError, parse_event
from matrixlib.room_versions import RoomVersion
from matrixlib.signing import SigningKey, sign_event

Reference = str | tuple[str, Mapping[str, str]]
"""An event id or, for room versions 1 and 2, optionally (event id, hashes)."""


def next_depth(room_version: RoomVersion, depths: Iterable[int]) -> int:
    """Depth of an event that follows events of these depths; 1 for the first of a room."""
    limit = MAX_SAFE_INTEGER if room_version.strict_canonical_json else MAX_DEPTH
    return min(max(depths, default=0) + 1, limit)


def build_pdu(
    room_version: RoomVersion,
    *,
    room_id: str | None,
    sender: str,
    type: str,  # noqa: A002 - the spec's word
    content: Mapping[str, Any],
    state_key: str | None = None,
    redacts: str | None = None,
    prev_events: Sequence[Reference],
    auth_event_ids: Sequence[Reference],
    depth: int,
    origin_server_ts: int,
    event_id: str | None = None,
) -> dict[str, Any]:
    """An unsigned PDU in the room version's format.

    ``room_id`` is ``None`` for the create event of a version 12 room. ``event_id`` is needed in versions 1
    and 2 only. ``redacts`` is put where the version keeps it.
    """
    body = dict(content)
    pdu: dict[str, Any] = {
        "type": type,
        "sender": sender,
        "content": body,
        "depth": depth,
        "origin_server_ts": origin_server_ts,
        "prev_events": _references(room_version, prev_events),
        "auth_events": _references(room_version, auth_event_ids),
    }
    if not (room_version.room_id_is_create_hash and type == "m.room.create"):
        pdu["room_id"] = room_id
    if state_key is not None:
        pdu["state_key"] = state_key
    if redacts is not None:
        (body if room_version.redacts_in_content else pdu)["redacts"] = redacts
    if not room_version.hashed_event_ids:
        pdu["event_id"] = event_id
    return pdu


def build_event(
    room_version: RoomVersion,
    *,
    room_id: str | None,
    sender: str,
    type: str,  # noqa: A002 - the spec's word
    content: Mapping[str, Any],
    state_key: str | None = None,
    redacts: str | None = None,
    prev_events: Sequence[Reference],
    auth_event_ids: Sequence[Reference],
    depth: int,
    origin_server_ts: int,
    server_name: str,
    signing_key: SigningKey,
    event_id: str | None = None,
) -> Event:
    """Build, hash and sign an event of ours. Arguments as for ``build_pdu``.

    What we mint is strict canonical JSON in every room version. Raises ``EventFormatError``
    (``EventTooLargeError``).
    """
    pdu = build_pdu(
        room_version,
        room_id=room_id,
        sender=sender,
        type=type,
        content=content,
        state_key=state_key,
        redacts=redacts,
        prev_events=prev_events,
        auth_event_ids=auth_event_ids,
        depth=depth,
        origin_server_ts=origin_server_ts,
        event_id=event_id,
    )
    try:
        check_strict({**pdu, "depth": 0})
        signed = sign_event(pdu, room_version, server_name, signing_key)
    except CanonicalJsonError as error:
        raise EventFormatError(str(error)) from None
    return parse_event(signed, room_version)


def _references(room_version: RoomVersion, references: Sequence[Reference]) -> list[Any]:
    if not room_version.references_carry_hashes:
        return [reference if isinstance(reference, str) else reference[0] for reference in references]
    return [
        [reference, {}] if isinstance(reference, str) else [reference[0], dict(reference[1])]
        for reference in references
    ]

"""Which parts of an event survive redaction, and whether a redaction takes effect.

Spec v1.19, each room version's "Redactions" and "Handling redactions". The redacted form is also what
reference hashes and signatures are made over, so it must be right for events that nobody ever redacts.
"""

from collections.abc import Mapping
from typing import Any

from matrixlib.room_versions import KEEP_ALL, RoomVersion

_NOTHING: frozenset[str] = frozenset()


def redact_pdu(pdu: Mapping[str, Any], room_version: RoomVersion) -> dict[str, Any]:
    """The redacted copy of an event in federation format; ``unsigned`` is dropped like every unlisted key.

    Never raises: a content that is not an object becomes an empty one.
    """
    keeps = room_version.redaction_keeps
    redacted = {key: value for key, value in pdu.items() if key in keeps}
    event_type = pdu.get("type")
    redacted["content"] = redact_content(event_type, pdu.get("content"), room_version)
    return redacted


def redact_content(event_type: object, content: object, room_version: RoomVersion) -> dict[str, Any]:
    """What redaction leaves of a content."""
    if not isinstance(content, dict) or not isinstance(event_type, str):
        return {}
    keeps = room_version.redaction_keeps_content.get(event_type, _NOTHING)
    if keeps is KEEP_ALL:
        return content
    redacted = {key: value for key, value in content.items() if key in keeps}
    if room_version.redaction_keeps_signed_invite and event_type == "m.room.member":
        # "Additionally, it allows the `signed` key of the `third_party_invite` key."
        invite = content.get("third_party_invite")
        if isinstance(invite, dict):
            redacted["third_party_invite"] = {"signed": invite["signed"]} if "signed" in invite else {}
    return redacted


def redacts_of(pdu: Mapping[str, Any], room_version: RoomVersion) -> str | None:
    """The id of the event that a redaction is about, from where this room version keeps it."""
    if pdu.get("type") != "m.room.redaction":
        return None
    if room_version.redacts_in_content:
        content = pdu.get("content")
        target = content.get("redacts") if isinstance(content, dict) else None
    else:
        target = pdu.get("redacts")
    # No event's id has a NUL, and not every database has texts with one.
    return target if isinstance(target, str) and "\0" not in target else None

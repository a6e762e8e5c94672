"""What another server's make_join, make_leave or make_knock answer may say, and our event made of it. Pure.

The answer is a hint, never something to sign (a server that signs what it is handed signs anything): the
checks of the spec are made, and then an event of our own is built, into which only the previous events, the
auth events, the depth and, for a restricted join, the authorising user are taken over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matrixlib.canonical_json import MAX_SAFE_INTEGER
from matrixlib.event_builder import Reference, build_event
from matrixlib.events import MAX_AUTH_EVENTS, MAX_PREV_EVENTS, Event, EventFormatError
from matrixlib.identifiers import is_valid_user_id, server_name_of
from matrixlib.room_versions import RoomVersion, get_room_version
from matrixlib.signing import SigningKey

# Keys that a template of any room version may have; what is not used is not looked at.
_KNOWN_KEYS = frozenset(
    {
        "type",
        "room_id",
        "sender",
        "state_key",
        "content",
        "prev_events",
        "auth_events",
        "depth",
        "origin",
        "origin_server_ts",
        "event_id",
        "hashes",
        "signatures",
        "unsigned",
        "prev_state",
        "membership",
        "redacts",
    }
)


class TemplateError(ValueError):
    """The answer is not a template for the event that was asked for."""


@dataclass(frozen=True, slots=True)
class Template:
    """What of a template is used."""

    version: RoomVersion
    room_id: str
    user_id: str
    membership: str
    prev_events: tuple[Reference, ...]
    auth_events: tuple[Reference, ...]
    depth: int
    authorised_via: str | None
    """For a restricted join: the resident server's user who lets us in."""


def read_template(
    answer: Any,
    *,
    room_id: str,
    user_id: str,
    membership: str,
    resident: str,
    known_version: RoomVersion | None = None,
) -> Template:
    """Check a make_* answer.

    Args:
        answer: the parsed answer: `event` and `room_version`.
        membership: `join`, `leave` or `knock`.
        resident: the server that answered.
        known_version: the room's version, where we know it.

    Raises:
        TemplateError: it is no template for this user's membership of this room.
    """
    if not isinstance(answer, dict) or not isinstance(answer.get("event"), dict):
        raise TemplateError("no event")
    named = answer.get("room_version", "1")
    version = get_room_version(named) if isinstance(named, str) else None
    if version is None:
        raise TemplateError("unknown room version")
    if known_version is not None and not _are_one(version, known_version):
        raise TemplateError("the room has another version")
    event = answer["event"]
    unknown = set(event) - _KNOWN_KEYS
    if unknown:
        raise TemplateError(f"unexpected keys {sorted(unknown)[:5]}")
    expected = {"type": "m.room.member", "room_id": room_id, "sender": user_id, "state_key": user_id}
    for key, value in expected.items():
        if event.get(key) != value:
            raise TemplateError(f"{key} is not what was asked for")
    content = event.get("content")
    if not isinstance(content, dict) or content.get("membership") != membership:
        raise TemplateError("membership is not what was asked for")
    depth = event.get("depth", 1)
    if type(depth) is not int or not 0 <= depth <= MAX_SAFE_INTEGER:
        raise TemplateError("depth is out of range")
    if membership == "knock" and not version.knocking:
        raise TemplateError("rooms of this version cannot be knocked on")
    authorised_via = content.get("join_authorised_via_users_server") if membership == "join" else None
    if authorised_via is not None and (
        not version.restricted_joins
        or not is_valid_user_id(authorised_via)
        or server_name_of(authorised_via) != resident
    ):
        raise TemplateError("the authorising user is not of the server that answered")
    return Template(
        version=version,
        room_id=room_id,
        user_id=user_id,
        membership=membership,
        prev_events=_references(event.get("prev_events"), version, MAX_PREV_EVENTS, "prev_events"),
        auth_events=_references(event.get("auth_events"), version, MAX_AUTH_EVENTS, "auth_events"),
        depth=depth,
        authorised_via=authorised_via,
    )


def build_membership(
    template: Template,
    content: Mapping[str, Any],
    *,
    server_name: str,
    key: SigningKey,
    now_ms: int,
    opaque: str,
) -> Event:
    """Build and sign our event.

    Args:
        content: the user's own part of the content (`displayname`, `avatar_url`, `reason`).
        opaque: makes the event id in room versions 1 and 2.

    Raises:
        TemplateError: what the template holds makes no event.
    """
    body = {
        name: content[name]
        for name in content
        if name not in ("membership", "join_authorised_via_users_server", "third_party_invite")
    }
    body["membership"] = template.membership
    if template.authorised_via is not None:
        body["join_authorised_via_users_server"] = template.authorised_via
    try:
        return build_event(
            template.version,
            room_id=template.room_id,
            sender=template.user_id,
            type="m.room.member",
            content=body,
            state_key=template.user_id,
            prev_events=template.prev_events,
            auth_event_ids=template.auth_events,
            depth=template.depth,
            origin_server_ts=now_ms,
            server_name=server_name,
            signing_key=key,
            event_id=None if template.version.hashed_event_ids else f"${opaque}:{server_name}",
        )
    except EventFormatError as error:
        raise TemplateError(str(error)) from error


def _are_one(version: RoomVersion, known: RoomVersion) -> bool:
    # An invite of version 1 may be of a room of version 2: the older form of `/invite` does not say.
    return version is known or not (version.hashed_event_ids or known.hashed_event_ids)


def _references(value: Any, version: RoomVersion, limit: int, name: str) -> tuple[Reference, ...]:
    if not isinstance(value, list) or len(value) > limit:
        raise TemplateError(f"{name} is no array of at most {limit}")
    return tuple(_reference(item, version, name) for item in value)


def _reference(item: Any, version: RoomVersion, name: str) -> Reference:
    hashes: Any = None
    if version.references_carry_hashes:
        if not isinstance(item, list) or len(item) != 2 or not isinstance(item[1], dict):
            raise TemplateError(f"{name} holds something else than [event id, hashes]")
        item, hashes = item
        if not all(isinstance(key, str) and isinstance(text, str) for key, text in hashes.items()):
            raise TemplateError(f"{name} holds something else than [event id, hashes]")
    if not isinstance(item, str) or item[:1] != "$" or not 1 < len(item.encode()) <= 255:
        raise TemplateError(f"{name} holds something else than event ids")
    return item if hashes is None else (item, {"sha256": hashes["sha256"]} if "sha256" in hashes else {})


def supported_versions(versions: Sequence[str]) -> list[str]:
    """The versions to name in `ver`, in a stable order."""
    return sorted(versions, key=lambda version: (len(version), version))

"""What differs between room versions 1 to 12, as data (spec v1.19, "Room Versions").

``RoomVersion`` is a frozen set of rules; each version is ``replace(previous, ...)``. Code asks for the rule,
never for the number: ``if version.knocking``, not ``if version.number >= 7``.

``rule`` gives the number that a check has on the version's own page, so that a refusal can be read beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType
from typing import Final


class EventIdFormat(Enum):
    """How event ids are made."""

    DOMAIN = "domain"  # $opaque:domain, chosen by the creator
    HASH = "hash"  # $ and the reference hash, standard Base64
    HASH_URL_SAFE = "hash-url-safe"  # $ and the reference hash, URL-safe Base64


class StateResolution(Enum):
    """Which algorithm merges the states of branches."""

    V1 = "v1"
    V2 = "v2"
    V2_1 = "v2.1"


class PowerLevelValues(Enum):
    """Which values stand for a power level."""

    LAX = "lax"  # integers, strings of integers, floats
    STRINGS = "strings"  # integers and strings of integers (strict JSON has no floats)
    INTEGERS = "integers"


KEEP_ALL: Final[frozenset[str]] = frozenset({"*"})
"""Marks an event type whose whole content survives redaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomVersion:
    """The rules of one room version. Compared by identity of its ``identifier``."""

    identifier: str
    """The value of `room_version`, for example "10"."""
    event_id_format: EventIdFormat
    references_carry_hashes: bool
    """`prev_events` and `auth_events` are pairs [event id, hashes] instead of ids (versions 1 and 2)."""
    room_id_is_create_hash: bool
    """The room id is the create event's id with another sigil; create is never among `auth_events` (12)."""
    state_resolution: StateResolution
    strict_canonical_json: bool
    enforce_key_validity: bool
    power_level_values: PowerLevelValues
    aliases_rule: bool
    """`m.room.aliases` has an auth rule of its own (versions 1 to 5)."""
    redaction_rule: bool
    """`m.room.redaction` has an auth rule of its own (versions 1 and 2)."""
    creator_in_content: bool
    """`m.room.create` names the creator in its content (versions 1 to 10); later the sender is the
    creator.
    """
    privileged_creators: bool
    """Creators, additional ones included, have infinite power (12)."""
    limit_notification_levels: bool
    """Changes of `notifications` levels are checked (since 6)."""
    knocking: bool
    restricted_joins: bool
    knock_restricted: bool
    redacts_in_content: bool
    """A redaction names its target in `content.redacts` (since 11)."""
    redaction_keeps: frozenset[str]
    """Top-level keys that survive redaction."""
    redaction_keeps_content: Mapping[str, frozenset[str]]
    """Event type -> content keys that survive redaction; ``KEEP_ALL`` for the whole content."""
    redaction_keeps_signed_invite: bool
    """`third_party_invite.signed` of a member event survives redaction (since 11)."""
    rule_numbers: Mapping[str, str]
    """Name of a check in ``event_auth`` -> its number on the version's page."""

    def rule(self, name: str) -> str:
        """The number, on this version's page, of the auth rule with our name ``name``."""
        return self.rule_numbers[name]

    @property
    def hashed_event_ids(self) -> bool:
        """Whether an event's id is its reference hash (since version 3)."""
        return self.event_id_format is not EventIdFormat.DOMAIN

    def __str__(self) -> str:
        return self.identifier


def _numbers(
    *,
    aliases: bool,
    redaction: bool,
    creator_in_content: bool,
    restricted: bool,
    knocking: bool,
    typed_levels: bool,
    creators: bool,
) -> Mapping[str, str]:
    # Built by counting as the pages do: a rule that a version lacks shifts those behind it.
    numbers: dict[str, str] = {}
    top = 1
    create = ["prev_events", "room_id", "room_version"]
    create += ["creator"] if creator_in_content else []
    create += ["additional_creators"] if creators else []
    for index, name in enumerate([*create, "allow"], 1):
        numbers[f"create.{name}"] = f"{top}.{index}"
    if creators:
        top += 1
        numbers["room_id"] = str(top)
    top += 1
    for index, name in enumerate(["duplicate", "selection", "rejected", "no_create", "room_id"], 1):
        # Version 12's page leaves out 3.4 and goes on with 3.5.
        if not (creators and name == "no_create"):
            numbers[f"auth_events.{name}"] = f"{top}.{index}"
    top += 1
    numbers["federate"] = str(top)
    if aliases:
        top += 1
        for index, name in enumerate(["state_key", "domain", "allow"], 1):
            numbers[f"aliases.{name}"] = f"{top}.{index}"
    top += 1
    member = 1
    numbers["member.format"] = f"{top}.1"
    if restricted:
        member += 1
        numbers["member.authorised_signature"] = f"{top}.{member}.1"
    member += 1
    join = (
        ["first", "sender", "banned", "invite"]
        + (["restricted"] if restricted else [])
        + ["public", "otherwise"]
    )
    for index, name in enumerate(join, 1):
        numbers[f"join.{name}"] = f"{top}.{member}.{index}"
    if restricted:
        for index, name in enumerate(["member", "authoriser", "allow"], 1):
            numbers[f"join.restricted.{name}"] = f"{top}.{member}.5.{index}"
    member += 1
    third_party = ["banned", "signed", "mxid_token", "mxid", "event", "sender", "signature", "otherwise"]
    for index, name in enumerate(third_party, 1):
        numbers[f"third_party.{name}"] = f"{top}.{member}.1.{index}"
    for index, name in enumerate(["sender", "target", "level", "otherwise"], 2):
        numbers[f"invite.{name}"] = f"{top}.{member}.{index}"
    member += 1
    for index, name in enumerate(["self", "sender", "unban", "level", "otherwise"], 1):
        numbers[f"leave.{name}"] = f"{top}.{member}.{index}"
    member += 1
    for index, name in enumerate(["sender", "level", "otherwise"], 1):
        numbers[f"ban.{name}"] = f"{top}.{member}.{index}"
    if knocking:
        member += 1
        for index, name in enumerate(["join_rule", "sender", "membership", "otherwise"], 1):
            numbers[f"knock.{name}"] = f"{top}.{member}.{index}"
    member += 1
    numbers["member.unknown"] = f"{top}.{member}"
    for name in ["sender_joined", "third_party_invite", "required_level", "state_key"]:
        top += 1
        numbers[name] = f"{top}.1" if name == "third_party_invite" else str(top)
    top += 1
    levels = ["values", "maps"] if typed_levels else []
    levels += ["users"]
    levels += ["creators"] if creators else []
    levels += ["first"]
    for index, name in enumerate(levels, 1):
        numbers[f"levels.{name}"] = f"{top}.{index}"
    after = len(levels) + 1
    numbers["levels.property.current"] = f"{top}.{after}.1"
    numbers["levels.property.new"] = f"{top}.{after}.2"
    for index, name in enumerate(["entry.current", "entry.new", "user.current", "user.new"], after + 1):
        numbers[f"levels.{name}"] = f"{top}.{index}.1"
    # As written on the pages; version 12's has two rules "10.10", the second is this one.
    numbers["levels.allow"] = f"{top}.{after + 5 - creators}"
    if redaction:
        top += 1
        for index, name in enumerate(["level", "domain", "otherwise"], 1):
            numbers[f"redaction.{name}"] = f"{top}.{index}"
    numbers["otherwise"] = str(top + 1)
    return MappingProxyType(numbers)


_V1_TOP_LEVEL: Final = frozenset(
    {
        "event_id",
        "type",
        "room_id",
        "sender",
        "state_key",
        "content",
        "hashes",
        "signatures",
        "depth",
        "prev_events",
        "prev_state",
        "auth_events",
        "origin",
        "origin_server_ts",
        "membership",
    }
)
_V1_LEVELS: Final = frozenset(
    {"ban", "events", "events_default", "kick", "redact", "state_default", "users", "users_default"}
)
_V1_CONTENT: Final[dict[str, frozenset[str]]] = {
    "m.room.member": frozenset({"membership"}),
    "m.room.create": frozenset({"creator"}),
    "m.room.join_rules": frozenset({"join_rule"}),
    "m.room.power_levels": _V1_LEVELS,
    "m.room.aliases": frozenset({"aliases"}),
    "m.room.history_visibility": frozenset({"history_visibility"}),
}
_V6_CONTENT: Final = {kind: keys for kind, keys in _V1_CONTENT.items() if kind != "m.room.aliases"}
_V8_CONTENT: Final = _V6_CONTENT | {"m.room.join_rules": frozenset({"join_rule", "allow"})}
_V9_CONTENT: Final = _V8_CONTENT | {
    "m.room.member": frozenset({"membership", "join_authorised_via_users_server"})
}
_V11_CONTENT: Final = _V9_CONTENT | {
    "m.room.create": KEEP_ALL,
    "m.room.power_levels": _V1_LEVELS | {"invite"},
    "m.room.redaction": frozenset({"redacts"}),
}

V1: Final = RoomVersion(
    identifier="1",
    event_id_format=EventIdFormat.DOMAIN,
    references_carry_hashes=True,
    room_id_is_create_hash=False,
    state_resolution=StateResolution.V1,
    strict_canonical_json=False,
    enforce_key_validity=False,
    power_level_values=PowerLevelValues.LAX,
    aliases_rule=True,
    redaction_rule=True,
    creator_in_content=True,
    privileged_creators=False,
    limit_notification_levels=False,
    knocking=False,
    restricted_joins=False,
    knock_restricted=False,
    redacts_in_content=False,
    redaction_keeps=_V1_TOP_LEVEL,
    redaction_keeps_content=MappingProxyType(_V1_CONTENT),
    redaction_keeps_signed_invite=False,
    rule_numbers=_numbers(
        aliases=True,
        redaction=True,
        creator_in_content=True,
        restricted=False,
        knocking=False,
        typed_levels=False,
        creators=False,
    ),
)
V2: Final = replace(V1, identifier="2", state_resolution=StateResolution.V2)
V3: Final = replace(
    V2,
    identifier="3",
    event_id_format=EventIdFormat.HASH,
    references_carry_hashes=False,
    redaction_rule=False,
    rule_numbers=_numbers(
        aliases=True,
        redaction=False,
        creator_in_content=True,
        restricted=False,
        knocking=False,
        typed_levels=False,
        creators=False,
    ),
)
V4: Final = replace(V3, identifier="4", event_id_format=EventIdFormat.HASH_URL_SAFE)
V5: Final = replace(V4, identifier="5", enforce_key_validity=True)
V6: Final = replace(
    V5,
    identifier="6",
    strict_canonical_json=True,
    power_level_values=PowerLevelValues.STRINGS,
    aliases_rule=False,
    limit_notification_levels=True,
    redaction_keeps_content=MappingProxyType(_V6_CONTENT),
    rule_numbers=_numbers(
        aliases=False,
        redaction=False,
        creator_in_content=True,
        restricted=False,
        knocking=False,
        typed_levels=False,
        creators=False,
    ),
)
V7: Final = replace(
    V6,
    identifier="7",
    knocking=True,
    rule_numbers=_numbers(
        aliases=False,
        redaction=False,
        creator_in_content=True,
        restricted=False,
        knocking=True,
        typed_levels=False,
        creators=False,
    ),
)
V8: Final = replace(
    V7,
    identifier="8",
    restricted_joins=True,
    redaction_keeps_content=MappingProxyType(_V8_CONTENT),
    rule_numbers=_numbers(
        aliases=False,
        redaction=False,
        creator_in_content=True,
        restricted=True,
        knocking=True,
        typed_levels=False,
        creators=False,
    ),
)
V9: Final = replace(V8, identifier="9", redaction_keeps_content=MappingProxyType(_V9_CONTENT))
V10: Final = replace(
    V9,
    identifier="10",
    power_level_values=PowerLevelValues.INTEGERS,
    knock_restricted=True,
    rule_numbers=_numbers(
        aliases=False,
        redaction=False,
        creator_in_content=True,
        restricted=True,
        knocking=True,
        typed_levels=True,
        creators=False,
    ),
)
V11: Final = replace(
    V10,
    identifier="11",
    creator_in_content=False,
    redacts_in_content=True,
    redaction_keeps=_V1_TOP_LEVEL - {"origin", "membership", "prev_state"},
    redaction_keeps_content=MappingProxyType(_V11_CONTENT),
    redaction_keeps_signed_invite=True,
    rule_numbers=_numbers(
        aliases=False,
        redaction=False,
        creator_in_content=False,
        restricted=True,
        knocking=True,
        typed_levels=True,
        creators=False,
    ),
)
V12: Final = replace(
    V11,
    identifier="12",
    room_id_is_create_hash=True,
    state_resolution=StateResolution.V2_1,
    privileged_creators=True,
    rule_numbers=_numbers(
        aliases=False,
        redaction=False,
        creator_in_content=False,
        restricted=True,
        knocking=True,
        typed_levels=True,
        creators=True,
    ),
)

ROOM_VERSIONS: Final[dict[str, RoomVersion]] = {
    version.identifier: version for version in (V1, V2, V3, V4, V5, V6, V7, V8, V9, V10, V11, V12)
}


def get_room_version(version: object) -> RoomVersion | None:
    """The rules of a room version by its identifier, or ``None`` if we do not know it."""
    return ROOM_VERSIONS.get(version) if isinstance(version, str) else None

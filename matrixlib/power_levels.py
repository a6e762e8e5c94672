"""Power levels as the auth rules read them (room versions, "Authorisation rules"; client-server API,
`m.room.power_levels`).

``PowerLevels.of(state)`` reads a state once; its methods answer. The level of a room creator of version 12 is
``CREATOR_LEVEL``, above every integer. Levels are ints, or that.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from matrixlib.events import Event, StateKey
from matrixlib.identifiers import is_valid_user_id
from matrixlib.room_versions import PowerLevelValues, RoomVersion

Level = int | float

CREATOR_LEVEL: Final[float] = float("inf")

CREATE_KEY: Final = ("m.room.create", "")
POWER_LEVELS_KEY: Final = ("m.room.power_levels", "")

_DEFAULTS: Final = {
    "ban": 50,
    "kick": 50,
    "redact": 50,
    "state_default": 50,
    "invite": 0,
    "events_default": 0,
    "users_default": 0,
}
_STRING_LEVEL: Final = re.compile(r"\s*[+-]?[0-9]+\s*", re.ASCII)
_MAX_STRING_DIGITS: Final = 40


def parse_level(value: Any, values: PowerLevelValues) -> int | None:
    """A power level as an integer, or ``None`` if the value stands for none in this kind of room version.

    Lax versions take strings of integers and truncate floats; an integer stands for itself.
    """
    if type(value) is int:
        return value
    if values is PowerLevelValues.INTEGERS:
        return None
    if isinstance(value, str):
        if len(value) <= _MAX_STRING_DIGITS and _STRING_LEVEL.fullmatch(value):
            return int(value)
        return None
    if (
        isinstance(value, float)
        and values is PowerLevelValues.LAX
        and value == value
        and abs(value) != CREATOR_LEVEL
    ):
        return int(value)
    return None


def room_creators(create: Event) -> frozenset[str]:
    """The creators of a room by its create event.

    Versions 1 to 10: `content.creator`; 11: the sender; 12: the sender and `content.additional_creators`.
    """
    version = create.room_version
    if version.creator_in_content:
        creator = create.content.get("creator")
        return frozenset({creator}) if isinstance(creator, str) else frozenset()
    if not version.privileged_creators:
        return frozenset({create.sender})
    additional = create.content.get("additional_creators")
    others = additional if isinstance(additional, list) else ()
    return frozenset({create.sender, *(user for user in others if is_valid_user_id(user))})


class PowerLevels:
    """The levels that hold in one state of a room."""

    __slots__ = ("_content", "_creators", "_values", "exists", "version")

    def __init__(self, version: RoomVersion, create: Event | None, power_levels: Event | None) -> None:
        """Of the two deciding events; either may be missing."""
        self.version: Final = version
        self.exists: Final = power_levels is not None
        self._values: Final = version.power_level_values
        self._content: Final[Mapping[str, Any]] = power_levels.content if power_levels is not None else {}
        self._creators: Final = room_creators(create) if create is not None else frozenset()

    @classmethod
    def of(cls, version: RoomVersion, state: Mapping[StateKey, Event]) -> "PowerLevels":
        """The levels in a state `(type, state_key) -> event`."""
        return cls(version, state.get(CREATE_KEY), state.get(POWER_LEVELS_KEY))

    def user_level(self, user_id: str) -> Level:
        """The level of a user."""
        if self.version.privileged_creators and user_id in self._creators:
            return CREATOR_LEVEL
        if not self.exists:
            # "If the room contains no `m.room.power_levels` event, the room's creator has a power level of
            # 100."
            return 100 if user_id in self._creators else 0
        users = self._content.get("users")
        if isinstance(users, dict):
            level = parse_level(users.get(user_id), self._values)
            if level is not None:
                return level
        return self.named("users_default")

    def named(self, name: str) -> int:
        """The level `ban`, `kick`, `redact`, `invite`, `users_default`, `events_default` or
        `state_default`.
        """
        level = parse_level(self._content.get(name), self._values)
        if level is not None:
            return level
        return _DEFAULTS[name]

    def required_level(self, event_type: str, is_state: bool) -> int:
        """The level needed to send an event of a type."""
        events = self._content.get("events")
        if isinstance(events, dict):
            level = parse_level(events.get(event_type), self._values)
            if level is not None:
                return level
        return self.named("state_default" if is_state else "events_default")

    def notification_level(self, name: str) -> int:
        """The level needed for a notification such as `room`; 50 unless said otherwise."""
        notifications = self._content.get("notifications")
        if isinstance(notifications, dict):
            level = parse_level(notifications.get(name), self._values)
            if level is not None:
                return level
        return 50


def user_level(room_version: RoomVersion, state: Mapping[StateKey, Event], user_id: str) -> Level:
    """The level of a user in a state."""
    return PowerLevels.of(room_version, state).user_level(user_id)


def required_level(
    room_version: RoomVersion, state: Mapping[StateKey, Event], event_type: str, *, is_state: bool
) -> int:
    """The level needed in a state to send an event of a type."""
    return PowerLevels.of(room_version, state).required_level(event_type, is_state)


def may_redact(
    room_version: RoomVersion, state: Mapping[StateKey, Event], redaction_sender: str, target: Event
) -> bool:
    """Whether a redaction takes effect (room versions 3 and later, "Handling redactions").

    ``state`` is the state before the redaction. The redact level, or the domain of the target's sender.
    """
    levels = PowerLevels.of(room_version, state)
    if levels.user_level(redaction_sender) >= levels.named("redact"):
        return True
    return redaction_sender.partition(":")[2] == target.sender.partition(":")[2]

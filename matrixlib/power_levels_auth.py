"""The authorisation rules under "If type is `m.room.power_levels`" (room versions 1 to 12, "Authorisation
rules").

Called by ``event_auth`` only. The sentences quoted are those of version 12.
"""

from collections.abc import Mapping
from typing import Any

from matrixlib.events import Event, StateKey
from matrixlib.identifiers import is_valid_user_id
from matrixlib.power_levels import CREATE_KEY, POWER_LEVELS_KEY, PowerLevels, parse_level, room_creators
from matrixlib.room_versions import PowerLevelValues, RoomVersion
from matrixlib.verdicts import ALLOWED, Refused, Verdict, refuse

_PROPERTIES = ("users_default", "events_default", "state_default", "ban", "redact", "kick", "invite")
_NOT_A_LEVEL = "not a power level"


def check_power_levels(event: Event, state: Mapping[StateKey, Event], levels: PowerLevels) -> Verdict:
    """Judge a power levels event; the general rules have allowed it already."""
    version = event.room_version
    content = event.content
    refused = _check_values(content, version)
    if refused is not None:
        return refused
    users = content.get("users", {})
    # "If the `users` property in `content` contains the `sender` of the `m.room.create` event or any of the
    # `additional_creators` array (if present) from the `content` of the `m.room.create` event, reject."
    if version.privileged_creators and not room_creators(state[CREATE_KEY]).isdisjoint(users):
        return refuse(version, "levels.creators", "a creator has a power level")
    # "If there is no previous `m.room.power_levels` event in the room, allow."
    previous = state.get(POWER_LEVELS_KEY)
    if previous is None:
        return ALLOWED
    return _check_changes(event, previous.content, levels) or ALLOWED


def _check_values(content: Mapping[str, Any], version: RoomVersion) -> Refused | None:
    values = version.power_level_values
    strict = values is PowerLevelValues.INTEGERS
    # "If any of the properties `users_default`, ... in `content` are present and not an integer, reject."
    # NOTSPEC: before version 10 the pages name no rule for values that are no levels at all; nothing could be
    # done
    # with such an event, so it is refused under the rule that would compare them.
    for name in _PROPERTIES:
        if name in content and parse_level(content[name], values) is None:
            return refuse(
                version, "levels.values" if strict else "levels.property.new", f"{name} is {_NOT_A_LEVEL}"
            )
    # "If either of the properties `events` or `notifications` in `content` are present and not an object with
    # values
    # that are integers, reject."
    for name in ("events", "notifications"):
        if name == "notifications" and not version.limit_notification_levels:
            continue
        if not _is_level_map(content.get(name, {}), values):
            return refuse(
                version, "levels.maps" if strict else "levels.entry.new", f"{name} is no map of levels"
            )
    # "If the `users` property in `content` is not an object with keys that are valid user IDs with values
    # that are
    # integers, reject."
    users = content.get("users", {})
    if not _is_level_map(users, values) or not all(is_valid_user_id(user) for user in users):
        return refuse(version, "levels.users", "users is no map of user ids to levels")
    return None


def _is_level_map(value: Any, values: PowerLevelValues) -> bool:
    return isinstance(value, dict) and all(parse_level(level, values) is not None for level in value.values())


def _check_changes(event: Event, before: Mapping[str, Any], levels: PowerLevels) -> Refused | None:
    version = event.room_version
    values = version.power_level_values
    content = event.content
    sender_level = levels.user_level(event.sender)
    # "For the properties `users_default`, ... check if they were added, changed or removed. For each found
    # alteration:
    # If the current value is higher than the `sender`'s current power level, reject. If the new value is
    # higher ..."
    for name in _PROPERTIES:
        old = parse_level(before.get(name), values)
        new = parse_level(content.get(name), values)
        if old == new:
            continue
        if old is not None and old > sender_level:
            return refuse(version, "levels.property.current", f"{name} is above the sender's level")
        if new is not None and new > sender_level:
            return refuse(version, "levels.property.new", f"{name} would be above the sender's level")
    # "For each entry being changed in, or removed from, the `events` or `notifications` properties: ..."
    for name in ("events", "notifications") if version.limit_notification_levels else ("events",):
        for key, old, new in _altered(before.get(name), content.get(name), values):
            if old is not None and old > sender_level:
                return refuse(version, "levels.entry.current", f"{name}: {key!r} is above the sender's level")
            if new is not None and new > sender_level:
                return refuse(
                    version, "levels.entry.new", f"{name}: {key!r} would be above the sender's level"
                )
    for user, old, new in _altered(before.get("users"), content.get("users"), values):
        # "For each entry being changed in, or removed from, the `users` property, other than the `sender`'s
        # own entry:
        # If the current value is greater than or equal to the `sender`'s current power level, reject."
        if old is not None and (old > sender_level or (old == sender_level and user != event.sender)):
            return refuse(version, "levels.user.current", f"{user} has the sender's level or more")
        # "For each entry being added to, or changed in, the `users` property: If the new value is greater
        # than the
        # `sender`'s current power level, reject."
        if new is not None and new > sender_level:
            return refuse(version, "levels.user.new", f"{user} would have more than the sender's level")
    return None


def _altered(before: Any, after: Any, values: PowerLevelValues) -> list[tuple[str, int | None, int | None]]:
    before = before if isinstance(before, dict) else {}
    after = after if isinstance(after, dict) else {}
    if before == after:
        return []
    altered = []
    for key in sorted(before.keys() | after.keys()):
        old = parse_level(before.get(key), values)
        new = parse_level(after.get(key), values)
        if old != new:
            altered.append((key, old, new))
    return altered

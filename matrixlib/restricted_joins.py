"""Restricted joins: which rooms let a user in, and whose name a join bears (client-server API, "Restricted
rooms"; room version 8, `join_authorised_via_users_server`).

The resident server decides: is the user joined to one of ``allowed_rooms``, and have we a user who may invite
(``authorising_user``)? The signature of that user's server is then among ``signing.event_signers``.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from matrixlib.events import Event, StateKey
from matrixlib.membership_auth import JOIN_RULES_KEY, join_rule_of
from matrixlib.power_levels import PowerLevels
from matrixlib.room_versions import RoomVersion

MAX_ALLOWED_ROOMS: Final = 100
"""Entries of `allow` that are looked at."""


def is_restricted(room_version: RoomVersion, state: Mapping[StateKey, Event]) -> bool:
    """Whether the join rule lets members of other rooms in, in this room version."""
    rule = join_rule_of(state)
    return (rule == "restricted" and room_version.restricted_joins) or (
        rule == "knock_restricted" and room_version.knock_restricted
    )


def allowed_rooms(state: Mapping[StateKey, Event]) -> list[str]:
    """The rooms of `m.room_membership` conditions in the join rules' `allow`; malformed and unknown ones left
    out.
    """
    join_rules = state.get(JOIN_RULES_KEY)
    conditions = join_rules.content.get("allow") if join_rules is not None else None
    if not isinstance(conditions, list):
        return []
    rooms = [
        condition.get("room_id")
        for condition in conditions[:MAX_ALLOWED_ROOMS]
        if isinstance(condition, dict) and condition.get("type") == "m.room_membership"
    ]
    return list(dict.fromkeys(room for room in rooms if isinstance(room, str)))


def authorising_user(
    room_version: RoomVersion,
    state: Mapping[StateKey, Event],
    members: Iterable[str],
    is_local: Callable[[str], bool],
) -> str | None:
    """A local user in whose name a restricted join may be made: joined, with the invite level; the mightiest.

    ``members``: user ids to choose from, whose member events ``state`` holds beside create and power levels.
    ``None`` if there is nobody: another server has to be asked.
    """
    levels = PowerLevels.of(room_version, state)
    needed = levels.named("invite")
    best: tuple[float, str] | None = None
    for user in members:
        member = state.get(("m.room.member", user))
        if member is None or member.membership != "join" or not is_local(user):
            continue
        level = levels.user_level(user)
        if level >= needed and (best is None or (-level, user) < best):
            best = (-level, user)
    return best[1] if best is not None else None

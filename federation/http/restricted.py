"""Restricted rooms as the resident server: may this user join without an invite, and who of ours says so?

(Server-server API, "Restricted rooms"; room versions 8 and later.)
"""

from collections.abc import Callable

from federation.rooms import Rooms, RoomView
from matrixlib.events import Event, StateKey
from matrixlib.identifiers import is_valid_user_id, server_name_of
from matrixlib.power_levels import PowerLevels
from servicekit.errors import MatrixError, forbidden

JOIN_RULES: StateKey = ("m.room.join_rules", "")
POWER_LEVELS: StateKey = ("m.room.power_levels", "")
CREATE: StateKey = ("m.room.create", "")
MAX_CONDITIONS = 100


class RestrictedJoins:
    """Decides about joins by the rooms that a room's join rules name."""

    def __init__(self, rooms: Rooms, is_local: Callable[[str], bool]) -> None:
        self._rooms = rooms
        self._is_local = is_local

    async def authorise(self, view: RoomView, user_id: str) -> str | None:
        """Return the user of ours by whose authority somebody joins; None: no authority is needed.

        Raises:
            MatrixError: 403 where no condition holds; 400 M_UNABLE_TO_AUTHORISE_JOIN or
                M_UNABLE_TO_GRANT_JOIN where another server may do better.
        """
        if not view.version.restricted_joins:
            return None
        state = await self._state(view, user_id)
        rules = state.get(JOIN_RULES)
        if not _is_restricted(rules, view):
            return None
        member = state.get(("m.room.member", user_id))
        if member is not None and member.membership in ("join", "invite"):
            return None
        if member is not None and member.membership == "ban":
            raise forbidden("The user is banned from the room")
        assert rules is not None
        await self._check_conditions(rules, user_id)
        authoriser = await self._who_may_invite(view, state)
        if authoriser is None:
            raise MatrixError(
                "M_UNABLE_TO_GRANT_JOIN", 400, "Nobody here may let users into the room; ask another server"
            )
        return authoriser

    async def check_authoriser(self, view: RoomView, user_id: str, authoriser: str) -> None:
        """Check, before we sign, that a join by authority of a user of ours is in order.

        Raises:
            MatrixError: it is not.
        """
        state = await self._state(view, user_id, authoriser)
        rules = state.get(JOIN_RULES)
        member = state.get(("m.room.member", user_id))
        if member is not None and member.membership in ("join", "invite"):
            return  # no authority was needed: the auth rules do not look at it
        if rules is None or not _is_restricted(rules, view):
            raise forbidden("The room is not restricted")
        await self._check_conditions(rules, user_id)
        who = state.get(("m.room.member", authoriser))
        if who is None or who.membership != "join" or not _may_invite(view, state, authoriser):
            raise MatrixError(
                "M_UNABLE_TO_GRANT_JOIN",
                400,
                "The authorising user may not let others in; ask another server",
            )

    async def _state(self, view: RoomView, *user_ids: str) -> dict[StateKey, Event]:
        keys = [JOIN_RULES, POWER_LEVELS, CREATE, *(("m.room.member", user) for user in user_ids)]
        latest = await self._rooms.latest(view.room_id, keys)
        return latest.state if latest is not None else {}

    async def _check_conditions(self, rules: Event, user_id: str) -> None:
        named = _rooms_named(rules)
        if not named:
            raise forbidden("The room has no condition under which others may join")
        rooms = await self._rooms.rooms(named)
        known = {room.room_id: room.participating and not room.partial for room in rooms}
        # A room that we left may have changed since: what we know of it counts for nothing. Nor does the absence of
        # somebody from a room whose members are not all here.
        present = {room_id for room_id in named if known.get(room_id)}
        if present:
            joined = await self._rooms.memberships("", [user_id], ["join"])
            if any(item.room_id in present and not item.outlier for item in joined):
                return
        if len(present) < len(named):
            raise MatrixError(
                "M_UNABLE_TO_AUTHORISE_JOIN", 400, "The rooms that decide about joining are not known here"
            )
        raise forbidden("The user is in none of the rooms that allow joining")

    async def _who_may_invite(self, view: RoomView, state: dict[StateKey, Event]) -> str | None:
        rooms = await self._rooms.rooms([view.room_id], with_local_users=True)
        locals_ = sorted(rooms[0].local_user_ids) if rooms else []
        return next((user_id for user_id in locals_ if _may_invite(view, state, user_id)), None)


def _rooms_named(rules: Event) -> list[str]:
    """The rooms whose members may join, each once; conditions of other kinds and forms count for nothing."""
    allow = rules.content.get("allow")
    rooms = [
        condition.get("room_id")
        for condition in (allow[:MAX_CONDITIONS] if isinstance(allow, list) else ())
        if isinstance(condition, dict) and condition.get("type") == "m.room_membership"
    ]
    return list(dict.fromkeys(room_id for room_id in rooms if isinstance(room_id, str)))


def _is_restricted(rules: Event | None, view: RoomView) -> bool:
    rule = rules.content.get("join_rule") if rules is not None else None
    return rule == "restricted" or (rule == "knock_restricted" and view.version.knock_restricted)


def _may_invite(view: RoomView, state: dict[StateKey, Event], user_id: str) -> bool:
    if not is_valid_user_id(user_id) or not server_name_of(user_id):
        return False
    levels = PowerLevels(view.version, state.get(CREATE), state.get(POWER_LEVELS))
    return levels.user_level(user_id) >= levels.named("invite")

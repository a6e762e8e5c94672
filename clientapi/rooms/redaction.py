"""Redactions. Since room version 3 the auth rules let every member send them: the check is ours."""

from collections.abc import Mapping

from clientapi.rooms.requests import AlreadyThere, Draft, Sent, TransactionKey, Wish
from clientapi.rooms.send import RoomSender
from matrixlib.events import Event, StateKey
from matrixlib.power_levels import CREATE_KEY, POWER_LEVELS_KEY, PowerLevels
from matrixlib.room_versions import RoomVersion
from servicekit.errors import MatrixError, forbidden, not_found

# What a room stands on, and what would shut every server out once it is empty. The auth rules allow it.
NEVER_REDACTED = ("m.room.create", "m.room.server_acl")


class Redactions:
    """Sends redactions of local users."""

    def __init__(self, sender: RoomSender) -> None:
        self._sender = sender

    async def redact(
        self,
        user_id: str,
        room_id: str,
        target_id: str,
        content: Mapping[str, object],
        key: TransactionKey | None,
        *,
        own_only: bool = False,
    ) -> Sent:
        """Redact an event: one's own, or anybody's with the power to.

        Raises:
            MatrixError: M_FORBIDDEN, M_NOT_FOUND for an event that is not in the room; with `own_only`
            M_USER_SUSPENDED for others' events.
        """
        target = await self._sender.queries.event(room_id, target_id)
        if target is None:
            # Who is not in the room learns nothing of its events.
            member_key = ("m.room.member", user_id)
            _head, state = await self._sender.view(room_id, frozenset({member_key}))
            member = state.get(member_key)
            if member is None or member.membership != "join":
                raise forbidden("You are not in this room")
            raise not_found("There is no such event in this room")
        if target.type in NEVER_REDACTED and target.state_key is not None:
            raise forbidden(f"{target.type} cannot be redacted; set it anew where that is possible")
        found = target
        draft = Draft("m.room.redaction", content, redacts=target_id)

        def decide(version: RoomVersion, state: Mapping[StateKey, Event]) -> Draft | AlreadyThere:
            if own_only and found.sender != user_id:
                raise MatrixError(
                    "M_USER_SUSPENDED", 403, "You may redact your own events only while you are suspended"
                )
            levels = PowerLevels.of(version, state)
            if found.sender != user_id and levels.user_level(user_id) < levels.named("redact"):
                raise forbidden("You may not redact other people's events here")
            return draft

        wanted = frozenset({CREATE_KEY, POWER_LEVELS_KEY})
        return await self._sender.send(room_id, Wish(user_id, draft, wanted, decide), key)

"""Guests stay in a room only while its `m.room.guest_access` lets them (client-server API, "Guest Access").

A change made here is followed at once. One that another server made is noticed when the guest next wants to
write: NOTSPEC: until then the guest stays and reads, since no service of ours follows every room for it.
"""

from typing import Final

from clientapi.rooms.membership import GUEST_ACCESS, Memberships
from clientapi.rooms.send import RoomSender
from clientapi.storage import users
from matrixlib.events import StateKey
from servicekit.database import Database
from servicekit.errors import MatrixError
from servicekit.logging import get_logger

log = get_logger("clientapi.rooms")

_KEYS: Final[frozenset[StateKey]] = frozenset({GUEST_ACCESS})


class Guests:
    """See the module."""

    def __init__(self, db: Database, sender: RoomSender, memberships: Memberships) -> None:
        self._db = db
        self._sender = sender
        self._memberships = memberships

    async def check_may_stay(self, user_id: str, room_id: str) -> None:
        """Check that a guest may be in a room; else the guest leaves it.

        Raises:
            MatrixError: M_GUEST_ACCESS_FORBIDDEN, M_NOT_FOUND for a room that is not known.
        """
        if await self._are_let_in(room_id):
            return
        await self._show_out(user_id, room_id)
        raise MatrixError("M_GUEST_ACCESS_FORBIDDEN", 403, "Guests may not be in this room")

    async def follow_change(self, room_id: str) -> None:
        """Let every local guest leave a room that lets guests in no longer."""
        if await self._are_let_in(room_id):
            return
        found = await self._sender.queries.rooms([room_id], with_local_users=True)
        members = [user_id for room in found for user_id in room.local_user_ids]
        for guest in await self._db.read(users.load_guests_among, members):
            await self._show_out(guest, room_id)

    async def _are_let_in(self, room_id: str) -> bool:
        _head, state = await self._sender.view(room_id, _KEYS)
        event = state.get(GUEST_ACCESS)
        return event is not None and event.content.get("guest_access") == "can_join"

    async def _show_out(self, user_id: str, room_id: str) -> None:
        try:
            await self._memberships.leave(user_id, room_id, {})
        except MatrixError as error:
            # Who is not in the room need not leave; what failed is done when the guest next writes.
            log.info("guest_not_shown_out", user_id=user_id, room_id=room_id, error=str(error))

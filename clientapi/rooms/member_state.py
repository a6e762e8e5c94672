"""Memberships set as state: `PUT /rooms/{roomId}/state/m.room.member/{userId}`.

A client may do by this what join, leave, invite, ban and knock do, so it takes their ways: to another server
for a room or a user of theirs, past what a user permits, into restricted rooms.
"""

from typing import Any

from clientapi.accounts.sessions import Session
from clientapi.rooms.membership import Memberships
from clientapi.rooms.requests import Draft, Sent
from clientapi.rooms.send import RoomSender


class MemberState:
    """See the module."""

    def __init__(self, sender: RoomSender, memberships: Memberships) -> None:
        self._sender = sender
        self._memberships = memberships

    async def put(self, session: Session, room_id: str, target: str, content: dict[str, Any]) -> Sent:
        """Send a member event.

        Args:
            content: of the event; its `membership` is one that there is.

        Raises:
            MatrixError: as the endpoint of that membership does.
        """
        user_id = session.user_id
        extra = {key: value for key, value in content.items() if key != "membership"}
        match content["membership"]:
            case "invite":
                return await self._memberships.invite(user_id, room_id, target, extra)
            case "join" if target == user_id and not await self._sender.is_joined(room_id, user_id):
                return await self._memberships.join(session, room_id, extra)
            case "leave" if target == user_id:
                return await self._memberships.leave(user_id, room_id, extra)
            case "knock" if target == user_id:
                return await self._memberships.knock(user_id, room_id, extra)
            case _:
                if target != user_id:
                    await self._sender.until_whole(room_id)
                draft = Draft("m.room.member", content, target)
                return await self._sender.send_state(room_id, user_id, draft)

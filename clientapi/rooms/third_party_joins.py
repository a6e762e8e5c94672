"""Redeeming a third-party invite: `third_party_signed` of `/join` (client-server API, "Third-party invites").

Somebody was invited by an address; an identity server has signed that the address is this user's. The inviter's
server, which is ours, turns the invite of the address into one of the user, which the auth rules check against the
keys in the room; then the user joins like anybody who is invited.
"""

from collections.abc import Mapping
from typing import Any

from clientapi.rooms.membership import load_member_profile
from clientapi.rooms.requests import Draft
from clientapi.rooms.send import RoomSender
from matrixlib.identifiers import server_name_of
from servicekit.config import Config
from servicekit.database import Database
from servicekit.errors import forbidden


class ThirdPartyJoins:
    """See the module."""

    def __init__(self, config: Config, db: Database, sender: RoomSender) -> None:
        self._config = config
        self._db = db
        self._sender = sender

    async def redeem(self, user_id: str, room_id: str, signed: Mapping[str, Any]) -> None:
        """Invite the user whom `signed` names to the room where its token was issued.

        NOTSPEC: `key_validity_url` is not asked: the keys that stand in the room count. The invite of another
        server's user is not exchanged with that server.

        Args:
            signed: `mxid`, `token`, `signatures` and `sender`, as the identity server signed them.

        Raises:
            MatrixError: M_FORBIDDEN, M_NOT_FOUND.
        """
        if signed["mxid"] != user_id:
            raise forbidden("The third-party invite is another user's")
        issued_key, member_key = ("m.room.third_party_invite", signed["token"]), ("m.room.member", user_id)
        _head, state = await self._sender.fresh_view(room_id, frozenset({issued_key, member_key}))
        member = state.get(member_key)
        if member is not None and member.membership in ("join", "invite"):
            return
        issued = state.get(issued_key)
        if issued is None:
            raise forbidden("There is no such third-party invite in this room")
        if not self._config.is_local(server_name_of(issued.sender)):
            raise forbidden("The third-party invite was issued by another server")
        content: dict[str, Any] = {
            "membership": "invite",
            **await self._db.read(load_member_profile, user_id),
            "third_party_invite": {
                "display_name": str(issued.content.get("display_name", "")),
                "signed": dict(signed),
            },
        }
        await self._sender.send_draft(room_id, issued.sender, Draft("m.room.member", content, user_id))

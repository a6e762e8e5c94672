"""Inviting whoever has an address (client-server API, "Third-party invites").

    may the sender invite? -> an identity server is asked, by federation -> it knows the user: a plain invite
                                                                         -> it does not:   `m.room.third_party_invite`

Who may not invite is refused before the identity server hears of the address: it would write to it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from clientapi.rooms.building import check_allowed, needed_state
from clientapi.rooms.head import Head
from clientapi.rooms.membership import Memberships
from clientapi.rooms.remote import RemoteRooms, finish
from clientapi.rooms.requests import Draft
from clientapi.rooms.send import RoomSender
from clientapi.rooms.verdicts import error_of_refusal
from matrixlib.event_auth import Refused
from matrixlib.events import Event, StateKey
from matrixlib.power_levels import CREATE_KEY
from servicekit.errors import MatrixError, forbidden, invalid_param

THIRD_PARTY_INVITE: Final = "m.room.third_party_invite"
MEDIUMS: Final = ("email", "msisdn")
MAX_ADDRESS: Final = 500
MAX_TOKEN: Final = 4096
_VISIBLE: Final = re.compile(r"[!-~]+")

# What the identity server is told of the room, for the message it writes: its name of it <- (event, key).
_DETAILS: Final[Mapping[str, tuple[StateKey, str]]] = {
    "room_alias": (("m.room.canonical_alias", ""), "alias"),
    "room_avatar_url": (("m.room.avatar", ""), "url"),
    "room_join_rules": (("m.room.join_rules", ""), "join_rule"),
    "room_name": (("m.room.name", ""), "name"),
    "room_type": (CREATE_KEY, "type"),
}


@dataclass(frozen=True, slots=True)
class AddressInvite:
    """Whom a client wants to invite, and by which identity server. Make it with `checked`."""

    id_server: str
    id_access_token: str
    medium: str
    address: str

    @classmethod
    def checked(cls, id_server: str, id_access_token: str, medium: str, address: str) -> "AddressInvite":
        """Return it in the form that identity servers know.

        Raises:
            MatrixError: M_INVALID_PARAM, M_THREEPID_MEDIUM_NOT_SUPPORTED.
        """
        if medium not in MEDIUMS:
            raise MatrixError("M_THREEPID_MEDIUM_NOT_SUPPORTED", 400, "There are no such addresses")
        if not address or len(address) > MAX_ADDRESS:
            raise invalid_param("address is empty or too long")
        if len(id_access_token) > MAX_TOKEN or not _VISIBLE.fullmatch(id_access_token):
            raise invalid_param("id_access_token is no token")
        # Appendices, "3PID types": mail addresses are compared in small letters.
        return cls(id_server, id_access_token, medium, address.lower() if medium == "email" else address)


class ThirdPartyInvites:
    """See the module."""

    def __init__(self, sender: RoomSender, remote: RemoteRooms, memberships: Memberships) -> None:
        self._sender = sender
        self._remote = remote
        self._memberships = memberships

    def check_possible(self, invites: Sequence[AddressInvite]) -> None:
        """Check that there is somebody to ask identity servers. Raises MatrixError M_THREEPID_DENIED."""
        if invites and not self._remote.enabled:
            raise MatrixError("M_THREEPID_DENIED", 403, "Nobody can be invited by e-mail or telephone here")

    async def invite(
        self, user_id: str, room_id: str, wanted: AddressInvite, extra: Mapping[str, Any]
    ) -> None:
        """Invite who has an address. What was begun goes on when whoever asked is gone.

        Args:
            extra: for the content of the invite, where it is known who that is.

        Raises:
            MatrixError: M_FORBIDDEN, M_THREEPID_DENIED, or what the identity server says.
        """
        self.check_possible([wanted])
        await finish(self._invite(user_id, room_id, wanted, extra), self._sender.spawn)

    async def _invite(
        self, user_id: str, room_id: str, wanted: AddressInvite, extra: Mapping[str, Any]
    ) -> None:
        state = await self._checked_state(user_id, room_id)
        details = {"room_id": room_id, "sender": user_id}
        member = state.get(("m.room.member", user_id))
        named = {
            **{name: (state.get(key), field) for name, (key, field) in _DETAILS.items()},
            "sender_display_name": (member, "displayname"),
            "sender_avatar_url": (member, "avatar_url"),
        }
        for name, (event, field) in named.items():
            value = None if event is None else event.content.get(field)
            if isinstance(value, str) and value:
                details[name] = value
        bound, token, content = await self._remote.invite_address(
            wanted.id_server, wanted.id_access_token, wanted.medium, wanted.address, details
        )
        if bound:
            await self._memberships.invite(user_id, room_id, bound, extra)
        else:
            await self._sender.send_draft(room_id, user_id, Draft(THIRD_PARTY_INVITE, content, token))

    async def _checked_state(self, user_id: str, room_id: str) -> Mapping[StateKey, Event]:
        """Return the state that the details are made of. Raises MatrixError M_FORBIDDEN."""
        shown = {key for key, _ in _DETAILS.values()}
        draft = Draft(THIRD_PARTY_INVITE, {}, "to_come")
        latest = await self._sender.queries.latest(
            room_id, {*shown, ("m.room.member", user_id), ("m.room.power_levels", "")}
        )
        if latest is None or not latest.participating:
            raise forbidden("You are not in this room")
        keys = {*shown, *needed_state(latest.room_version, user_id, draft)}
        head = Head.from_latest(latest, keys)
        verdict = check_allowed(head, room_id, user_id, draft, head.select(keys))
        if isinstance(verdict, Refused):
            raise error_of_refusal(verdict)
        return latest.state

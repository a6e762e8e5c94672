"""Inviting users of other servers: built here, signed by their server, written to INPUT.

    view ──► built and signed by us ──► signed by the room's policy server, if it has one
         ──► signed by the invited user's server ──► INPUT, where it may fork the room

Asking the other servers takes as long as it takes: the room's lane does not wait for it. Others may write
meanwhile; the event cannot be built anew, for it was signed as it is.
"""

from collections.abc import Mapping
from typing import Any, Final

from arbor.log.v1 import input_pb2
from clientapi.clock import Clock
from clientapi.rooms.building import check_allowed
from clientapi.rooms.head import Head
from clientapi.rooms.input_writer import Unsettled
from clientapi.rooms.remote import RemoteRooms, finish
from clientapi.rooms.requests import Draft, Sent
from clientapi.rooms.send import RoomSender
from clientapi.rooms.verdicts import error_of_refusal, error_of_rejection
from matrixlib.event_auth import Refused, auth_types_for_event
from matrixlib.events import StateKey
from matrixlib.policy_servers import POLICY_KEY
from matrixlib.power_levels import CREATE_KEY, POWER_LEVELS_KEY
from matrixlib.third_party_invites import third_party_token
from servicekit.errors import MatrixError, forbidden, unavailable

WRITE_TIMEOUT_S: Final = 15.0
# What an invited user is shown of the room (client-server API, "Stripped state").
SHOWN: Final[tuple[StateKey, ...]] = (
    CREATE_KEY,
    ("m.room.join_rules", ""),
    ("m.room.canonical_alias", ""),
    ("m.room.avatar", ""),
    ("m.room.name", ""),
    ("m.room.encryption", ""),
    ("m.room.topic", ""),
)


class RemoteInvites:
    """See the module."""

    def __init__(self, sender: RoomSender, remote: RemoteRooms, clock: Clock) -> None:
        self._sender = sender
        self._remote = remote
        self._clock = clock

    async def invite(self, user_id: str, room_id: str, target: str, content: Mapping[str, Any]) -> Sent:
        """Invite a user of another server. What was begun goes on when whoever asked is gone.

        Args:
            content: of the member event.

        Raises:
            MatrixError: M_FORBIDDEN, or what the other server says; 502 if it cannot be reached.
        """
        return await finish(self._invite(user_id, room_id, target, content), self._sender.spawn)

    async def _invite(self, user_id: str, room_id: str, target: str, content: Mapping[str, Any]) -> Sent:
        sender_key, target_key = ("m.room.member", user_id), ("m.room.member", target)
        keys = {*SHOWN, POLICY_KEY, POWER_LEVELS_KEY, sender_key, target_key}
        token = third_party_token(content)
        if token is not None:
            keys.add(("m.room.third_party_invite", token))
        latest = await self._sender.queries.latest(room_id, keys)
        if latest is None or not latest.participating:
            raise forbidden("You are not in this room")
        head = Head.from_latest(latest, keys)
        draft = Draft("m.room.member", content, target)
        auth_keys = auth_types_for_event(head.room_version, draft.type, user_id, target, content)
        auth_state = head.select(auth_keys)
        verdict = check_allowed(head, room_id, user_id, draft, head.select({*auth_keys, CREATE_KEY}))
        if isinstance(verdict, Refused):
            raise error_of_refusal(verdict)
        member = latest.state.get(target_key)
        if member is not None and member.membership == "invite" and member.content == content:
            return Sent(member.event_id, 0)
        built = self._sender.builder.build_on(head, room_id, user_id, draft, auth_state)
        event = (await self._remote.sign_by_policy_server(room_id, head.policy, [built]))[0]
        if isinstance(event, MatrixError):
            raise event
        shown = head.select((*SHOWN, sender_key))
        signed = await self._remote.sign_invite(event, list(shown.values()))
        outcome = await self._sender.writer.write_alone(
            room_id, [signed], self._clock(), WRITE_TIMEOUT_S, head.extremities
        )
        if isinstance(outcome, Unsettled):
            raise unavailable("It is not known whether this was sent; try again")
        match outcome.code:
            case input_pb2.VERDICT_CODE_ACCEPTED | input_pb2.VERDICT_CODE_DUPLICATE:
                return Sent(signed.event_id, outcome.output_sequence)
            case input_pb2.VERDICT_CODE_REJECTED | input_pb2.VERDICT_CODE_SOFT_FAILED:
                raise error_of_rejection(outcome.rejection)
            case input_pb2.VERDICT_CODE_BUSY:
                raise unavailable("The server is busy", max(outcome.retry_after_ms, 1))
            case _:
                raise MatrixError("M_UNKNOWN", 503, "The room does not take the invite now", 1000)

"""What local users do in rooms of other servers, and ask of those: through the federation service.

Every call has a bounded time. What another server says never comes through as an error about the caller's own
token: a client would log out of *this* server.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import grpc.aio
import orjson

from arbor.federation.v1 import federation_pb2 as pb
from arbor.federation.v1 import federation_pb2_grpc
from arbor.log.v1 import common_pb2
from clientapi.rooms.requests import Sent
from matrixlib.events import Event, parse_event
from matrixlib.identifiers import is_valid_server_name
from servicekit.config import Config
from servicekit.errors import MatrixError, not_found
from servicekit.grpc import channel_to, error_of, matrix_error_from
from servicekit.logging import get_logger

log = get_logger("clientapi.rooms")

JOIN_TIMEOUT_S: Final = 120.0
LEAVE_TIMEOUT_S: Final = 60.0
KNOCK_TIMEOUT_S: Final = 60.0
INVITE_TIMEOUT_S: Final = 45.0
# Less than the time that a lane's request has in all.
POLICY_TIMEOUT_S: Final = 12.0
QUERY_TIMEOUT_S: Final = 25.0
PROFILE_TIMEOUT_S: Final = 12.0
# Questions to other servers that are under way; whoever needs no token to ask can hold up no more than these.
MAX_QUERIES: Final = 64
MAX_VIA: Final = 10

T = TypeVar("T")


class RemoteRooms:
    """See the module."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._channel: grpc.aio.Channel | None = None
        self._queries = 0

    @property
    def enabled(self) -> bool:
        """Whether this server speaks to others at all."""
        return self._config.federation.enabled

    async def join(self, user_id: str, room_id: str, via: Sequence[str], content: Mapping[str, Any]) -> Sent:
        """Join a room through other servers; the inviter's server is known by itself.

        Args:
            via: servers that may be in the room, best first.
            content: of the member event, without `membership`.

        Raises:
            MatrixError: M_NOT_FOUND, no server is known; or what they say; 502, 503 if none can be reached.
        """
        request = pb.JoinRoomRequest(
            user_id=user_id, room_id=room_id, via=clean_via(via), content_json=orjson.dumps(content)
        )
        answer = await self._call(lambda stub: stub.JoinRoom, request, JOIN_TIMEOUT_S)
        return Sent(answer.event_id, answer.output_sequence)

    async def leave(self, user_id: str, room_id: str, content: Mapping[str, Any]) -> Sent:
        """Refuse an invite or take back a knock; here it is gone also when no other server can be reached.

        Raises:
            MatrixError: M_NOT_FOUND, there is neither.
        """
        request = pb.LeaveRoomRequest(user_id=user_id, room_id=room_id, content_json=orjson.dumps(content))
        answer = await self._call(lambda stub: stub.LeaveRoom, request, LEAVE_TIMEOUT_S)
        return Sent(answer.event_id, answer.output_sequence)

    async def knock(self, user_id: str, room_id: str, via: Sequence[str], content: Mapping[str, Any]) -> Sent:
        """Knock on a room through other servers. Raises as `join`."""
        request = pb.KnockRoomRequest(
            user_id=user_id, room_id=room_id, via=clean_via(via), content_json=orjson.dumps(content)
        )
        answer = await self._call(lambda stub: stub.KnockRoom, request, KNOCK_TIMEOUT_S)
        return Sent(answer.event_id, answer.output_sequence)

    async def sign_invite(self, invite: Event, room_state: Sequence[Event]) -> Event:
        """Return our invite with the signature of the invited user's server added.

        Raises:
            MatrixError: the other server refuses, or cannot be reached.
        """
        version = invite.room_version
        request = pb.SendInviteRequest(
            event=_event_message(invite),
            room_version=version.identifier,
            invite_room_state=[_event_message(event) for event in room_state],
        )
        answer = await self._call(lambda stub: stub.SendInvite, request, INVITE_TIMEOUT_S)
        return parse_event(answer.event.pdu_json, version, event_id=answer.event.event_id, verify_size=False)

    async def invite_address(
        self, id_server: str, id_access_token: str, medium: str, address: str, details: Mapping[str, Any]
    ) -> tuple[str, str, dict[str, Any]]:
        """Ask an identity server who has an address, or to keep an invite for whoever proves to have it.

        Args:
            details: what it is told of the room and the sender.

        Returns:
            (user id, empty if nobody is known; the kept invite's token; the content of its event).

        Raises:
            MatrixError: what the identity server says; 502 if it cannot be reached.
        """
        request = pb.InviteAddressRequest(
            id_server=id_server,
            id_access_token=id_access_token,
            medium=medium,
            address=address,
            details_json=orjson.dumps(details),
        )
        answer = await self._ask(lambda stub: stub.InviteAddress, request, QUERY_TIMEOUT_S)
        return answer.user_id, answer.token, orjson.loads(answer.content_json or b"{}")

    async def sign_by_policy_server(
        self, room_id: str, policy: Event | None, events: Sequence[Event]
    ) -> list[Event | MatrixError]:
        """Return our events with the signatures that they need of the room's policy server, or its refusals.

        Args:
            policy: the room's `m.room.policy`; None: it has none that names a policy server.

        Raises:
            MatrixError: 503, nobody could be asked.
        """
        if policy is None or not self.enabled:
            return list(events)
        request = pb.SignByPolicyServerRequest(
            room_id=room_id,
            room_version=policy.room_version.identifier,
            policy=_event_message(policy),
            events=[_event_message(event) for event in events],
        )
        answer = await self._call(
            lambda stub: stub.SignByPolicyServer, request, POLICY_TIMEOUT_S, wait_for_ready=True
        )
        return [
            error_of(result.refusal)
            if result.HasField("refusal")
            else parse_event(
                result.event.pdu_json, event.room_version, event_id=event.event_id, verify_size=False
            )
            for event, result in zip(events, answer.results, strict=True)
        ]

    async def resolve_alias(self, alias: str) -> tuple[str, list[str]]:
        """Return (room id, servers in it) of another server's alias. Raises MatrixError M_NOT_FOUND, 502."""
        request = pb.ResolveAliasRequest(room_alias=alias)
        answer = await self._ask(lambda stub: stub.ResolveAlias, request, QUERY_TIMEOUT_S)
        return answer.room_id, list(answer.servers)

    async def profile(self, user_id: str, field: str = "") -> dict[str, Any] | None:
        """Return another server's user's profile, or one field of it; None: there is no such user.

        Raises:
            MatrixError: 502, the server cannot be reached.
        """
        request = pb.QueryRemoteProfilesRequest(user_ids=[user_id], field=field)
        answer = await self._ask(lambda stub: stub.QueryRemoteProfiles, request, PROFILE_TIMEOUT_S)
        profile = answer.profiles[0]
        if profile.unreachable:
            raise MatrixError("M_UNKNOWN", 502, "The other server cannot be reached")
        if not profile.fields_json:
            return None
        fields: dict[str, Any] = orjson.loads(profile.fields_json)
        return fields

    async def public_rooms(self, server_name: str, query: Mapping[str, Any]) -> bytes:
        """Return another server's public rooms as the JSON body of the answer.

        Args:
            query: as the body of `POST /publicRooms`.

        Raises:
            MatrixError: what the other server says; 502 if it cannot be reached.
        """
        request = pb.QueryPublicRoomsRequest(server_name=server_name, query_json=orjson.dumps(query))
        answer = await self._ask(lambda stub: stub.QueryPublicRooms, request, QUERY_TIMEOUT_S)
        body: bytes = answer.rooms_json
        return body

    async def _ask(self, method: Callable[[Any], Any], request: Any, timeout_s: float) -> Any:
        if self._queries >= MAX_QUERIES:
            raise MatrixError("M_LIMIT_EXCEEDED", 429, "Too many questions to other servers", 1000)
        self._queries += 1
        try:
            return await self._call(method, request, timeout_s)
        finally:
            self._queries -= 1

    async def _call(
        self,
        method: Callable[[Any], Any],
        request: Any,
        timeout_s: float,
        *,
        wait_for_ready: bool = False,
    ) -> Any:
        if not self.enabled:
            raise not_found("This server does not speak to other servers")
        if self._channel is None:
            self._channel = channel_to(self._config, "federation", caller="clientapi")
        stub: Any = federation_pb2_grpc.FederationServiceStub(self._channel)
        try:
            # If it is not there, most do not wait for it: the answer is quick, and honest.
            return await method(stub)(request, timeout=timeout_s, wait_for_ready=wait_for_ready)
        except grpc.aio.AioRpcError as error:
            told = matrix_error_from(error)
            if told.http_status == 401 or told.errcode in ("M_UNKNOWN_TOKEN", "M_MISSING_TOKEN"):
                log.warning("federation_call_refused", error=str(told))
                raise MatrixError("M_UNKNOWN", 502, "The other server refused the request") from error
            raise told from error


async def finish(work: Awaitable[T], spawn: Callable[..., object]) -> T:
    """Return what `work` comes to, which goes on in the service's tasks when whoever asked is gone."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    async def run() -> None:
        try:
            result = await work
        except Exception as error:
            if not future.done():
                future.set_exception(error)
                future.exception()  # seen: nobody may be waiting any more
        except BaseException:
            future.cancel()
            raise
        else:
            if not future.done():
                future.set_result(result)

    spawn(run())
    return await asyncio.shield(future)


def clean_via(names: Sequence[str]) -> list[str]:
    """Return the server names among `names`, each once, not more than are tried."""
    return [name for name in dict.fromkeys(names) if is_valid_server_name(name)][:MAX_VIA]


def _event_message(event: Event) -> common_pb2.Event:
    return common_pb2.Event(event_id=event.event_id, pdu_json=event.pdu_json)

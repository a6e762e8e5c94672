"""`FederationService` for the other services here: requests taken apart, answers put together."""

from collections.abc import Sequence
from typing import Any

import grpc.aio
import orjson

from arbor.federation.v1 import federation_pb2 as pb
from arbor.federation.v1 import federation_pb2_grpc
from federation.history import History
from federation.joining.joins import Joins
from federation.joining.memberships import RemoteMemberships
from federation.keys.ring import KeyRing
from federation.outbound.errors import RemoteError
from federation.outbound.identity import AddressInvite, IdentityServers
from federation.policy import PolicySignatures
from federation.remote_queries import RemoteQueries
from federation.sender.destinations import Destinations
from federation.sender.status import DestinationStatus
from federation.storage import jobs
from federation.submit import event_message
from matrixlib.events import Event, EventFormatError, parse_event
from matrixlib.hashes import encode_base64
from matrixlib.identifiers import is_valid_user_id
from matrixlib.policy_servers import policy_server_of
from matrixlib.room_versions import get_room_version
from servicekit.errors import MatrixError, bad_json, invalid_param
from servicekit.grpc import detail_of

MAX_JOINS = 200
_JOIN_STATES = {
    jobs.SENT: pb.JOIN_STATE_SENT,
    jobs.IMPORTING: pb.JOIN_STATE_IMPORTING,
    jobs.COMPLETING: pb.JOIN_STATE_COMPLETING,
    jobs.DONE: pb.JOIN_STATE_DONE,
    jobs.FAILED: pb.JOIN_STATE_FAILED,
}

Context = grpc.aio.ServicerContext[Any, Any]


class FederationServicer(federation_pb2_grpc.FederationServiceServicer):
    """See the contract for what each method does."""

    def __init__(
        self,
        joins: Joins,
        memberships: RemoteMemberships,
        policy: PolicySignatures,
        history: History,
        queries: RemoteQueries,
        identity: IdentityServers,
        ring: KeyRing,
        destinations: Destinations,
        status: DestinationStatus,
    ) -> None:
        self._joins = joins
        self._memberships = memberships
        self._policy = policy
        self._history = history
        self._queries = queries
        self._identity = identity
        self._ring = ring
        self._destinations = destinations
        self._status = status

    async def JoinRoom(self, request: pb.JoinRoomRequest, context: Context) -> pb.JoinRoomResponse:  # noqa: N802
        """See the contract."""
        servers = [*await self._memberships.inviter_of(request.user_id, request.room_id), *request.via]
        joined = await self._joins.join(
            _user(request.user_id), request.room_id, servers, _object(request.content_json)
        )
        return pb.JoinRoomResponse(
            room_id=request.room_id, event_id=joined.event_id, output_sequence=joined.output_sequence
        )

    async def LeaveRoom(self, request: pb.LeaveRoomRequest, context: Context) -> pb.LeaveRoomResponse:  # noqa: N802
        """See the contract."""
        left = await self._memberships.leave(
            _user(request.user_id), request.room_id, _object(request.content_json)
        )
        return pb.LeaveRoomResponse(
            event_id=left.event_id, output_sequence=left.output_sequence, told_remote=left.told_remote
        )

    async def KnockRoom(self, request: pb.KnockRoomRequest, context: Context) -> pb.KnockRoomResponse:  # noqa: N802
        """See the contract."""
        knocked = await self._memberships.knock(
            _user(request.user_id), request.room_id, list(request.via), _object(request.content_json)
        )
        return pb.KnockRoomResponse(
            room_id=request.room_id, event_id=knocked.event_id, output_sequence=knocked.output_sequence
        )

    async def SendInvite(self, request: pb.SendInviteRequest, context: Context) -> pb.SendInviteResponse:  # noqa: N802
        """See the contract."""
        event = _event(request.event.pdu_json, request.room_version, request.event.event_id)
        state = [
            _event(item.pdu_json, request.room_version, item.event_id) for item in request.invite_room_state
        ]
        signed = await self._memberships.invite(event, state)
        return pb.SendInviteResponse(event=event_message(signed))

    async def InviteAddress(  # noqa: N802
        self, request: pb.InviteAddressRequest, context: Context
    ) -> pb.InviteAddressResponse:
        """See the contract."""
        found = await self._identity.invite(
            AddressInvite(request.id_server, request.id_access_token, request.medium, request.address),
            _object(request.details_json),
        )
        if isinstance(found, str):
            return pb.InviteAddressResponse(user_id=found)
        return pb.InviteAddressResponse(token=found.token, content_json=orjson.dumps(found.content))

    async def SignByPolicyServer(  # noqa: N802
        self, request: pb.SignByPolicyServerRequest, context: Context
    ) -> pb.SignByPolicyServerResponse:
        """See the contract."""
        version = request.room_version
        server = policy_server_of(_event(request.policy.pdu_json, version, request.policy.event_id))
        events = [_event(item.pdu_json, version, item.event_id) for item in request.events]
        results: Sequence[Event | MatrixError] = events
        if server is not None:
            results = await self._policy.of_ours(request.room_id, server, events)
        return pb.SignByPolicyServerResponse(
            results=[
                pb.PolicySignature(refusal=detail_of(result))
                if isinstance(result, MatrixError)
                else pb.PolicySignature(event=event_message(result))
                for result in results
            ]
        )

    async def Backfill(self, request: pb.BackfillRequest, context: Context) -> pb.BackfillResponse:  # noqa: N802
        """See the contract."""
        fetched = await self._history.backfill(
            request.room_id, list(request.from_event_ids), request.limit or 100
        )
        return pb.BackfillResponse(
            events=fetched.events, output_sequence=fetched.output_sequence, failed=fetched.failed
        )

    async def QueryTimestamp(  # noqa: N802
        self, request: pb.QueryTimestampRequest, context: Context
    ) -> pb.QueryTimestampResponse:
        """See the contract."""
        found = await self._history.nearest(request.room_id, request.timestamp_ms, request.backwards)
        if found is None:
            return pb.QueryTimestampResponse()
        return pb.QueryTimestampResponse(event_id=found[0], origin_server_ts=found[1])

    async def ResolveAlias(  # noqa: N802
        self, request: pb.ResolveAliasRequest, context: Context
    ) -> pb.ResolveAliasResponse:
        """See the contract."""
        room_id, servers = await self._queries.alias(request.room_alias)
        return pb.ResolveAliasResponse(room_id=room_id, servers=servers)

    async def QueryRemoteProfiles(  # noqa: N802
        self, request: pb.QueryRemoteProfilesRequest, context: Context
    ) -> pb.QueryRemoteProfilesResponse:
        """See the contract."""
        profiles = []
        for user_id in request.user_ids:
            try:
                fields = await self._queries.profile(_user(user_id), request.field)
            except RemoteError:
                profiles.append(pb.RemoteProfile(user_id=user_id, unreachable=True))
                continue
            data = b"" if fields is None else orjson.dumps(fields)
            profiles.append(pb.RemoteProfile(user_id=user_id, fields_json=data))
        return pb.QueryRemoteProfilesResponse(profiles=profiles)

    async def QueryPublicRooms(  # noqa: N802
        self, request: pb.QueryPublicRoomsRequest, context: Context
    ) -> pb.QueryPublicRoomsResponse:
        """See the contract."""
        rooms = await self._queries.public_rooms(request.server_name, _object(request.query_json))
        return pb.QueryPublicRoomsResponse(rooms_json=orjson.dumps(rooms))

    async def QueryHierarchy(  # noqa: N802
        self, request: pb.QueryHierarchyRequest, context: Context
    ) -> pb.QueryHierarchyResponse:
        """See the contract."""
        found = await self._queries.hierarchy(request.room_id, list(request.via), request.suggested_only)
        return pb.QueryHierarchyResponse(hierarchy_json=orjson.dumps(found))

    async def QueryUserKeys(  # noqa: N802
        self, request: pb.QueryUserKeysRequest, context: Context
    ) -> pb.QueryUserKeysResponse:
        """See the contract."""
        answers, failed = await self._queries.user_keys(list(request.user_ids), request.timeout_ms / 1000)
        return pb.QueryUserKeysResponse(
            answers_json=[orjson.dumps(answer) for answer in answers], failed_servers=failed
        )

    async def ClaimUserKeys(  # noqa: N802
        self, request: pb.ClaimUserKeysRequest, context: Context
    ) -> pb.ClaimUserKeysResponse:
        """See the contract."""
        keys, failed = await self._queries.claim_keys(
            _object(request.one_time_keys_json), request.timeout_ms / 1000
        )
        return pb.ClaimUserKeysResponse(one_time_keys_json=orjson.dumps(keys), failed_servers=failed)

    async def QueryServerKeys(  # noqa: N802
        self, request: pb.QueryServerKeysRequest, context: Context
    ) -> pb.QueryServerKeysResponse:
        """See the contract."""
        keys = [
            pb.ServerKey(
                server_name=server_name,
                key_id=key.key_id,
                public_key=encode_base64(key.public_bytes),
                valid_until_ms=key.valid_until_ms,
                expired=key.expired_ms is not None,
            )
            for server_name in request.server_names
            for key in await self._ring.all_keys(server_name)
        ]
        return pb.QueryServerKeysResponse(keys=keys)

    async def ListDestinations(  # noqa: N802
        self, request: pb.ListDestinationsRequest, context: Context
    ) -> pb.ListDestinationsResponse:
        """See the contract."""
        return await self._status.list(request.server_name)

    async def ListJoins(self, request: pb.ListJoinsRequest, context: Context) -> pb.ListJoinsResponse:  # noqa: N802
        """See the contract."""
        return pb.ListJoinsResponse(
            joins=[
                pb.Join(
                    user_id=job.user_id,
                    room_id=job.room_id,
                    resident=job.resident,
                    state=_JOIN_STATES[job.state],
                    created_ms=job.created_ms,
                    error=job.error,
                    attempts=job.attempts,
                    next_try_ms=job.next_try_ms if job.state == jobs.COMPLETING else 0,
                )
                for job in await self._joins.summaries(MAX_JOINS)
            ]
        )

    async def ResetDestination(  # noqa: N802
        self, request: pb.ResetDestinationRequest, context: Context
    ) -> pb.ResetDestinationResponse:
        """See the contract."""
        return pb.ResetDestinationResponse(known=self._destinations.reset(request.server_name))


def _user(user_id: str) -> str:
    if not is_valid_user_id(user_id):
        raise invalid_param("Not a user id")
    return user_id


def _object(data: bytes) -> dict[str, Any]:
    value = orjson.loads(data or b"{}")
    if not isinstance(value, dict):
        raise bad_json("Not a JSON object")
    return value


def _event(pdu_json: bytes, room_version: str, event_id: str) -> Event:
    version = get_room_version(room_version)
    if version is None:
        raise invalid_param("Unknown room version")
    try:
        return parse_event(pdu_json, version, event_id=event_id, verify_size=False)
    except EventFormatError as error:
        raise bad_json(str(error)) from error

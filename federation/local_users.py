"""What others may ask about our users, asked of the owner of accounts."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio
import orjson

from arbor.accounts.v1 import accounts_pb2, accounts_pb2_grpc
from servicekit.grpc import matrix_error_from

TIMEOUT_S = 10.0


# An invite may have to be signed by another server.
INVITE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class DirectoryQuery:
    """Which public rooms are wanted. `limit` 0: a page full; `room_types`: None for all of them."""

    limit: int = 0
    since: str = ""
    search_term: str = ""
    room_types: tuple[str | None, ...] | None = None


class LocalUsers:
    """Questions to the accounts service."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: accounts_pb2_grpc.AccountsServiceAsyncStub = accounts_pb2_grpc.AccountsServiceStub(
            channel
        )

    async def profile(self, user_id: str) -> dict[str, Any] | None:
        """Return the profile of a local user; None: there is no such user."""
        found = await self._profile(user_id)
        if found is None:
            return None
        fields = orjson.loads(found.fields_json or b"{}")
        return fields if isinstance(fields, dict) else {}

    async def _profile(self, user_id: str) -> accounts_pb2.Profile | None:
        request = accounts_pb2.QueryProfilesRequest(user_ids=[user_id])
        try:
            answer = await self._stub.QueryProfiles(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error
        return next((profile for profile in answer.profiles if profile.user_id == user_id), None)

    async def takes_invites(self, user_id: str) -> bool | None:
        """Whether a local user takes invites; None: there is no such user."""
        found = await self._profile(user_id)
        return None if found is None else not found.blocks_invites

    async def erased_among(self, user_ids: Collection[str]) -> frozenset[str]:
        """Return which of these local users had their content erased."""
        if not user_ids:
            return frozenset()
        request = accounts_pb2.QueryProfilesRequest(user_ids=sorted(user_ids))
        try:
            answer = await self._stub.QueryProfiles(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error
        return frozenset(profile.user_id for profile in answer.profiles if profile.erased)

    async def is_blocked(self, room_id: str) -> bool:
        """Whether an administrator has blocked a room."""
        request = accounts_pb2.QueryBlockedRoomsRequest(room_ids=[room_id])
        try:
            answer = await self._stub.QueryBlockedRooms(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error
        return room_id in answer.room_ids

    async def room_of_alias(self, alias: str) -> str | None:
        """Return the room that a local alias points to; None: there is no such alias."""
        request = accounts_pb2.QueryAliasesRequest(aliases=[alias])
        try:
            answer = await self._stub.QueryAliases(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error
        return next((item.room_id for item in answer.aliases if item.alias == alias), None)

    async def aliases_of_rooms(self, room_ids: Sequence[str]) -> dict[str, list[str]]:
        """Return the local aliases of rooms."""
        request = accounts_pb2.QueryAliasesRequest(room_ids=room_ids)
        try:
            answer = await self._stub.QueryAliases(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error
        found: dict[str, list[str]] = {}
        for item in answer.aliases:
            found.setdefault(item.room_id, []).append(item.alias)
        return found

    async def user_of_openid_token(self, token: str) -> str:
        """Return whose OpenID token it is. Raises MatrixError 401 M_UNKNOWN_TOKEN."""
        request = accounts_pb2.QueryOpenIdTokenRequest(token=token)
        try:
            answer = await self._stub.QueryOpenIdToken(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error
        return answer.user_id

    async def public_rooms(self, query: DirectoryQuery) -> dict[str, Any]:
        """Return a page of our directory, as `/publicRooms` answers it.

        Raises:
            MatrixError: M_INVALID_PARAM for a token that is none.
        """
        request = accounts_pb2.ListPublicRoomsRequest(
            limit=query.limit,
            since=query.since,
            search_term=query.search_term,
            by_room_type=query.room_types is not None,
            room_types=[kind or "" for kind in query.room_types or ()],
        )
        try:
            answer = await self._stub.ListPublicRooms(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error
        page: dict[str, Any] = {
            "chunk": [orjson.loads(room) for room in answer.rooms_json],
            "total_room_count_estimate": answer.total,
        }
        for key in ("next_batch", "prev_batch"):
            if getattr(answer, key):
                page[key] = getattr(answer, key)
        return page

    async def redeem_third_party_invite(
        self, room_id: str, sender: str, user_id: str, third_party_invite: Mapping[str, Any]
    ) -> str:
        """Have a local user invite whom a third-party invite of theirs was bound to; returns the event id.

        Raises:
            MatrixError: M_FORBIDDEN where the room's rules are against it; 502 if the invited user's server
                does not sign the invite.
        """
        request = accounts_pb2.RedeemThirdPartyInviteRequest(
            room_id=room_id,
            sender=sender,
            user_id=user_id,
            third_party_invite_json=orjson.dumps(third_party_invite),
        )
        try:
            answer = await self._stub.RedeemThirdPartyInvite(request, timeout=INVITE_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error
        return answer.event_id

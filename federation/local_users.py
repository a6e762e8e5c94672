"""What others may ask about our users, asked of the owner of accounts."""

from collections.abc import Sequence
from typing import Any

import grpc.aio
import orjson

from arbor.accounts.v1 import accounts_pb2, accounts_pb2_grpc
from servicekit.grpc import matrix_error_from

TIMEOUT_S = 10.0


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

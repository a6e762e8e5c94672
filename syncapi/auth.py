"""Whose access token it is: asked of the owner once, then remembered until the log says otherwise."""

from collections import OrderedDict
from collections.abc import Awaitable
from typing import NamedTuple, Protocol

import grpc.aio

from arbor.accounts.v1 import accounts_pb2
from servicekit.grpc import matrix_error_from
from servicekit.http import Request, missing_token

CAPACITY = 50_000


class Caller(NamedTuple):
    """Who makes a request. `expires_ms` 0: the token does not expire."""

    user_id: str
    device_id: str
    guest: bool
    expires_ms: int


class Accounts(Protocol):
    """The part of the accounts service that is used here."""

    def ResolveToken(  # noqa: N802
        self, request: accounts_pb2.ResolveTokenRequest, /
    ) -> Awaitable[accounts_pb2.ResolveTokenResponse]:
        """Say whose token it is."""
        ...

    def QueryFilter(  # noqa: N802
        self, request: accounts_pb2.QueryFilterRequest, /
    ) -> Awaitable[accounts_pb2.QueryFilterResponse]:
        """Return a stored filter."""
        ...

    def QueryAliases(  # noqa: N802
        self, request: accounts_pb2.QueryAliasesRequest, /
    ) -> Awaitable[accounts_pb2.QueryAliasesResponse]:
        """Resolve aliases."""
        ...


class TokenCache:
    """Tokens that were resolved lately. `clock_ms`: the time in milliseconds since 1970."""

    def __init__(self, accounts: Accounts, clock_ms: "Clock", capacity: int = CAPACITY) -> None:
        self._accounts = accounts
        self._clock_ms = clock_ms
        self._capacity = capacity
        self._known: OrderedDict[tuple[str, str, str], Caller] = OrderedDict()
        self._keys: dict[str, set[tuple[str, str, str]]] = {}
        self._changes = 0

    async def resolve(self, request: Request) -> Caller:
        """Return who makes a request.

        Raises:
            MatrixError: M_MISSING_TOKEN, M_UNKNOWN_TOKEN, or what the accounts service says.
        """
        token = request.access_token
        if token is None:
            raise missing_token()
        query = request.query if "user_id" in request.raw_target else {}
        key = (token, query.get("user_id", ""), query.get("device_id", ""))
        known = self._known.get(key)
        if known is not None:
            if not known.expires_ms or known.expires_ms > self._clock_ms():
                return known
            self._forget(key)
        return await self._ask(key)

    async def _ask(self, key: tuple[str, str, str]) -> Caller:
        changes = self._changes
        try:
            told = await self._accounts.ResolveToken(
                accounts_pb2.ResolveTokenRequest(
                    access_token=key[0], acting_user_id=key[1], acting_device_id=key[2]
                )
            )
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error
        caller = Caller(told.user_id, told.device_id, told.guest, told.expires_ms)
        # What the log told while the question was on its way may be what the answer does not know.
        if changes == self._changes:
            self._known[key] = caller
            self._keys.setdefault(caller.user_id, set()).add(key)
            if len(self._known) > self._capacity:
                self._forget(next(iter(self._known)))
        return caller

    def _forget(self, key: tuple[str, str, str]) -> None:
        caller = self._known.pop(key, None)
        if caller is not None:
            keys = self._keys.get(caller.user_id)
            if keys is not None:
                keys.discard(key)
                if not keys:
                    del self._keys[caller.user_id]

    def invalidate(self, user_id: str) -> None:
        """Ask again for a user's tokens: a device or the account changed."""
        self._changes += 1
        for key in self._keys.pop(user_id, ()):
            self._known.pop(key, None)

    def clear(self) -> None:
        """Ask again for every token."""
        self._changes += 1
        self._known.clear()
        self._keys.clear()


class Clock(Protocol):
    """The time."""

    def __call__(self) -> int:
        """Return milliseconds since 1970."""
        ...

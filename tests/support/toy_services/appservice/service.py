"""Answers accounts calls of the other toy."""

import asyncio
from typing import Any

from arbor.accounts.v1.accounts_pb2 import ResolveTokenRequest, ResolveTokenResponse
from arbor.accounts.v1.accounts_pb2_grpc import (
    AccountsServiceServicer,
    add_AccountsServiceServicer_to_server,
)
from servicekit.config import Config
from servicekit.grpc import MatrixError
from servicekit.http import Router


class Toy(AccountsServiceServicer):
    """See the module."""

    name = "appservice"

    def routes(self, router: Router) -> None:
        """Add nothing."""

    def servicers(self) -> list[Any]:
        """Serve accounts."""
        return [(add_AccountsServiceServicer_to_server, self)]

    async def start(self) -> None:
        """Start."""

    async def run(self) -> None:
        """Wait."""
        await asyncio.Event().wait()

    async def stop(self) -> None:
        """Stop."""

    async def replay(self, ids: list[int]) -> list[dict[str, Any]]:
        """Say what was asked."""
        return [{"id": number, "outcome": "applied"} for number in ids]

    async def ResolveToken(self, request: ResolveTokenRequest, context: Any) -> ResolveTokenResponse:  # noqa: N802
        """Know one token."""
        if request.access_token != "good":
            raise MatrixError("M_UNKNOWN_TOKEN", 401, "Unknown access token", extra={"soft_logout": False})
        return ResolveTokenResponse(user_id="@toy:localhost")


def create(_config: Config) -> Toy:
    """Return the toy."""
    return Toy()  # type: ignore[abstract]  # it answers what its test asks

"""Serves `/_matrix/media/v3/…`: says its process id, waits, calls the other toy, raises."""

import asyncio
import os
from typing import Any

from arbor.accounts.v1.accounts_pb2 import ResolveTokenRequest
from arbor.accounts.v1.accounts_pb2_grpc import AccountsServiceStub
from servicekit.config import Config
from servicekit.grpc import channel_to, matrix_error_from
from servicekit.http import Request, Response, Router, json_response


class Toy:
    """See the module."""

    name = "mediaapi"

    def __init__(self, config: Config) -> None:
        self._accounts = AccountsServiceStub(channel_to(config, "appservice"))
        self._draining = asyncio.Event()
        self._failure = asyncio.Event()

    def routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/_matrix/media/v3/pid", self._pid)
        router.add("GET", "/_matrix/media/v3/wait", self._wait)
        router.add("GET", "/_matrix/media/v3/token/{token}", self._token)
        router.add("POST", "/_matrix/media/v3/fail", self._fail)

    def servicers(self) -> list[Any]:
        """Serve nothing."""
        return []

    async def start(self) -> None:
        """Start."""

    async def run(self) -> None:
        """Fail when asked to."""
        await self._failure.wait()
        raise RuntimeError("asked to fail")

    def drain(self) -> None:
        """Let what waits answer."""
        self._draining.set()

    async def stop(self) -> None:
        """Stop."""

    async def _pid(self, _request: Request) -> Response:
        return json_response({"pid": os.getpid()})

    async def _wait(self, _request: Request) -> Response:
        await self._draining.wait()
        return json_response({"drained": True})

    async def _token(self, request: Request) -> Response:
        from grpc.aio import AioRpcError

        try:
            answer = await self._accounts.ResolveToken(
                ResolveTokenRequest(access_token=request.path_params["token"])
            )
        except AioRpcError as error:
            raise matrix_error_from(error) from error
        return json_response({"user_id": answer.user_id})

    async def _fail(self, _request: Request) -> Response:
        self._failure.set()
        return json_response({})


def create(config: Config) -> Toy:
    """Return the toy."""
    return Toy(config)

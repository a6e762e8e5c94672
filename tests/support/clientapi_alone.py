"""clientapi alone: its real HTTP, database and lanes, with stand-ins for the log and the RoomServer."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
from yarl import URL

from arbor.federation.v1 import federation_pb2_grpc
from arbor.roomserver.v1 import query_pb2_grpc
from clientapi.service import ClientApi
from servicekit.config import Config, load_config
from servicekit.grpc import channel_to
from servicekit.grpc.in_process import registry
from servicekit.grpc.methods import Collector
from servicekit.http import HttpListener, Router
from tests.support.fake_roomserver import FakeLog, FakeRoomServer

PASSWORD = "correct horse"

OVERRIDES: dict[str, Any] = {
    "server_name": "here.example",
    "passwords.hash_cost": "minimal",
    "rate_limits.enabled": False,
    "registration.enabled": True,
    "registration.require_verification": False,
    "registration.shared_secret": "hush",
}


class Clock:
    """A clock that tests advance; it also counts up by itself so that no two events look alike in time."""

    def __init__(self) -> None:
        self.now_ms = 1_700_000_000_000

    def __call__(self) -> int:
        self.now_ms += 1
        return self.now_ms


class LoneClientApi(ClientApi):
    """clientapi with stand-ins in place of NATS and the RoomServer."""

    async def start_with(self, log: FakeLog) -> None:
        """Do as `start`, with stand-ins."""
        self._db.migrate()
        connection: Any = log
        self._connection = connection
        self._queries.connect(channel_to(self._config, "roomserver"))
        await self._writer.open(connection)

    async def run(self) -> None:
        """Run what lanes and profile changes need."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._rooms.profile_updates.run())
            group.create_task(self._rooms.tasks.run())
            await asyncio.Event().wait()


class Client:
    """A user's HTTP client. `await client("PUT", path, body)` gives (status, answer)."""

    def __init__(
        self, session: aiohttp.ClientSession, base: str, token: str | None, user_id: str = ""
    ) -> None:
        self._session = session
        self._base = base
        self.token = token
        self.user_id = user_id
        self.device_id = ""

    async def __call__(
        self, method: str, path: str, body: Any = None, *, data: bytes | None = None, **query: str
    ) -> tuple[int, Any]:
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        if not path.startswith("/_") and not path.startswith("/."):
            path = f"/_matrix/client/v3{path}"
        options: dict[str, Any] = {"json": body} if body is not None else {}
        if data is not None:
            options = {"data": data}
        url = URL(self._base + path, encoded=True) if "%" in path else self._base + path
        async with self._session.request(method, url, headers=headers, params=query, **options) as response:
            return response.status, await response.json(content_type=None)

    async def ok(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        """Return the answer, which must be a 200."""
        status, answer = await self(method, path, body, data=None, **query)
        assert status == 200, (method, path, status, answer)
        return answer

    async def fails(self, method: str, path: str, body: Any = None, **query: str) -> tuple[int, str]:
        """Return (status, errcode) of an answer that must be an error."""
        status, answer = await self(method, path, body, data=None, **query)
        assert status >= 400, (method, path, status, answer)
        return status, answer.get("errcode", "")


class World:
    """A running clientapi."""

    def __init__(
        self,
        service: LoneClientApi,
        config: Config,
        log: FakeLog,
        roomserver: FakeRoomServer,
        session: aiohttp.ClientSession,
        base: str,
        clock: Clock,
    ) -> None:
        self.service = service
        self.config = config
        self.log = log
        self.roomserver = roomserver
        self.clock = clock
        self._session = session
        self._base = base
        self._users = 0

    def client(self, token: str | None = None) -> Client:
        """Return a client with a token, or without."""
        return Client(self._session, self._base, token)

    async def user(self, name: str | None = None, **body: Any) -> Client:
        """Register a user and return a client that is logged in."""
        self._users += 1
        name = name or f"user{self._users}"
        client = self.client()
        answer = await client.ok(
            "POST",
            "/register",
            {"username": name, "password": PASSWORD, "auth": {"type": "m.login.dummy"}, **body},
        )
        client.token, client.user_id = answer.get("access_token"), answer["user_id"]
        client.device_id = answer.get("device_id", "")
        return client


@asynccontextmanager
async def lone_clientapi(
    directory: Path,
    roomserver: FakeRoomServer | None = None,
    federation: federation_pb2_grpc.FederationServiceServicer | None = None,
    **overrides: Any,
) -> AsyncIterator[World]:
    """Run clientapi alone, its files in `directory`; with a `federation`, that answers for the federation service."""
    config = load_config(
        None,
        env={},
        overrides={
            **OVERRIDES,
            "data_dir": str(directory),
            "federation.enabled": federation is not None,
            **{key.replace("__", "."): value for key, value in overrides.items()},
        },
    )
    fake = roomserver or FakeRoomServer()  # type: ignore[abstract]  # it answers what clientapi asks
    collector = Collector()
    query_pb2_grpc.add_QueryServiceServicer_to_server(fake, cast("Any", collector))
    registry.declare(["roomserver", "federation"] if federation is not None else ["roomserver"])
    registry.publish("roomserver", collector.services)
    if federation is not None:
        of_federation = Collector()
        federation_pb2_grpc.add_FederationServiceServicer_to_server(federation, cast("Any", of_federation))
        registry.publish("federation", of_federation.services)
    clock = Clock()
    service = LoneClientApi(config, clock)
    log = FakeLog(fake)
    await service.start_with(log)
    router = Router()
    service.routes(router)
    listener = HttpListener(router)
    sock = socket.create_server(("127.0.0.1", 0))
    await listener.start(sock)
    base = f"http://127.0.0.1:{sock.getsockname()[1]}"
    try:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(service.run())
            await asyncio.sleep(0)
            async with aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60)
            ) as session:
                yield World(service, config, log, fake, session, base, clock)
            running.cancel()
    finally:
        await listener.stop(0.1)
        await service.stop()
        registry.clear()

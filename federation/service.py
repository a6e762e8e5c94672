"""The federation service: what it opens, in which order it starts and stops. `parts` puts it together.

other servers ---> http/ ---> receipt/ ---> INPUT ---> (RoomServer) ---> OUTPUT ---> sender/ ---> others
other services --> rpc/  ---> joining/, history, remote_queries ---> outbound/ ---> other servers
"""

import asyncio
import random
from collections.abc import Awaitable, Callable

from arbor.federation.v1 import federation_pb2_grpc
from federation.clock import now_ms
from federation.http.endpoints import Dispatcher
from federation.keys.published import OwnKeys
from federation.local_users import LocalUsers
from federation.outbound.deny import DenyList
from federation.outbound.transport import Transport
from federation.parts import ENDPOINTS, Parts
from federation.rooms import Rooms
from federation.sender.destinations import Destinations
from federation.storage.tables import metadata
from federation.submit import Submitter, decode_verdicts
from servicekit.config import Config
from servicekit.database import Database
from servicekit.grpc import channel_to
from servicekit.grpc.server import Servicer
from servicekit.http import RateLimiter, Router
from servicekit.log.connection import LogConnection
from servicekit.log.verdicts import VerdictInbox

MIGRATIONS = "federation.storage.migrations"


class FederationService:
    """See the module."""

    name = "federation"

    def __init__(self, config: Config) -> None:
        self._config = config
        self._dispatcher = Dispatcher(
            ENDPOINTS,
            RateLimiter.of(config.rate_limits, "federation"),
            config.http.max_federation_body,
        )
        self._database: Database | None = None
        self._transport: Transport | None = None
        self._connection: LogConnection | None = None
        self._destinations: Destinations | None = None
        self._parts: Parts | None = None

    def routes(self, router: Router) -> None:
        """Add the HTTP routes."""
        self._dispatcher.add_routes(router)

    def servicers(self) -> list[Servicer]:
        """Return the gRPC servicers."""
        assert self._parts is not None, "asked for before start"
        return [(federation_pb2_grpc.add_FederationServiceServicer_to_server, self._parts.servicer)]

    async def start(self) -> None:
        """Open the database and the log, read the keys, put everything together."""
        config = self._config
        own = OwnKeys.load(config)
        self._database = database = Database(
            config.database_url("federation"),
            metadata,
            MIGRATIONS,
            reader_threads=config.database.reader_threads,
        )
        await asyncio.to_thread(database.migrate)
        self._destinations = destinations = Destinations(database, now_ms, random.random)
        await destinations.load()
        self._connection = connection = await LogConnection.connect(config, self.name)
        await connection.wait_for_streams()
        inbox = await VerdictInbox.open(connection, decode_verdicts)
        rooms = Rooms(channel_to(config, "roomserver"), config.server_names)
        self._transport = Transport(
            DenyList(config.federation.ip_denylist),
            config.federation.trusted_ca_paths,
            verify_tls=config.federation.verify_tls,
        )
        self._parts = parts = Parts(
            config,
            own,
            database,
            connection,
            rooms,
            Submitter(connection, inbox, rooms, now_ms),
            LocalUsers(channel_to(config, "clientapi")),
            self._transport,
            destinations,
            now_ms,
        )
        await parts.teller.start()
        self._dispatcher.start(parts.authenticator, parts.answering)

    async def run(self) -> None:
        """Work in the background until cancelled."""
        assert self._parts is not None
        async with asyncio.TaskGroup() as group:
            for run in self._parts.running:
                group.create_task(_forever(run))

    async def stop(self) -> None:
        """Close everything: the network, the log, then the database."""
        if self._transport is not None:
            await self._transport.close()
        if self._connection is not None:
            await self._connection.close()
        if self._database is not None:
            if self._destinations is not None:
                await self._destinations.flush()
            self._database.close()


async def _forever(run: Callable[[], Awaitable[None]]) -> None:
    await run()


def create(config: Config) -> FederationService:
    """Return the service; nothing is opened before `start`."""
    return FederationService(config)

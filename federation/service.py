"""The federation service's wiring: what it is made of, in which order it starts and stops.

other servers ---> http/ ---> receipt/ ---> INPUT ---> (RoomServer) ---> OUTPUT ---> sender/ ---> others
other services --> rpc/  ---> joining/, outbound/ ---> other servers
"""

import asyncio
import random
import time
from typing import Any

from federation.clock import now_ms
from federation.http.authentication import Authenticator
from federation.http.endpoints import Dispatcher
from federation.http.keys import KeyRoutes
from federation.http.version import VersionRoutes
from federation.keys.published import OwnKeys
from federation.keys.ring import KeyRing
from federation.outbound.client import FederationClient
from federation.outbound.deny import DenyList
from federation.outbound.discovery import Discovery
from federation.outbound.transport import Transport
from federation.sender.destinations import Destinations
from federation.storage.tables import metadata
from servicekit.config import Config
from servicekit.database import Database
from servicekit.grpc.server import Servicer
from servicekit.http import RateLimiter, Router

MIGRATIONS = "federation.storage.migrations"

ENDPOINTS = {"keys": KeyRoutes.ENDPOINTS, "version": VersionRoutes.ENDPOINTS}


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
        self._destinations: Destinations | None = None

    def routes(self, router: Router) -> None:
        """Add the HTTP routes."""
        self._dispatcher.add_routes(router)

    def servicers(self) -> list[Servicer]:
        """Return the gRPC servicers."""
        return []

    async def start(self) -> None:
        """Open the database, read the keys, get ready to answer and to ask."""
        config = self._config
        own = OwnKeys.load(config)
        self._database = Database(config.database_url("federation"), metadata, MIGRATIONS)
        await asyncio.to_thread(self._database.migrate)
        self._destinations = Destinations(self._database, now_ms, random.random)
        await self._destinations.load()
        self._transport = Transport(
            DenyList(config.federation.ip_denylist),
            config.federation.trusted_ca_paths,
            verify_tls=config.federation.verify_tls,
        )
        client = FederationClient(
            self._transport, Discovery(self._transport, time.monotonic), own.signing, self._destinations
        )
        ring = KeyRing(client, self._database, own, config.federation.key_servers, now_ms)
        authenticator = Authenticator(
            ring, config.is_local, config.server_names[0], now_ms, self._destinations.note_contact
        )
        groups: dict[str, Any] = {
            "keys": KeyRoutes(own, ring, now_ms),
            "version": VersionRoutes(config.public_base_url),
        }
        self._dispatcher.start(authenticator, groups)

    async def run(self) -> None:
        """Work in the background until cancelled."""
        assert self._destinations is not None
        async with asyncio.TaskGroup() as group:
            group.create_task(self._destinations.run())

    async def stop(self) -> None:
        """Close everything."""
        if self._transport is not None:
            await self._transport.close()
        if self._database is not None:
            if self._destinations is not None:
                await self._destinations.flush()
            self._database.close()


def create(config: Config) -> FederationService:
    """Return the service; nothing is opened before `start`."""
    return FederationService(config)

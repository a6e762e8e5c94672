"""The federation service's wiring: what it is made of, in which order it starts and stops.

other servers ---> http/ ---> receipt/ ---> INPUT ---> (RoomServer) ---> OUTPUT ---> sender/ ---> others
other services --> rpc/  ---> joining/, history, remote_queries ---> outbound/ ---> other servers
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from arbor.federation.v1 import federation_pb2_grpc
from federation.clock import now_ms
from federation.history import History
from federation.http.authentication import Authenticator
from federation.http.endpoints import Dispatcher
from federation.http.events import EventRoutes
from federation.http.invites import InviteRoutes
from federation.http.keys import KeyRoutes
from federation.http.memberships import MembershipRoutes
from federation.http.query import QueryRoutes
from federation.http.restricted import RestrictedJoins
from federation.http.send import SendRoutes
from federation.http.version import VersionRoutes
from federation.joining.handshake import Handshake
from federation.joining.joins import Joins
from federation.joining.memberships import RemoteMemberships
from federation.keys.published import OwnKeys
from federation.keys.ring import KeyRing
from federation.local_users import LocalUsers
from federation.outbound.client import FederationClient
from federation.outbound.deny import DenyList
from federation.outbound.discovery import Discovery
from federation.outbound.transport import Transport
from federation.receipt.edus import EduReader
from federation.receipt.fetcher import Fetcher
from federation.receipt.pdu_checks import PduChecker
from federation.receipt.staging import Staging
from federation.receipt.transactions import TransactionReceiver
from federation.remote_queries import RemoteQueries
from federation.rooms import Rooms
from federation.rpc.servicer import FederationServicer
from federation.sender.consumer import Heard
from federation.sender.destinations import Destinations
from federation.sender.follow import OutputFollower
from federation.sender.live import LiveFollower
from federation.sender.sender import Sender
from federation.sender.status import DestinationStatus
from federation.storage.tables import metadata
from federation.submit import Submitter, decode_verdicts
from federation.tell import Teller
from servicekit.config import Config
from servicekit.database import Database
from servicekit.grpc import channel_to
from servicekit.grpc.server import Servicer
from servicekit.http import RateLimiter, Router
from servicekit.log.connection import LogConnection
from servicekit.log.verdicts import VerdictInbox

MIGRATIONS = "federation.storage.migrations"

ENDPOINTS = {
    "keys": KeyRoutes.ENDPOINTS,
    "version": VersionRoutes.ENDPOINTS,
    "send": SendRoutes.ENDPOINTS,
    "memberships": MembershipRoutes.ENDPOINTS,
    "invites": InviteRoutes.ENDPOINTS,
    "events": EventRoutes.ENDPOINTS,
    "query": QueryRoutes.ENDPOINTS,
}


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
        self._servicer: FederationServicer | None = None
        self._running: list[Callable[[], Awaitable[None]]] = []

    def routes(self, router: Router) -> None:
        """Add the HTTP routes."""
        self._dispatcher.add_routes(router)

    def servicers(self) -> list[Servicer]:
        """Return the gRPC servicers."""
        assert self._servicer is not None, "asked for before start"
        return [(federation_pb2_grpc.add_FederationServiceServicer_to_server, self._servicer)]

    async def start(self) -> None:
        """Open the database and the log, read the keys, put everything together."""
        config = self._config
        own = OwnKeys.load(config)
        names = config.server_names
        database = Database(
            config.database_url("federation"),
            metadata,
            MIGRATIONS,
            reader_threads=config.database.reader_threads,
        )
        self._database = database
        await asyncio.to_thread(database.migrate)
        destinations = Destinations(database, now_ms, random.random)
        await destinations.load()
        self._destinations = destinations
        connection = await LogConnection.connect(config, self.name)
        self._connection = connection
        await connection.wait_for_streams()
        inbox = await VerdictInbox.open(connection, decode_verdicts)
        roomserver = channel_to(config, "roomserver")
        users = LocalUsers(channel_to(config, "clientapi"))

        # -- asking others
        self._transport = Transport(
            DenyList(config.federation.ip_denylist),
            config.federation.trusted_ca_paths,
            verify_tls=config.federation.verify_tls,
        )
        client = FederationClient(
            self._transport, Discovery(self._transport, time.monotonic), own.signing, destinations
        )
        ring = KeyRing(client, database, own, config.federation.key_servers, now_ms)
        checker = PduChecker(ring)
        rooms = Rooms(roomserver)
        submitter = Submitter(connection, inbox, rooms, now_ms)

        # -- receiving
        teller = Teller(connection, database)
        edus = EduReader(rooms, config.is_local, now_ms, presence_enabled=config.presence.enabled)
        receiver = TransactionReceiver(database, connection, rooms, checker, edus, submitter, teller, now_ms)
        fetcher = Fetcher(client, checker, rooms, submitter, database, names, now_ms)

        # -- sending
        sender = Sender(client, destinations, database, rooms, names, now_ms)

        def on_heard(heard: Heard) -> None:
            sender.hear(heard)
            if heard.missing:
                fetcher.wake()

        follower = OutputFollower(connection, database, rooms, config.is_local, now_ms, on_heard, sender)
        live = LiveFollower(
            connection, sender, rooms, config.is_local, now_ms, presence_enabled=config.presence.enabled
        )

        # -- joining
        handshake = Handshake(client, own.signing, now_ms)
        joins = Joins(handshake, checker, database, rooms, submitter, roomserver, now_ms)
        memberships = RemoteMemberships(client, handshake, checker, rooms, submitter, own.signing, now_ms)
        history = History(client, checker, rooms, submitter, database, names, now_ms)

        def on_contact(server_name: str) -> None:
            destinations.note_contact(server_name)
            ring.forget_failure(server_name)

        authenticator = Authenticator(ring, config.is_local, names[0], now_ms, on_contact)
        restricted = RestrictedJoins(rooms, config.is_local)
        groups: dict[str, Any] = {
            "keys": KeyRoutes(own, ring, now_ms),
            "version": VersionRoutes(config.public_base_url),
            "send": SendRoutes(receiver),
            "memberships": MembershipRoutes(
                rooms, checker, submitter, database, restricted, own.signing, config.is_local, now_ms
            ),
            "invites": InviteRoutes(rooms, checker, submitter, users, own.signing),
            "events": EventRoutes(rooms, now_ms),
            "query": QueryRoutes(users, rooms, config.is_local),
        }
        self._dispatcher.start(authenticator, groups)
        self._servicer = FederationServicer(
            joins,
            memberships,
            history,
            RemoteQueries(client, names),
            ring,
            destinations,
            DestinationStatus(destinations, sender, database, now_ms),
        )
        await teller.start()
        staging = Staging(database, receiver, now_ms)
        self._running = [
            task.run for task in (destinations, teller, staging, fetcher, sender, follower, live, joins)
        ]

    async def run(self) -> None:
        """Work in the background until cancelled."""
        async with asyncio.TaskGroup() as group:
            for run in self._running:
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

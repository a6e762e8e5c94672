"""clientapi's wiring: what is made of what, what runs, in which order it starts and stops. No logic."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from arbor.accounts.v1 import accounts_pb2_grpc
from clientapi.accounts.account_data import AccountDataStore
from clientapi.accounts.changes import AccountChanges
from clientapi.accounts.logins import PasswordLogins
from clientapi.accounts.passwords import Passwords
from clientapi.accounts.registration import Registration
from clientapi.accounts.registration_tokens import RegistrationTokens
from clientapi.accounts.revocations import follow_revocations
from clientapi.accounts.sessions import Sessions
from clientapi.accounts.tell import Teller
from clientapi.accounts.uia import UserInteractiveAuth
from clientapi.clock import Clock, system_clock
from clientapi.http.account import AccountEndpoints
from clientapi.http.account_data import AccountDataEndpoints
from clientapi.http.admin_accounts import AdminAccountEndpoints
from clientapi.http.admin_purging import AdminPurgeEndpoints
from clientapi.http.admin_reports import AdminReportEndpoints
from clientapi.http.admin_rooms import AdminRoomEndpoints
from clientapi.http.admin_tokens import AdminTokenEndpoints
from clientapi.http.admin_users import AdminUserEndpoints
from clientapi.http.devices import DeviceEndpoints
from clientapi.http.directory import DirectoryEndpoints
from clientapi.http.edge import Edge
from clientapi.http.ephemeral import EphemeralEndpoints
from clientapi.http.filters import FilterEndpoints
from clientapi.http.login import LoginEndpoints
from clientapi.http.login_tokens import LoginTokenEndpoints
from clientapi.http.membership import MembershipEndpoints
from clientapi.http.moderation import ModerationEndpoints
from clientapi.http.people import PeopleEndpoints
from clientapi.http.presence import PresenceEndpoints
from clientapi.http.profile import ProfileEndpoints
from clientapi.http.push_rules import PushRuleEndpoints
from clientapi.http.register import RegisterEndpoints
from clientapi.http.reports import ReportEndpoints
from clientapi.http.rooms import RoomEndpoints
from clientapi.http.server_info import ServerInfoEndpoints
from clientapi.rooms.building import EventBuilder
from clientapi.rooms.input_writer import InputWriter
from clientapi.rooms.parts import Rooms
from clientapi.rooms.queries import RoomQueries
from clientapi.rooms.remote import RemoteRooms
from clientapi.rooms.send import RoomSender
from clientapi.rpc.accounts import AccountsServicer
from clientapi.storage.outbox import AccountsDatabase, AccountsOutbox, OutboxPublisher
from servicekit.config import Config
from servicekit.grpc import channel_to
from servicekit.grpc.server import Servicer
from servicekit.http import Router
from servicekit.keys import load_signing_keys
from servicekit.log.connection import LogConnection
from servicekit.log.subjects import INPUT, OUTPUT
from servicekit.logging import get_logger

log = get_logger("clientapi")

FLUSH_SEEN_S = 30.0


class ClientApi:
    """The client-server API of accounts and of writing into rooms."""

    name = "clientapi"

    def __init__(self, config: Config, clock: Clock = system_clock) -> None:
        self._config = config
        self._clock = clock
        self._group: asyncio.TaskGroup | None = None
        self._early: list[Coroutine[Any, Any, Any]] = []
        self._connection: LogConnection | None = None

        outbox = AccountsOutbox(config.log.partitions)
        self._db = db = AccountsDatabase(
            config.database_url("clientapi"), outbox, reader_threads=config.database.reader_threads
        )
        teller = Teller(outbox, clock)
        self._passwords = passwords = Passwords(config)
        self._sessions = sessions = Sessions(config, db, teller, clock)
        self._edge = edge = Edge(config, sessions)
        registration = Registration(config, db, passwords, sessions, teller, clock)
        logins = PasswordLogins(config, db, passwords, clock)
        uia = UserInteractiveAuth(config, db, clock)
        account_data = AccountDataStore(db, teller)
        self._queries = queries = RoomQueries()
        self._writer = writer = InputWriter(queries, self._spawn)
        builder = EventBuilder(load_signing_keys(config), clock)
        sender = RoomSender(writer, queries, RemoteRooms(config), builder, clock, self._spawn)
        self._rooms = rooms = Rooms(config, db, teller, account_data, sender, clock)
        registration_tokens = RegistrationTokens(db, clock)
        changes = AccountChanges(sessions, teller, clock)
        self._servicer = AccountsServicer(
            config, db, sessions, registration, registration_tokens, rooms, clock
        )
        self._endpoints = (
            LoginEndpoints(edge, logins),
            RegisterEndpoints(edge, registration, uia),
            AccountEndpoints(edge, db, changes, logins, registration, passwords, uia, rooms.profile_updates),
            AdminTokenEndpoints(edge, registration, registration_tokens),
            AdminAccountEndpoints(edge, rooms, teller, changes, clock),
            AdminRoomEndpoints(edge, rooms, clock),
            AdminPurgeEndpoints(edge, rooms),
            AdminReportEndpoints(edge, rooms),
            AdminUserEndpoints(edge, db, changes, registration, passwords, rooms.profile_updates),
            ModerationEndpoints(edge, db, changes),
            DeviceEndpoints(edge, db, teller, logins, uia),
            ServerInfoEndpoints(edge),
            ProfileEndpoints(edge, db, changes, rooms.profile_updates, rooms.remote),
            FilterEndpoints(edge, db),
            AccountDataEndpoints(edge, account_data),
            PushRuleEndpoints(edge, account_data, clock),
            RoomEndpoints(edge, rooms),
            MembershipEndpoints(edge, rooms),
            DirectoryEndpoints(edge, rooms, clock),
            EphemeralEndpoints(edge, rooms, account_data, clock),
            PresenceEndpoints(edge, rooms, clock),
            LoginTokenEndpoints(edge, db, logins, uia, clock),
            ReportEndpoints(edge, db, clock),
            PeopleEndpoints(edge, rooms),
        )

    def routes(self, router: Router) -> None:
        """Add the HTTP routes."""
        for endpoints in self._endpoints:
            endpoints.add_routes(router)

    def servicers(self) -> list[Servicer]:
        """Return the gRPC servicers."""
        return [(accounts_pb2_grpc.add_AccountsServiceServicer_to_server, self._servicer)]

    async def start(self) -> None:
        """Migrate the database, connect to the log and to the RoomServer."""
        config = self._config
        await asyncio.to_thread(self._db.migrate)
        self._connection = connection = await LogConnection.connect(config, "clientapi")
        await connection.wait_for_streams((INPUT, OUTPUT))
        self._queries.connect(channel_to(config, "roomserver"))
        await self._writer.open(connection)

    async def run(self) -> None:
        """Relay the outbox, hear of ended sessions, carry profile changes into rooms, work for the lanes."""
        assert self._connection is not None
        publisher = OutboxPublisher(self._db, self._connection)
        async with asyncio.TaskGroup() as group:
            group.create_task(publisher.run())
            group.create_task(follow_revocations(self._connection, self._sessions))
            group.create_task(self._rooms.profile_updates.run())
            group.create_task(self._rooms.tasks.run())
            group.create_task(self._rooms.typing.run())
            group.create_task(self._flush_seen())
            self._group = group
            early, self._early = self._early, []
            for work in early:
                self._spawn(work)
            try:
                await asyncio.Event().wait()
            finally:
                self._group = None

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run work in the service's task group; what comes before there is one waits for it."""
        if self._group is None:
            self._early.append(work)
        else:
            self._group.create_task(work)

    async def _flush_seen(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SEEN_S)
            await self._sessions.flush_seen()

    async def stop(self) -> None:
        """Close the log, then the database."""
        for work in self._early:
            work.close()
        self._writer.close()
        if self._connection is not None:
            await self._connection.close()
        self._passwords.close()
        self._db.close()


def create(config: Config) -> ClientApi:
    """Make the service; `servicekit.service` runs it."""
    return ClientApi(config)

"""The parts of the federation service, put together from what is open: database, log, RoomServer, network."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from federation.clock import NowMs
from federation.history import History
from federation.http.authentication import Authenticator
from federation.http.events import EventRoutes
from federation.http.hierarchy import HierarchyRoutes
from federation.http.invites import InviteRoutes
from federation.http.keys import KeyRoutes
from federation.http.memberships import MembershipRoutes
from federation.http.openid import OpenIdRoutes
from federation.http.public_rooms import PublicRoomRoutes
from federation.http.query import QueryRoutes
from federation.http.restricted import RestrictedJoins
from federation.http.send import SendRoutes
from federation.http.third_party import ThirdPartyRoutes
from federation.http.version import VersionRoutes
from federation.joining.completing import Completions
from federation.joining.handshake import Handshake
from federation.joining.joins import Joins
from federation.joining.memberships import RemoteMemberships
from federation.keys.published import OwnKeys
from federation.keys.ring import KeyRing
from federation.local_users import LocalUsers
from federation.outbound.client import FederationClient
from federation.outbound.discovery import Discovery
from federation.outbound.identity import IdentityServers
from federation.outbound.transport import Transport
from federation.policy import PolicySignatures
from federation.receipt.device_lists import DeviceLists
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
from federation.submit import Submitter
from federation.tell import Teller
from servicekit.config import Config
from servicekit.database import Database
from servicekit.log.connection import LogConnection

ENDPOINTS = {
    "keys": KeyRoutes.ENDPOINTS,
    "version": VersionRoutes.ENDPOINTS,
    "send": SendRoutes.ENDPOINTS,
    "memberships": MembershipRoutes.ENDPOINTS,
    "invites": InviteRoutes.ENDPOINTS,
    "events": EventRoutes.ENDPOINTS,
    "query": QueryRoutes.ENDPOINTS,
    "hierarchy": HierarchyRoutes.ENDPOINTS,
    "public_rooms": PublicRoomRoutes.ENDPOINTS,
    "openid": OpenIdRoutes.ENDPOINTS,
    "third_party": ThirdPartyRoutes.ENDPOINTS,
}


class Parts:
    """See the module. `answering` answers HTTP, `servicer` gRPC, `running` is what works in the background.

    Args:
        connection: to the log.
        rooms: questions to the RoomServer.
        submitter: what writes to INPUT.
        users: questions about local users.
        transport: HTTPS to other servers.
    """

    def __init__(
        self,
        config: Config,
        own: OwnKeys,
        database: Database,
        connection: LogConnection,
        rooms: Rooms,
        submitter: Submitter,
        users: LocalUsers,
        transport: Transport,
        destinations: Destinations,
        now_ms: NowMs,
    ) -> None:
        names = config.server_names

        # -- asking others
        self.client = client = FederationClient(
            transport, Discovery(transport, time.monotonic), own.signing, destinations
        )
        self.ring = ring = KeyRing(client, database, own, config.federation.key_servers, now_ms)
        self.checker = checker = PduChecker(ring)
        policy = PolicySignatures(client, rooms)

        # -- receiving
        self.teller = teller = Teller(connection, database)
        edus = EduReader(rooms, config.is_local, now_ms, presence_enabled=config.presence.enabled)
        self.device_lists = device_lists = DeviceLists(client, rooms, database, teller, now_ms)
        self.receiver = receiver = TransactionReceiver(
            database, connection, rooms, checker, edus, policy, submitter, teller, device_lists.wake, now_ms
        )
        self.fetcher = fetcher = Fetcher(client, checker, policy, rooms, submitter, database, names, now_ms)

        # -- sending
        self.sender = sender = Sender(client, destinations, database, rooms, names, now_ms)

        self.completions = completions = Completions(
            client, checker, database, rooms, submitter, names, now_ms
        )

        def on_heard(heard: Heard) -> None:
            sender.hear(heard)
            if heard.missing:
                fetcher.wake()
            completions.hear(heard.changed_rooms)

        follower = OutputFollower(connection, database, rooms, config.is_local, now_ms, on_heard, sender)
        live = LiveFollower(
            connection, sender, rooms, config.is_local, now_ms, presence_enabled=config.presence.enabled
        )

        # -- joining
        handshake = Handshake(client, own.signing, now_ms)
        self.joins = joins = Joins(
            handshake,
            checker,
            policy,
            database,
            rooms,
            submitter,
            rooms.import_parts,
            completions,
            now_ms,
        )
        self.memberships = memberships = RemoteMemberships(
            client, handshake, joins, checker, rooms, submitter, own.signing, now_ms
        )
        self.history = history = History(client, checker, rooms, submitter, database, names, now_ms)

        def on_contact(server_name: str) -> None:
            destinations.note_contact(server_name)
            ring.forget_failure(server_name)

        self.authenticator = Authenticator(ring, config.is_local, names, now_ms, on_contact)
        restricted = RestrictedJoins(rooms, config.is_local)
        self.answering: dict[str, Any] = {
            "keys": KeyRoutes(own, ring, now_ms),
            "version": VersionRoutes(config.public_base_url),
            "send": SendRoutes(receiver),
            "memberships": MembershipRoutes(
                rooms, checker, policy, submitter, database, restricted, own.signing, config.is_local, now_ms
            ),
            "invites": InviteRoutes(rooms, checker, submitter, users, own.signing),
            "events": EventRoutes(rooms, users, config.is_local, now_ms),
            "query": QueryRoutes(users, rooms, config.is_local),
            "hierarchy": HierarchyRoutes(rooms),
            "public_rooms": PublicRoomRoutes(users, is_open=config.room_directory.public_over_federation),
            "openid": OpenIdRoutes(users),
            "third_party": ThirdPartyRoutes(client, rooms, users, config.is_local),
        }
        self.status = DestinationStatus(destinations, sender, database, now_ms)
        self.servicer = FederationServicer(
            joins,
            memberships,
            policy,
            history,
            RemoteQueries(client, names),
            IdentityServers(transport),
            ring,
            destinations,
            self.status,
        )
        self.staging = staging = Staging(database, receiver, now_ms)
        self.running: list[Callable[[], Awaitable[None]]] = [
            task.run
            for task in (
                destinations,
                teller,
                staging,
                fetcher,
                device_lists,
                sender,
                follower,
                live,
                completions,
                joins,
            )
        ]

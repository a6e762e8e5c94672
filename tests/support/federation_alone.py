"""The federation service with real HTTP, TLS and database; RoomServer, log and accounts are stand-ins.

`RoomsInMemory` answers for the RoomServer out of rooms that `tests.support.rooms` judges; what the service
writes to INPUT is put into them and kept in `inputs`.
"""

import asyncio
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from arbor.log.v1 import common_pb2, input_pb2
from arbor.roomserver.v1 import query_pb2
from federation.clock import now_ms
from federation.http.endpoints import Dispatcher
from federation.keys.published import OwnKeys
from federation.local_users import DirectoryQuery, LocalUsers
from federation.outbound.deny import DenyList
from federation.outbound.transport import Transport
from federation.parts import ENDPOINTS, Parts
from federation.rooms import LatestState, Rooms
from federation.sender.destinations import Destinations
from federation.storage.tables import metadata
from federation.submit import Submitter, Verdict
from matrixlib.events import Event, StateKey, parse_event
from matrixlib.identifiers import server_name_of
from matrixlib.room_versions import get_room_version
from matrixlib.signing import encode_signing_key
from servicekit.config import load_config, write_secret_file
from servicekit.database import Database
from servicekit.errors import unknown_token
from servicekit.http import HttpListener, RateLimiter, Router
from servicekit.service.listeners import bind_listener, tls_context
from tests.support.ports import free_port
from tests.support.rooms import Room, key_of
from tests.support.tls_ca import TestCa


class RoomsInMemory(Rooms):
    """Rooms out of `Room` objects. `waiting` are ids told as waiting, `imported` the parts of imports."""

    def __init__(self, is_local: Callable[[str], bool]) -> None:
        self.of: dict[str, Room] = {}
        self.outliers: dict[str, Event] = {}
        self.outlier_memberships: dict[tuple[str, str], Event] = {}
        self.waiting: set[str] = set()
        self.imported: list[query_pb2.ImportRequest] = []
        self.hidden_from: dict[str, set[str]] = {}
        """Server name -> ids of events that it may not see."""
        self._is_local = is_local
        self._views = OrderedDict()
        self._unchanged = set()

    async def import_parts(self, parts: AsyncIterator[query_pb2.ImportRequest]) -> None:
        async for part in parts:
            self.imported.append(part)

    def forget(self, room_id: str) -> None:
        """Nothing is remembered here."""

    async def view(self, room_id: str) -> Any:
        """As the real one, never from memory."""
        self._views.clear()
        return await super().view(room_id)

    async def latest(
        self, room_id: str, keys: Iterable[StateKey] = (), *, all_state: bool = False, min_sequence: int = 0
    ) -> LatestState | None:
        room = self.of.get(room_id)
        if room is None:
            return None
        state = {key: room.events[event_id] for key, event_id in room.state_before(room.heads).items()}
        wanted = state if all_state else {key: state[key] for key in keys if key in state}
        depth = max(room.events[head].depth for head in room.heads)
        return LatestState(room.version, tuple(room.heads), depth, wanted, 1, self._participating(room))

    def _participating(self, room: Room) -> bool:
        return any(self._is_local(server_name_of(user)) for user in joined_users(room))

    async def rooms(
        self, room_ids: Sequence[str], *, with_servers: bool = False, with_local_users: bool = False
    ) -> list[query_pb2.Room]:
        return [self._room(room_id) for room_id in room_ids or list(self.of) if room_id in self.of]

    def _room(self, room_id: str) -> query_pb2.Room:
        room = self.of[room_id]
        users = joined_users(room)
        return query_pb2.Room(
            room_id=room_id,
            room_version=room.version.identifier,
            participating=self._participating(room),
            servers=sorted({server_name_of(user) for user in users}),
            local_user_ids=[user for user in users if self._is_local(server_name_of(user))],
        )

    async def rooms_of_users(self, user_ids: Sequence[str]) -> list[query_pb2.Room]:
        return [
            self._room(room_id)
            for room_id, room in self.of.items()
            if set(user_ids).intersection(joined_users(room))
        ]

    async def memberships(
        self, room_id: str, user_ids: Sequence[str] = (), memberships: Sequence[str] = ()
    ) -> list[query_pb2.RoomMembership]:
        found: dict[tuple[str, str], Event] = dict(self.outlier_memberships)
        for id_, room in self.of.items():
            for (kind, user_id), event_id in room.state_before(room.heads).items():
                if kind == "m.room.member":
                    found[id_, user_id] = room.events[event_id]
        return [
            query_pb2.RoomMembership(
                room_id=id_,
                membership=common_pb2.Membership(
                    user_id=user_id, membership=event.membership or "", event_id=event.event_id
                ),
            )
            for (id_, user_id), event in found.items()
            if (not room_id or id_ == room_id)
            and (not user_ids or user_id in user_ids)
            and (not memberships or event.membership in memberships)
        ]

    async def events(self, event_ids: Sequence[str], room_id: str = "") -> list[query_pb2.StoredEvent]:
        found: list[query_pb2.StoredEvent] = []
        for event_id in event_ids:
            found.extend(
                self._stored(room.events[event_id], room)
                for room in self.of.values()
                if event_id in room.events
            )
            if event_id in self.outliers:
                found.append(self._outlier(self.outliers[event_id]))
        return [item for item in found if not room_id or item.room_id == room_id]

    def _stored(self, event: Event, room: Room) -> query_pb2.StoredEvent:
        status = query_pb2.EVENT_STATUS_ACCEPTED
        if event.event_id in room.rejected:
            status = query_pb2.EVENT_STATUS_REJECTED
        if event.event_id in self.waiting:
            status = query_pb2.EVENT_STATUS_WAITING
        return query_pb2.StoredEvent(
            event=common_pb2.Event(event_id=event.event_id, pdu_json=event.pdu_json),
            room_id=event.room_id,
            room_version=event.room_version.identifier,
            status=status,
            depth=event.depth,
        )

    def _outlier(self, event: Event) -> query_pb2.StoredEvent:
        return query_pb2.StoredEvent(
            event=common_pb2.Event(event_id=event.event_id, pdu_json=event.pdu_json),
            room_id=event.room_id,
            room_version=event.room_version.identifier,
            status=query_pb2.EVENT_STATUS_WAITING
            if event.event_id in self.waiting
            else query_pb2.EVENT_STATUS_OUTLIER,
        )

    async def state_at(
        self,
        room_id: str,
        event_id: str,
        *,
        ids_only: bool = False,
        with_auth_chain: bool = False,
        after: bool = False,
        keys: Iterable[StateKey] = (),
        with_own_auth_chain: bool = False,
        omit_members: bool = False,
    ) -> AsyncIterator[query_pb2.QueryStateResponse]:
        room = self.of[room_id]
        state = room.after[event_id] if after else room.before[event_id]
        events = [room.events[id_] for id_ in state.values()]
        chain = self._chain(room, [event.event_id for event in events])
        yield query_pb2.QueryStateResponse(
            event_id=event_id,
            state=[common_pb2.Event(event_id=e.event_id, pdu_json=e.pdu_json) for e in events],
            auth_chain=[common_pb2.Event(event_id=e.event_id, pdu_json=e.pdu_json) for e in chain],
            last=True,
        )

    def _chain(self, room: Room, event_ids: Iterable[str]) -> list[Event]:
        found: dict[str, Event] = {}
        stack = [link for event_id in event_ids for link in room.events[event_id].auth_links]
        while stack:
            event_id = stack.pop()
            if event_id not in found:
                found[event_id] = room.events[event_id]
                stack.extend(room.events[event_id].auth_links)
        return sorted(found.values(), key=lambda event: event.depth)

    async def auth_chain(self, event_ids: Sequence[str], *, ids_only: bool = False) -> list[common_pb2.Event]:
        for room in self.of.values():
            if all(event_id in room.events for event_id in event_ids):
                chain = self._chain(room, event_ids)
                return [common_pb2.Event(event_id=e.event_id, pdu_json=e.pdu_json) for e in chain]
        return []

    async def missing_events(
        self, room_id: str, earliest: Sequence[str], latest: Sequence[str], limit: int, min_depth: int
    ) -> list[query_pb2.StoredEvent]:
        room = self.of[room_id]
        found: list[str] = []
        todo = [prev for event_id in latest for prev in room.events[event_id].prev_event_ids]
        while todo and len(found) < limit:
            event_id = todo.pop(0)
            if event_id not in found and event_id not in earliest:
                found.append(event_id)
                todo.extend(room.events[event_id].prev_event_ids)
        return [self._stored(room.events[event_id], room) for event_id in reversed(found)]

    async def history(
        self,
        room_id: str,
        from_event_ids: Sequence[str],
        limit: int,
        *,
        nearest_to_ms: int = 0,
        backwards: bool = False,
    ) -> query_pb2.QueryHistoryResponse:
        room = self.of[room_id]
        found: list[str] = []
        todo = list(from_event_ids)
        while todo and len(found) < limit:
            event_id = todo.pop(0)
            if event_id not in found:
                found.append(event_id)
                todo.extend(room.events[event_id].prev_event_ids)
        if nearest_to_ms:
            ordered = sorted(
                room.events.values(), key=lambda event: event.origin_server_ts, reverse=backwards
            )
            found = [
                event.event_id for event in ordered if (event.origin_server_ts <= nearest_to_ms) == backwards
            ][:1]
        return query_pb2.QueryHistoryResponse(
            events=[self._stored(room.events[event_id], room) for event_id in found]
        )

    async def visible_to_server(
        self, room_id: str, event_ids: Sequence[str], server_name: str, *, only_joined: bool = False
    ) -> frozenset[str]:
        return frozenset(event_ids) - self.hidden_from.get(server_name, set())


def joined_users(room: Room) -> list[str]:
    """The users who are joined to a room now."""
    return [
        user_id
        for (kind, user_id), event_id in room.state_before(room.heads).items()
        if kind == "m.room.member" and room.events[event_id].membership == "join"
    ]


class InputInMemory(Submitter):
    """Judges what is written to INPUT at once, by the rooms in memory."""

    def __init__(self, rooms: RoomsInMemory) -> None:
        self._memory = rooms
        self.inputs: list[input_pb2.InputEntry] = []
        self.silent = False
        """No verdict comes."""

    async def submit_all(
        self, room_id: str, entries: Sequence[input_pb2.InputEntry], timeout_s: float = 1.0
    ) -> list[Verdict | None]:
        self.inputs.extend(entries)
        return [None if self.silent else self._judge(entry) for entry in entries]

    def _judge(self, entry: input_pb2.InputEntry) -> Verdict:
        accepted = Verdict(code=input_pb2.VERDICT_CODE_ACCEPTED, output_sequence=7)
        if entry.WhichOneof("kind") != "submit_events":
            return accepted
        submit = entry.submit_events
        version = get_room_version(submit.room_version)
        assert version is not None
        for item in submit.events:
            event = parse_event(item.pdu_json, version, event_id=item.event_id)
            if submit.origin == input_pb2.EVENT_ORIGIN_OUTLIER:
                self._memory.outliers[event.event_id] = event
                if submit.outlier_membership_user_id:
                    key = (event.room_id, submit.outlier_membership_user_id)
                    self._memory.outlier_memberships[key] = event
                continue
            room = self._memory.of[event.room_id]
            if event.event_id in room.rejected:
                return Verdict(code=input_pb2.VERDICT_CODE_REJECTED, event_id=event.event_id)
            if event.event_id in room.events:
                return Verdict(code=input_pb2.VERDICT_CODE_DUPLICATE, event_id=event.event_id)
            missing = [prev for prev in event.prev_event_ids if prev not in room.events]
            if missing and submit.state_before_event_ids:
                # Judged by the state that came with it.
                self._memory.waiting.discard(event.event_id)
                return accepted
            if missing:
                return Verdict(code=input_pb2.VERDICT_CODE_WAITING, missing_event_ids=missing)
            refused = room.add(event)
            self._memory.waiting.discard(event.event_id)
            if refused is not None:
                return Verdict(
                    code=input_pb2.VERDICT_CODE_REJECTED,
                    rejection=input_pb2.Rejection(rule=refused.rule, reason=refused.reason),
                )
        return accepted

    def events(self) -> list[str]:
        """The types of the events written so far."""
        return [
            parse_event(item.pdu_json, get_room_version(entry.submit_events.room_version)).type  # type: ignore[arg-type]
            for entry in self.inputs
            for item in entry.submit_events.events
        ]


class UsersInMemory(LocalUsers):
    """Local users by id with their profiles, and aliases."""

    def __init__(self, profiles: Mapping[str, dict[str, Any]], aliases: Mapping[str, str]) -> None:
        self.profiles = dict(profiles)
        self.aliases = dict(aliases)
        self.blocking: set[str] = set()
        self.erased: set[str] = set()
        self.blocked_rooms: set[str] = set()
        self.openid_tokens: dict[str, str] = {}
        self.page: dict[str, Any] = {"chunk": [], "total_room_count_estimate": 0}
        """A page of the directory; `asked` are the questions for one."""
        self.asked: list[DirectoryQuery] = []
        self.redeemed: list[tuple[str, str, str, Mapping[str, Any]]] = []
        """Third-party invites: (room id, sender, invited user, `third_party_invite`)."""

    async def takes_invites(self, user_id: str) -> bool | None:
        return user_id not in self.blocking if user_id in self.profiles else None

    async def erased_among(self, user_ids: Collection[str]) -> frozenset[str]:
        return frozenset(self.erased & set(user_ids))

    async def is_blocked(self, room_id: str) -> bool:
        return room_id in self.blocked_rooms

    async def profile(self, user_id: str) -> dict[str, Any] | None:
        return self.profiles.get(user_id)

    async def room_of_alias(self, alias: str) -> str | None:
        return self.aliases.get(alias)

    async def user_of_openid_token(self, token: str) -> str:
        if token not in self.openid_tokens:
            raise unknown_token()
        return self.openid_tokens[token]

    async def public_rooms(self, query: DirectoryQuery) -> dict[str, Any]:
        self.asked.append(query)
        return self.page

    async def redeem_third_party_invite(
        self, room_id: str, sender: str, user_id: str, third_party_invite: Mapping[str, Any]
    ) -> str:
        self.redeemed.append((room_id, sender, user_id, third_party_invite))
        return "$invite"


class LogInMemory:
    """As much of a `LogConnection` as publishing needs; `published` is what came."""

    service = "federation"
    instance = "test"
    partitions = 4
    connected = True

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []

    def publish_callback(
        self,
        subject: str,
        data: bytes,
        on_done: Callable[[int, Any], None],
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        self.published.append((subject, data))
        on_done(len(self.published), None)

    def publish_batch(self, messages: list[Any], on_done: Callable[[int, Any], None]) -> None:
        self.published.extend((subject, data) for subject, data, _ in messages)
        on_done(len(self.published), None)

    async def wait_connected(self) -> None:
        """It always is."""

    def about(self, prefix: str) -> list[bytes]:
        """The data published under subjects that begin so."""
        return [data for subject, data in self.published if subject.startswith(prefix)]


class FederationAlone:
    """See the module. `base_url` is where other servers reach it, as `server_name`."""

    def __init__(self, folder: Path, ca: TestCa, *, port: int | None = None, **settings: Any) -> None:
        self.port = port or free_port()
        self.server_name = f"localhost:{self.port}"
        self.base_url = f"https://{self.server_name}"
        certificate = ca.issue("localhost", file_name=f"alone-{self.port}")
        self.config = load_config(
            None,
            {},
            {
                "server_name": self.server_name,
                "data_dir": str(folder / f"data-{self.port}"),
                "listeners": [
                    {
                        "host": "127.0.0.1",
                        "port": self.port,
                        "resources": ["federation"],
                        "tls": {
                            "certificate_path": str(certificate.certificate_path),
                            "private_key_path": str(certificate.private_key_path),
                        },
                    }
                ],
                "federation.trusted_ca_paths": [str(ca.ca_path)],
                "federation.ip_denylist": [],
                "rate_limits.enabled": False,
                **settings,
            },
        )
        self.rooms = RoomsInMemory(self.config.is_local)
        self.rooms.local_names = self.config.server_names
        self.input = InputInMemory(self.rooms)
        self.users = UsersInMemory({}, {})
        self.log = LogInMemory()

    async def __aenter__(self) -> Self:
        config = self.config
        # The key that `tests.support.rooms` signs with in this server's name.
        write_secret_file(config.signing_key_path, encode_signing_key(key_of(self.server_name)).encode())
        self.own = OwnKeys.load(config)
        self.key = self.own.signing[self.server_name]
        self._database = Database(
            config.database_url("federation"), metadata, "federation.storage.migrations"
        )
        await asyncio.to_thread(self._database.migrate)
        self.destinations = Destinations(self._database, now_ms, random.random)
        await self.destinations.load()
        self._transport = Transport(
            DenyList(config.federation.ip_denylist), config.federation.trusted_ca_paths
        )
        self.parts = Parts(
            config,
            self.own,
            self._database,
            self.log,  # type: ignore[arg-type]
            self.rooms,
            self.input,
            self.users,
            self._transport,
            self.destinations,
            now_ms,
        )
        dispatcher = Dispatcher(
            ENDPOINTS, RateLimiter.of(config.rate_limits, "federation"), config.http.max_federation_body
        )
        dispatcher.start(self.parts.authenticator, self.parts.answering)
        router = Router()
        dispatcher.add_routes(router)
        self._listener = HttpListener(router, config.http)
        await self._listener.start(bind_listener(config.listeners[0], 0), tls_context(config.listeners[0], 0))
        self._tasks = [asyncio.ensure_future(self.parts.joins.run())]  # noqa: TID251 - ended below
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._listener.stop(0)
        await self._transport.close()
        await asyncio.sleep(0.05)
        self._database.close()

    @asynccontextmanager
    async def running(self, *works: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """Have parts of it work in the background meanwhile."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_begin(work)) for work in works]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    @property
    def database(self) -> Database:
        """Its database."""
        return self._database

    def user(self, name: str) -> str:
        """A local user, who exists."""
        user_id = f"@{name}:{self.server_name}"
        self.users.profiles.setdefault(user_id, {})
        return user_id


async def _begin(work: Callable[[], Awaitable[None]]) -> None:
    await work()

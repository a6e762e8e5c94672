"""Wiring of the sync API: database, OUTPUT and LIVE followers, memory, endpoints. No decisions."""

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from arbor.accounts.v1 import accounts_pb2_grpc
from arbor.log.v1 import output_pb2
from arbor.roomserver.v1 import query_pb2, query_pb2_grpc
from servicekit.config import Config
from servicekit.database import Database
from servicekit.grpc import channel_to
from servicekit.http import RateLimiter, Router
from servicekit.log.connection import LogConnection
from servicekit.log.errors import PositionLost
from servicekit.log.follower import Follower
from servicekit.log.reader import LogReader
from servicekit.log.subjects import LIVE, OUTPUT, presence_subject, room_receipt_subject
from servicekit.logging import get_logger
from servicekit.positions import untold, user_positions
from servicekit.service.sockets import is_only_edge
from syncapi.applied import Applied
from syncapi.applying.timeline import membership_of
from syncapi.auth import TokenCache
from syncapi.consumer import Applier
from syncapi.filter_source import FilterCache
from syncapi.following import OutputHandler
from syncapi.http import (
    event,
    hierarchy,
    members,
    messages,
    notifications,
    old_events,
    relations,
    room_summary,
    search,
    state,
    sync,
    timestamp,
)
from syncapi.http.edge import Edge
from syncapi.http.old_sync import RoomInitialSync
from syncapi.http.presence import PresenceStatus
from syncapi.live import Live, now_ms
from syncapi.partial_rooms import PartialRooms
from syncapi.presence import PresenceTeller
from syncapi.reads import ReadsFollowWrites
from syncapi.rebuild import rebuild_database
from syncapi.remote import RemoteHistory
from syncapi.room_positions import RoomPositions
from syncapi.storage.tables import log_tables, metadata
from syncapi.sync.engine import SyncEngine
from syncapi.sync.presence import shares_room
from syncapi.window import Window, load_snapshot

log = get_logger(__name__)

FLUSH_S = 5.0
"""So long a read waits for what is to be written; one that is a little old is better than none."""
CRASH_BACKLOG = 2_000
"""Of OUTPUT that is not applied at the start: a longer one is no crash's, and nobody waits for it."""


class SyncApi:
    """The service; see `servicekit.service.protocol`."""

    name = "syncapi"

    def __init__(self, config: Config) -> None:
        self._config = config
        self._database = Database(
            config.database_url("syncapi"),
            metadata,
            "syncapi.storage.migrations",
            durability="relaxed",
            reader_threads=config.database.reader_threads,
        )
        self._applier = Applier(
            lambda user_id: config.is_local(user_id.partition(":")[2]),
            raise_on_type=os.environ.get("ARBOR_TEST_SYNCAPI_RAISE_ON_EVENT_TYPE", ""),
        )
        self._window = Window()
        self._live = Live()
        self._connection: LogConnection | None = None
        self._follower: Follower[Applied] | None = None
        self._reload = asyncio.Event()
        self._epoch = ""
        # The end of OUTPUT when this process began: what others may have acknowledged before.
        self._written_before: int | None = None
        self._accounts: Any = accounts_pb2_grpc.AccountsServiceStub(channel_to(config, "clientapi"))
        self._rooms: Any = query_pb2_grpc.QueryServiceStub(channel_to(config, "roomserver"))
        self._tokens = TokenCache(self._accounts, now_ms)
        reads = ReadsFollowWrites(
            user_positions, untold, self._wait_for, lambda: self._window.sequence, self._flush
        )
        self._engine = SyncEngine(
            self._database,
            self._window,
            self._live,
            reads,
            lambda: self._epoch,
            cache_seconds=config.sync.response_cache_seconds,
            fetch_pdus=self._fetch_pdus,
        )
        filters = FilterCache(self._accounts)
        self._presence = PresenceTeller(self._live, self._publish_presence, enabled=config.presence.enabled)
        remote = RemoteHistory(config, self._rooms, reads.wait_for_sequence)
        self._edge = Edge(
            self._database,
            self._tokens,
            reads,
            self._engine,
            filters,
            self._accounts,
            self._presence,
            remote,
            RoomPositions(self._rooms, reads.wait_for_sequence, self._is_only_edge),
            RateLimiter.of(config.rate_limits, "search"),
            PartialRooms(self._window),
        )

    def routes(self, router: Router) -> None:
        """Add the HTTP routes."""
        endpoints = (
            sync,
            messages,
            state,
            members,
            event,
            relations,
            timestamp,
            hierarchy,
            room_summary,
            search,
            notifications,
            old_events,
        )
        for endpoint in endpoints:
            endpoint.add_routes(router, self._edge)
        PresenceStatus(self._edge, self._window, self._live).add_routes(router)
        RoomInitialSync(self._edge, self._window, self._live).add_routes(router)

    def servicers(self) -> list[Any]:
        """Nothing is asked of this service by gRPC."""
        return []

    async def start(self) -> None:
        """Open the database and the log, load what is recent."""
        await asyncio.to_thread(self._database.migrate)
        self._connection = await LogConnection.connect(self._config, self.name)
        await self._connection.wait_for_streams()
        self._epoch = self._connection.epoch(OUTPUT)
        output = await self._connection.load_stream(OUTPUT)
        self._written_before = None if output is None else output.last_sequence
        self._follower = self._make_follower(self._connection)
        self._window.load(await self._database.read(load_snapshot))
        if output is not None and output.last_sequence <= self._window.sequence + CRASH_BACKLOG:
            # What a crash left unwritten, and clients may have seen, is read again before they are answered.
            user_positions.note_told(output.last_sequence)

    async def run(self) -> None:
        """Follow OUTPUT and LIVE until cancelled."""
        assert self._follower is not None
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_output())
            group.create_task(self._follow_live())
            group.create_task(self._load_again())
            group.create_task(self._presence.run())

    async def drain(self) -> None:
        """Let long polls answer."""
        self._engine.stop()

    async def stop(self) -> None:
        """Close the log, then the database."""
        if self._follower is not None:
            await self._follower.store_rest()
        if self._connection is not None:
            await self._connection.close()
        await asyncio.to_thread(self._database.close)

    def health(self) -> str | None:
        """Say why it is not well; None: it is."""
        if self._follower is None or not self._follower.running:
            return "OUTPUT is not being followed"
        return None

    async def replay(self, ids: Sequence[int]) -> dict[str, int]:
        """Apply dead letters again, those with these ids and all of their rooms; without ids all of them.

        Clients hear of it at once: an empty message moves OUTPUT on, and with it their tokens.
        """
        handler = OutputHandler(self._applier, self._database, self._rooms)
        self._applier.may_hold = False
        try:
            await self._flush()
            replayed = await handler.replay(ids)
        finally:
            self._applier.may_hold = True
        if replayed.applied:
            self._window.invalidate()
            self._tokens.clear()
            await self._flush()
            self._window.load(await self._database.read(load_snapshot))
        if replayed.told_anew and self._connection is not None:
            room_id = replayed.told_anew[0]
            subject = room_receipt_subject(room_id, self._connection.partitions)
            await self._connection.publish(
                subject, output_pb2.OutputMessage(room_id=room_id).SerializeToString()
            )
        return {"applied": replayed.applied, "failed": replayed.failed}

    # -- following

    async def _follow_output(self) -> None:
        """Follow OUTPUT; from where that cannot go on, the owners' exports lead on."""
        while True:
            assert self._follower is not None
            try:
                await self._follower.run()
            except PositionLost as error:
                log.warning("position_lost", reason=str(error), first_sequence=error.first_sequence)
                await self._rebuild()

    async def _rebuild(self) -> None:
        assert self._connection is not None
        await rebuild_database(
            self._database, self._applier.is_local, self._rooms, self._accounts, self._connection
        )
        self._applier.begin_anew()
        self._follower = self._make_follower(self._connection)
        self._load_anew()

    def _make_follower(self, connection: LogConnection) -> Follower[Applied]:
        handler = OutputHandler(self._applier, self._database, self._rooms)
        return Follower(
            connection,
            OUTPUT,
            [],
            handler,
            log_tables,
            handler,
            on_committed=self._on_committed,
            on_loaded=self._on_loaded,
        )

    async def _fetch_pdus(self, event_ids: Sequence[str]) -> Mapping[str, bytes]:
        found: dict[str, bytes] = {}
        for start in range(0, len(event_ids), 1000):
            told = await self._rooms.QueryEvents(
                query_pb2.QueryEventsRequest(event_ids=event_ids[start : start + 1000])
            )
            found |= {stored.event.event_id: stored.event.pdu_json for stored in told.events}
        return found

    async def _publish_presence(self, user_id: str, message: bytes) -> None:
        assert self._connection is not None
        subject = presence_subject(user_id, self._connection.partitions)
        await self._connection.publish(subject, message, timeout_s=2.0)

    def _is_only_edge(self) -> bool:
        before = self._written_before
        return before is not None and self._window.sequence >= before and is_only_edge(self._config)

    async def _wait_for(self, sequence: int, timeout_s: float) -> bool:
        return self._follower is not None and await self._follower.wait_for(sequence, timeout_s)

    async def _flush(self) -> None:
        if self._follower is not None:
            await self._follower.flush(FLUSH_S)

    def _on_committed(self, applied: Applied) -> None:
        self._applier.committed()
        if self._follower is not None and self._follower.epoch:
            self._epoch = self._follower.epoch
        self._window.apply(applied)
        for change in applied.changes:
            if change.type == "m.room.member" and change.state_key in self._live.presence:
                joined = change.event is not None and membership_of(change.event, None) == "join"
                self._live.move(change.room_id, change.state_key, joined)
        if applied.rebuilt:
            self._load_anew()
        for user in applied.accounts:
            self._tokens.invalidate(user)

    def _on_loaded(self, position: int) -> None:
        # Somebody else may have written since: a rebuild from the command line, say.
        self._applier.begin_anew()
        if position != self._window.sequence:
            # Results may have been missed: the memory is loaded anew.
            self._load_anew()

    def _load_anew(self) -> None:
        self._window.invalidate()
        self._tokens.clear()
        self._reload.set()

    async def _load_again(self) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            await self._flush()
            self._window.load(await self._database.read(load_snapshot))

    async def _follow_live(self) -> None:
        assert self._connection is not None
        reader = LogReader(self._connection, LIVE, (), after=None)
        async with contextlib.aclosing(reader.batches()) as batches:
            async for batch in batches:
                self._live.begin(batch.epoch)
                for message in batch.messages:
                    room_id, user_id = self._live.apply(message.sequence, message.data)
                    if room_id is not None:
                        self._window.wake_room(room_id)
                    if user_id is not None:
                        self._wake_for_presence(user_id)

    def _wake_for_presence(self, user_id: str) -> None:
        for other, view in self._window.users.items():
            if view.waiters and shares_room(self._window, self._live, other, user_id):
                self._window.wake_user(other)


def create(config: Config) -> SyncApi:
    """Make the service."""
    return SyncApi(config)

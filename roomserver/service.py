"""The RoomServer's wiring: database, log, partitions, judging, rpc."""

import os
import time
from functools import partial

from arbor.roomserver.v1.query_pb2_grpc import (
    add_AdminServiceServicer_to_server,
    add_QueryServiceServicer_to_server,
)
from roomserver.input.batch import Context
from roomserver.input.judge import Judge
from roomserver.leases import Leases
from roomserver.memory import Memory
from roomserver.processor import Processor
from roomserver.rpc.admin import AdminServicer
from roomserver.rpc.query import QueryServicer
from roomserver.storage.tables import metadata
from servicekit.config import Config
from servicekit.database import Database
from servicekit.grpc.server import Servicer
from servicekit.http.routing import Router
from servicekit.keys import load_signing_keys
from servicekit.log.connection import LogConnection
from servicekit.log.subjects import partition_of
from servicekit.logging import get_logger

log = get_logger("roomserver")

LEASE_MS = 4_000
LEASE_ALONE_MS = 30_000
"""On SQLite: nobody else can be there, and a lease only makes work."""
OUTPUT_GAP = 1_000_000
"""OUTPUT made anew begins so far above what is known: others may have written where we did not see it."""


def now_ms() -> int:
    """The clock, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class RoomServer:
    """See `servicekit.service.protocol`."""

    name = "roomserver"

    def __init__(self, config: Config, address: str | None = None) -> None:
        self.config = config
        self.address = address or config.grpc_address(self.name)
        self.database = Database(
            config.database_url(self.name),
            metadata,
            "roomserver.storage.migrations",
            durability="full",
            reader_threads=config.database.reader_threads,
        )
        self.context = Context(
            partitions=config.log.partitions,
            partition_of=partial(partition_of, partitions=config.log.partitions),
            is_local=config.is_local,
            signing_keys={},
            secure_erase=config.log.secure_erase,
            raise_on_type=os.environ.get("ARBOR_TEST_RAISE_ON_EVENT_TYPE", ""),
        )
        self.memory = Memory()
        self.judge = Judge(self.context, self.memory, now_ms)
        alone = self.database.url.startswith("sqlite")
        self.leases = Leases(
            self.address,
            config.log.partitions,
            LEASE_ALONE_MS if alone else LEASE_MS,
            now_ms,
            shared=not alone,
        )
        self._connection: LogConnection | None = None
        self._processor: Processor | None = None
        self.query = QueryServicer(self)
        self.admin = AdminServicer(self)

    @property
    def processor(self) -> Processor:
        """What reads INPUT; there after `start`."""
        assert self._processor is not None, "not started"
        return self._processor

    @property
    def connection(self) -> LogConnection:
        """The connection to the log; there after `start`."""
        assert self._connection is not None, "not started"
        return self._connection

    @staticmethod
    def now_ms() -> int:
        """The clock."""
        return now_ms()

    def routes(self, router: Router) -> None:
        """Serve no HTTP."""

    def servicers(self) -> list[Servicer]:
        """Return what is served by gRPC."""
        return [
            (add_QueryServiceServicer_to_server, self.query),
            (add_AdminServiceServicer_to_server, self.admin),
        ]

    def health(self) -> str | None:
        """Say why it is not well; None: it is."""
        if self._connection is None or not self._connection.connected:
            return "there is no connection to the log"
        return None

    async def start(self) -> None:
        """Migrate, connect, make the streams, take partitions."""
        self.database.migrate()
        self.context.signing_keys.update(load_signing_keys(self.config))
        known = await self.database.write(self.leases.prepare)
        self._connection = await LogConnection.connect(self.config, self.name)
        await self._connection.ensure_streams(known + OUTPUT_GAP if known else 1)
        self._processor = Processor(
            self._connection,
            self.database,
            self.judge,
            self.leases,
            now_ms,
        )
        self._processor.places.output_last = known
        await self._processor.ownership.take()

    async def run(self) -> None:
        """Judge what INPUT asks, until cancelled."""
        await self.processor.run()

    async def drain(self) -> None:
        """Relay and answer what is committed."""
        if self._processor is not None:
            await self._processor.settle()

    async def stop(self) -> None:
        """Hand the partitions over, close the log, then the database."""
        if self._processor is not None:
            await self._processor.ownership.give_up()
        if self._connection is not None:
            await self._connection.close()
        self.database.close()


def create(config: Config) -> RoomServer:
    """Make the service."""
    return RoomServer(config)

"""The outbox of clientapi, and a database that has it published after each commit.

Several clientapi processes may share the database. Numbers are given in commit order, one row a partition;
whoever relays publishes everything up to its own number first (`servicekit.log.relay`, unfenced), and
readers drop what they have, so an entry may be published twice and is never applied twice.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DataError

from arbor.log.v1 import output_pb2
from clientapi.storage.tables import metadata, outbox_tables
from servicekit.database import Database
from servicekit.errors import MatrixError, invalid_param
from servicekit.log.connection import LogConnection
from servicekit.log.errors import OwnershipLost
from servicekit.log.outbox import Outbox, OutboxEntry
from servicekit.log.relay import OutboxRelay
from servicekit.log.subjects import partition_of, subject_of
from servicekit.logging import get_logger
from servicekit.positions import untold, user_positions

log = get_logger("clientapi.outbox")

P = ParamSpec("P")
R = TypeVar("R")

WRITER = "clientapi"
# No partition of this writer is owned by one process, so there is no epoch to tell owners apart.
EPOCH = 1
POLL_S = 5.0
MAX_LOADED = 2000


class AccountsOutbox:
    """Stores what is to be told, stamped and numbered, in the unit of work that changed it."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._outbox = Outbox(outbox_tables)
        self.stored = 0
        """Counts messages stored by this process, committed or not."""

    def store(self, conn: Connection, kind: str, id_: str, message: output_pb2.OutputMessage) -> None:
        """Store a message under `<kind>.<partition>.<token(id_)>`."""
        partition = partition_of(id_, self._partitions)
        number = self._outbox.allot(conn, partition, 1)
        message.stamp.CopyFrom(
            output_pb2.OutputStamp(writer=WRITER, partition=partition, epoch=EPOCH, output_no=number)
        )
        subject = subject_of(kind, id_, self._partitions)
        self._outbox.append(
            conn, [OutboxEntry(partition, number, EPOCH, subject, message.SerializeToString())]
        )
        self.stored += 1

    def wake(self) -> None:
        """Nothing to do: `AccountsDatabase` looks after each commit."""


class AccountsDatabase(Database):
    """A database that calls `on_stored` after each unit of work that stored something in the outbox."""

    def __init__(self, url: str, outbox: AccountsOutbox, *, reader_threads: int = 2) -> None:
        super().__init__(url, metadata, "clientapi.storage.migrations", reader_threads=reader_threads)
        self._outbox = outbox
        self.on_stored: Callable[[], None] = lambda: None

    async def write(
        self, work: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Do as `Database.write`, then have the outbox published."""
        before = self._outbox.stored
        try:
            return await super().write(work, *args, **kwargs)
        except DataError as error:
            raise _cannot_be_stored(error) from error
        finally:
            if self._outbox.stored != before:
                self.on_stored()

    async def read(
        self, work: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Do as `Database.read`; a text that no row can hold is the client's fault."""
        try:
            return await super().read(work, *args, **kwargs)
        except DataError as error:
            raise _cannot_be_stored(error) from error


def _cannot_be_stored(error: DataError) -> MatrixError:
    # PostgreSQL's texts hold no NUL; SQLite's do.
    log.info("text_not_storable", error=str(error.orig))
    return invalid_param("A text holds a character that cannot be stored")


class OutboxPublisher:
    """Publishes what is committed, in order, and deletes it."""

    def __init__(self, db: AccountsDatabase, connection: LogConnection) -> None:
        self._db = db
        self._storage = Outbox(outbox_tables)
        self._relay = OutboxRelay(connection, WRITER, load_missing=self._load_missing)
        self._wake = asyncio.Event()
        db.on_stored = self._stored

    def _stored(self) -> None:
        untold.expect()
        self._wake.set()

    async def run(self) -> None:
        """Publish, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._relay.run())
            while True:
                mark = untold.mark
                more = await self._publish_some()
                if not more:
                    untold.told(mark)
                    try:
                        async with asyncio.timeout(POLL_S):
                            await self._wake.wait()
                    except TimeoutError:
                        pass  # what a process that died left behind
                    self._wake.clear()

    async def _publish_some(self) -> bool:
        entries = await self._db.read(self._load)
        if not entries:
            return False
        try:
            payloads = {(entry.partition, entry.output_no): entry.data for entry in entries}
            for item in await self._relay.publish(entries):
                for user_id in _users_of(payloads.get((item.partition, item.output_no), b"")):
                    user_positions.note(user_id, item.sequence)
        except OwnershipLost as error:  # pragma: no cover - the relay is unfenced
            log.error("outbox_relay_failed", error=str(error))
        published = self._relay.deletable()
        await self._db.write(self._storage.delete_through, published)
        self._relay.deleted(published)
        return True

    def _load(self, conn: Connection) -> list[OutboxEntry]:
        return self._storage.load(conn, limit=MAX_LOADED)

    async def _load_missing(self, partition: int, after: int, before: int) -> list[OutboxEntry]:
        def load(conn: Connection) -> list[OutboxEntry]:
            return self._storage.load(conn, partition=partition, after=after, before=before)

        return await self._db.read(load)


def _users_of(data: bytes) -> set[str]:
    """Return whose doing a message tells of."""
    message = output_pb2.OutputMessage.FromString(data)
    return {message.user_id or entry.receipt.user_id for entry in message.entries}


def last_told_sequence(conn: Connection) -> int:
    """Return the OUTPUT sequence up to which everything told before is on the log."""
    progress: dict[int, Any] = dict(Outbox(outbox_tables).load_progress(conn))
    return max((published.sequence for published in progress.values()), default=0)

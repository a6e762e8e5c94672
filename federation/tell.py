"""Telling OUTPUT what other servers' EDUs said: stored by the transaction that took them, then published.

entries = teller.store(conn, tellings)     # in the unit of work
teller.publish(entries)                    # after its commit
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from arbor.log.v1 import output_pb2
from federation.storage.tables import outbox_tables
from servicekit.database import Database
from servicekit.log.connection import LogConnection
from servicekit.log.outbox import Outbox, OutboxEntry, Published
from servicekit.log.relay import OutboxRelay
from servicekit.log.subjects import partition_of, subject_of

WRITER = "federation"
# One process writes with one database, so nobody ever takes over in between.
EPOCH = 1


@dataclass(frozen=True, slots=True)
class Telling:
    """A message for OUTPUT under a kind of subject (`user.to_device`, ...) and the id it is about."""

    kind: str
    id: str
    message: output_pb2.OutputMessage


class Teller:
    """See the module. Make it on the loop; `start` publishes what a crash left."""

    def __init__(self, connection: LogConnection, database: Database) -> None:
        self._partitions = connection.partitions
        self._database = database
        self._outbox = Outbox(outbox_tables)
        self._relay = OutboxRelay(connection, WRITER)
        # Read on the writer thread, written on the loop: replaced whole, never changed.
        self._deletable: tuple[Published, ...] = ()
        self._last: asyncio.Future[list[Published]] | None = None

    async def start(self) -> None:
        """Publish what is stored and was not published, or not known to be."""
        left = await self._database.read(self._outbox.load)
        self.publish(left)

    async def run(self) -> None:
        """Publish for ever."""
        await self._relay.run()

    def store(self, conn: Connection, tellings: Sequence[Telling]) -> list[OutboxEntry]:
        """Store messages, numbered; to be published after the commit. Runs on the writer thread."""
        self._outbox.delete_through(conn, self._deletable)
        entries = []
        for telling in tellings:
            partition = partition_of(telling.id, self._partitions)
            number = self._outbox.allot(conn, partition, 1)
            telling.message.stamp.CopyFrom(
                output_pb2.OutputStamp(writer=WRITER, partition=partition, epoch=EPOCH, output_no=number)
            )
            entries.append(
                OutboxEntry(
                    partition=partition,
                    output_no=number,
                    epoch=EPOCH,
                    subject=subject_of(telling.kind, telling.id, self._partitions),
                    data=telling.message.SerializeToString(),
                )
            )
        self._outbox.append(conn, entries)
        return entries

    def publish(self, entries: Sequence[OutboxEntry]) -> None:
        """Publish stored messages, in order, as soon as the log takes them. Nobody need wait."""
        self._deletable = tuple(self._relay.deletable())
        self._last = self._relay.publish(entries)

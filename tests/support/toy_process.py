"""The toy as a process of its own that stands where the RoomServer stands: INPUT, one transaction, outbox,
OUTPUT.

    python -m tests.support.toy_process RUN_DIR DATABASE_URL
"""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import orjson
from sqlalchemy import Connection

from servicekit.log.connection import LogConnection
from servicekit.log.follower import Follower
from servicekit.log.outbox import Outbox, OutboxEntry, Published
from servicekit.log.reader import LogMessage
from servicekit.log.relay import OutboxRelay
from servicekit.log.settings import LogSettings
from servicekit.log.subjects import partition_of, room_output_subject
from servicekit.nats_server import read_password, read_url
from tests.support import toy_service as toy

PARTITIONS = 16


class ToyRoomServer(toy.ToyHandler):
    """Applies INPUT entries and puts each into the outbox, in the same transaction."""

    def __init__(self, relay: OutboxRelay) -> None:
        super().__init__()
        self._relay = relay
        self._outbox = Outbox(toy.outbox_tables)

    def apply_batch(  # type: ignore[override]
        self, conn: Connection, messages: Sequence[LogMessage]
    ) -> tuple[list[OutboxEntry], list[Published]]:
        """Return what is to be published, and what was deleted from the outbox."""
        super().apply_batch(conn, messages)
        done = self._relay.deletable()
        self._outbox.delete_through(conn, done)
        entries = []
        for message in messages:
            room = orjson.loads(message.data)["room"]
            partition = partition_of(room, PARTITIONS)
            number = self._outbox.allot(conn, partition, 1)
            subject = room_output_subject(room, PARTITIONS)
            entries.append(OutboxEntry(partition, number, 1, subject, message.data))
        self._outbox.append(conn, entries)
        return entries, done

    def on_committed(self, result: tuple[list[OutboxEntry], list[Published]]) -> None:
        """Publish after the commit."""
        entries, done = result
        self._relay.deleted(done)
        _ = self._relay.publish(entries)  # a future that nobody has to await


async def run(run_dir: Path, database_url: str) -> None:
    """Run for ever."""
    settings = LogSettings(
        urls=(read_url(run_dir),),
        user="roomserver",
        password=read_password(run_dir, "roomserver"),
        max_bytes=256 * 1024 * 1024,
    )
    connection = await LogConnection.connect(settings, "roomserver")
    await connection.ensure_streams()
    database = toy.open_database(database_url)
    outbox = Outbox(toy.outbox_tables)
    relay = OutboxRelay(connection, "roomserver", kind="room.output")
    rows, progress = await database.read(outbox.load), await database.read(outbox.load_progress)
    handler = ToyRoomServer(relay)
    follower = Follower(
        connection,
        "INPUT",
        [],
        database,
        toy.log_tables,
        handler,
        on_committed=handler.on_committed,
        max_messages=20,
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(relay.run())
        for partition in range(PARTITIONS):
            mine = [row for row in rows if row.partition == partition]
            await relay.adopt(partition, 1, progress.get(partition), mine)
        group.create_task(follower.run())


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), sys.argv[2]))

"""What the log costs: CPU time per message of publish, read, follow and relay, ours and nats-server's.

    python -m benchmarks.log_bench [--messages 20000] [--size 1000]

Starts a nats-server of its own in a temporary directory. CPU time is what a noisy machine blurs least.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path

import psutil
import uvloop
from sqlalchemy import Connection

from servicekit.log.connection import LogConnection
from servicekit.log.follower import Follower
from servicekit.log.outbox import Outbox, OutboxEntry, Published
from servicekit.log.reader import LogMessage, LogReader
from servicekit.log.relay import OutboxRelay
from tests.support import toy_service as toy
from tests.support.nats import NatsProcess, running_nats

# A partition that the relay below does not own.
OUT = "room.output.40.IWE6eA"


class CountingHandler:
    """A handler that does nothing, so that following itself is measured."""

    def apply_batch(self, conn: Connection, messages: Sequence[LogMessage]) -> int:
        """Return how many there were."""
        return len(messages)


class Meter:
    """Runs a step and prints its cost."""

    def __init__(self, nats: NatsProcess) -> None:
        self._nats = psutil.Process(nats.pid)

    async def measure(self, name: str, count: int, step: Callable[[], Awaitable[object]]) -> None:
        """Print wall and CPU time per message in microseconds."""
        nats_before, cpu_before, before = (
            sum(self._nats.cpu_times()[:2]),
            time.process_time(),
            time.perf_counter(),
        )
        await step()
        wall, cpu = time.perf_counter() - before, time.process_time() - cpu_before
        nats_cpu = sum(self._nats.cpu_times()[:2]) - nats_before
        print(
            f"{name:<34} {count:>7} messages  wall {wall / count * 1e6:8.1f} us  "
            f"our CPU {cpu / count * 1e6:7.1f} us  nats-server CPU {nats_cpu / count * 1e6:7.1f} us"
        )


async def bench(nats: NatsProcess, directory: Path, count: int, size: int) -> None:
    """Run all steps."""
    meter = Meter(nats)
    room = await LogConnection.connect(nats.settings("roomserver"), "roomserver")
    await room.ensure_streams()
    reader_connection = await LogConnection.connect(nats.settings("syncapi"), "syncapi")
    await reader_connection.wait_for_streams()
    data = b"x" * size

    async def publish(in_flight: int, messages: int) -> None:
        for _ in range(messages // in_flight):
            await asyncio.gather(*(room.publish_nowait(OUT, data) for _ in range(in_flight)))

    for in_flight, messages in ((1, count // 10), (16, count // 2), (256, count)):
        await meter.measure(
            f"publish, {in_flight} in flight", messages, partial(publish, in_flight, messages)
        )

    info = await room.load_stream("OUTPUT")
    assert info is not None
    last_sequence = info.last_sequence

    async def read() -> None:
        async with aclosing(LogReader(reader_connection, "OUTPUT").batches()) as source:
            async for batch in source:
                if batch.through >= last_sequence:
                    return

    await meter.measure("read, all that is there", info.messages, read)

    async def read_idle() -> None:
        async with aclosing(LogReader(reader_connection, "OUTPUT", after=last_sequence).batches()) as source:
            for _ in range(count // 10):
                acked = room.publish_nowait(OUT, data)
                await anext(source)
                await acked

    await meter.measure("publish and read, one at a time", count // 10, read_idle)

    database = toy.open_database(toy.sqlite_url(directory))
    follower = Follower(reader_connection, "OUTPUT", [], database, toy.log_tables, CountingHandler())
    info = await room.load_stream("OUTPUT")
    assert info is not None
    async with asyncio.TaskGroup() as group:
        task = group.create_task(follower.run())
        await meter.measure(
            "follow, all that is there", info.messages, lambda: follower.wait_for(info.last_sequence, 300)
        )

        async def follow_idle() -> None:
            for _ in range(count // 10):
                sequence = await room.publish(OUT, data)
                assert await follower.wait_for(sequence, 10)

        await meter.measure("publish and follow, one at a time", count // 10, follow_idle)
        task.cancel()

    outbox = Outbox(toy.outbox_tables)
    relay = OutboxRelay(room, "roomserver", kind="room.output")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(relay.run())
        for partition in range(16):
            await relay.adopt(partition, 1, None)
        numbers = dict.fromkeys(range(16), 0)

        def batch(messages: int, partitions: int) -> list[OutboxEntry]:
            made = []
            for index in range(messages):
                partition = index % partitions
                numbers[partition] += 1
                subject = f"room.output.{partition}.IWE6eA"
                made.append(OutboxEntry(partition, numbers[partition], 1, subject, data))
            return made

        async def relay_batches(messages: int, partitions: int, times: int, *, store: bool) -> None:
            for _ in range(times):
                made = batch(messages, partitions)
                if store:
                    done = relay.deletable()

                    def unit(
                        conn: Connection, made: list[OutboxEntry] = made, done: list[Published] = done
                    ) -> None:
                        outbox.delete_through(conn, done)
                        outbox.append(conn, made)

                    await database.write(unit)
                    relay.deleted(done)
                await relay.publish(made)

        for messages, partitions in ((1, 1), (16, 16), (64, 16), (300, 16), (300, 1)):
            times = max(count // 4 // messages, 1)
            for store in (False, True):
                await meter.measure(
                    f"relay {messages} over {partitions}" + (", stored" if store else ""),
                    messages * times,
                    partial(relay_batches, messages, partitions, times, store=store),
                )
        task.cancel()
    database.close()
    await room.close()
    await reader_connection.close()


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, running_nats(Path(directory)) as nats:
        uvloop.run(bench(nats, Path(directory), arguments.messages, arguments.size))


if __name__ == "__main__":
    main()

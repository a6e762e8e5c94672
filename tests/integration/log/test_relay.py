"""The outbox relay: in order, once, fenced; after every doubt it looks what is stored."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from servicekit.database import Database
from servicekit.log.connection import LogConnection
from servicekit.log.errors import OwnershipLost, PublishTimeout
from servicekit.log.outbox import MAX_DATA_BYTES, Outbox, OutboxEntry, Published
from servicekit.log.publishing import OnPublished
from servicekit.log.reader import LogReader
from servicekit.log.relay import OutboxRelay
from tests.support import toy_service as toy
from tests.support.nats import NatsProcess, until

Connect = Callable[..., Awaitable[LogConnection]]

outbox = Outbox(toy.outbox_tables)


def entry(partition: int, number: int, epoch: int = 1, kind: str = "room.output") -> OutboxEntry:
    return OutboxEntry(partition, number, epoch, f"{kind}.{partition}.IWE6eA", b"%d/%d" % (partition, number))


def entries(partition: int, first: int, last: int, epoch: int = 1) -> list[OutboxEntry]:
    return [entry(partition, number, epoch) for number in range(first, last + 1)]


@asynccontextmanager
async def relaying(connection: LogConnection, **options: Any) -> AsyncIterator[OutboxRelay]:
    options.setdefault("kind", "room.output")
    relay = OutboxRelay(connection, connection.service, **options)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(relay.run())
        try:
            async with asyncio.timeout(30):
                yield relay
        finally:
            task.cancel()


async def stored(connection: LogConnection) -> list[tuple[int, bytes]]:
    """Return (sequence, data) of everything in OUTPUT."""
    info = await connection.load_stream("OUTPUT")
    assert info is not None
    if not info.messages:
        return []
    reader = LogReader(connection, "OUTPUT", after=info.first_sequence - 1)
    found: list[tuple[int, bytes]] = []
    async for batch in reader.batches():
        found += [(message.sequence, message.data) for message in batch.messages]
        if batch.through >= info.last_sequence:
            break
    return found


async def test_each_partition_in_order_and_the_sequences_come_back(connect: Connect) -> None:
    room = await connect("roomserver", first=100)
    async with relaying(room) as relay:
        for partition in range(4):
            assert await relay.adopt(partition, 1, None) == []
        mixed = [entry(p, n) for n in range(1, 6) for p in range(4)]
        published = await relay.publish(mixed)
        assert sorted(p.sequence for p in published) == list(range(100, 120))
        found = dict(await stored(room))
        for item in published:
            assert found[item.sequence] == b"%d/%d" % (item.partition, item.output_no)
        for partition in range(4):
            numbers = [p.output_no for p in published if p.partition == partition]
            assert numbers == [1, 2, 3, 4, 5]
        assert {(p.partition, p.output_no) for p in relay.deletable()} == {(p, 5) for p in range(4)}
        done = relay.deletable()
        await relay.publish([entry(0, 6)])
        relay.deleted(done)
        assert [(p.partition, p.output_no) for p in relay.deletable()] == [(0, 6)]


async def test_many_go_as_atomic_batches(connect: Connect) -> None:
    room = await connect("roomserver")
    async with relaying(room) as relay:
        await relay.adopt(3, 1, None)
        published = await relay.publish(entries(3, 1, 1203))
        assert [(p.output_no, p.sequence) for p in published] == [(n, n) for n in range(1, 1204)]
        assert await relay.publish(entries(3, 1204, 1204)) == [Published(3, 1204, 1204)]
    assert [data for _, data in await stored(room)] == [b"3/%d" % n for n in range(1, 1205)]


async def test_a_crash_between_commit_and_publish_publishes_at_the_next_start(connect: Connect) -> None:
    room = await connect("roomserver")
    async with relaying(room) as relay:
        published = await relay.adopt(3, 2, None, entries(3, 1, 3))
        assert [p.sequence for p in published] == [1, 2, 3]


async def test_a_crash_between_publish_and_delete_publishes_nothing_twice(connect: Connect) -> None:
    room = await connect("roomserver")
    async with relaying(room) as relay:
        await relay.adopt(3, 1, None)
        await relay.adopt(4, 1, None)
        await relay.publish([entry(3, 1), entry(4, 1), entry(3, 2), entry(3, 3)])
    # The next owner finds all rows still in the outbox, and one more that was never published.
    async with relaying(room) as relay:
        published = await relay.adopt(3, 2, Published(3, 0, 0), [*entries(3, 1, 3), entry(3, 4, 2)])
        found = dict(await stored(room))
        assert [p.output_no for p in published] == [1, 2, 3, 4]
        for item in published:
            assert found[item.sequence] == b"3/%d" % item.output_no
    assert sorted(found.values()) == [b"3/1", b"3/2", b"3/3", b"3/4", b"4/1"]


@pytest.mark.parametrize("count", [1, 5, 40])
async def test_a_lost_ack_publishes_nothing_twice(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    room = await connect("roomserver")
    lost = 0

    def lose_ack(original: Callable[..., None]) -> Callable[..., None]:
        def publish(*args: Any, **kwargs: Any) -> None:
            nonlocal lost
            arguments = list(args)
            index = next(i for i, a in enumerate(arguments) if callable(a))
            on_done: OnPublished = arguments[index]

            def done(sequence: int, error: Exception | None) -> None:
                nonlocal lost
                if lost < 3:
                    lost += 1
                    on_done(0, PublishTimeout("lost on purpose"))
                else:
                    on_done(sequence, error)  # type: ignore[arg-type]

            arguments[index] = done
            original(*arguments, **kwargs)

        return publish

    monkeypatch.setattr(room, "publish_callback", lose_ack(room.publish_callback))
    monkeypatch.setattr(room, "publish_batch", lose_ack(room.publish_batch))
    async with relaying(room) as relay:
        await relay.adopt(3, 1, None)
        published = await relay.publish(entries(3, 1, count))
        published += await relay.publish(entries(3, count + 1, count + 3))
    found = await stored(room)
    assert lost == 3
    assert [data for _, data in found] == [b"3/%d" % n for n in range(1, count + 4)]
    assert [p.sequence for p in published] == [sequence for sequence, _ in found]


async def test_a_second_owner_fences_the_first_out(connect: Connect) -> None:
    first, second = await connect("roomserver"), await connect("roomserver")
    async with relaying(first) as old, relaying(second) as new:
        await old.adopt(3, 1, None)
        await old.publish(entries(3, 1, 2))
        # The second takes over (its database says so) with row 3 that the first committed and did not
        # publish.
        await new.adopt(3, 2, Published(3, 2, 2), [entry(3, 3, 1)])
        await new.publish([entry(3, 4, 2)])
        with pytest.raises(OwnershipLost, match="partition 3"):
            await old.publish([entry(3, 3, 1), entry(3, 4, 1)])
        with pytest.raises(OwnershipLost):
            await old.publish([entry(3, 5, 1)])
        await new.publish([entry(3, 5, 2)])
    assert [data for _, data in await stored(first)] == [b"3/%d" % n for n in (1, 2, 3, 4, 5)]


async def test_a_batch_over_many_partitions_survives_the_loss_of_one(connect: Connect) -> None:
    first, second = await connect("roomserver"), await connect("roomserver")
    async with relaying(first) as old, relaying(second) as new:
        for partition in range(4):
            await old.adopt(partition, 1, None)
        published = await old.publish([entry(p, n) for n in range(1, 7) for p in range(4)])
        assert sorted(p.sequence for p in published) == list(range(1, 25))
        await new.adopt(2, 2, Published(2, 6, 0))
        await new.publish([entry(2, 7, 2)])
        calls = [old.publish(entries(partition, 7, 12)) for partition in range(4)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [list, list, OwnershipLost, list]
    found = [data for _, data in await stored(first)]
    for partition, last in ((0, 12), (1, 12), (2, 7), (3, 12)):
        mine = [data for data in found if data.startswith(b"%d/" % partition)]
        assert mine == [b"%d/%d" % (partition, n) for n in range(1, last + 1)]


async def test_an_owner_that_wakes_up_late_cannot_publish_what_it_still_holds(connect: Connect) -> None:
    first, second = await connect("roomserver"), await connect("roomserver")
    async with relaying(first) as old, relaying(second) as new:
        await old.adopt(3, 1, None)
        await old.publish([entry(3, 1)])
        await new.adopt(3, 2, Published(3, 1, 1))
        await new.publish(entries(3, 2, 30, epoch=2))
        with pytest.raises(OwnershipLost):
            await old.publish([entry(3, 2, 1)])
    assert [data for _, data in await stored(first)] == [b"3/%d" % n for n in range(1, 31)]


async def test_released_partitions_and_those_never_adopted_refuse(connect: Connect) -> None:
    room = await connect("roomserver")
    async with relaying(room) as relay:
        await relay.adopt(3, 1, None)
        relay.release(3)
        with pytest.raises(OwnershipLost):
            await relay.publish([entry(3, 1)])
    assert await stored(room) == []


async def test_an_aged_out_partition_goes_on(connect: Connect) -> None:
    room = await connect("roomserver")
    async with relaying(room) as relay:
        await relay.adopt(3, 1, None)
        await relay.publish(entries(3, 1, 3))
        await room.request_api("STREAM.PURGE.OUTPUT", {"filter": "room.output.3.>"})
        assert await relay.publish([entry(3, 4)]) == [Published(3, 4, 4)]
    async with relaying(room) as relay:
        await room.request_api("STREAM.PURGE.OUTPUT", {"filter": "room.output.3.>"})
        published = await relay.adopt(3, 1, Published(3, 4, 4), [entry(3, 5)])
        assert published == [Published(3, 5, 5)]


async def test_nats_killed_under_load_every_entry_once_and_in_order(
    nats: NatsProcess, connect: Connect
) -> None:
    room = await connect("roomserver")
    published: list[Published] = []
    partitions = 4
    async with relaying(room) as relay:
        for partition in range(partitions):
            await relay.adopt(partition, 1, None)
        stop = False

        async def write(partition: int) -> int:
            number = 0
            while not stop:
                size = 1 + number % 25  # both ways of publishing
                published.extend(await relay.publish(entries(partition, number + 1, number + size)))
                number += size
            return number

        async with asyncio.TaskGroup() as group:
            writers = [group.create_task(write(partition)) for partition in range(partitions)]
            for _ in range(3):
                goal = len(published) + 400
                await until(lambda goal=goal: len(published) >= goal)
                nats.kill()
                await asyncio.to_thread(nats.start)
            goal = len(published) + 400
            await until(lambda goal=goal: len(published) >= goal)
            stop = True
        found = await stored(room)
        for partition in range(partitions):
            mine = [data for _, data in found if data.startswith(b"%d/" % partition)]
            assert mine == [b"%d/%d" % (partition, n) for n in range(1, writers[partition].result() + 1)]
        told = {(b"%d/%d" % (p.partition, p.output_no)): p.sequence for p in published}
        assert told == {data: sequence for sequence, data in found}


async def test_unfenced_writers_publish_in_number_order_across_processes(
    connect: Connect, tmp_path: Path
) -> None:
    await connect("roomserver")
    database = toy.open_database(toy.sqlite_url(tmp_path))
    try:
        one, two = await connect("clientapi"), await connect("clientapi")

        async def load_missing(partition: int, after: int, before: int) -> list[OutboxEntry]:
            return await database.read(outbox.load, partition=partition, after=after, before=before)

        def commit(conn: Any, count: int) -> list[OutboxEntry]:
            first = outbox.allot(conn, 3, count)
            made = [entry(3, number, kind="user.account_data") for number in range(first, first + count)]
            outbox.append(conn, made)
            return made

        async with (
            relaying(one, kind=None, load_missing=load_missing) as first,
            relaying(two, kind=None, load_missing=load_missing) as second,
        ):
            by_first = await database.write(commit, 2)
            by_second = await database.write(commit, 1)  # published before the first's, who is slow
            await second.publish(by_second)
            await first.publish(by_first)
            found = [data for _, data in await stored(one)]
            first_seen = list(dict.fromkeys(found))
            assert first_seen == [b"3/1", b"3/2", b"3/3"]
            await database.write(outbox.delete_through, second.deletable())
            assert await database.read(outbox.load) == []
            third = await database.write(commit, 1)
            assert third[0].output_no == 4
            await first.publish(third)
    finally:
        database.close()


async def test_the_outbox_stores_numbers_and_progress(database_url: str) -> None:
    database: Database = toy.open_database(database_url)
    try:

        def unit(conn: Any) -> list[OutboxEntry]:
            assert outbox.allot(conn, 3, 2) == 1
            assert outbox.allot(conn, 4, 1) == 1
            assert outbox.allot(conn, 3, 5) == 3
            made = [*entries(3, 1, 7), OutboxEntry(4, 1, 9, "s", b"\x00\xff", {"A": "é"})]
            outbox.append(conn, made)
            return made

        made = await database.write(unit)
        assert await database.read(outbox.load) == made
        assert await database.read(outbox.load, partition=3, after=2, before=5) == made[2:4]
        await database.write(outbox.delete_through, [Published(3, 5, 77), Published(4, 1, 78)])
        assert await database.read(outbox.load) == made[5:7]
        progress = await database.read(outbox.load_progress)
        assert progress == {3: Published(3, 5, 77), 4: Published(4, 1, 78)}
        # An older report changes nothing.
        await database.write(outbox.delete_through, [Published(3, 4, 70)])
        assert (await database.read(outbox.load_progress))[3] == Published(3, 5, 77)
        too_large = OutboxEntry(3, 8, 1, "s", b"x" * (MAX_DATA_BYTES + 1))
        with pytest.raises(ValueError, match="more than"):
            await database.write(outbox.append, [too_large])
    finally:
        database.close()

"""Reading from a position on, whatever happens to NATS."""

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest

from servicekit.log import reader as reader_module
from servicekit.log.connection import LogConnection
from servicekit.log.errors import (
    EpochChanged,
    LogUnavailable,
    PositionAhead,
    PositionLost,
    PositionTooOld,
    PublishTimeout,
)
from servicekit.log.reader import Batch, LogReader
from tests.support.nats import NatsProcess, until

Connect = Callable[..., Awaitable[LogConnection]]
OUT = "room.output.3.abc"


async def _collect(reader: LogReader, count: int, max_messages: int = 300) -> list[Batch]:
    """Return batches until they hold `count` messages in all."""
    batches: list[Batch] = []
    async with asyncio.timeout(20), aclosing(reader.batches(max_messages)) as source:
        async for batch in source:
            batches.append(batch)
            if sum(len(b.messages) for b in batches) >= count:
                return batches
    raise AssertionError("the reader ended")


async def _fill(connection: LogConnection, count: int, subject: str = OUT) -> None:
    await asyncio.gather(*(connection.publish_nowait(subject, b"%d" % n) for n in range(count)))


async def test_batches_hold_all_in_order_with_what_was_sent(connect: Connect) -> None:
    room, follower = await connect("roomserver"), await connect("syncapi")
    before_ms = time.time_ns() // 1_000_000
    await room.publish(OUT, b"with headers", {"Arbor-Output-No": "7", "Other": "ünï"})
    await _fill(room, 999)
    batches = await _collect(LogReader(follower, "OUTPUT"), 1000)
    messages = [message for batch in batches for message in batch.messages]
    assert [message.sequence for message in messages] == list(range(1, 1001))
    assert [message.data for message in messages[1:]] == [b"%d" % n for n in range(999)]
    assert messages[0].headers == {"Arbor-Output-No": "7", "Other": "ünï"}
    assert messages[1].headers == {}
    assert messages[0].subject == OUT
    assert before_ms - 1000 <= messages[0].time_ms <= time.time_ns() // 1_000_000 + 1000
    assert len(batches) < 50
    assert all(len(batch.messages) <= 300 for batch in batches)
    assert batches[-1].through == 1000


async def test_it_begins_after_the_position(connect: Connect) -> None:
    room, follower = await connect("roomserver"), await connect("syncapi")
    await _fill(room, 20)
    (batch,) = await _collect(LogReader(follower, "OUTPUT", after=15, epoch=room.epoch("OUTPUT")), 5)
    assert [message.sequence for message in batch.messages] == [16, 17, 18, 19, 20]
    assert batch.epoch == room.epoch("OUTPUT")


async def test_idle_one_message_comes_at_once(connect: Connect) -> None:
    room, follower = await connect("roomserver"), await connect("syncapi")
    reader = LogReader(follower, "OUTPUT")
    delays = []
    async with asyncio.timeout(20), aclosing(reader.batches()) as source:
        for number in range(30):
            started = time.perf_counter()
            acked = room.publish_nowait(OUT, b"%d" % number)
            batch = await anext(source)
            delays.append(time.perf_counter() - started)
            assert [message.data for message in batch.messages] == [b"%d" % number]
            await acked
    delays.sort()
    assert delays[len(delays) // 2] < 0.05


async def test_filters_take_what_they_name_and_the_position_moves_over_the_rest(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "SKIP_CHECK_S", 0.0)
    monkeypatch.setattr(reader_module, "IDLE_HEARTBEAT_S", 0.2)
    room, edge = await connect("roomserver"), await connect("clientapi")
    await _fill(room, 3)
    await _fill(edge, 3, "user.account_data.1.abc")
    await _fill(edge, 3, "room.receipt.1.abc")
    reader = LogReader(edge, "OUTPUT", ["room.output.>", "room.receipt.>"])
    async with asyncio.timeout(20), aclosing(reader.batches()) as source:
        seen: list[int] = []
        async for batch in source:
            seen += [message.sequence for message in batch.messages]
            if batch.through == 9:
                break
        assert seen == [1, 2, 3, 7, 8, 9]
        # Nothing that it reads comes any more, only what it skips.
        await _fill(edge, 5, "user.account_data.1.abc")
        async for batch in source:
            assert batch.messages == []
            if batch.through == 14:
                break
        await room.publish(OUT, b"next")
        batch = await anext(source)
        assert [message.sequence for message in batch.messages] == [15]


async def test_what_is_not_taken_stays_bounded(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "PULL_MESSAGES", 20)
    room, follower = await connect("roomserver"), await connect("syncapi")
    await _fill(room, 1000)
    reader = LogReader(follower, "OUTPUT")
    async with asyncio.timeout(20), aclosing(reader.batches(10)) as source:
        seen = []
        async for batch in source:
            await follower.flush()  # whatever was asked for has come by now
            assert len(reader._buffer) <= 3 * 20
            seen += [message.sequence for message in batch.messages]
            if len(seen) == 1000:
                break
    assert seen == list(range(1, 1001))


async def test_nats_killed_under_load_the_reader_goes_on_within_seconds(
    nats: NatsProcess, connect: Connect
) -> None:
    room, follower = await connect("roomserver"), await connect("syncapi")
    reader = LogReader(follower, "OUTPUT")
    acked: list[int] = []
    stop = asyncio.Event()
    seen: list[int] = []
    outages: list[float] = []

    async def write() -> None:
        while not stop.is_set():
            try:
                acked.append(await room.publish(OUT, b"x" * 200, timeout_s=10))
            except (PublishTimeout, LogUnavailable):
                continue

    async def read() -> None:
        async with aclosing(reader.batches()) as source:
            async for batch in source:
                seen.extend(message.sequence for message in batch.messages)
                if any(message.data == b"last" for message in batch.messages):
                    return

    async with asyncio.TaskGroup() as group, asyncio.timeout(60):
        group.create_task(read())
        writing = group.create_task(write())
        for _ in range(3):
            goal = len(seen) + 200
            await until(lambda goal=goal: len(seen) >= goal)
            nats.kill()
            await asyncio.to_thread(nats.start)
            back = time.perf_counter()
            goal = len(seen) + 1
            await until(lambda goal=goal: len(seen) >= goal)
            outages.append(time.perf_counter() - back)
        stop.set()
        await writing
        await room.publish(OUT, b"last")
    assert seen == sorted(set(seen))
    assert set(acked) <= set(seen)
    assert max(outages) < 5
    assert reader.reopened >= 3


async def test_a_deleted_consumer_and_a_gap_are_mended(connect: Connect) -> None:
    room, follower = await connect("roomserver"), await connect("syncapi")
    reader = LogReader(follower, "OUTPUT")
    async with asyncio.timeout(20), aclosing(reader.batches()) as source:
        await _fill(room, 5)
        seen = [message.sequence for message in (await anext(source)).messages]
        await follower.request_api(f"CONSUMER.DELETE.OUTPUT.{reader._consumer}", {})
        await _fill(room, 5)
        while len(seen) < 10:
            seen += [message.sequence for message in (await anext(source)).messages]
        # A message that gets lost on the way to us.
        reader._consumer_sequence -= 1
        await _fill(room, 5)
        while len(seen) < 15:
            seen += [message.sequence for message in (await anext(source)).messages]
    assert seen == list(range(1, 16))
    assert reader.reopened == 2


async def test_missed_heartbeats_open_it_anew(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "MISSED_HEARTBEAT_S", 0.3)  # heartbeats come every 2 s
    room, follower = await connect("roomserver"), await connect("syncapi")
    reader = LogReader(follower, "OUTPUT")
    async with asyncio.TaskGroup() as group, asyncio.timeout(20), aclosing(reader.batches()) as source:
        first = group.create_task(anext(source))
        await until(lambda: reader.reopened >= 2)
        await room.publish(OUT, b"x")
        assert [message.sequence for message in (await first).messages] == [1]


async def test_deleted_sequences_in_between_are_normal(connect: Connect) -> None:
    room, follower = await connect("roomserver"), await connect("syncapi")
    await _fill(room, 3)
    await _fill(room, 3, "room.output.4.purged")
    await _fill(room, 3)
    answer = await room.request_api("STREAM.PURGE.OUTPUT", {"filter": "room.output.4.purged"})
    assert answer["purged"] == 3
    batches = await _collect(LogReader(follower, "OUTPUT"), 6)
    assert [m.sequence for b in batches for m in b.messages] == [1, 2, 3, 7, 8, 9]


async def _lost(connection: LogConnection, after: int, epoch: str | None) -> PositionLost:
    reader = LogReader(connection, "OUTPUT", after=after, epoch=epoch)
    async with asyncio.timeout(20), aclosing(reader.batches()) as source:
        with pytest.raises(PositionLost) as lost:
            await anext(source)
    return lost.value


async def test_a_position_older_than_the_log_is_reported(connect: Connect) -> None:
    room = await connect("roomserver")
    epoch = room.epoch("OUTPUT")
    await _fill(room, 10)
    await room.request_api("STREAM.PURGE.OUTPUT", {"seq": 6})
    for after in (0, 1, 4):
        lost = await _lost(room, after, epoch)
        assert isinstance(lost, PositionTooOld)
        assert (lost.first_sequence, lost.after, lost.stream, lost.epoch) == (6, after, "OUTPUT", epoch)
    batches = await _collect(LogReader(room, "OUTPUT", after=5, epoch=epoch), 5)
    assert batches[0].messages[0].sequence == 6
    # All gone: what stands at the end has missed nothing, who stands before it has.
    await room.request_api("STREAM.PURGE.OUTPUT", {})
    assert isinstance(await _lost(room, 9, epoch), PositionTooOld)
    reader = LogReader(room, "OUTPUT", after=10, epoch=epoch)
    async with asyncio.timeout(20), aclosing(reader.batches()) as source:
        await _fill(room, 1)
        assert [m.sequence for m in (await anext(source)).messages] == [11]
    assert isinstance(await _lost(room, 400, epoch), PositionAhead)


async def test_a_stream_made_to_begin_later_has_no_hole_before_it(connect: Connect) -> None:
    room = await connect("roomserver", first=5000)
    reader = LogReader(room, "OUTPUT", after=0)
    async with asyncio.timeout(20), aclosing(reader.batches()) as source:
        assert (await anext(source)).through == 4999
        await _fill(room, 2)
        assert (await anext(source)).messages[0].sequence == 5000


async def test_a_stream_made_anew_is_reported_unless_nothing_was_missed(
    nats: NatsProcess, connect: Connect
) -> None:
    room = await connect("roomserver")
    old = room.epoch("OUTPUT")
    await _fill(room, 10)
    await room.close()
    operator = await connect("operator", streams=False)
    nats.kill()
    shutil.rmtree(nats.store_dir)
    nats.start()
    await operator.wait_connected()
    again = await connect("roomserver", first=11)
    assert again.epoch("OUTPUT") != old
    await _fill(again, 2)
    for after in (0, 9, 500):
        lost = await _lost(again, after, old)
        assert isinstance(lost, EpochChanged)
        assert lost.first_sequence == 11
    (batch,) = await _collect(LogReader(again, "OUTPUT", after=10, epoch=old), 2)
    assert [m.sequence for m in batch.messages] == [11, 12]
    assert batch.epoch == again.epoch("OUTPUT")


async def test_live_is_read_from_now_and_survives_being_lost(nats: NatsProcess, connect: Connect) -> None:
    room, edge = await connect("roomserver"), await connect("clientapi")
    reader = LogReader(edge, "LIVE", after=None)
    async with asyncio.timeout(20), aclosing(reader.batches()) as source:
        await edge.publish("live.typing.1.abc", b"before")
        first = await anext(source)
        assert [m.data for m in first.messages] == [b"before"]
        nats.kill()
        nats.start()
        await until(lambda: not edge.connected)
        await until(lambda: room.connected and edge.connected)
        await edge.wait_for_streams()
        await edge.publish("live.typing.1.abc", b"after")
        anew = await anext(source)  # says that it was made anew, before anything comes
        assert anew.messages == []
        second = await anext(source)
        assert [m.data for m in second.messages] == [b"after"]
        assert second.epoch == anew.epoch
        assert second.epoch != first.epoch


USER_OUT = "user.account_data.3.abc"


class Reading:
    """A reader that takes what comes, and can be made to wait."""

    def __init__(self, connection: LogConnection, *subjects: str) -> None:
        self.reader = LogReader(connection, "OUTPUT", subjects)
        self.sequences: list[int] = []
        self.may_take = asyncio.Event()
        self.may_take.set()

    async def run(self) -> None:
        async with aclosing(self.reader.batches()) as source:
            async for batch in source:
                self.sequences += [message.sequence for message in batch.messages]
                await self.may_take.wait()

    async def reaches(self, sequence: int) -> None:
        await until(lambda: bool(self.sequences) and self.sequences[-1] >= sequence, timeout_s=20)


async def _consumers(connection: LogConnection) -> int:
    return int((await connection.request_api("STREAM.INFO.OUTPUT", {}))["state"]["consumer_count"])


async def _until_consumers(connection: LogConnection, count: int) -> None:
    async with asyncio.timeout(20):
        while await _consumers(connection) != count:
            await asyncio.sleep(0.01)


async def test_a_reader_with_filters_reads_along_with_one_of_everything(
    nats: NatsProcess, connect: Connect
) -> None:
    room, syncapi, federation = (
        await connect("roomserver"),
        await connect("syncapi"),
        await connect("federation"),
    )
    clientapi = await connect("clientapi")
    everything, rooms = Reading(syncapi), Reading(federation, "room.output.>", "room.receipt.>")
    await _fill(room, 20)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(reading.run()) for reading in (everything, rooms)]
        await everything.reaches(20)
        await rooms.reaches(20)
        await _until_consumers(room, 1)
        for n in range(50):
            await clientapi.publish(USER_OUT, b"%d" % n)
            await room.publish(OUT, b"%d" % n)
        await rooms.reaches(120)
        assert everything.sequences == list(range(1, 121))
        assert rooms.sequences == [*range(1, 21), *range(22, 121, 2)]
        # What is in the way of the one does not hold up the other.
        everything.may_take.clear()
        for start in range(0, 2000, 500):
            await _fill(room, 500)
            await rooms.reaches(120 + start + 500)
        assert len(everything.sequences) < 1500
        everything.may_take.set()
        await everything.reaches(2120)
        await room.publish(OUT, b"both go on")
        await rooms.reaches(2121)
        await _until_consumers(room, 1)
        # After trouble both go on, and together.
        nats.kill()
        await until(lambda: not room.connected)
        await asyncio.to_thread(nats.start)
        await room.wait_connected()
        await room.publish(OUT, b"after the trouble")
        await everything.reaches(2122)
        await rooms.reaches(2122)
        await room.publish(OUT, b"and on")
        await rooms.reaches(2123)
        await _until_consumers(room, 1)
        # Whoever led may end.
        tasks[0].cancel()
        for n in range(3):
            await room.publish(OUT, b"alone %d" % n)
        await rooms.reaches(2126)
        assert rooms.sequences == [*range(1, 21), *range(22, 121, 2), *range(121, 2127)]
        tasks[1].cancel()


async def test_a_reader_that_falls_far_behind_what_it_reads_along_with_goes_alone(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "ALONG_MESSAGES", 100)
    room, syncapi, federation = (
        await connect("roomserver"),
        await connect("syncapi"),
        await connect("federation"),
    )
    everything, rooms = Reading(syncapi), Reading(federation, "room.output.>")
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(reading.run()) for reading in (everything, rooms)]
        await _fill(room, 5)
        await everything.reaches(5)
        await rooms.reaches(5)
        await _until_consumers(room, 1)
        rooms.may_take.clear()
        await _fill(room, 500)
        await everything.reaches(505)
        assert len(rooms.reader._buffer) <= 101
        rooms.may_take.set()
        await rooms.reaches(505)
        assert rooms.sequences == list(range(1, 506)) == everything.sequences
        for task in tasks:
            task.cancel()

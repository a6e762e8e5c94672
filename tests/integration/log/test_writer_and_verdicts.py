"""Joining writes to one subject, and waiting for verdicts."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from arbor.log.v1 import input_pb2
from servicekit.log.connection import LogConnection
from servicekit.log.errors import LogUnavailable, PublishTimeout, VerdictTimeout
from servicekit.log.reader import LogReader
from servicekit.log.subjects import room_input_subject
from servicekit.log.verdicts import VerdictInbox
from servicekit.log.writer import LogWriter
from tests.support.nats import NatsProcess, until

Connect = Callable[..., Awaitable[LogConnection]]


def request(room_id: str, request_id: str, reply_to: str = "") -> bytes:
    entry = input_pb2.InputEntry(request_id=request_id, reply_to=reply_to)
    return input_pb2.InputMessage(room_id=room_id, entries=[entry]).SerializeToString()


def decode(data: bytes) -> list[tuple[str, input_pb2.Verdict]]:
    return [(verdict.request_id, verdict) for verdict in input_pb2.Verdicts.FromString(data).verdicts]


async def test_what_comes_while_one_is_on_its_way_goes_together(connect: Connect) -> None:
    room, edge = await connect("roomserver"), await connect("clientapi")
    writer = LogWriter(edge)
    rooms = ["!a:x", "!b:x"]
    async with asyncio.timeout(20):
        sequences = await asyncio.gather(
            *(
                writer.publish(room_input_subject(room_id, 16), request(room_id, f"{room_id}{number}"))
                for number in range(250)
                for room_id in rooms
            )
        )
    info = await room.load_stream("INPUT")
    assert info is not None
    assert info.messages <= 2 * 5  # one alone, then by the hundred
    reader = LogReader(room, "INPUT")
    got: dict[str, list[str]] = {room_id: [] for room_id in rooms}
    where: dict[str, int] = {}
    async for batch in reader.batches():
        for message in batch.messages:
            parsed = input_pb2.InputMessage.FromString(message.data)
            ids = [entry.request_id for entry in parsed.entries]
            got[parsed.room_id] += ids
            where |= dict.fromkeys(ids, message.sequence)
        if batch.through >= info.last_sequence:
            break
    for room_id in rooms:
        assert got[room_id] == [f"{room_id}{number}" for number in range(250)]
    names = [f"{room_id}{number}" for number in range(250) for room_id in rooms]
    assert [where[name] for name in names] == sequences


async def test_a_writer_waits_for_nats_and_fails_all_that_went_together(
    nats: NatsProcess, connect: Connect
) -> None:
    await connect("roomserver")
    edge = await connect("clientapi")
    writer = LogWriter(edge, timeout_s=0.5)
    subject = room_input_subject("!a:x", 16)
    nats.kill()
    await until(lambda: not edge.connected)
    outcomes = await asyncio.gather(
        *(writer.publish(subject, request("!a:x", str(n))) for n in range(5)), return_exceptions=True
    )
    assert all(isinstance(outcome, LogUnavailable | PublishTimeout) for outcome in outcomes)
    await asyncio.to_thread(nats.start)
    async with asyncio.timeout(10):
        await edge.wait_connected()
        assert await writer.publish(subject, request("!a:x", "later")) == 1


async def test_verdicts_of_a_batch_reach_those_who_wait(nats: NatsProcess, connect: Connect) -> None:
    room, edge, other = await connect("roomserver"), await connect("clientapi"), await connect("clientapi")
    inbox = await VerdictInbox.open(edge, decode)
    foreign = await VerdictInbox.open(other, decode)
    assert inbox.subject != foreign.subject
    await edge.flush()

    def send(*request_ids: str) -> None:
        verdicts = [
            input_pb2.Verdict(request_id=request_id, event_id="$" + request_id) for request_id in request_ids
        ]
        assert room.publish_core(inbox.subject, input_pb2.Verdicts(verdicts=verdicts).SerializeToString())

    with inbox.expect("r1") as first, inbox.expect("r2") as second, foreign.expect("r1") as not_mine:
        send("r2", "nobody waits for this", "r1", "r1")
        assert (await first.wait(5)).event_id == "$r1"
        assert (await second.wait(5)).event_id == "$r2"
        with pytest.raises(VerdictTimeout):
            await not_mine.wait(0.05)
        with pytest.raises(ValueError, match="in use"), inbox.expect("r1"):
            pass
    # What does not decode harms nobody, and a restart of NATS neither.
    room.publish_core(inbox.subject, b"\xff\xff\xff")
    with inbox.expect("r3") as third:
        nats.kill()
        await until(lambda: not (edge.connected or room.connected))
        assert not room.publish_core(inbox.subject, b"")
        await asyncio.to_thread(nats.start)
        await until(lambda: edge.connected and room.connected)
        await edge.flush()
        send("r3")
        assert (await third.wait(5)).event_id == "$r3"
    with pytest.raises(VerdictTimeout):
        await inbox.wait("r4", 0.05)
    assert not inbox._expected

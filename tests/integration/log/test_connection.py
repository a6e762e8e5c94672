"""Connecting, streams, permissions and publishing, on a real nats-server."""

import asyncio
from base64 import b64encode
from collections.abc import Awaitable, Callable

import pytest
from google.protobuf.message import DecodeError
from nats.aio.msg import Msg

from arbor.log.v1.output_pb2 import OutputMessage
from servicekit.log.connection import LogConnection
from servicekit.log.errors import (
    LogFull,
    LogUnavailable,
    MessageTooLarge,
    NatsTooOld,
    PublishRefused,
    PublishTimeout,
    StreamMismatch,
)
from servicekit.log.reader import LogReader
from servicekit.nats_server import SERVICES
from tests.support.nats import NatsProcess, until

Connect = Callable[..., Awaitable[LogConnection]]
IN = "room.input.3.abc"
OUT = "room.output.3.abc"


async def _batch(connection: LogConnection, messages: list) -> int:
    future = asyncio.get_running_loop().create_future()

    def on_done(sequence: int, error: Exception | None) -> None:
        if error is None:
            future.set_result(sequence)
        else:
            future.set_exception(error)

    connection.publish_batch(messages, on_done)
    return await future


async def test_publish_returns_increasing_sequences_and_pipelines(connect: Connect) -> None:
    await connect("roomserver")
    writer = await connect("clientapi")
    assert await writer.publish(IN, b"one") == 1
    sequences = await asyncio.gather(*(writer.publish_nowait(IN, b"x" * 100, {"A": "b"}) for _ in range(200)))
    assert list(sequences) == list(range(2, 202))


async def test_a_fence_refuses_and_tells_the_actual_sequence(connect: Connect) -> None:
    room = await connect("roomserver", first=1000)
    fence = {"Nats-Expected-Last-Subject-Sequence-Subject": "room.output.3.>"}
    assert await room.publish(OUT, b"1", {**fence, "Nats-Expected-Last-Subject-Sequence": "0"}) == 1000
    with pytest.raises(PublishRefused) as refused:
        await room.publish(OUT, b"2", {**fence, "Nats-Expected-Last-Subject-Sequence": "0"})
    assert refused.value.fence
    assert refused.value.actual == 1000
    with pytest.raises(PublishRefused):
        await _batch(
            room, [(OUT, b"2", {**fence, "Nats-Expected-Last-Subject-Sequence": "5"}), (OUT, b"3", None)]
        )
    last = await _batch(
        room,
        [(OUT, b"2", {**fence, "Nats-Expected-Last-Subject-Sequence": "1000"})] + [(OUT, b"3", None)] * 499,
    )
    assert last == 1500
    stored = await room.load_last("OUTPUT", "room.output.3.>")
    assert stored is not None
    assert stored["seq"] == 1500
    assert await room.load_last("OUTPUT", "room.output.4.>") is None


async def test_too_large_and_no_stream_are_told_apart(connect: Connect) -> None:
    writer = await connect("clientapi", streams=False)
    with pytest.raises(LogUnavailable):
        await writer.publish(IN, b"nobody takes it")
    await connect("roomserver")
    with pytest.raises(MessageTooLarge):
        await writer.publish(IN, b"x" * (1024 * 1024 + 100_000))
    with pytest.raises(MessageTooLarge):
        await writer.publish(IN, b"x" * (3 * 1024 * 1024))
    assert await writer.publish(IN, b"x" * 1024 * 1024) == 1


async def test_a_full_output_refuses_rather_than_loses(connect: Connect) -> None:
    room = await connect("roomserver", max_bytes=100_000)
    with pytest.raises(LogFull):
        await asyncio.gather(*(room.publish_nowait(OUT, b"x" * 5000) for _ in range(100)))
    info = await room.load_stream("OUTPUT")
    assert info is not None
    assert info.first_sequence == 1
    assert info.messages == info.last_sequence > 10


async def test_nobody_else_publishes_what_the_roomserver_tells_or_reads_input(connect: Connect) -> None:
    room = await connect("roomserver")
    await room.publish(IN.replace("input", "output"), b"mine")
    for service in set(SERVICES) - {"roomserver"}:
        other = await connect(service)
        with pytest.raises(PublishTimeout):
            await other.publish(OUT, b"forged", timeout_s=0.2)
        other.publish_core("verdict.clientapi.x", b"forged")
        if service != "operator":
            with pytest.raises(LogUnavailable):
                await other.request_api("STREAM.MSG.GET.INPUT", {"seq": 1}, timeout_s=0.3)
    info = await room.load_stream("OUTPUT")
    assert info is not None
    assert info.messages == 1


async def test_an_answer_sent_into_output_cannot_look_like_an_entry(connect: Connect) -> None:
    """NATS does not check where an answer is wanted.

    Security row 39: a forged message cannot create state.
    """
    room, edge = await connect("roomserver"), await connect("clientapi")
    await room.publish(OUT, b"genuine", {"Arbor-Writer": "roomserver", "Arbor-Output-No": "1"})
    forged = {"Arbor-Writer": "roomserver", "Arbor-Partition": "3", "Arbor-Output-No": "2"}
    await edge.publish("user.account_data.3.abc", b"forged", forged)
    consumer = {"name": "c", "ack_policy": "none", "deliver_policy": "all"}
    body = {"stream_name": "OUTPUT", "config": consumer}
    assert "error" not in await edge.request_api("CONSUMER.CREATE.OUTPUT.c", body)
    await edge.nc.publish("$JS.API.STREAM.INFO.OUTPUT", b"", reply=OUT)
    await edge.nc.publish("user.account_data.3.abc", b"x", reply=OUT)
    await edge.nc.publish("$JS.API.CONSUMER.MSG.NEXT.OUTPUT.c", b"2", reply=OUT)
    await edge.flush()
    await edge.publish("user.account_data.3.abc", b"end")
    info = await room.load_stream("OUTPUT")
    assert info is not None
    reader = LogReader(room, "OUTPUT", ["room.output.>"])
    async for batch in reader.batches():
        for message in batch.messages:
            if message.headers:
                # At most the genuine one again, which readers drop by its number.
                assert message.headers["Arbor-Output-No"] == "1"
                assert message.data == b"genuine"
            else:
                with pytest.raises(DecodeError):
                    OutputMessage.FromString(message.data)
        if batch.through >= info.last_sequence:
            break


async def test_only_its_service_hears_a_verdict(connect: Connect) -> None:
    room = await connect("roomserver")
    mine, other = await connect("clientapi"), await connect("federation")
    heard: list[tuple[str, bytes]] = []
    got = asyncio.Event()

    def hear(name: str) -> Callable[..., None]:
        def handler(subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
            heard.append((name, data))
            got.set()

        return handler

    await mine.nc.subscribe_raw("verdict.clientapi.1", hear("mine"))
    await other.nc.subscribe_raw("verdict.clientapi.1", hear("other"))
    await mine.flush()
    await other.flush()
    assert room.publish_core("verdict.clientapi.1", b"accepted")
    async with asyncio.timeout(5):
        await got.wait()
    await other.flush()
    assert heard == [("mine", b"accepted")]


async def test_streams_are_made_once_and_never_changed_destructively(
    nats: NatsProcess, connect: Connect
) -> None:
    first = await connect("roomserver", first=500)
    sequence = await first.publish(OUT, b"kept")
    assert sequence == 500
    epoch = first.epoch("OUTPUT")
    # Lower limits in the configuration delete nothing, higher ones are taken over.
    again = await connect("roomserver", first=9999, output_max_age_s=60.0, max_bytes=200_000)
    info = await again.load_stream("OUTPUT")
    assert info is not None
    assert (info.epoch, info.messages, info.created_first_sequence) == (epoch, 1, 500)
    assert info.config["max_age"] == int(7 * 86400 * 1e9)
    raised = await connect("roomserver", output_max_age_s=30 * 86400.0)
    info = await raised.load_stream("OUTPUT")
    assert info is not None
    assert info.config["max_age"] == int(30 * 86400 * 1e9)
    assert (info.epoch, info.messages) == (epoch, 1)
    # Another partition count is an error, for everybody.
    for service in ("roomserver", "clientapi"):
        with pytest.raises(StreamMismatch, match=r"16 partitions.*says 32"):
            await connect(service, partitions=32)
    info = await first.load_stream("OUTPUT")
    assert info is not None
    assert info.messages == 1


async def test_a_stream_that_is_not_ours_is_left_alone(connect: Connect) -> None:
    operator = await connect("operator", streams=False)
    made = await operator.request_api("STREAM.CREATE.INPUT", {"name": "INPUT", "subjects": ["room.input.>"]})
    assert "error" not in made
    with pytest.raises(StreamMismatch, match="not made by Arbor"):
        await connect("roomserver")


async def test_waiting_for_streams_ends_when_they_are_made(connect: Connect) -> None:
    reader = await connect("syncapi", streams=False)
    async with asyncio.TaskGroup() as group, asyncio.timeout(10):
        waiting = group.create_task(reader.wait_for_streams())
        await reader.request_api("STREAM.INFO.OUTPUT", {})
        assert not waiting.done()
        room = await connect("roomserver")
        await waiting
    assert reader.epoch("OUTPUT") == room.epoch("OUTPUT")
    assert reader.epoch("OUTPUT") != reader.epoch("INPUT")


async def test_killed_under_load_nothing_acked_is_lost(nats: NatsProcess, connect: Connect) -> None:
    room = await connect("roomserver")
    writer = await connect("clientapi")
    acked: dict[int, int] = {}
    unknown = 0
    stop = False

    async def write(worker: int) -> None:
        nonlocal unknown
        number = worker * 1_000_000
        while not stop:
            number += 1
            try:
                acked[number] = await writer.publish(IN, b"%d" % number, timeout_s=10)
            except (PublishTimeout, LogUnavailable):
                unknown += 1

    async with asyncio.TaskGroup() as group, asyncio.timeout(60):
        for worker in range(1, 9):
            group.create_task(write(worker))
        for _ in range(3):
            goal = len(acked) + 200
            await until(lambda goal=goal: len(acked) >= goal)
            nats.kill()
            await asyncio.to_thread(nats.start)
        goal = len(acked) + 200
        await until(lambda: len(acked) >= goal)
        stop = True
    assert unknown > 0
    await room.wait_connected()
    assert len(set(acked.values())) == len(acked)
    for number, sequence in acked.items():
        stored = await room.load_next("INPUT", "room.input.>", sequence)
        assert stored is not None
        assert (stored["seq"], stored["data"]) == (sequence, _b64(number))


def _b64(number: int) -> str:
    return b64encode(b"%d" % number).decode()


async def test_live_is_there_again_after_a_restart(nats: NatsProcess, connect: Connect) -> None:
    room = await connect("roomserver")
    edge = await connect("clientapi")
    await edge.publish("live.typing.1.abc", b"typing")
    before = room.epoch("LIVE")
    output = room.epoch("OUTPUT")
    nats.kill()
    nats.start()
    async with asyncio.timeout(10):
        while True:
            try:
                assert await edge.publish("live.typing.1.abc", b"typing") == 1
                break
            except (LogUnavailable, PublishTimeout):
                await asyncio.sleep(0.02)
    await edge.wait_for_streams()
    assert edge.epoch("LIVE") != before
    assert edge.epoch("OUTPUT") == output


async def test_a_wrong_password_is_retried_not_fatal_and_an_old_server_is_refused(
    nats: NatsProcess, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = nats.settings("clientapi", password="wrong")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await LogConnection.connect(settings, "clientapi")
    monkeypatch.setattr("servicekit.nats_server.OLDEST_VERSION", (99, 0))
    with pytest.raises(NatsTooOld, match=r"2\.15\.\d+; 2\.12 or later is needed"):
        await LogConnection.connect(nats.settings("clientapi"), "clientapi")


async def test_whoever_waits_for_a_closed_connection_is_told(nats: NatsProcess, connect: Connect) -> None:
    edge = await connect("clientapi", streams=False)
    nats.kill()
    await until(lambda: not edge.connected)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        waiting = group.create_task(_outcome(edge.wait_connected()))
        publishing = group.create_task(_outcome(edge.publish(IN, b"x", timeout_s=30)))
        await asyncio.sleep(0)
        await edge.close()
    assert isinstance(waiting.result(), LogUnavailable)
    assert isinstance(publishing.result(), LogUnavailable)


async def _outcome(awaitable: Awaitable[object]) -> object:
    try:
        return await awaitable
    except LogUnavailable as error:
        return error


async def test_a_cancellation_together_with_the_answer_counts(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = await connect("roomserver")
    answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()

    async def request(*arguments: object, **options: object) -> Msg:
        return await asyncio.wait_for(answer, 5)

    monkeypatch.setattr(connection.nc, "request", request)
    monkeypatch.setattr(connection.nc, "flush", request)
    for call in (connection.request_api("INFO", {}), connection.flush()):
        task = asyncio.get_running_loop().create_task(call)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if not answer.done():
            answer.set_result(Msg(connection.nc, subject="", data=b"{}"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        answer = asyncio.get_running_loop().create_future()

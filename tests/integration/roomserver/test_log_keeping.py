"""What the log keeps and loses: secure erasure, INPUT made anew, entries delivered more than once, states by
reference.
"""

import asyncio
import base64
import contextlib
import random
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from arbor.log.v1.input_pb2 import InputEntry, PurgeRoom, VerdictCode
from arbor.log.v1.output_pb2 import OutputMessage
from arbor.roomserver.v1 import query_pb2
from matrixlib.events import Event
from roomserver import metrics
from roomserver.input import apply
from roomserver.rpc import reads
from servicekit.log.errors import LogError
from servicekit.log.reader import LogReader
from servicekit.log.subjects import INPUT, OUTPUT
from tests.support.judging import JudgeBench, foreign, local
from tests.support.nats import NatsProcess, running_nats
from tests.support.rooms import ALICE, BOB, Room
from tests.support.running_roomserver import World, running_roomserver

CODE = VerdictCode
ACCEPTED = CODE.VERDICT_CODE_ACCEPTED
SECRET = "a word that nobody shall find"


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsProcess]:
    with running_nats(tmp_path) as server:
        yield server


@pytest.fixture
async def erasing(tmp_path: Path, nats: NatsProcess) -> AsyncIterator[World]:
    async with running_roomserver(tmp_path, nats, **{"log.secure_erase": "true"}) as made:
        yield made


async def create(world: World, version: str = "12") -> tuple[Room, str]:
    room = Room(version)
    room_id = room.room_id or ""
    verdict = await world.submit(local(room_id, [room.events[i] for i in room.order]))
    assert verdict.code == ACCEPTED
    return room, room_id


async def say(world: World, room: Room, body: str) -> tuple[Event, int, int]:
    """A message, and where it stands on INPUT and OUTPUT."""
    event = room.send(ALICE, "m.room.message", {"body": body})
    verdict = await world.submit(local(room.room_id or "", [event], txn=event.event_id))
    assert verdict.code == ACCEPTED
    return event, world.last_input, verdict.output_sequence


async def is_stored(world: World, stream: str, sequence: int) -> bool:
    answer = await world.server.connection.request_api(f"STREAM.MSG.GET.{stream}", {"seq": sequence})
    return "error" not in answer


async def log_texts(world: World) -> list[bytes]:
    """All that both streams hold."""
    texts = []
    for stream in (INPUT, OUTPUT):
        info = await world.server.connection.load_stream(stream)
        assert info is not None
        for sequence in range(info.first_sequence, info.last_sequence + 1):
            answer = await world.server.connection.request_api(f"STREAM.MSG.GET.{stream}", {"seq": sequence})
            if "error" not in answer:
                texts.append(base64.b64decode(answer["message"]["data"]))
    return texts


async def exported(world: World) -> list[OutputMessage]:
    parts = [item async for item in world.query.Export(query_pb2.ExportRequest())]
    return [OutputMessage.FromString(item.message) for item in parts[:-1]]


async def gone(world: World, text: str) -> None:
    """Wait until the log has a text no more."""
    async with asyncio.timeout(10):
        while any(text.encode() in item for item in await log_texts(world)):
            await asyncio.sleep(0.05)


async def test_a_redaction_erases_the_event_from_the_log(erasing: World) -> None:
    world = erasing
    room, room_id = await create(world)
    _, kept_input, kept_output = await say(world, room, "kept")
    secret, its_input, its_output = await say(world, room, SECRET)
    redaction = room.send(ALICE, "m.room.redaction", {"redacts": secret.event_id})
    assert (await world.submit(local(room_id, [redaction]))).code == ACCEPTED
    await gone(world, SECRET)
    assert not await is_stored(world, INPUT, its_input)
    assert not await is_stored(world, OUTPUT, its_output)
    assert await is_stored(world, INPUT, kept_input)
    assert await is_stored(world, OUTPUT, kept_output)
    # An export has every message, that one with its redacted form; the room goes on.
    told = [entry.room_event for message in await exported(world) for entry in message.entries]
    assert [event.event_id for event in told if event.event_id] == room.order
    assert SECRET.encode() not in b"".join(event.pdu_json for event in told)
    last, _, _ = await say(world, room, "goes on")
    # A reader passes over the hole.
    reader = LogReader(world.writer, OUTPUT, ["room.output.>"])
    seen: list[str] = []
    async with contextlib.aclosing(reader.batches()) as batches, asyncio.timeout(10):
        async for batch in batches:
            for item in batch.messages:
                entries = OutputMessage.FromString(item.data).entries
                seen += [entry.room_event.event_id for entry in entries if entry.HasField("room_event")]
            if seen and seen[-1] == last.event_id:
                break
    assert seen == [event_id for event_id in room.order if event_id != secret.event_id]


async def test_erasing_state_takes_every_copy(erasing: World) -> None:
    world = erasing
    room, room_id = await create(world, "10")
    topic = room.send(ALICE, "m.room.topic", {"topic": SECRET}, state_key="")
    after = room.send(ALICE, "m.room.topic", {"topic": "harmless"}, state_key="")
    for event in (topic, after):
        assert (await world.submit(local(room_id, [event]))).code == ACCEPTED
    redaction = room.send(ALICE, "m.room.redaction", {}, redacts=topic.event_id)
    assert (await world.submit(local(room_id, [redaction]))).code == ACCEPTED
    await gone(world, SECRET)
    assert SECRET.encode() not in b"".join([m.SerializeToString() for m in await exported(world)])


async def test_without_the_switch_the_log_keeps_what_was_told(tmp_path: Path, nats: NatsProcess) -> None:
    async with running_roomserver(tmp_path, nats) as world:
        room, room_id = await create(world)
        secret, its_input, its_output = await say(world, room, SECRET)
        redaction = room.send(ALICE, "m.room.redaction", {"redacts": secret.event_id})
        assert (await world.submit(local(room_id, [redaction]))).code == ACCEPTED
        await say(world, room, "later")
        assert await is_stored(world, INPUT, its_input)
        assert await is_stored(world, OUTPUT, its_output)


async def test_purging_history_erases_it(erasing: World) -> None:
    world = erasing
    room, room_id = await create(world)
    await say(world, room, SECRET)
    last, _, _ = await say(world, room, "the last that stays")
    purge = InputEntry(
        request_id="purge",
        purge_room=PurgeRoom(before_event_id=last.event_id, delete_local_events=True),
    )
    assert (await world.submit((room_id, [purge]))).code == ACCEPTED
    await gone(world, SECRET)
    assert any(b"the last that stays" in text for text in await log_texts(world))


async def test_purging_a_room_erases_what_was_asked_and_told(erasing: World) -> None:
    world = erasing
    room, room_id = await create(world)
    await say(world, room, SECRET)
    other, _ = await create(world, "11")
    await say(world, other, "of another room")
    purge = InputEntry(request_id="purge", purge_room=PurgeRoom())
    assert (await world.submit((room_id, [purge]))).code == ACCEPTED
    await gone(world, SECRET)
    assert sum(b"of another room" in text for text in await log_texts(world)) == 2


async def test_input_made_anew_while_running_loses_nothing(tmp_path: Path, nats: NatsProcess) -> None:
    async with running_roomserver(tmp_path, nats) as world:
        room, room_id = await create(world)
        before = [(await say(world, room, f"before {number}"))[0] for number in range(5)]
        old_epoch = world.server.connection.epoch(INPUT)
        nats.stop()
        (stream,) = (nats.store_dir / "jetstream").rglob(f"streams/{INPUT}")
        shutil.rmtree(stream)
        nats.start()
        after = []
        for number in range(3):
            event = room.send(ALICE, "m.room.message", {"body": f"after {number}"})
            assert await insist(world, local(room_id, [event], txn=event.event_id)) in (
                ACCEPTED,
                CODE.VERDICT_CODE_DUPLICATE,
            )
            after.append(event)
        # Begun anew, and not judged twice.
        assert world.last_input < 20
        assert world.server.connection.epoch(INPUT) != old_epoch
        latest = await world.query.QueryLatest(query_pb2.QueryLatestRequest(room_id=room_id))
        assert list(latest.forward_extremities) == [after[-1].event_id]
        told = [entry.room_event.event_id for message in await exported(world) for entry in message.entries]
        assert told == room.order
        assert [event.event_id for event in (*before, *after)] == room.order[-8:]


async def insist(world: World, request: tuple[str, list[InputEntry]]) -> int:
    """Ask until there is a verdict, as a client does."""
    async with asyncio.timeout(30):
        while True:
            try:
                return (await world.submit(request, 1)).code
            except (LogError, TimeoutError):
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("seed", range(3))
def test_entries_delivered_more_than_once_are_judged_once(bench: JudgeBench, seed: int) -> None:
    """A writer that does not know whether its publish arrived publishes again, and so does a relay."""
    chance = random.Random(seed)
    room = Room("10")
    room_id = room.room_id or ""
    requests = [local(room_id, [room.events[i] for i in room.order], txn="create")]
    requests.append(foreign(room_id, [room.member(BOB, "join")]))
    for number in range(12):
        if chance.random() < 0.5:
            event = room.send(ALICE, "m.room.message", {"body": str(number)})
            requests.append(local(room_id, [event], txn=event.event_id))
        elif chance.random() < 0.5:
            requests.append(foreign(room_id, [room.send(BOB, "m.room.message", {"body": str(number)})]))
        else:
            event = room.send(ALICE, "m.room.topic", {"topic": str(number)}, state_key="")
            requests.append(local(room_id, [event], txn=event.event_id))
    delivered = [request for request in requests for _ in range(chance.randint(1, 3))]
    while delivered:
        count = chance.randint(1, 5)
        for verdict in bench.submit(*delivered[:count]):
            assert verdict.code in (ACCEPTED, CODE.VERDICT_CODE_DUPLICATE)
        del delivered[:count]
    # Much later copies of all of it change nothing either.
    for verdict in bench.submit(*requests):
        assert verdict.code == CODE.VERDICT_CODE_DUPLICATE
    assert [entry.room_event.event_id for entry in bench.entries] == room.order
    latest = bench.database.read_sync(reads.read_latest, query_pb2.QueryLatestRequest(room_id=room_id))[0]
    assert list(latest.forward_extremities) == room.heads


def test_a_state_reset_is_logged_and_counted(bench: JudgeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What resolution removes from the current state and nobody replaced."""
    lines: list[dict[str, Any]] = []

    class Recorder:
        def warning(self, name: str, **fields: Any) -> None:
            lines.append({"name": name, **fields})

    monkeypatch.setattr(apply, "log", Recorder())
    room = Room("10")
    room_id = room.room_id or ""
    bench.submit(local(room_id, [room.events[i] for i in room.order]))
    bench.submit(foreign(room_id, [room.member(BOB, "join")]))
    levels = {"users": {ALICE: 100, BOB: 50}}
    bench.submit(local(room_id, [room.send(ALICE, "m.room.power_levels", levels, state_key="")]))
    base = room.heads
    topic = room.send(BOB, "m.room.topic", {"topic": "short-lived"}, state_key="")
    assert bench.submit(foreign(room_id, [topic]))[0].code == ACCEPTED
    # On another branch Bob was banned before: resolution takes what he did with his level then.
    ban = room.member(BOB, "ban", by=ALICE, prev=base)
    counted = metrics.state_resets._value.get()
    assert bench.submit(local(room_id, [ban], may_fork=True))[0].code == ACCEPTED
    (line,) = [line for line in lines if line["name"] == "state_removed_by_resolution"]
    assert (line["room_id"], line["cause"], line["removed"]) == (room_id, ban.event_id, 1)
    assert line["first"] == "m.room.topic|"
    assert metrics.state_resets._value.get() == counted + 1


async def test_a_large_change_of_state_is_told_by_reference(tmp_path: Path, nats: NatsProcess) -> None:
    """Above 512 KiB of changes readers fetch the snapshot, as Sync's does."""
    async with running_roomserver(tmp_path, nats) as world:
        room, room_id = await create(world, "10")
        join = room.member(BOB, "join")
        assert (await world.submit(foreign(room_id, [join]))).code == ACCEPTED
        levels = {"users": {ALICE: 100, BOB: 100}}
        event = room.send(ALICE, "m.room.power_levels", levels, state_key="")
        assert (await world.submit(local(room_id, [event]))).code == ACCEPTED
        base = room.heads
        ours = room.send(ALICE, "m.room.message", {"body": "ours"})
        assert (await world.submit(local(room_id, [ours]))).code == ACCEPTED
        # A branch that we learn of only when its end comes, with the state before it.
        big = []
        prev = base
        for number in range(12):
            content = {"text": "x" * 50_000, "number": number}
            big.append(room.send(BOB, "org.example.big", content, state_key=str(number), prev=prev))
            prev = [big[-1].event_id]
        end = room.send(BOB, "m.room.message", {"body": "end"}, prev=prev)
        state = room.before[end.event_id]
        missing = [room.events[event_id] for event_id in state.values() if room.events[event_id] in big]
        codes = []
        for start in range(0, len(missing), 6):
            outliers = missing[start : start + 6]
            request = foreign(
                room_id, [end], outliers=outliers, state_before_event_ids=sorted(state.values())
            )
            codes.append((await world.submit(request)).code)
        assert codes == [CODE.VERDICT_CODE_WAITING, ACCEPTED]
        entries = [entry for message in await exported(world) for entry in message.entries]
        rewritten = entries[-1].state_rewritten
        assert rewritten.event_id == end.event_id
        (told,) = [e.room_event for e in entries if e.room_event.event_id == end.event_id]
        assert not told.state_changes
        parts = world.query.GetSnapshot(query_pb2.GetSnapshotRequest(snapshot_id=rewritten.snapshot_id))
        snapshot = {event.event_id async for part in parts for event in part.state}
        assert len(snapshot) == rewritten.entries
        assert snapshot >= {event.event_id for event in big}

"""One owner per partition: the second's commit wins, the first is fenced; handover, expiry, one bad entry."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from arbor.log.v1.input_pb2 import InputEntry, ReplayRoom, VerdictCode
from arbor.log.v1.output_pb2 import OutputMessage
from arbor.roomserver.v1 import query_pb2
from roomserver.rpc import exports, reads
from roomserver.storage import dead_letters, garbage, rooms, tables
from servicekit.errors import MatrixError
from servicekit.grpc.errors import NOT_OWNER
from servicekit.log.errors import OwnershipLost
from servicekit.log.reader import LogReader
from tests.support.judging import JudgeBench, local, message
from tests.support.nats import NatsProcess, running_nats, until
from tests.support.rooms import ALICE, Room
from tests.support.running_roomserver import config_for, running_roomserver, running_server, writing_world

CODE = VerdictCode


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsProcess]:
    with running_nats(tmp_path) as server:
        yield server


def made(bench: JudgeBench, version: str = "10", creator: str = ALICE) -> tuple[Room, str]:
    room = Room(version, creator=creator)
    room_id = room.room_id or ""
    assert (
        bench.submit(local(room_id, [room.events[i] for i in room.order]))[0].code
        == CODE.VERDICT_CODE_ACCEPTED
    )
    return room, room_id


def test_two_owners_cannot_both_commit(database_url: str) -> None:
    first = JudgeBench(database_url, owner="one", now_ms=lambda: 1_000_000)
    room, room_id = made(first)
    # The first is paused; its lease runs out and a second takes over.
    second = JudgeBench(database_url, owner="two", now_ms=lambda: 1_010_000)
    assert len(second.held) == 4
    theirs = room.send(ALICE, "m.room.message", {"body": "second"})
    assert second.submit(local(room_id, [theirs]))[0].code == CODE.VERDICT_CODE_ACCEPTED
    mine = room.send(ALICE, "m.room.message", {"body": "first"}, prev=list(theirs.prev_event_ids))
    with pytest.raises(OwnershipLost):
        first.submit(local(room_id, [mine]))
    latest = second.database.read_sync(reads.read_latest, query_pb2.QueryLatestRequest(room_id=room_id))[0]
    assert list(latest.forward_extremities) == [theirs.event_id]
    assert {row.epoch for row in second.rows()} == {2}
    second.close()
    first.close()


def test_what_the_first_left_in_the_outbox_goes_out_once(database_url: str) -> None:
    first = JudgeBench(database_url, owner="one", now_ms=lambda: 1_000_000, relay=False)
    made(first)
    first.close()
    second = JudgeBench(database_url, owner="two", now_ms=lambda: 1_010_000)
    taken = second.database.read_sync(exports.read_complete_through)
    assert taken == 0  # nothing has its place yet, so an export ends before it
    second.close()


@pytest.mark.parametrize("kind", ["alone", "among others"])
def test_one_bad_entry_stops_nobody_else(database_url: str, kind: str) -> None:
    bench = JudgeBench(database_url, raise_on_type="org.example.bad")
    room, room_id = made(bench)
    other, other_id = made(bench, "12")
    good = other.send(ALICE, "m.room.message", {"body": "goes on"})
    bad = room.send(ALICE, "org.example.bad", {})
    requests = [local(room_id, [bad])]
    if kind != "alone":
        requests.append(local(other_id, [good]))
    verdicts = bench.submit(*requests)
    assert verdicts[0].rejection.rule == "internal"
    if kind != "alone":
        assert verdicts[1].code == CODE.VERDICT_CODE_ACCEPTED
    else:
        assert bench.submit(local(other_id, [good]))[0].code == CODE.VERDICT_CODE_ACCEPTED
    letters = bench.database.read_sync(dead_letters.load_dead_letters)
    assert [letter.room_id for letter in letters] == [room_id]
    assert "asked to raise" in letters[0].trace
    assert bench.database.read_sync(rooms.load_quarantined) == [room_id]
    after = room.send(ALICE, "m.room.message", {"body": "x"}, prev=list(bad.prev_event_ids))
    assert bench.submit(local(room_id, [after]))[0].rejection.rule == "quarantined"

    # Mended, the room's dead letters are judged again.
    bench.judge.context = bench.judge.context.__class__(
        **{
            name: getattr(bench.judge.context, name)
            for name in bench.judge.context.__slots__
            if name != "raise_on_type"
        }
    )
    replay = InputEntry(request_id="replay", replay_room=ReplayRoom())
    assert bench.submit((room_id, [replay]))[-1].code == CODE.VERDICT_CODE_ACCEPTED
    assert bench.database.read_sync(dead_letters.load_dead_letters) == []
    assert bench.database.read_sync(rooms.load_quarantined) == []
    latest = bench.database.read_sync(reads.read_latest, query_pb2.QueryLatestRequest(room_id=room_id))[0]
    assert list(latest.forward_extremities) == [bad.event_id]
    bench.close()


def test_garbage_is_counted_then_collected(database_url: str) -> None:
    now = 1_000_000
    bench = JudgeBench(database_url, now_ms=lambda: now)
    room, room_id = made(bench)
    events = [room.send(ALICE, "m.room.topic", {"topic": str(n)}, state_key="") for n in range(20)]
    bench.submit(*[local(room_id, [event], txn=event.event_id) for event in events])
    bench.settle()
    bench.settle()
    kept = bench.database.read_sync(garbage.collect, now, range(4), dry_run=True)
    assert kept["transaction_key"] == kept["snapshot"] == 0
    later = now + 2 * garbage.DAY_MS
    counted = bench.database.read_sync(garbage.collect, later, range(4), dry_run=True)
    assert counted["transaction_key"] == 20
    assert bench.database.write_sync(garbage.collect, later, range(4), dry_run=False) == counted
    # Whatever is left still gives every event its state.
    answers = bench.database.read_sync(reads.read_state, room_id, [event.event_id for event in events], True)
    assert all(state for _, state in answers)
    bench.close()


async def test_a_second_process_takes_over_what_the_first_gives_up(
    tmp_path: Path, nats: NatsProcess, postgres_url: str
) -> None:
    config = config_for(tmp_path, nats, **{"databases.roomserver": postgres_url})
    async with running_server(config) as first:
        assert len(first.processor.committer.held) == 4
        async with (
            running_server(config, "unix:/second.sock") as second,
            writing_world(config, second) as world,
        ):
            assert len(second.processor.committer.held) == 0
            with pytest.raises(MatrixError) as refused:
                await second.query.QueryLatest(query_pb2.QueryLatestRequest(room_id="!x:a.example"), None)
            assert (refused.value.errcode, refused.value.owner_address) == (NOT_OWNER, first.address)
            room = Room("12")
            verdict = await world.submit(local(room.room_id or "", [room.events[i] for i in room.order]))
            assert verdict.code == CODE.VERDICT_CODE_ACCEPTED
            await first.processor.ownership.give_up()
            await until(lambda: len(second.processor.committer.held) == 4)
            event = room.send(ALICE, "m.room.message", {"body": "through the second"})
            verdict = await world.submit(local(room.room_id or "", [event]))
            assert verdict.code == CODE.VERDICT_CODE_ACCEPTED
            stamps = [message.stamp for _, message in await world.output(2)]
            assert [stamp.output_no for stamp in stamps] == [1, 2]
            assert stamps[0].epoch < stamps[1].epoch


async def test_an_import_goes_to_the_owner(tmp_path: Path, nats: NatsProcess, postgres_url: str) -> None:
    config = config_for(tmp_path, nats, **{"databases.roomserver": postgres_url})
    room = Room("12", creator="@far:b.example")

    async def parts() -> AsyncIterator[query_pb2.ImportRequest]:
        yield query_pb2.ImportRequest(
            import_id="i",
            room_id=room.room_id or "",
            room_version="12",
            state=[message(room.events[i]) for i in room.order],
            part=1,
        )

    async with running_server(config) as first, running_server(config, "unix:/second.sock") as second:
        with pytest.raises(MatrixError) as refused:
            await second.admin.Import(parts(), None)
        assert (refused.value.errcode, refused.value.owner_address) == (NOT_OWNER, first.address)
        # Somebody takes over while the first still believes that it is the owner.
        taken = update(tables.partition).values(
            owner="unix:/third.sock", epoch=tables.partition.c.epoch + 1, lease_until=2**53
        )
        await first.database.write(lambda conn: conn.execute(taken).rowcount)
        with pytest.raises(MatrixError) as fenced:
            await first.admin.Import(parts(), None)
        assert fenced.value.errcode == NOT_OWNER
        assert (await first.database.read(garbage.count_rows))["event"] == 0


async def test_processes_share_the_partitions(tmp_path: Path, nats: NatsProcess, postgres_url: str) -> None:
    """One that joins gets its share while messages are sent; one that leaves gives it back."""
    config = config_for(tmp_path, nats, **{"databases.roomserver": postgres_url})
    async with running_server(config) as first, writing_world(config, first) as world:
        rooms_ = [Room("12", content={"name": str(number)}) for number in range(6)]
        for room in rooms_:
            await world.submit(local(room.room_id or "", [room.events[i] for i in room.order]))
        sent = 0

        async def send_everywhere() -> None:
            nonlocal sent
            for room in rooms_:
                event = room.send(ALICE, "m.room.message", {"body": str(sent)})
                async with asyncio.timeout(20):
                    while True:
                        try:
                            verdict = await world.submit(
                                local(room.room_id or "", [event], txn=event.event_id), 2
                            )
                        except Exception:  # the verdict was lost on the way: asked again
                            continue
                        break
                assert verdict.code in (CODE.VERDICT_CODE_ACCEPTED, CODE.VERDICT_CODE_DUPLICATE)
                sent += 1

        def shares() -> tuple[int, int]:
            return len(first.processor.committer.held), len(second.processor.committer.held)

        async with running_server(config, "unix:/second.sock") as second:
            async with asyncio.timeout(20):
                while shares() != (2, 2):
                    await send_everywhere()
            assert set(first.processor.committer.held) | set(second.processor.committer.held) == set(range(4))
            await send_everywhere()
        await until(lambda: len(first.processor.committer.held) == 4)
        await send_everywhere()
        messages = [message for _, message in await world.output(sent + len(rooms_))]
        told = [entry.room_event.event_id for message in messages for entry in message.entries]
        assert len(told) == len(set(told)) == sum(len(room.order) for room in rooms_)
        for room in rooms_:
            assert [event_id for event_id in told if event_id in room.events] == room.order
        numbers: dict[int, list[int]] = {}
        for message in messages:
            numbers.setdefault(message.stamp.partition, []).append(message.stamp.output_no)
        assert all(found == list(range(1, len(found) + 1)) for found in numbers.values())


async def test_output_made_anew_goes_on_above(tmp_path: Path, nats: NatsProcess) -> None:
    config = config_for(tmp_path, nats)
    async with running_server(config) as server, writing_world(config, server) as world:
        room = Room("12")
        first = await world.submit(local(room.room_id or "", [room.events[i] for i in room.order]))
    nats.stop()
    for folder in (nats.store_dir / "jetstream").rglob("streams"):
        for file in sorted(folder.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
    nats.start()
    async with running_server(config) as server, writing_world(config, server) as world:
        event = room.send(ALICE, "m.room.message", {"body": "after"})
        second = await world.submit(local(room.room_id or "", [event]))
        assert second.code == CODE.VERDICT_CODE_ACCEPTED
        assert second.output_sequence > first.output_sequence + 1000


async def test_nats_may_die_at_any_time(tmp_path: Path, nats: NatsProcess) -> None:
    async with running_roomserver(tmp_path, nats) as world:
        room = Room("12")
        room_id = room.room_id or ""
        await world.submit(local(room_id, [room.events[i] for i in room.order]))
        accepted = []
        for number in range(6):
            if number == 3:
                nats.kill()
                nats.start()
            event = room.send(ALICE, "m.room.message", {"body": str(number)})
            while True:
                request = local(room_id, [event], txn=event.event_id)
                try:
                    verdict = await world.submit(request, 2)
                except Exception:  # lost on the way: the retry finds the first
                    continue
                break
            assert verdict.code in (CODE.VERDICT_CODE_ACCEPTED, CODE.VERDICT_CODE_DUPLICATE)
            accepted.append(event.event_id)
        reader = LogReader(world.writer, "OUTPUT", ["room.output.>"])
        seen: list[str] = []
        numbers = set()
        batches = reader.batches()
        async with asyncio.timeout(10):
            async for batch in batches:
                for item in batch.messages:
                    message = OutputMessage.FromString(item.data)
                    if message.stamp.output_no not in numbers:
                        numbers.add(message.stamp.output_no)
                        seen += [entry.room_event.event_id for entry in message.entries]
                if seen and seen[-1] == accepted[-1]:
                    break
        await batches.aclose()
        assert seen == [*room.order[: -len(accepted)], *accepted]

"""What an operator asks: `arbor explain`, `arbor collect`, table sizes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from arbor.log.v1.input_pb2 import VerdictCode
from arbor.roomserver.v1 import query_pb2
from roomserver import metrics
from roomserver.rpc import explain, reads
from roomserver.storage import garbage
from servicekit.cli import roomserver as cli
from servicekit.database.raw import Sql
from tests.support.judging import JudgeBench, foreign, local
from tests.support.nats import NatsProcess, running_nats
from tests.support.rooms import ALICE, BOB, CAROL, Room
from tests.support.running_roomserver import running_roomserver

CODE = VerdictCode


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsProcess]:
    with running_nats(tmp_path) as server:
        yield server


def shared(bench: JudgeBench) -> tuple[Room, str]:
    """A public room in which Bob of another server is."""
    room = Room("10")
    room_id = room.room_id or ""
    bench.submit(local(room_id, [room.events[i] for i in room.order]))
    bench.submit(foreign(room_id, [room.member(BOB, "join")]))
    return room, room_id


def asked(bench: JudgeBench, event_id: str) -> query_pb2.ExplainEventResponse:
    return bench.database.read_sync(explain.read_explanation, event_id)


def test_a_soft_failure_shows_the_state_that_refused_it(bench: JudgeBench) -> None:
    room, room_id = shared(bench)
    before = room.heads
    ban = room.member(BOB, "ban", by=ALICE)
    bench.submit(local(room_id, [ban]))
    late = room.send(BOB, "m.room.message", {"body": "late"}, prev=before)
    bench.submit(foreign(room_id, [late]))
    # Whatever comes later, and whatever is collected, the state then is shown.
    bench.submit(local(room_id, [room.member(BOB, "leave", by=ALICE, prev=[ban.event_id])]))
    bench.settle()
    bench.database.write_sync(garbage.collect, bench.now_ms(), range(4), dry_run=False)
    answer = asked(bench, late.event_id)
    assert (answer.check, answer.event.status) == (
        explain.CURRENT_STATE,
        query_pb2.EventStatus.EVENT_STATUS_SOFT_FAILED,
    )
    assert ban.event_id in {event.event_id for event in answer.checked_against}
    assert answer.decision.rule
    lines = cli.explanation(answer)
    assert f"rule: {answer.decision.rule}" in lines
    assert any("m.room.member|@bob:b.example ban" in line for line in lines)


def test_a_rejection_names_the_check_that_refused(bench: JudgeBench) -> None:
    room, room_id = shared(bench)
    forged = room.send(BOB, "m.room.power_levels", {"users": {BOB: 100}}, state_key="")
    bench.submit(foreign(room_id, [forged]))
    answer = asked(bench, forged.event_id)
    assert answer.check == explain.AUTH_EVENTS
    assert {event.event_id for event in answer.checked_against} == set(forged.auth_event_ids)
    # Allowed by what it cites, refused by what stood before it.
    joined = room.before[forged.event_id]["m.room.member", BOB]
    ban = room.member(BOB, "ban", by=ALICE, prev=list(forged.prev_event_ids))
    bench.submit(local(room_id, [ban]))
    levels = room.before[forged.event_id]["m.room.power_levels", ""]
    cites = sorted({room.create.event_id, levels, joined})
    sneaky = room.send(BOB, "m.room.message", {"body": "x"}, auth=cites, prev=[ban.event_id])
    bench.submit(foreign(room_id, [sneaky]))
    answer = asked(bench, sneaky.event_id)
    assert answer.event.status == query_pb2.EventStatus.EVENT_STATUS_REJECTED
    assert answer.check == explain.STATE_BEFORE
    assert ban.event_id in {event.event_id for event in answer.checked_against}


def test_what_waits_and_what_is_accepted(bench: JudgeBench) -> None:
    room, room_id = shared(bench)
    first = room.send(BOB, "m.room.message", {"body": "1"})
    second = room.send(BOB, "m.room.message", {"body": "2"})
    bench.submit(foreign(room_id, [second]))
    answer = asked(bench, second.event_id)
    assert list(answer.missing_event_ids) == [first.event_id]
    assert f"  {first.event_id}" in cli.explanation(answer)
    bench.submit(foreign(room_id, [first]))
    answer = asked(bench, second.event_id)
    assert (answer.check, answer.decision.rule) == (explain.STATE_BEFORE, "")
    assert "status: accepted" in cli.explanation(answer)
    assert room.before[second.event_id]["m.room.member", BOB] in {e.event_id for e in answer.checked_against}


@pytest.mark.parametrize("version", ["1", "10", "12"])
def test_each_entry_of_a_resolution_has_its_step(bench: JudgeBench, version: str) -> None:
    room = Room(version)
    room_id = room.room_id or ""
    bench.submit(local(room_id, [room.events[i] for i in room.order]))
    base = room.heads
    tips = []
    for name in ("public", "invite"):
        topic = room.send(ALICE, "m.room.topic", {"topic": name}, state_key="", prev=base)
        rules = {"join_rule": name}
        tips.append(
            [topic, room.send(ALICE, "m.room.join_rules", rules, state_key="", prev=[topic.event_id])]
        )
    for chain in tips:
        for event in chain:
            assert bench.submit(local(room_id, [event], may_fork=True))[0].code == CODE.VERDICT_CODE_ACCEPTED
    merge = room.send(ALICE, "m.room.message", {"body": "m"}, prev=[chain[-1].event_id for chain in tips])
    bench.submit(local(room_id, [merge], may_fork=True))
    answer = asked(bench, merge.event_id)
    lines = {line.split(":")[0]: line for line in answer.resolution if " left out" not in line}
    assert {"m.room.topic|", "m.room.join_rules|"} <= lines.keys()
    assert all("(left over)" not in line and "nothing" not in line for line in lines.values()), lines


def test_deep_collection_takes_only_what_nothing_refers_to(bench: JudgeBench) -> None:
    room, room_id = shared(bench)
    for number in range(12):
        bench.submit(local(room_id, [room.send(ALICE, "m.room.topic", {"topic": str(number)}, state_key="")]))
    bench.settle()
    assert bench.database.read_sync(garbage.collect, bench.now_ms(), range(4), dry_run=True)["snapshot"] == 0
    # A chain of three that nothing needs: it goes from its end.
    row = bench.database.read_sync(
        lambda conn: Sql("SELECT nid FROM room WHERE room_id = ?").row(conn, room_id)
    )

    def litter(conn: object) -> None:
        statement = Sql("INSERT INTO snapshot (id, room_nid, base_id, number, delta) VALUES (?, ?, ?, ?, ?)")
        statement.many(conn, [(10**9 + n, row[0], 10**9 + n - 1 if n else 0, n, b"") for n in range(3)])  # type: ignore[arg-type]

    bench.database.write_sync(litter)
    partition = bench.judge.context.partition_of(room_id)
    others = [number for number in range(4) if number != partition]
    assert bench.database.write_sync(garbage.collect, bench.now_ms(), others, dry_run=False)["snapshot"] == 0
    assert bench.database.read_sync(garbage.collect, bench.now_ms(), range(4), dry_run=True)["snapshot"] == 1
    gone = bench.database.write_sync(garbage.collect, bench.now_ms(), range(4), dry_run=False)
    assert gone["snapshot"] == 3
    bench.judge.failed()
    answers = bench.database.read_sync(reads.read_state, room_id, room.order, True)
    assert len(answers) == len(room.order)
    assert all(state for _, state in answers[1:])


async def test_the_commands_ask_the_server_that_runs(tmp_path: Path, nats: NatsProcess) -> None:
    async with running_roomserver(tmp_path, nats) as world:
        room = Room("12")
        room_id = room.room_id or ""
        await world.submit(local(room_id, [room.events[i] for i in room.order], txn="create"))
        answer = await cli.ask_explanation(world.config, room.order[-1])
        assert answer.known
        assert "status: accepted" in cli.explanation(answer)
        assert not (await cli.ask_explanation(world.config, "$unknown")).known
        counted = await cli.ask_collection(world.config, dry_run=True)
        assert {item.table for item in counted.collected} >= {"snapshot", "transaction_key", "outbox"}
        deleted = await cli.ask_collection(world.config, dry_run=False)
        lines = cli.collection(deleted, dry_run=False)
        assert lines[0].split() == ["table", "deleted"]
        assert len(lines) == 1 + len(deleted.collected)
        # What is left is told to the metrics, and the room goes on.
        assert metrics.table_rows.labels("event")._value.get() == len(room.order)
        carol = room.member(CAROL, "join")
        verdict = await world.submit(foreign(room_id, [carol], origin_server="c.example"))
        assert verdict.code == CODE.VERDICT_CODE_ACCEPTED

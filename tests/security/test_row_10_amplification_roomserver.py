"""Row 10: forks and auth chains made to cost much cost the RoomServer little: rows, statements, heads."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from arbor.log.v1.input_pb2 import VerdictCode
from roomserver.input import merge, resolution
from roomserver.storage import auth_chains
from servicekit.database.raw import Sql
from tests.support.judging import JudgeBench, foreign, local
from tests.support.rooms import ALICE, BOB, Room

COUNT = 10_000
MAX_AUTH_EVENTS = 10


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[JudgeBench]:
    made = JudgeBench(f"sqlite:///{tmp_path / 'r.db'}")
    yield made
    made.close()


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many statements that give rows were run, as the only entry."""
    count = [0]
    rows = Sql.rows

    def counted(self: Sql, conn: Connection, *parameters: Any) -> list[Any]:
        count[0] += 1
        return rows(self, conn, *parameters)

    monkeypatch.setattr(Sql, "rows", counted)
    return count


def deep(nid: int) -> list[int]:
    return [nid - 1]


def wide(nid: int) -> list[int]:
    return [1]


def tangled(nid: int) -> list[int]:
    """As many auth events as an event may have, anywhere before it."""
    return random.Random(nid).sample(range(1, nid), min(MAX_AUTH_EVENTS, nid - 1))


@pytest.mark.parametrize(("shape", "most"), [(deep, 10), (wide, 10), (tangled, 300)])
def test_auth_chains_of_10_000_events(
    bench: JudgeBench, statements: list[int], shape: Callable[[int], list[int]], most: int
) -> None:
    graph = [(nid, tuple(shape(nid)) if nid > 1 else ()) for nid in range(1, COUNT + 1)]

    def store(conn: Connection) -> None:
        for start in range(0, COUNT, 300):
            auth_chains.extend(conn, graph[start : start + 300])

    bench.database.write_sync(store)
    linked = bench.database.read_sync(lambda conn: Sql("SELECT COUNT(*) FROM auth_chain_link").row(conn)[0])
    assert linked <= MAX_AUTH_EVENTS * COUNT
    statements[0] = 0
    asked = [COUNT] if shape is not wide else list(range(2, COUNT + 1))
    chain = bench.database.read_sync(auth_chains.load_auth_chain, asked)
    expected = set(asked)
    for nid, auth in reversed(graph):
        if nid in expected:
            expected.update(auth)
    assert chain == expected
    assert statements[0] <= most, "in rounds, not one by one"


@pytest.mark.parametrize("batch", [1, 20, 300])
def test_500_forks_never_stand_side_by_side(
    bench: JudgeBench, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room("10")
    room_id = room.room_id or ""
    bench.submit(local(room_id, [room.events[i] for i in room.order]))
    bench.submit(foreign(room_id, [room.member(BOB, "join")]))
    levels = room.send(ALICE, "m.room.power_levels", {"users": {ALICE: 100, BOB: 100}}, state_key="")
    bench.submit(local(room_id, [levels]))
    sizes: list[int] = []
    resolve = resolution.resolve

    def noted(batch_: Any, work: Any, ids: list[int], **kwargs: Any) -> int:
        sizes.append(len(set(ids)))
        return resolve(batch_, work, ids, **kwargs)

    monkeypatch.setattr(resolution, "resolve", noted)
    prev = room.heads
    forks = [room.send(BOB, "org.example", {"n": n}, state_key=str(n % 7), prev=prev) for n in range(500)]
    for start in range(0, len(forks), batch):
        verdicts = bench.submit(*[foreign(room_id, [event]) for event in forks[start : start + batch]])
        assert {verdict.code for verdict in verdicts} == {VerdictCode.VERDICT_CODE_ACCEPTED}
    assert max(sizes) <= merge.MERGE_AT_ONCE
    told = [entry.room_event for entry in bench.entries if entry.HasField("room_event")]
    merged = [event for event in told if event.type == merge.EVENT_TYPE]
    assert 500 / 20 <= len(merged) <= 500 / 8
    assert max(len(event.prev_event_ids) for event in merged) <= 20
    assert len(told[-1].forward_extremities) < merge.MERGE_FROM

"""The RoomServer's judge against rooms judged in memory: the same verdicts, the same state at every event.

The rooms fork, ban against joins and race for power (`tests.support.random_rooms`). Redaction is left out:
the
rooms in memory judge by whole events, and what redaction keeps is tested elsewhere.
"""

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arbor.log.v1.input_pb2 import VerdictCode
from matrixlib.room_versions import ROOM_VERSIONS
from roomserver.rpc import reads
from roomserver.storage import events, rooms, states
from tests.support.judging import JudgeBench, foreign, local
from tests.support.random_rooms import random_room
from tests.support.rooms import Room

ALL = ("a.example", "b.example", "c.example", "d.example")
VERSIONS = tuple(ROOM_VERSIONS)
CODE = VerdictCode
Snapshot = dict[str, tuple[int, dict[tuple[str, str], str], dict[tuple[str, str], str]]]


@contextmanager
def fresh_bench() -> Iterator[JudgeBench]:
    with tempfile.TemporaryDirectory() as folder, mock.patch("roomserver.input.redactions.redact"):
        bench = JudgeBench(f"sqlite:///{Path(folder) / 'r.db'}", local=ALL)
        try:
            yield bench
        finally:
            bench.close()


def begin(bench: JudgeBench, room: Room) -> list[str]:
    """Make the room with its first two events; returns the ids of the others."""
    first = [room.events[event_id] for event_id in room.order[:2]]
    verdict = bench.submit(local(room.room_id or "", first))[0]
    assert verdict.code == CODE.VERDICT_CODE_ACCEPTED, verdict
    return room.order[2:]


def stored(bench: JudgeBench, room: Room) -> Snapshot:
    """event id -> (status, state before, state after), as stored."""

    def read(conn) -> Snapshot:  # type: ignore[no-untyped-def]
        rows = events.load_events_by_id(conn, room.order)
        answers: Snapshot = {}
        for event_id in rows:
            both = []
            for after in (False, True):
                nids = reads.read_state(conn, room.room_id or "", [event_id], after)[0][1] or {}
                keys = states.load_keys(conn, list(nids))
                ids = events.load_event_ids(conn, nids.values())
                both.append({keys[key]: ids[nid] for key, nid in nids.items()})
            answers[event_id] = (rows[event_id].status, both[0], both[1])
        return answers

    return bench.database.read_sync(read)


def heads_of(bench: JudgeBench, room: Room) -> list[str]:
    """The forward extremities, as stored."""

    def read(conn) -> list[str]:  # type: ignore[no-untyped-def]
        row = rooms.load_rooms(conn, [room.room_id or ""])[room.room_id or ""]
        return sorted(events.load_event_ids(conn, row.heads).values())

    return bench.database.read_sync(read)


def expected(room: Room, event_ids: Iterator[str] | list[str]) -> Snapshot:
    return {
        event_id: (status_of(room, event_id), dict(room.before[event_id]), dict(room.after[event_id]))
        for event_id in event_ids
    }


def status_of(room: Room, event_id: str) -> int:
    if event_id in room.rejected:
        return events.REJECTED
    return events.SOFT_FAILED if event_id in room.soft_failed else events.ACCEPTED


def without_soft_failures(snapshot: Snapshot) -> Snapshot:
    """Which events fail softly depends on when they came; what they do to states does not."""
    return {
        event_id: (events.ACCEPTED if status == events.SOFT_FAILED else status, before, after)
        for event_id, (status, before, after) in snapshot.items()
    }


def usable(room: Room) -> bool:
    """The room was made, and somebody is always in it: without anybody there is nothing to judge for."""
    if len(room.order) < 4 or set(room.order[:2]) & set(room.rejected):
        return False
    return all(
        any(
            key[0] == "m.room.member" and room.events[event_id].membership == "join"
            for key, event_id in room.after[head].items()
        )
        for head in room.order[1:]
    )


@pytest.mark.parametrize("version", VERSIONS)
@settings(max_examples=8)
@given(seed=st.integers(0, 10**9))
def test_the_same_verdicts_and_states(version: str, seed: int) -> None:
    room = random_room(version, seed, steps=25)
    if not usable(room):
        return
    with fresh_bench() as bench:
        rest = begin(bench, room)
        rng = random.Random(seed)
        while rest:
            size = rng.randint(1, 6)
            part, rest = rest[:size], rest[size:]
            bench.submit(*[foreign(room.room_id or "", [room.events[event_id]]) for event_id in part])
        assert stored(bench, room) == expected(room, room.order)
        assert heads_of(bench, room) == sorted(room.heads)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**9), version=st.sampled_from(VERSIONS))
def test_any_order_and_any_repetition_give_the_same_room(seed: int, version: str) -> None:
    room = random_room(version, seed, steps=20)
    if not usable(room):
        return
    rng = random.Random(seed)
    with fresh_bench() as bench:
        rest = begin(bench, room)
        deliveries = [event_id for event_id in rest for _ in range(rng.randint(1, 3))]
        rng.shuffle(deliveries)
        messages = bench.messages([foreign(room.room_id or "", [room.events[e]]) for e in deliveries])
        done = 0
        while done < len(messages):
            # Each batch repeats some of what was read before, as a reader may after a doubt.
            size = rng.randint(1, 8)
            bench.judge_messages(messages[max(done - rng.randint(0, 4), 0) : done + size])
            done += size
        assert without_soft_failures(stored(bench, room)) == without_soft_failures(expected(room, room.order))

"""No message on OUTPUT exceeds 1 MiB, however large the room: a contract with every reader."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from arbor.log.v1 import input_pb2
from arbor.log.v1.output_pb2 import OutputMessage, Placement
from benchmarks.roomserver_bench import Writer
from matrixlib.events import Event
from tests.support.judging import JudgeBench, foreign
from tests.support.judging import message as message_of

MAX_BYTES = 1024 * 1024
MEMBERS = 50_000
FAR = "@far:b.example"
ALICE = "@alice:a.example"
CODE = input_pb2.VerdictCode


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[JudgeBench]:
    made = JudgeBench(f"sqlite:///{tmp_path / 'r.db'}")
    yield made
    assert max(map(len, made.raw)) <= MAX_BYTES
    made.close()


class LargeRoom(Writer):
    """A room of another server, made without signatures of its members: nobody checks them here."""

    def join(self, user: str) -> Event:
        """Let a user join."""
        return self.send(user, "m.room.member", {"membership": "join"}, user)

    def import_into(self, bench: JudgeBench, events: Sequence[Event], join: Event) -> None:
        """Have us join: the state is staged, then committed."""
        room_id = self.room_id or ""
        for part, start in enumerate(range(0, len(events), 5000), 1):
            bench.stage("i", room_id, "12", events[start : start + 5000], part=part)
        commit = input_pb2.CommitImport(import_id="i", room_version="12", join_event=message_of(join))
        assert accepted(bench, (room_id, [input_pb2.InputEntry(commit_import=commit)]))


def accepted(bench: JudgeBench, request: tuple[str, list[input_pb2.InputEntry]]) -> bool:
    return bench.submit(request)[0].code == CODE.VERDICT_CODE_ACCEPTED


@pytest.mark.parametrize("server", ["b.example", "a.example"], ids=["remote members", "local members"])
def test_a_room_of_50_000_members(bench: JudgeBench, server: str) -> None:
    room = LargeRoom("large", creator=FAR)
    room_id = room.room_id or ""
    events = list(room.first)
    half = MEMBERS // 2
    # Members on thousands of servers, or all on ours.
    names = [
        f"@user{n}:{server if server == 'a.example' else f's{n % 9000}.{server}'}" for n in range(MEMBERS)
    ]
    events += [room.join(user) for user in names[:half]]
    gap = room.send(FAR, "m.room.message", {"body": "between the halves"})
    after_half = room.send(FAR, "m.room.message", {"body": "after it"})
    late = [room.join(user) for user in names[half:]]
    before_us = room.send(FAR, "m.room.message", {"body": "before we came"})
    room.import_into(bench, [*events, *late], room.join(ALICE))
    assert accepted(bench, foreign(room_id, [room.send(FAR, "m.room.topic", {"topic": "t"}, "")]))

    # History: as of now, and as of half of them.
    assert accepted(bench, foreign(room_id, [before_us], origin=input_pb2.EventOrigin.EVENT_ORIGIN_HISTORY))
    told = bench.entries[-1].room_event
    assert told.placement == Placement.PLACEMENT_HISTORY
    assert len(told.visibility.local_members) <= 1
    state = [event.event_id for event in events if event.state_key is not None]
    request = foreign(
        room_id,
        [after_half],
        origin=input_pb2.EventOrigin.EVENT_ORIGIN_HISTORY,
        state_before_event_ids=state,
    )
    assert accepted(bench, request)
    assert accepted(bench, foreign(room_id, [gap], origin=input_pb2.EventOrigin.EVENT_ORIGIN_HISTORY))
    assert bench.entries[-1].room_event.event_id == gap.event_id

    # A branch on which half of them were never there: the state is another one, told by reference.
    room.head, room.depth = [after_half.event_id], after_half.depth
    branch = [room.send(FAR, "org.example.own", {"n": n}, str(n)) for n in range(3)]
    for event in branch:
        assert accepted(bench, foreign(room_id, [event]))
    assert all(len(message) <= MAX_BYTES for message in bench.raw)
    assert OutputMessage.FromString(bench.raw[-1]).entries[0].room_event.event_id == branch[-1].event_id

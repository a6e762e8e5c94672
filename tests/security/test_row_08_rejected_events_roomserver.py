"""Row 8: a rejected event that another server puts into a state or an auth chain is in no state of ours."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from arbor.log.v1.input_pb2 import CommitImport, InputEntry, VerdictCode
from arbor.roomserver.v1 import query_pb2
from matrixlib.room_versions import ROOM_VERSIONS
from roomserver.rpc import reads
from tests.support.judging import JudgeBench, foreign, local, message
from tests.support.rooms import ALICE, BOB, CAROL, Room

CODE = VerdictCode


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[JudgeBench]:
    made = JudgeBench(f"sqlite:///{tmp_path / 'r.db'}")
    yield made
    made.close()


def state_after(bench: JudgeBench, room_id: str, event_id: str) -> set[str]:
    answer = bench.database.read_sync(reads.read_state, room_id, [event_id], True)[0][1] or {}
    request = query_pb2.QueryLatestRequest(room_id=room_id, all_state=True)
    latest = {event.event_id for event in bench.database.read_sync(reads.read_latest, request)[0].state}
    assert len(answer) == len(latest)
    return latest


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_a_told_state_that_names_a_rejected_event(bench: JudgeBench, version: str) -> None:
    room = Room(version)
    room_id = room.room_id or ""
    bench.submit(local(room_id, [room.events[i] for i in room.order]))
    bench.submit(foreign(room_id, [room.member(BOB, "join")]))
    forged = room.send(BOB, "m.room.topic", {"topic": "mine now"}, state_key="")
    assert bench.submit(foreign(room_id, [forged]))[0].code == CODE.VERDICT_CODE_REJECTED
    gap = room.send(BOB, "m.room.message", {"body": "never sent"}, prev=[forged.event_id])
    after = room.send(BOB, "m.room.message", {"body": "after"}, prev=[gap.event_id])
    claimed = [*room.before[after.event_id].values(), forged.event_id]
    request = foreign(room_id, [after], state_before_event_ids=claimed)
    assert bench.submit(request)[0].code == CODE.VERDICT_CODE_ACCEPTED
    assert forged.event_id not in state_after(bench, room_id, after.event_id)
    # On top of it, and as an auth event.
    direct = room.send(BOB, "m.room.message", {"body": "on it"}, prev=[forged.event_id])
    assert bench.submit(foreign(room_id, [direct]))[0].code == CODE.VERDICT_CODE_ACCEPTED
    assert forged.event_id not in state_after(bench, room_id, direct.event_id)
    levels = room.send(BOB, "m.room.power_levels", {"users": {BOB: 100}}, state_key="")
    assert bench.submit(foreign(room_id, [levels]))[0].code == CODE.VERDICT_CODE_REJECTED
    auth = [*room.events[direct.event_id].auth_event_ids]
    auth = [i for i in auth if room.events[i].type != "m.room.power_levels"] + [levels.event_id]
    stands_on_it = room.send(BOB, "m.room.topic", {"topic": "mine"}, state_key="", auth=auth)
    assert bench.submit(foreign(room_id, [stands_on_it]))[0].code == CODE.VERDICT_CODE_REJECTED


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_an_imported_state_with_an_event_that_its_auth_events_refuse(bench: JudgeBench, version: str) -> None:
    room = Room(version, creator=BOB).with_members(CAROL)
    room_id = room.room_id or ""
    forged = room.send(CAROL, "m.room.topic", {"topic": "mine now"}, state_key="")
    assert forged.event_id in room.rejected
    join = room.member(ALICE, "join")
    state = [room.events[i] for i in (*room.before[join.event_id].values(), forged.event_id)]
    bench.stage("i", room_id, version, state)
    commit = CommitImport(import_id="i", room_version=version, join_event=message(join))
    verdict = bench.submit((room_id, [InputEntry(commit_import=commit)]))[0]
    assert verdict.code == CODE.VERDICT_CODE_ACCEPTED, verdict
    assert forged.event_id not in state_after(bench, room_id, join.event_id)

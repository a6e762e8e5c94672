"""Row 36: a redaction takes effect in its own room only, whatever came first."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from arbor.log.v1.input_pb2 import VerdictCode
from matrixlib.room_versions import ROOM_VERSIONS
from roomserver.rpc import reads
from roomserver.storage import rooms
from tests.support.judging import JudgeBench, foreign, local
from tests.support.rooms import BOB, CAROL, Room

ACCEPTED = VerdictCode.VERDICT_CODE_ACCEPTED


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[JudgeBench]:
    made = JudgeBench(f"sqlite:///{tmp_path / 'r.db'}", local=("a.example", "c.example"))
    yield made
    made.close()


@pytest.mark.parametrize("batches", ["one batch", "two batches"])
@pytest.mark.parametrize("other_version", ["1", "12"])
@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_a_redaction_of_another_rooms_event_that_comes_later(
    bench: JudgeBench, version: str, other_version: str, batches: str
) -> None:
    room, evil = Room(version), Room(other_version, creator=CAROL, content={"evil": True})
    for made in (room, evil):
        assert (
            bench.submit(local(made.room_id or "", [made.events[i] for i in made.order]))[0].code == ACCEPTED
        )
    for number in range(10):  # so that no two events have one id where ids count
        said = evil.send(CAROL, "m.room.message", {"body": str(number)})
        assert bench.submit(local(evil.room_id or "", [said]))[0].code == ACCEPTED
    for made in (room, evil):
        bob = made.member(BOB, "join")
        assert bench.submit(foreign(made.room_id or "", [bob]))[0].code == ACCEPTED
    levels = {"users": {BOB: 100} if evil.version.privileged_creators else {CAROL: 100, BOB: 100}}
    mighty = evil.send(CAROL, "m.room.power_levels", levels, state_key="")
    assert bench.submit(local(evil.room_id or "", [mighty]))[0].code == ACCEPTED
    victim = room.send(BOB, "m.room.message", {"body": "to be read"})
    redaction = evil.send(BOB, "m.room.redaction", {"redacts": victim.event_id}, redacts=victim.event_id)
    requests = [foreign(evil.room_id or "", [redaction]), foreign(room.room_id or "", [victim])]
    if batches == "one batch":
        verdicts = bench.submit(*requests)
    else:
        verdicts = [bench.submit(request)[0] for request in requests]
    assert [verdict.code for verdict in verdicts] == [ACCEPTED, ACCEPTED]
    (stored,) = bench.database.read_sync(reads.read_stored, [victim.event_id])
    assert b"to be read" in stored.event.pdu_json
    rows = bench.database.read_sync(rooms.load_rooms, [room.room_id or "", evil.room_id or ""])
    assert not any(row.quarantined_ms for row in rows.values())

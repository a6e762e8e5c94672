"""Where messages stand on OUTPUT is stored before what could tell it again is forgotten."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from arbor.log.v1.input_pb2 import VerdictCode
from roomserver.committing import PLACED_MIN
from roomserver.input.work import Work
from servicekit.database.raw import Sql
from servicekit.log.errors import OwnershipLost
from servicekit.log.outbox import Published
from tests.support.judging import local
from tests.support.nats import running_nats
from tests.support.rooms import ALICE, Room
from tests.support.running_roomserver import World, running_roomserver

LOST = Sql(
    "SELECT m.partition, m.output_no FROM output_message m WHERE m.sequence IS NULL AND NOT EXISTS"
    " (SELECT 1 FROM outbox o WHERE o.partition = m.partition AND o.output_no = m.output_no)"
)


def lost(conn: Connection) -> list[tuple[int, int]]:
    """Messages of which nobody could find out any more where they stand."""
    return [tuple(row) for row in LOST.rows(conn)]


async def talk(world: World, room: Room, count: int) -> None:
    for number in range(count):
        event = room.send(ALICE, "m.room.message", {"body": str(number)})
        verdict = await world.submit(local(room.room_id or "", [event], txn=event.event_id))
        assert verdict.code == VerdictCode.VERDICT_CODE_ACCEPTED


@pytest.mark.parametrize(
    "fails", [False, True], ids=["before the place is noted", "around a commit that fails"]
)
async def test_the_outbox_keeps_what_has_no_place_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    with running_nats(tmp_path) as nats:
        async with running_roomserver(tmp_path, nats) as world:
            processor = world.server.processor
            room = Room("12")
            verdict = await world.submit(local(room.room_id or "", [room.events[i] for i in room.order]))
            assert verdict.code == VerdictCode.VERDICT_CODE_ACCEPTED
            await talk(world, room, PLACED_MIN)
            if fails:
                write = processor.committer._write

                async def refuse(work: Work) -> Any:
                    monkeypatch.setattr(processor.committer, "_write", write)
                    raise OwnershipLost(0, "for a moment")

                monkeypatch.setattr(processor.committer, "_write", refuse)
                with pytest.raises(OwnershipLost):
                    await processor.committer.commit(Work([], 0, ""))
            else:
                # The acks are here, whoever notes them has not had its turn.
                held: list[list[Published]] = []
                note = processor.places.note
                monkeypatch.setattr(processor.places, "note", held.append)
                await talk(world, room, 3)
                await processor.committer.commit(Work([], 0, ""))
                assert await world.server.database.read(lost) == []
                for published in held:
                    note(published)
            await processor.committer.commit(Work([], 0, ""))
            assert await world.server.database.read(lost) == []
        async with running_roomserver(tmp_path, nats) as world:
            await world.server.processor.flush()
            assert await world.server.database.read(lost) == []
            assert world.server.processor._relay.queued == 0

"""A room goes from one server to another: state and auth chain, a join on top, and its exported history behind it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from arbor.log.v1.input_pb2 import CommitImport, EventOrigin, InputEntry, VerdictCode
from arbor.log.v1.output_pb2 import OutputMessage, Placement
from arbor.roomserver.v1 import query_pb2
from matrixlib.room_versions import ROOM_VERSIONS
from tests.support.judging import foreign, local, message
from tests.support.nats import running_nats
from tests.support.rooms import ALICE, BOB, CAROL, Room
from tests.support.running_roomserver import World, running_roomserver

ACCEPTED = VerdictCode.VERDICT_CODE_ACCEPTED
CODE = VerdictCode


async def state_at(world: World, room_id: str, event_id: str, *, chain: bool = False) -> tuple[list, list]:  # type: ignore[type-arg]
    """The state after an event and, if asked for, its auth chain."""
    request = query_pb2.QueryStateRequest(
        room_id=room_id, event_ids=[event_id], after=True, with_auth_chain=chain
    )
    state: list = []  # type: ignore[type-arg]
    auth_chain: list = []  # type: ignore[type-arg]
    async for part in world.query.QueryState(request):
        state += part.state
        auth_chain += part.auth_chain
    return state, auth_chain


@pytest.mark.parametrize("version", ROOM_VERSIONS)
async def test_a_room_is_exported_and_imported(tmp_path: Path, version: str) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    with running_nats(here) as nats_here, running_nats(there) as nats_there:
        async with (
            running_roomserver(here, nats_here) as old,
            running_roomserver(there, nats_there, server_name="c.example") as new,
        ):
            room = Room(version)
            room_id = room.room_id or ""
            assert (await old.submit(local(room_id, [room.events[i] for i in room.order]))).code == ACCEPTED
            assert (await old.submit(foreign(room_id, [room.member(BOB, "join")]))).code == ACCEPTED
            base = room.heads
            for number in range(3):
                fork = room.send(ALICE, "m.room.topic", {"topic": str(number)}, state_key="", prev=base)
                assert (await old.submit(local(room_id, [fork], may_fork=True))).code == ACCEPTED
            for number in range(4):
                said = room.send(ALICE, "m.room.message", {"body": str(number)})
                assert (await old.submit(local(room_id, [said]))).code == ACCEPTED
            redaction = room.send(
                ALICE, "m.room.redaction", {"redacts": said.event_id}, redacts=said.event_id
            )
            assert (await old.submit(local(room_id, [redaction]))).code == ACCEPTED
            join = room.member(CAROL, "join")
            state, chain = await state_at(old, room_id, redaction.event_id, chain=True)

            async def parts() -> AsyncIterator[query_pb2.ImportRequest]:
                for number, start in enumerate(range(0, len(state), 4), 1):
                    yield query_pb2.ImportRequest(
                        import_id="move",
                        room_id=room_id,
                        room_version=version,
                        state=state[start : start + 4],
                        auth_chain=chain if number == 1 else [],
                        part=number,
                    )

            assert (await new.admin.Import(parts())).events >= len(state)
            commit = CommitImport(import_id="move", room_version=version, join_event=message(join))
            entry = InputEntry(request_id="commit", commit_import=commit)
            assert (await new.submit((room_id, [entry]))).code == ACCEPTED
            assert (await old.submit(foreign(room_id, [join], origin_server="c.example"))).code == ACCEPTED

            exported = [
                OutputMessage.FromString(item.message)
                async for item in old.query.Export(query_pb2.ExportRequest(room_ids=[room_id]))
                if item.message
            ]
            told = [
                entry.room_event
                for item in exported
                for entry in item.entries
                if entry.HasField("room_event") and entry.room_event.placement == Placement.PLACEMENT_TIMELINE
            ]
            assert [event.event_id for event in told] == room.order
            for event in reversed(told[:-1]):
                found = room.events[event.event_id]
                verdict = await new.submit(
                    foreign(
                        room_id, [found], origin=EventOrigin.EVENT_ORIGIN_HISTORY, origin_server="a.example"
                    )
                )
                assert verdict.code in (ACCEPTED, CODE.VERDICT_CODE_DUPLICATE), (found.type, verdict)

            states = [(await state_at(world, room_id, join.event_id))[0] for world in (old, new)]
            ids = [{event.event_id for event in state} for state in states]
            assert ids[0] == ids[1] == set(room.after[join.event_id].values())
            request = query_pb2.QueryHistoryRequest(
                room_id=room_id, from_event_ids=[join.event_id], limit=100
            )
            histories = [
                [found.event.event_id for found in (await world.query.QueryHistory(request)).events]
                for world in (old, new)
            ]
            assert set(histories[1]) == set(histories[0]) == set(room.order)
            # What was redacted there is redacted here.
            stored = await new.query.QueryEvents(query_pb2.QueryEventsRequest(event_ids=[said.event_id]))
            assert b'"body"' not in stored.events[0].event.pdu_json
            # And it goes on: each has what the other sends.
            event = room.send(CAROL, "m.room.message", {"body": "hello"})
            assert (await new.submit(local(room_id, [event]))).code == ACCEPTED
            assert (await old.submit(foreign(room_id, [event], origin_server="c.example"))).code == ACCEPTED

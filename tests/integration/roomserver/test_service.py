"""The whole RoomServer on a real log, asked over gRPC."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from arbor.log.v1.common_pb2 import StateKey
from arbor.log.v1.input_pb2 import InputMessage, VerdictCode
from arbor.log.v1.output_pb2 import OutputMessage
from arbor.roomserver.v1 import query_pb2
from roomserver.service import RoomServer
from servicekit.log.subjects import room_input_subject
from tests.support.judging import local
from tests.support.nats import NatsProcess, running_nats
from tests.support.rooms import ALICE, Room
from tests.support.running_roomserver import (
    World,
    config_for,
    running_roomserver,
    running_server,
    writing_world,
)

ACCEPTED = VerdictCode.VERDICT_CODE_ACCEPTED
CAROL = "@carol:a.example"


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsProcess]:
    with running_nats(tmp_path) as server:
        yield server


async def create(world: World, version: str = "12") -> Room:
    room = Room(version)
    verdict = await world.submit(
        local(room.room_id or "", [room.events[i] for i in room.order], txn="create")
    )
    assert verdict.code == ACCEPTED
    return room


async def test_a_conversation(tmp_path: Path, nats: NatsProcess) -> None:
    async with running_roomserver(tmp_path, nats) as world:
        room = await create(world)
        room_id = room.room_id or ""
        join = room.member(CAROL, "join")
        hello = room.send(CAROL, "m.room.message", {"body": "hello"})
        verdicts = [
            await world.submit(local(room_id, [join], txn="join")),
            await world.submit(local(room_id, [hello], txn="hello")),
        ]
        assert [verdict.code for verdict in verdicts] == [ACCEPTED, ACCEPTED]

        latest = await world.query.QueryLatest(
            query_pb2.QueryLatestRequest(
                room_id=room_id, state_keys=[StateKey(type="m.room.member", state_key=CAROL)]
            )
        )
        assert list(latest.forward_extremities) == [hello.event_id]
        assert (latest.exists, latest.room_version, latest.participating) == (True, "12", True)
        assert [event.event_id for event in latest.state] == [join.event_id]
        assert latest.output_sequence == verdicts[1].output_sequence

        members = await world.query.QueryMemberships(query_pb2.QueryMembershipsRequest(room_id=room_id))
        assert {m.membership.user_id: m.membership.membership for m in members.memberships} == {
            ALICE: "join",
            CAROL: "join",
        }
        rooms = await world.query.QueryRooms(
            query_pb2.QueryRoomsRequest(
                joined_user_ids=[CAROL],
                with_servers=True,
                with_local_users=True,
                state_keys=[
                    StateKey(type="m.room.member", state_key=CAROL),
                    StateKey(type="m.room.name", state_key="not there"),
                ],
            )
        )
        assert [event.event_id for room in rooms.rooms for event in room.state] == [join.event_id]
        assert [(r.room_id, list(r.servers), sorted(r.local_user_ids)) for r in rooms.rooms] == [
            (room_id, ["a.example"], [ALICE, CAROL])
        ]
        stored = await world.query.QueryEvents(
            query_pb2.QueryEventsRequest(event_ids=[hello.event_id, "$no"])
        )
        assert [item.event.pdu_json for item in stored.events] == [hello.pdu_json]
        outcome = await world.query.QueryOutcome(
            query_pb2.QueryOutcomeRequest(
                transaction_key=local(room_id, [hello], txn="hello")[1][0].transaction_key,
                room_id=room_id,
                input_sequence=world.last_input,
            )
        )
        assert (outcome.known, outcome.verdict.event_id) == (True, hello.event_id)
        assert outcome.verdict.output_sequence == verdicts[1].output_sequence

        on_log = await world.output(3)
        exported = [item async for item in world.query.Export(query_pb2.ExportRequest())]
        assert [item.sequence for item in exported[:-1]] == [message.sequence for message, _ in on_log]
        assert [OutputMessage.FromString(item.message) for item in exported[:-1]] == [m for _, m in on_log]
        assert [item.subject for item in exported[:-1]] == [message.subject for message, _ in on_log]
        assert exported[-1].complete_through == on_log[-1][0].sequence


async def test_a_restart_goes_on(tmp_path: Path, nats: NatsProcess) -> None:
    config = config_for(tmp_path, nats)
    async with running_server(config) as server, writing_world(config, server) as world:
        room = await create(world)
        first = await world.submit(
            local(room.room_id or "", [room.send(ALICE, "m.room.message", {"body": "1"})], txn="1")
        )
    async with running_server(config) as server, writing_world(config, server) as world:
        second = await world.submit(
            local(room.room_id or "", [room.send(ALICE, "m.room.message", {"body": "2"})], txn="2")
        )
        assert second.code == ACCEPTED
        assert second.output_sequence > first.output_sequence
        numbers = [message.stamp.output_no for _, message in await world.output(3)]
        assert numbers == [1, 2, 3]


async def test_what_cannot_be_answered_ends_the_process(
    tmp_path: Path, nats: NatsProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise ValueError("cannot be answered")

    config = config_for(tmp_path, nats)
    server = RoomServer(config)
    await server.start()
    try:
        monkeypatch.setattr(server.processor._verdicts, "send", fail)
        room = Room("12")
        room_id, (entry,) = local(room.room_id or "", [room.events[i] for i in room.order])
        async with writing_world(config, server) as world, asyncio.timeout(30):
            subject = room_input_subject(room_id, config.log.partitions)
            data = InputMessage(room_id=room_id, entries=[entry]).SerializeToString()
            await world.writer.publish(subject, data)
            with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="cannot be answered")):
                await server.run()
    finally:
        await server.stop()


async def test_many_writers_make_no_forks(tmp_path: Path, nats: NatsProcess) -> None:
    async with running_roomserver(tmp_path, nats) as world:
        room = await create(world)
        heads = room.heads
        rivals = [room.send(ALICE, "m.room.message", {"body": str(n)}, prev=heads) for n in range(20)]
        verdicts = await asyncio.gather(
            *[world.submit(local(room.room_id or "", [event], txn=event.event_id)) for event in rivals]
        )
        codes = [verdict.code for verdict in verdicts]
        assert codes.count(ACCEPTED) == 1
        assert codes.count(VerdictCode.VERDICT_CODE_STALE) == 19
        latest = await world.query.QueryLatest(query_pb2.QueryLatestRequest(room_id=room.room_id or ""))
        assert len(latest.forward_extremities) == 1

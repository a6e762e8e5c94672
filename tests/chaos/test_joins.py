"""A join of a room on another server is finished, whatever process dies in the middle of it."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.evil_peer import Answer, Asked, EvilPeer
from tests.support.federation import federated_arbor, until
from tests.support.matrix_client import ClientError, MatrixClient
from tests.support.resident import ResidentRoom, join_patiently
from tests.support.tls_ca import TestCa

pytestmark = pytest.mark.timeout(180)

MEMBERS = 2000
# Where a process dies: of federation, then of the RoomServer.
FAULTS = (
    "join.answered",
    "join.stored",
    "join.staged",
    "join.committed",
    "roomserver.import_page:3",
    "roomserver.import_part",
    "roomserver.import_commit",
)
# The same where the members come later.
PARTIAL_FAULTS = (
    "join.answered",
    "join.staged",
    "join.committed",
    "join.members_got",
    "join.members_staged",
    "join.completed",
    "roomserver.import_commit",
    "roomserver.import_complete",
)


async def joined_members(client: MatrixClient, room_id: str) -> set[str]:
    return set((await client.get(f"/rooms/{room_id}/joined_members"))["joined"])


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_join_outlives_the_death_of_a_process(
    fault: str, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    died = tmp_path / "died"
    ca = TestCa(tmp_path / "ca")
    server = federated_arbor(tmp_path / "arbor", ca)
    server.environment = {"ARBOR_FAULT": fault, "ARBOR_FAULT_ONCE": str(died)}
    async with EvilPeer(ca) as peer:
        room = ResidentRoom(peer, MEMBERS)
        await server.start()
        try:
            alice = await server.register(session, "alice")
            await join_patiently(alice, room.room_id, peer.server_name)
            assert died.exists(), f"no process died at {fault}"
            assert len(await joined_members(alice, room.room_id)) == MEMBERS + 2
            assert len(peer.asked("make_join")) == 1, "the first try was taken up, no second one begun"
            assert {event.event_id for event in room.joins} == {room.joins[0].event_id}
            await alice.send(room.room_id, "here I am")
        finally:
            await server.stop()


@pytest.mark.parametrize("fault", PARTIAL_FAULTS)
async def test_a_join_with_partial_state_outlives_the_death_of_a_process(
    fault: str, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    died = tmp_path / "died"
    ca = TestCa(tmp_path / "ca")
    server = federated_arbor(tmp_path / "arbor", ca)
    server.environment = {"ARBOR_FAULT": fault, "ARBOR_FAULT_ONCE": str(died)}
    async with EvilPeer(ca) as peer:
        room = ResidentRoom(peer, 200, omits=True)
        await server.start()
        try:
            alice = await server.register(session, "alice")
            await join_patiently(alice, room.room_id, peer.server_name)

            async def whole() -> bool:
                try:
                    await alice.send(room.room_id, "here I am")
                    members = await joined_members(alice, room.room_id)
                except (ClientError, aiohttp.ClientError):
                    return False  # a process is on its way back
                return len(members) == 202

            await until(whole, "the members to come", timeout_s=90)
            assert died.exists(), f"no process died at {fault}"
            assert len(peer.asked("make_join")) == 1, "the first try was taken up, no second one begun"
            assert {event.event_id for event in room.joins} == {room.joins[0].event_id}

            async def done() -> bool:
                status, output = await server.command("federation", "joins")
                return status == 0 and [line.split()[3] for line in output.splitlines()[1:]] == ["done"]

            await until(done, "the job to end", timeout_s=60)
            state = await alice.get(f"/rooms/{room.room_id}/state")
            told = {event.event_id for event in (*room.state, *room.joins)}
            assert {event["event_id"] for event in state} == told
        finally:
            await server.stop()


async def test_a_join_waits_for_the_roomserver(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    ca = TestCa(tmp_path / "ca")
    server = federated_arbor(tmp_path / "arbor", ca)
    async with EvilPeer(ca) as peer:
        room = ResidentRoom(peer, 50)
        answer = room.send_join

        async def kill_first(request: Asked) -> Answer:
            server.kill("roomserver")
            return await answer(request)

        peer.answer("send_join", kill_first)
        await server.start()
        try:
            alice = await server.register(session, "alice")
            await join_patiently(alice, room.room_id, peer.server_name)
            assert len(await joined_members(alice, room.room_id)) == 52
            assert len(room.joins) == 1
        finally:
            await server.stop()


async def test_who_leaves_while_joining_has_left(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    ca = TestCa(tmp_path / "ca")
    server = federated_arbor(tmp_path / "arbor", ca)
    async with EvilPeer(ca) as peer:
        room = ResidentRoom(peer, 10)
        answer, taken, held = room.send_join, asyncio.Event(), asyncio.Event()

        async def hold(request: Asked) -> Answer:
            result = await answer(request)
            taken.set()
            await held.wait()
            return result

        peer.answer("send_join", hold)
        await server.start()
        try:
            alice = await server.register(session, "alice")
            async with asyncio.TaskGroup() as group:
                joining = group.create_task(outcome_of(join_patiently(alice, room.room_id, peer.server_name)))
                await taken.wait()
                await alice.post(f"/rooms/{room.room_id}/leave")
                assert await joining == (403, "M_FORBIDDEN")
            assert [event.content["membership"] for event in room.leaves] == ["leave"]
            # Nothing of the join is taken up afterwards.
            held.set()
            await server.wait_for_restart("federation", server.kill("federation"))
            assert (await alice.get("/joined_rooms"))["joined_rooms"] == []
            # A new join is a new one.
            await join_patiently(alice, room.room_id, peer.server_name)
            assert (await alice.get("/joined_rooms"))["joined_rooms"] == [room.room_id]
            assert len(room.joins) == 2
        finally:
            held.set()
            await server.stop()


async def outcome_of(request: Coroutine[Any, Any, Any]) -> tuple[int, str | None]:
    try:
        await request
    except ClientError as error:
        return error.status, error.errcode
    return 200, None

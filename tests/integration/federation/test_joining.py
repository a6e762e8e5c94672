"""A user joins a room of 2,000 members on another server; then others join it through us."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.evil_peer import Answer, Asked
from tests.support.joining_world import JoiningWorld, joining_world
from tests.support.matrix_client import ClientError
from tests.support.resident import ResidentRoom, join_patiently, join_through

MEMBERS = 2000


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[JoiningWorld]:
    async with joining_world(tmp_path) as made:
        yield made


async def test_a_large_room_is_joined_and_passed_on(
    world: JoiningWorld, session: aiohttp.ClientSession
) -> None:
    server, peer, third = world.server, world.peer, world.third
    room = ResidentRoom(peer, MEMBERS)
    alice, bob = await server.register(session, "alice"), await server.register(session, "bob")
    await join_patiently(alice, room.room_id, peer.server_name)
    joined = (await alice.get(f"/rooms/{room.room_id}/joined_members"))["joined"]
    assert len(joined) == MEMBERS + 2
    # The next user of ours needs no other server.
    await bob.join(room.room_id)
    assert len(room.joins) == 1
    eve = f"@eve:{third.server_name}"
    answer = await join_through(server.server_name, third, room, eve)
    members = {pdu["state_key"] for pdu in answer["state"] if pdu["type"] == "m.room.member"}
    assert members == {*joined, bob.user_id}
    assert set(answer["servers_in_room"]) == {peer.server_name, server.server_name}
    mallory = f"@mallory:{third.server_name}"
    answer = await join_through(server.server_name, third, room, mallory, "?omit_members=true")
    assert [pdu for pdu in answer["state"] if pdu["type"] == "m.room.member"] == []
    assert len(answer["auth_chain"]) < 10


async def test_operators_see_how_far_a_join_is(world: JoiningWorld, session: aiohttp.ClientSession) -> None:
    server, peer = world.server, world.peer
    room = ResidentRoom(peer, 10)
    answer, taken, held = room.send_join, asyncio.Event(), asyncio.Event()

    async def hold(request: Asked) -> Answer:
        taken.set()
        await held.wait()
        return await answer(request)

    peer.answer("send_join", hold)
    alice = await server.register(session, "alice")
    try:
        async with asyncio.TaskGroup() as group:
            joining = group.create_task(join_patiently(alice, room.room_id, peer.server_name))
            await taken.wait()
            status, output = await server.command("federation", "joins")
            assert status == 0, output
            assert output.splitlines()[1].split()[:4] == [
                alice.user_id,
                room.room_id,
                peer.server_name,
                "sent",
            ]
            held.set()
            await joining
    finally:
        held.set()
    _, output = await server.command("federation", "joins")
    assert output.splitlines()[1].split()[3] == "done"
    other = ResidentRoom(peer, 3)
    peer.answer("send_join", lambda _: Answer(body=b'{"state":[],"auth_chain":[]}'))
    with pytest.raises(ClientError):
        await alice.post(f"/join/{other.room_id}?via={peer.server_name}")
    _, output = await server.command("federation", "joins")
    assert "failed" in output.splitlines()[1]
    assert "create event" in output.splitlines()[1]

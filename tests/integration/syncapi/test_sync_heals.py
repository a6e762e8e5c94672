"""What breaks the thread of OUTPUT under a running server is mended by it: nothing lost, nothing told twice."""

import asyncio
import json
import os
import shutil
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from arbor.federation.v1 import federation_pb2
from servicekit.config import load_config
from servicekit.log.connection import LogConnection
from servicekit.log.subjects import OUTPUT
from tests.support.arbor_server import ArborServer
from tests.support.federation import federated_arbor, federation_of, until
from tests.support.following import Follower
from tests.support.matrix_client import MatrixClient
from tests.support.tls_ca import TestCa


@pytest.fixture
async def arbor(tmp_path: Path) -> AsyncIterator[ArborServer]:
    server = ArborServer(tmp_path / "arbor")
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def operator(server: ArborServer) -> AsyncIterator[LogConnection]:
    connection = await LogConnection.connect(load_config(str(server.config_path), {}, {}), "operator")
    try:
        yield connection
    finally:
        await connection.close()


async def asked(connection: LogConnection, api: str, request: dict[str, Any]) -> dict[str, Any]:
    answer = await connection.nc.request(f"$JS.API.{api}", json.dumps(request).encode(), timeout=10)
    told: dict[str, Any] = json.loads(answer.data)
    assert "error" not in told, told
    return told


def generation(server: ArborServer) -> int:
    """How often syncapi's tables were made anew."""
    with closing(sqlite3.connect(server.data_dir / "syncapi.db", timeout=30)) as connection:
        found = connection.execute("SELECT value FROM marker WHERE name = 'generation'").fetchone()
    return 0 if found is None else int(found[0])


async def rebuilt(server: ArborServer) -> None:
    async def look() -> bool:
        return generation(server) > 0

    await until(look, "a rebuild", timeout_s=40)


async def talk(session: aiohttp.ClientSession, server: ArborServer) -> tuple[MatrixClient, Follower, str]:
    """Alice and Bob in a room; Bob has been told what she said."""
    alice, bob = [await server.register(session, name) for name in ("alice", "bob")]
    room_id = await alice.create_room(preset="public_chat")
    await bob.join(room_id)
    follower = Follower(bob)
    await follower.catch_up(await alice.send(room_id, "before"))
    return alice, follower, room_id


@pytest.mark.timeout(120)
async def test_a_position_that_is_too_old(arbor: ArborServer, session: aiohttp.ClientSession) -> None:
    alice, bob, room_id = await talk(session, arbor)
    with closing(sqlite3.connect(arbor.data_dir / "syncapi.db", timeout=30)) as lock:
        lock.execute("BEGIN IMMEDIATE")  # syncapi cannot apply anything
        sent = [await alice.set_state(room_id, "m.room.topic", {"topic": "held by syncapi"})]
        await arbor.wait_for_restart("nats", arbor.kill("nats"))  # nor has it anything on the way
        sent += [await alice.send(room_id, f"missed {number}") for number in range(20)]
        async with operator(arbor) as log:
            before = await log.load_stream(OUTPUT)
            assert before is not None
            # Retention takes what it has not read.
            await asked(log, f"STREAM.PURGE.{OUTPUT}", {"seq": before.last_sequence})
        lock.rollback()
    await rebuilt(arbor)
    after = await alice.send(room_id, "after")
    await bob.catch_up(after)
    assert [event_id for _, event_id in bob.timeline][-22:] == [*sent, after]
    assert not bob.repeated()


@pytest.mark.timeout(120)
async def test_the_edge_dies_with_messages_told_and_not_yet_stored(
    arbor: ArborServer, session: aiohttp.ClientSession
) -> None:
    alice, bob, room_id = await talk(session, arbor)
    sent: list[str] = []

    def stored() -> bool:
        with closing(sqlite3.connect(arbor.data_dir / "syncapi.db", timeout=30)) as connection:
            return bool(connection.execute("SELECT 1 FROM event WHERE event_id = ?", (sent[-1],)).fetchone())

    for round_ in range(3):
        sent += [await alice.send(room_id, f"{round_} {number}") for number in range(5)]
        await bob.catch_up(sent[-1])
        was_stored = stored()
        await arbor.wait_for_restart("edge", arbor.kill("edge"))
        # Nobody is answered from what was stored before.
        answer = await until_answered(alice)
        timeline = answer["rooms"]["join"][room_id]["timeline"]["events"]
        assert timeline[-1]["event_id"] == sent[-1]
        after = await alice.send(room_id, "after")
        sent.append(after)
        await bob.catch_up(after)
        if not was_stored:
            break
    else:
        raise AssertionError("each time it was stored before the kill")
    assert [event_id for _, event_id in bob.timeline][-len(sent) :] == sent
    assert not bob.repeated()


async def until_answered(client: MatrixClient) -> dict[str, Any]:
    """An initial sync, as soon as somebody answers."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await client.sync()
            except aiohttp.ClientError:
                await asyncio.sleep(0.01)


@pytest.mark.timeout(120)
async def test_a_stream_that_was_made_anew(arbor: ArborServer, session: aiohttp.ClientSession) -> None:
    alice, bob, room_id = await talk(session, arbor)
    async with operator(arbor) as log:
        old = await log.load_stream(OUTPUT)
        assert old is not None
    assert arbor.pid is not None
    os.kill(arbor.pid, signal.SIGSTOP)  # nothing is started again meanwhile
    try:
        pids = [arbor.pids()["nats"], arbor.pids()["roomserver"]]
        # In good order: what is told of again because the note of having told it is lost would come twice.
        arbor.send_signal("roomserver", signal.SIGTERM)

        async def ended() -> bool:
            return psutil.Process(pids[1]).status() == psutil.STATUS_ZOMBIE

        await until(ended, "the end of the RoomServer")
        arbor.kill("nats")
        shutil.rmtree(arbor.data_dir / "nats")
    finally:
        os.kill(arbor.pid, signal.SIGCONT)
    for service, pid in zip(("nats", "roomserver"), pids, strict=True):
        await arbor.wait_for_restart(service, pid)
    await rebuilt(arbor)
    after = await alice.send(room_id, "after")
    await bob.catch_up(after)
    assert [event_id for _, event_id in bob.timeline][-1] == after
    assert not bob.repeated()
    async with operator(arbor) as log:
        new = await log.load_stream(OUTPUT)
    assert new is not None
    assert new.epoch != old.epoch
    assert new.last_sequence > old.last_sequence


@pytest.mark.timeout(120)
async def test_a_snapshot_is_fetched(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    ca = TestCa(tmp_path / "ca")
    here, there = (federated_arbor(tmp_path / name, ca) for name in ("here", "there"))
    async with asyncio.TaskGroup() as group:
        group.create_task(here.start())
        group.create_task(there.start())
    try:
        alice = await here.register(session, "alice")
        bob = await there.register(session, "bob")
        room_id = await alice.create_room(preset="public_chat", name="Far away")
        async with federation_of(there) as federation:
            request = federation_pb2.JoinRoomRequest(
                user_id=bob.user_id, room_id=room_id, via=[here.server_name]
            )
            await federation.JoinRoom(request, timeout=30)

        async def look() -> Any:
            return (await bob.sync()).get("rooms", {}).get("join", {}).get(room_id)

        room = await until(look, "the room in Bob's sync")
        state = {
            (event["type"], event["state_key"])
            for event in [*room["state"]["events"], *room["timeline"]["events"]]
            if "state_key" in event
        }
        assert {
            ("m.room.create", ""),
            ("m.room.name", ""),
            ("m.room.member", alice.user_id),
            ("m.room.member", bob.user_id),
        } <= state
        assert room["summary"]["m.joined_member_count"] == 2
        follower = Follower(bob)
        await follower.catch_up(await alice.send(room_id, "hello there"))
    finally:
        async with asyncio.TaskGroup() as group:
            group.create_task(here.stop())
            group.create_task(there.stop())

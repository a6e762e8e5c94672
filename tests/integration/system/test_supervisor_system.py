"""The whole system's life: it ends in order and in time, leaves nothing behind, and comes back with its rooms."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import psutil
import pytest

from tests.support.arbor_server import ArborServer
from tests.support.following import Follower
from tests.support.matrix_client import ClientError, MatrixClient, joined_timeline
from tests.support.processes import process_tree

PROMISED_END_S = 30.0


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[tuple[ArborServer, ArborServer]]:
    """Two servers on one host."""
    servers = ArborServer(tmp_path / "one"), ArborServer(tmp_path / "two", "other.test")
    started: list[ArborServer] = []
    try:
        for server in servers:
            await server.start()
            started.append(server)
        yield servers
    finally:
        for server in started:
            await server.stop()


async def ended(members: list[psutil.Process], timeout_s: float) -> None:
    """Wait until none of the processes is there any more."""
    async with asyncio.timeout(timeout_s):
        while any(
            member.is_running() and member.status() != psutil.STATUS_ZOMBIE for member in alive(members)
        ):
            await asyncio.sleep(0.05)


def alive(members: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.status()
            found.append(member)
    return found


async def keep_sending(client: MatrixClient, room_id: str, sent: list[str]) -> None:
    """Send until the server is gone; what was acknowledged goes to `sent`."""
    while True:
        try:
            sent.append(await client.send(room_id, f"message {len(sent)}"))
        except (aiohttp.ClientError, ConnectionError):
            return
        except ClientError as error:
            if error.status != 503:
                raise
            return


async def test_it_drains_and_comes_back_and_leaves_its_neighbour_alone(
    two: tuple[ArborServer, ArborServer], session: aiohttp.ClientSession
) -> None:
    one, other = two
    alice = await one.register(session, "alice")
    neighbour = await other.register(session, "alice")
    assert neighbour.user_id == "@alice:other.test"
    room_id = await alice.create_room(preset="public_chat", room_alias_name="same")
    their_room = await neighbour.create_room(preset="public_chat", room_alias_name="same")
    # The names, ports and logs of the two do not meet.
    assert not set(one.pids().values()) & set(other.pids().values())
    with pytest.raises(ClientError) as caught:
        await MatrixClient(session, other.base_url, access_token=alice.access_token).get("/account/whoami")
    assert caught.value.errcode == "M_UNKNOWN_TOKEN"
    follower, theirs = Follower(alice), Follower(neighbour)
    await follower.follow()
    await theirs.follow()

    members = list(process_tree(one.pid))
    assert len(members) >= 4
    sent: list[str] = []
    async with asyncio.TaskGroup() as group:
        senders = [group.create_task(keep_sending(alice, room_id, sent)) for _ in range(4)]
        # A long poll of another device does not hold up the end.
        waiting = group.create_task(idle_poll(await alice.login("alice", "correct horse")))
        await asyncio.sleep(0.3)
        began = time.monotonic()
        os.kill(one.pid, signal.SIGTERM)
        await asyncio.gather(*senders)
        await ended(members, PROMISED_END_S)
        took = time.monotonic() - began
        await waiting
    assert took < PROMISED_END_S
    assert sent
    await one.stop()
    assert not list(one.run_dir.glob("pids.json"))
    theirs_now = await neighbour.send(their_room, "not disturbed")
    await theirs.catch_up(theirs_now)

    await one.start()
    alice.base_url = one.base_url
    # What was acknowledged while it ended is there, once. Of very many one /sync shows the last; the history all.
    await follower.catch_up(*sent[-20:])
    assert not follower.repeated()
    history = [event["event_id"] for event in await alice.all_messages(room_id)]
    assert len(history) == len(set(history))
    assert set(sent) <= set(history)
    await follower.catch_up(await alice.send(room_id, "back again"))
    assert joined_timeline(await neighbour.sync(), their_room)[-1]["event_id"] == theirs_now

    # Killed, the supervisor takes its children with it; and the next start is as good as any.
    members = list(process_tree(one.pid))
    os.kill(one.pid, signal.SIGKILL)
    await ended(members, PROMISED_END_S)
    await one.stop()
    await theirs.catch_up(await neighbour.send(their_room, "still not disturbed"))
    await one.start()
    alice.base_url = one.base_url
    assert set(sent) <= {event["event_id"] for event in await alice.all_messages(room_id)}
    await follower.catch_up(await alice.send(room_id, "back once more"))
    assert not follower.repeated()
    # Nothing died of itself on the way (-11: a crash in a library).
    assert "child_died" not in one.output_tail(2000)


async def idle_poll(client: MatrixClient) -> None:
    """One long poll that nothing wakes but the server's end."""
    with contextlib.suppress(aiohttp.ClientError, ConnectionError):
        answer = await client.sync()
        await client.sync(answer["next_batch"], timeout_ms=60_000)


async def test_a_second_one_on_the_same_data_is_refused(
    two: tuple[ArborServer, ArborServer], session: aiohttp.ClientSession
) -> None:
    one, _ = two
    alice = await one.register(session, "alice")
    status, output = await one.command("run")
    assert status == 2
    assert "another arbor runs" in output
    room_id = await alice.create_room()
    assert await alice.send(room_id, "not disturbed")

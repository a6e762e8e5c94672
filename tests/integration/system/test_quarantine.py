"""One bad entry stops nobody else: its room is quarantined, `arbor log dead` shows it, `replay` mends it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.arbor_server import ArborServer
from tests.support.following import Follower
from tests.support.matrix_client import ClientError, MatrixClient, segment

RAISES = "org.example.raises"


@pytest.fixture
async def arbor(tmp_path: Path) -> AsyncIterator[ArborServer]:
    server = ArborServer(tmp_path / "arbor", environment={"ARBOR_TEST_RAISE_ON_EVENT_TYPE": RAISES})
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def restarted(server: ArborServer, *clients: MatrixClient) -> None:
    """The cause is mended: the server runs again, without it."""
    await server.stop()
    server.environment.clear()
    await server.start()
    for client in clients:
        client.base_url = server.base_url


async def test_a_room_is_quarantined_and_mended(arbor: ArborServer, session: aiohttp.ClientSession) -> None:
    alice = await arbor.register(session, "alice")
    bob = await arbor.register(session, "bob")
    bad, good = [await alice.create_room(preset="public_chat") for _ in range(2)]
    await bob.join(bad)
    await bob.join(good)
    before = await alice.send(bad, "before")
    follower = Follower(bob)
    await follower.catch_up(before)

    # Many sends are under way in other rooms when the entry comes.
    async def send(number: int) -> str:
        return await bob.send(good, f"meanwhile {number}")

    async with asyncio.TaskGroup() as group:
        others = [group.create_task(send(number)) for number in range(10)]
        offending = group.create_task(refused(alice, bad))
        others += [group.create_task(send(number)) for number in range(10, 20)]
    sent = {task.result() for task in others}
    assert len(sent) == 20
    error = offending.result()
    assert error.errcode is not None

    # The room takes nothing, says so, and can still be read; everything else goes on.
    for client in (alice, bob):
        with pytest.raises(ClientError) as caught:
            await client.send(bad, "nobody hears this", txn_id="while-quarantined")
        assert caught.value.status == 503
        assert caught.value.body["retry_after_ms"] > 0
    assert (await bob.messages(bad, limit=1))["chunk"][0]["event_id"] == before
    sent.add(await alice.send(good, "still here"))
    another = await alice.create_room(preset="public_chat")
    await alice.send(another, "a new room")
    await follower.catch_up(*sent)
    assert [event_id for room_id, event_id in follower.timeline if room_id == bad][-1] == before

    status, output = await arbor.command("log", "dead", "--trace")
    assert status == 0
    assert bad in output
    assert good not in output
    assert RAISES in output
    assert "Traceback" in output
    assert "nobody hears this" not in output

    await restarted(arbor, alice, bob)
    # A restart alone forgets nothing.
    with pytest.raises(ClientError) as caught:
        await bob.send(bad, "still not", txn_id="while-quarantined")
    assert caught.value.status == 503
    status, output = await arbor.command("log", "replay", "roomserver")
    assert status == 0, output
    status, output = await arbor.command("log", "dead")
    assert (status, output.strip()) == (0, "none")

    # The entry has been applied, as it was asked for, and the room goes on behind it.
    page = await bob.messages(bad, limit=5)
    assert [event["type"] for event in page["chunk"][:2]] == [RAISES, "m.room.message"]
    after = await bob.send(bad, "after", txn_id="while-quarantined")
    assert after != before
    history = await alice.all_messages(bad)
    texts = [event["content"].get("body") for event in history if event["type"] == "m.room.message"]
    assert texts == ["before", "after"]
    # A client that waited all the time gets all of it.
    await follower.catch_up(after)
    timeline = [event_id for room_id, event_id in follower.timeline if room_id == bad]
    timeline = timeline[timeline.index(before) + 1 :]
    assert [follower.events[event_id]["type"] for event_id in timeline] == [RAISES, "m.room.message"]
    assert not follower.repeated()
    assert not follower.limited
    # The sender's repeated request finds the event that the replay made.
    again = await alice.send(bad, {"a": 1}, RAISES, txn_id="raises")
    assert again == timeline[0]


async def refused(client: MatrixClient, room_id: str) -> ClientError:
    """Send what the RoomServer raises at; the answer, which is no success."""
    with pytest.raises(ClientError) as caught:
        await client.send(room_id, {"a": 1}, RAISES, txn_id="raises")
    assert caught.value.status >= 500
    return caught.value


async def test_the_doctor_and_the_rooms_state_say_so(
    arbor: ArborServer, session: aiohttp.ClientSession
) -> None:
    alice = await arbor.register(session, "alice")
    room_id = await alice.create_room()
    path = f"/rooms/{segment(room_id)}/state/{RAISES}/"
    with pytest.raises(ClientError):
        await alice.put(path, {})
    status, output = await arbor.command("doctor")
    assert "dead" in output, output
    assert status != 0 or "replay" in output
    # A state entry that could not be applied is in nobody's state.
    assert RAISES not in json.dumps(await alice.state(room_id))
    assert RAISES not in json.dumps(await alice.sync())

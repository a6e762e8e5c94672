"""One bad entry stops nobody else in a reader: syncapi puts its room aside, and `replay` mends it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.arbor_server import ArborServer
from tests.support.following import Follower
from tests.support.matrix_client import MatrixClient, segment

RAISES = "org.example.raises"


@pytest.fixture
async def arbor(tmp_path: Path) -> AsyncIterator[ArborServer]:
    server = ArborServer(tmp_path / "arbor", environment={"ARBOR_TEST_SYNCAPI_RAISE_ON_EVENT_TYPE": RAISES})
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def texts(room: dict[str, Any]) -> list[str]:
    return [event["content"].get("body", event["type"]) for event in room["timeline"]["events"]]


async def unread(client: MatrixClient, room_id: str) -> int:
    answer = await client.sync()
    return int(answer["rooms"]["join"][room_id]["unread_notifications"]["notification_count"])


@pytest.mark.timeout(120)
async def test_a_room_is_put_aside_and_mended(arbor: ArborServer, session: aiohttp.ClientSession) -> None:
    alice = await arbor.register(session, "alice")
    bob = await arbor.register(session, "bob")
    carol = await arbor.register(session, "carol")
    bad, good = [await alice.create_room(preset="public_chat") for _ in range(2)]
    await bob.join(bad)
    await bob.join(good)
    before = await alice.send(bad, "before")
    follower = Follower(bob)
    await follower.catch_up(before)
    since = (await bob.sync())["next_batch"]

    # The RoomServer takes all of it; syncapi goes on with the other room.
    raised = await alice.send(bad, {"a": 1}, RAISES)
    behind = await alice.send(bad, "behind")
    topic = await alice.set_state(bad, "m.room.topic", {"topic": "new"})
    await carol.join(bad)
    elsewhere = [await alice.send(good, f"good {number}") for number in range(3)]
    await follower.catch_up(*elsewhere)
    assert (await bob.messages(bad, limit=1))["chunk"][0]["event_id"] == before
    answer = await bob.sync(since)
    assert list(answer["rooms"]["join"]) == [good]

    status, output = await arbor.command("log", "dead", "--service", "syncapi", "--trace")
    assert status == 0
    assert bad in output
    assert good not in output
    assert f"events of type {RAISES}" in output
    assert output.count("an earlier message of the room could not be applied") >= 3

    # While the cause is there a replay changes nothing.
    status, output = await arbor.command("log", "replay", "syncapi")
    assert '"applied": 0' in output
    assert (await bob.messages(bad, limit=1))["chunk"][0]["event_id"] == before

    await arbor.stop()
    arbor.environment.clear()
    await arbor.start()
    for client in (alice, bob, carol):
        client.base_url = arbor.base_url
    # A restart alone forgets nothing of the quarantine.
    since = (await bob.sync(answer["next_batch"]))["next_batch"]
    assert (await bob.messages(bad, limit=1))["chunk"][0]["event_id"] == before
    status, output = await arbor.command("log", "replay", "syncapi")
    assert (status, '"failed": 0' in output) == (0, True), output
    status, output = await arbor.command("log", "dead")
    assert (status, output.strip()) == (0, "none")

    # A client that was told of later things meanwhile gets the room once more, whole; then all goes on.
    answer = await bob.sync(since, timeout_ms=10_000)
    room = answer["rooms"]["join"][bad]
    assert [event["event_id"] for event in room["timeline"]["events"]][-4:-1] == [raised, behind, topic]
    assert "m.room.create" in {
        event["type"] for event in room["state"]["events"] + room["timeline"]["events"]
    }
    assert (await alice.get(f"/rooms/{segment(bad)}/state/m.room.topic"))["topic"] == "new"
    assert await unread(bob, bad) == 2
    assert bad in (await carol.sync())["rooms"]["join"]
    last = await alice.send(bad, "after")
    answer = await bob.sync(answer["next_batch"], timeout_ms=10_000)
    while bad not in answer.get("rooms", {}).get("join", {}):
        answer = await bob.sync(answer["next_batch"], timeout_ms=10_000)
    assert answer["rooms"]["join"][bad]["timeline"]["events"][-1]["event_id"] == last
    assert texts(answer["rooms"]["join"][bad])[-1] == "after"
    history = await bob.all_messages(bad)
    bodies = [event["content"].get("body") for event in history if event["type"] == "m.room.message"]
    assert bodies == ["before", "behind", "after"]

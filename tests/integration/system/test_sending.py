"""A repeated transaction never makes a second event, and what was acknowledged can be read at once."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.arbor_server import ArborServer, SecondEdge
from tests.support.following import Follower
from tests.support.homeserver import Homeserver
from tests.support.matrix_client import ClientError, MatrixClient, joined_timeline, segment


async def texts_of(client: MatrixClient, room_id: str) -> list[str]:
    """The bodies of all messages in the room, oldest first."""
    return [
        event["content"]["body"]
        for event in await client.all_messages(room_id)
        if event["type"] == "m.room.message"
    ]


async def test_one_after_the_other(
    homeserver: Homeserver, session: aiohttp.ClientSession, unique: Callable[[str], str]
) -> None:
    alice = await homeserver.register(session, unique("alice"))
    room_id = await alice.create_room()
    first = await alice.send(room_id, "once", txn_id="t")
    for body in ("once", "once", "with another body"):
        assert await alice.send(room_id, body, txn_id="t") == first
    assert await texts_of(alice, room_id) == ["once"]
    assert await alice.send(room_id, "twice", txn_id="t2") != first


async def test_twenty_at_once(
    homeserver: Homeserver, session: aiohttp.ClientSession, unique: Callable[[str], str]
) -> None:
    alice = await homeserver.register(session, unique("alice"))
    room_id = await alice.create_room()
    ids: list[str] = []
    for attempt in range(3):
        ids = await asyncio.gather(
            *(alice.send(room_id, f"race {attempt}", txn_id=f"t{attempt}") for _ in range(20))
        )
        assert len(set(ids)) == 1
    assert await texts_of(alice, room_id) == ["race 0", "race 1", "race 2"]
    # Redactions are transactions too.
    target = ids[0]
    path = f"/rooms/{segment(room_id)}/redact/{segment(target)}/r1"
    answers = await asyncio.gather(*(alice.put(path, {}) for _ in range(20)))
    assert len({answer["event_id"] for answer in answers}) == 1
    history = await alice.all_messages(room_id)
    assert Counter(event["type"] for event in history)["m.room.redaction"] == 1


async def test_another_device_room_or_endpoint_is_another_transaction(
    homeserver: Homeserver, session: aiohttp.ClientSession, unique: Callable[[str], str]
) -> None:
    name = unique("alice")
    alice = await homeserver.register(session, name)
    other_device = await alice.login(name, "correct horse")
    rooms = [await alice.create_room() for _ in range(2)]
    ids = {
        await client.send(room_id, "same id", txn_id="t")
        for client in (alice, other_device)
        for room_id in rooms
    }
    assert len(ids) == 4
    assert await alice.send(rooms[0], {"n": 1}, "org.example.count", txn_id="t") not in ids
    target = await alice.send(rooms[0], "to be redacted")
    path = f"/rooms/{segment(rooms[0])}/redact/{segment(target)}/t"
    redaction = (await alice.put(path, {}))["event_id"]
    assert redaction not in ids
    assert (await alice.put(path, {}))["event_id"] == redaction
    # The same device that logs in again is a device still, with what it sent.
    again = await alice.login(name, "correct horse", device_id=alice.device_id)
    assert await again.send(rooms[0], "same id", txn_id="t") in ids


async def test_only_the_sending_device_sees_its_transaction_id(
    homeserver: Homeserver, session: aiohttp.ClientSession, unique: Callable[[str], str]
) -> None:
    name = unique("alice")
    alice = await homeserver.register(session, name)
    other_device = await alice.login(name, "correct horse")
    room_id = await alice.create_room()
    followers = [Follower(alice), Follower(other_device)]
    event_id = await alice.send(room_id, "mine", txn_id="my-txn")
    for follower in followers:
        await follower.catch_up(event_id)
    own, others = (follower.events[event_id].get("unsigned", {}) for follower in followers)
    assert own["transaction_id"] == "my-txn"
    assert "transaction_id" not in others
    path = f"/rooms/{segment(room_id)}/event/{segment(event_id)}"
    assert (await alice.get(path))["unsigned"]["transaction_id"] == "my-txn"
    assert "transaction_id" not in (await other_device.get(path)).get("unsigned", {})
    # From the database as well as from memory.
    initial = joined_timeline(await alice.sync(), room_id)[-1]
    assert initial["unsigned"]["transaction_id"] == "my-txn"


async def seen_in_the_room(reader: MatrixClient, room_id: str, event_id: str) -> None:
    """An event is there in each way of reading a room, asked once and without waiting."""
    room = f"/rooms/{segment(room_id)}"
    assert (await reader.get(f"{room}/event/{segment(event_id)}"))["event_id"] == event_id
    assert (await reader.messages(room_id, limit=1))["chunk"][0]["event_id"] == event_id
    context = await reader.get(f"{room}/context/{segment(event_id)}")
    assert context["event"]["event_id"] == event_id


async def test_reads_follow_writes(
    homeserver: Homeserver, session: aiohttp.ClientSession, unique: Callable[[str], str]
) -> None:
    alice = await homeserver.register(session, unique("alice"))
    room_id = await alice.create_room()
    room = f"/rooms/{segment(room_id)}"
    since = (await alice.sync())["next_batch"]
    for number in range(15):
        event_id = await alice.send(room_id, f"message {number}")
        match number % 5:
            case 0:
                await seen_in_the_room(alice, room_id, event_id)
            case 1:
                assert (await alice.get(f"{room}/event/{segment(event_id)}"))["event_id"] == event_id
            case 2:
                assert (await alice.messages(room_id, limit=1))["chunk"][0]["event_id"] == event_id
            case 3:
                path = f"{room}/context/{segment(event_id)}"
                assert (await alice.get(path))["event"]["event_id"] == event_id
            case _:
                answer = await alice.sync(since)
                assert [e["event_id"] for e in joined_timeline(answer, room_id)][-1] == event_id
        since = (await alice.sync(since))["next_batch"]
    for number in range(5):
        event_id = await alice.set_state(room_id, "org.example", {"n": number}, "key")
        assert await alice.get(f"{room}/state/org.example/key") == {"n": number}
        assert event_id in {event["event_id"] for event in await alice.state(room_id)}
    new_room = await alice.create_room(name="new")
    assert new_room in (await alice.get("/joined_rooms"))["joined_rooms"]
    assert await alice.get(f"/rooms/{segment(new_room)}/state/m.room.name") == {"name": "new"}
    await alice.leave(new_room)
    assert new_room not in (await alice.get("/joined_rooms"))["joined_rooms"]
    assert new_room in (await alice.sync(since))["rooms"]["leave"]


async def test_account_data_follows_too(
    homeserver: Homeserver, session: aiohttp.ClientSession, unique: Callable[[str], str]
) -> None:
    alice = await homeserver.register(session, unique("alice"))
    since = (await alice.sync())["next_batch"]
    path = f"/user/{segment(alice.user_id)}/account_data/org.example"
    for number in range(5):
        await alice.put(path, {"n": number})
        assert await alice.get(path) == {"n": number}
    follower = Follower(alice, since)
    told: list[Any] = []
    async with asyncio.timeout(10):
        while {"n": 4} not in told:
            answer = await follower.follow(2000)
            told += [event["content"] for event in answer.get("account_data", {}).get("events", [])]
    assert told[-1] == {"n": 4}


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[tuple[ArborServer, SecondEdge]]:
    first = ArborServer(tmp_path / "arbor", config={"federation": {"enabled": False}})
    await first.start()
    try:
        second = SecondEdge(first)
        await second.start()
        try:
            yield first, second
        finally:
            await second.stop()
    finally:
        await first.stop()


async def test_through_two_edges_and_restarts(
    deployment: tuple[ArborServer, SecondEdge], session: aiohttp.ClientSession
) -> None:
    first, second = deployment
    alice = await first.register(session, "alice")
    there = alice.at(second.base_url)
    room_id = await alice.create_room()
    follower = Follower(alice)
    await follower.follow()
    room = f"/rooms/{segment(room_id)}"
    # What the second edge acknowledged comes to readers at the first one by the log; then it is everywhere.
    for number in range(12):
        event_id = await there.send(room_id, f"by the other edge {number}")
        await follower.catch_up(event_id)
        match number % 4:
            case 0:
                await seen_in_the_room(alice, room_id, event_id)
            case 1:
                assert (await alice.messages(room_id, limit=1))["chunk"][0]["event_id"] == event_id
            case 2:
                path = f"{room}/context/{segment(event_id)}"
                assert (await alice.get(path))["event"]["event_id"] == event_id
            case _:
                last = await there.set_state(room_id, "org.example", {"n": number})
                await follower.catch_up(last)
                assert await alice.get(f"{room}/state/org.example") == {"n": number}
    assert not follower.repeated()
    # A read of one room at the first edge waits for what the second has acknowledged.
    for number in range(10):
        event_id = await there.send(room_id, f"read at once {number}")
        assert (await alice.messages(room_id, limit=1))["chunk"][0]["event_id"] == event_id
    # The same transaction at both edges at once is one event.
    for number in range(5):
        ids = await asyncio.gather(
            *(client.send(room_id, f"both {number}", txn_id=f"b{number}") for client in (alice, there) * 5)
        )
        assert len(set(ids)) == 1

    sent = {}
    for service in ("edge", "roomserver", "nats"):
        txn_id = f"before {service}"
        sent[txn_id] = await alice.send(room_id, txn_id, txn_id=txn_id)
        old_pid = first.kill(service)
        await first.wait_for_restart(service, old_pid)
        for known, event_id in sent.items():
            assert await persistently(alice, room_id, known) == event_id
            assert await persistently(there, room_id, known) == event_id
    texts = await texts_of(alice, room_id)
    assert len(texts) == len(set(texts)) == 12 + 10 + 5 + 3


async def persistently(client: MatrixClient, room_id: str, txn_id: str) -> str:
    """Send with the same transaction id until it is acknowledged, as clients do."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await client.send(room_id, txn_id, txn_id=txn_id)
            except (aiohttp.ClientError, ConnectionError):
                pass
            except ClientError as error:
                if error.status < 500:
                    raise
            await asyncio.sleep(0.1)


async def test_typing_ends_with_its_time_and_with_leaving(
    homeserver: Homeserver, session: aiohttp.ClientSession, unique: Callable[[str], str]
) -> None:
    alice, bob = [await homeserver.register(session, unique(name)) for name in ("alice", "bob")]
    room_id = await alice.create_room(preset="public_chat")
    await bob.join(room_id)
    path = f"/rooms/{segment(room_id)}/typing/{segment(bob.user_id)}"
    since = (await alice.sync())["next_batch"]

    async def who_types(since: str) -> tuple[list[str], str]:
        while True:
            answer = await alice.sync(since, 30_000)
            since = answer["next_batch"]
            ephemeral = answer.get("rooms", {}).get("join", {}).get(room_id, {}).get("ephemeral", {})
            for event in ephemeral.get("events", []):
                if event["type"] == "m.typing":
                    return event["content"]["user_ids"], since

    async with asyncio.timeout(20):
        await bob.put(path, {"typing": True, "timeout": 300})
        users, since = await who_types(since)
        assert users == [bob.user_id]
        # Nobody does anything, and she hears of the end all the same.
        users, since = await who_types(since)
        assert users == []
        await bob.put(path, {"typing": True, "timeout": 60_000})
        users, since = await who_types(since)
        assert users == [bob.user_id]
        await bob.leave(room_id)
        users, since = await who_types(since)
        assert users == []


async def test_settings_and_receipts_are_in_the_next_sync(
    homeserver: Homeserver, session: aiohttp.ClientSession, unique: Callable[[str], str]
) -> None:
    alice, bob = [await homeserver.register(session, unique(name)) for name in ("alice", "bob")]
    room_id = await alice.create_room(preset="public_chat")
    await bob.join(room_id)
    mine = f"/user/{segment(bob.user_id)}"
    for number in range(10):
        said = await alice.send(room_id, f"number {number}")
        since = (await bob.sync())["next_batch"]
        await bob.put(f"{mine}/account_data/org.example", {"number": number})
        await bob.put(f"{mine}/rooms/{segment(room_id)}/tags/u.mine", {"order": number / 10})
        await bob.post(f"/rooms/{segment(room_id)}/receipt/m.read/{segment(said)}")
        # Also where the same request was answered before.
        await bob.sync(since)
        await bob.put(f"{mine}/account_data/org.example", {"number": -number})
        answer = await bob.sync(since)
        contents = {event["type"]: event["content"] for event in answer["account_data"]["events"]}
        assert contents["org.example"] == {"number": -number}
        room = answer["rooms"]["join"][room_id]
        tags = {event["type"]: event["content"] for event in room["account_data"]["events"]}["m.tag"]
        assert tags["tags"]["u.mine"]["order"] == number / 10
        (receipt,) = [event for event in room["ephemeral"]["events"] if event["type"] == "m.receipt"]
        assert bob.user_id in receipt["content"][said]["m.read"]
        assert room["unread_notifications"]["notification_count"] == 0

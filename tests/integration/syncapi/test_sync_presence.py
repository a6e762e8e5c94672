"""Who reads is present, for those who share a room."""

import asyncio
from typing import Any

import aiohttp
import pytest

from syncapi.live import Live
from syncapi.presence import OFFLINE_AFTER_MS, PresenceTeller
from tests.support.homeserver import Homeserver
from tests.support.matrix_client import ClientError, segment


def presences(answer: Any) -> dict[str, str]:
    events = answer.get("presence", {}).get("events", [])
    return {event["sender"]: event["content"]["presence"] for event in events}


async def test_reading_makes_present(
    homeserver: Homeserver, session: aiohttp.ClientSession, unique: Any
) -> None:
    alice, bob, eve = [await homeserver.register(session, unique(name)) for name in ("alice", "bob", "eve")]
    room_id = await alice.create_room(preset="public_chat")
    await bob.join(room_id)
    since = (await alice.sync())["next_batch"]
    status = f"/presence/{segment(bob.user_id)}/status"
    assert (await alice.get(status))["presence"] == "offline"
    await bob.sync(set_presence="unavailable")
    async with asyncio.timeout(10):
        told: dict[str, str] = {}
        while bob.user_id not in told:
            answer = await alice.sync(since, 5_000)
            since = answer["next_batch"]
            told = presences(answer)
    assert told[bob.user_id] == "unavailable"
    assert (await alice.get(status))["presence"] == "unavailable"
    with pytest.raises(ClientError) as caught:
        await eve.get(status)
    assert caught.value.status == 403
    assert bob.user_id not in presences(await eve.sync())


async def test_only_changes_are_told() -> None:
    clock = [1_000_000]
    live = Live(lambda: clock[0])
    live.begin("l1")
    told: list[str] = []

    async def publish(user_id: str, data: bytes) -> None:
        live.apply(live.sequence + 1, data)
        told.append(live.presence[user_id].presence)

    async def until(count: int) -> None:
        async with asyncio.timeout(5):
            while len(told) < count:
                await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(told) == count

    teller = PresenceTeller(live, publish, enabled=True)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(teller.run())
        with teller.reading("@a:x", "PHONE", "offline"):
            pass
        for _ in range(3):
            with teller.reading("@a:x", "PHONE", "unavailable"):
                await until(1)
        with teller.reading("@a:x", "DESK", "online"):
            await until(2)
            clock[0] += 2 * OFFLINE_AFTER_MS
            teller.sweep()  # the one that reads stays
            await until(2)
        clock[0] += OFFLINE_AFTER_MS + 1
        teller.sweep()
        await until(3)
        running.cancel()
    assert told == ["unavailable", "online", "offline"]

"""Two clientapi processes on one database and one log, sending into one room at once."""

import asyncio
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import aiohttp
import orjson
import pytest

from tests.support.arbor_server import ArborServer, SecondEdge
from tests.support.foreign_writer import foreign_writer
from tests.support.matrix_client import MatrixClient

SENDS = 600
IN_FLIGHT = 50


@pytest.fixture
async def edges(tmp_path: Path) -> AsyncIterator[tuple[ArborServer, SecondEdge]]:
    """A deployment with a second edge."""
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


async def counted(session: aiohttp.ClientSession, server: ArborServer, name: str) -> float:
    """Return the sum of a counter over all processes."""
    async with session.get(f"{server.url_of('metrics')}/metrics") as response:
        text = await response.text()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(rf"\w*{name}", line))


@pytest.mark.timeout(180)
async def test_they_take_turns_instead_of_forking(
    edges: tuple[ArborServer, SecondEdge], session: aiohttp.ClientSession
) -> None:
    first, second = edges
    people = [await first.register(session, f"user{number}") for number in range(4)]
    room_id = await people[0].create_room(preset="public_chat")
    for person in people[1:]:
        await person.join(room_id)
    clients: list[MatrixClient] = [one.at(url) for one in people for url in (first.base_url, second.base_url)]
    numbers = count()

    async def send() -> None:
        while (number := next(numbers)) < SENDS:
            await clients[number % len(clients)].send(room_id, f"message {number}")

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(send())
    history = await people[0].all_messages(room_id)
    texts = Counter(event["content"]["body"] for event in history if event["type"] == "m.room.message")
    assert texts == Counter({f"message {number}": 1 for number in range(SENDS)})
    rebuilds = await counted(session, first, "clientapi_rebuilds_total")
    messages = await counted(session, first, "clientapi_chain_entries_count")
    forks = await counted(session, first, "clientapi_may_fork_total")
    contentions = await counted(session, first, "clientapi_contentions_total")
    print(
        f"\n{SENDS} sends: {messages:.0f} messages, {contentions:.0f} contentions, {rebuilds:.0f} rebuilds",
        forks,
    )
    async with foreign_writer(first, "@nobody:foreign.test") as asker:
        latest = await asker.latest(room_id)
        stored = await asker.stored_events([event["event_id"] for event in history])
    children: dict[str, list[str]] = defaultdict(list)
    for item in stored:
        for previous in orjson.loads(item.event.pdu_json)["prev_events"]:
            children[previous].append(item.event.event_id)
    # A fork is legal where nothing else gets a writer in; it must be the rare exception, and healed.
    assert len([ids for ids in children.values() if len(ids) > 1]) <= SENDS / 100
    assert len(latest.forward_extremities) == 1
    assert rebuilds < SENDS / 2


@pytest.mark.timeout(120)
async def test_what_one_ends_the_other_forgets(
    edges: tuple[ArborServer, SecondEdge], session: aiohttp.ClientSession
) -> None:
    first, second = edges
    alice = await first.register(session, "alice")
    headers = {"Authorization": f"Bearer {alice.access_token}"}

    async def whoami(url: str) -> int:
        async with session.get(f"{url}/_matrix/client/v3/account/whoami", headers=headers) as response:
            return response.status

    assert [await whoami(url) for url in (first.base_url, second.base_url)] == [200, 200]
    async with session.post(
        f"{first.base_url}/_matrix/client/v3/logout/all", headers=headers, json={}
    ) as response:
        assert response.status == 200
    async with asyncio.timeout(10):
        while await whoami(second.base_url) != 401:
            await asyncio.sleep(0.01)
    assert await whoami(first.base_url) == 401

"""Local writers do not fork rooms: many at once, through two edges, another server's events in between."""

import asyncio
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import aiohttp
import orjson
import pytest

from tests.support.arbor_server import ArborServer, SecondEdge
from tests.support.foreign_writer import ForeignWriter, foreign_writer
from tests.support.matrix_client import MatrixClient

SENDS = 1000
IN_FLIGHT = 50
FOREIGN_SENDS = 60
FOREIGN_USER = "@mallory:foreign.test"


@asynccontextmanager
async def two_edges(folder: Path) -> AsyncIterator[tuple[ArborServer, SecondEdge]]:
    # Nobody is at the foreign server, so there is nothing to send it.
    first = ArborServer(folder, config={"federation": {"enabled": False}})
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


async def foreign_joins(writer: ForeignWriter, room_id: str) -> None:
    event_id = await writer.write(room_id, "m.room.member", {"membership": "join"}, state_key=writer.user_id)
    async with asyncio.timeout(20):
        while event_id not in [event.event_id for event in (await writer.latest(room_id)).state]:
            await asyncio.sleep(0.05)


async def counter_value(session: aiohttp.ClientSession, url: str, pattern: str) -> float:
    """The sum of all samples of the Prometheus metrics whose name matches."""
    async with session.get(f"{url}/metrics") as response:
        text = await response.text()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(pattern, line))


@pytest.mark.timeout(240)
async def test_a_thousand_concurrent_sends_leave_one_head(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    async with (
        two_edges(tmp_path / "arbor") as (first, second),
        foreign_writer(first, FOREIGN_USER) as foreign,
    ):
        people = [await first.register(session, f"user{number}") for number in range(10)]
        room_id = await people[0].create_room(preset="public_chat")
        for person in people[1:]:
            await person.join(room_id)
        await foreign_joins(foreign, room_id)
        # The same people at both edges.
        edges: list[MatrixClient] = [
            one.at(url) for one in people for url in (first.base_url, second.base_url)
        ]
        numbers = count()
        sent: list[str] = []

        async def send() -> None:
            while (number := next(numbers)) < SENDS:
                # A failed request fails the test.
                sent.append(await edges[number % len(edges)].send(room_id, f"message {number}"))

        async def interfere() -> list[str]:
            return [
                await foreign.write(
                    room_id, "m.room.message", {"msgtype": "m.text", "body": f"foreign {number}"}
                )
                for number in range(FOREIGN_SENDS)
            ]

        async with asyncio.TaskGroup() as group:
            interference = group.create_task(interfere())
            for _ in range(IN_FLIGHT):
                group.create_task(send())
        # Whatever branch the foreign events left open, the next local event closes.
        last = await people[0].send(room_id, "the end")
        latest = await foreign.latest(room_id)
        assert list(latest.forward_extremities) == [last]

        history = await people[0].all_messages(room_id)
        texts = Counter(event["content"]["body"] for event in history if event["type"] == "m.room.message")
        expected = {f"message {n}" for n in range(SENDS)} | {f"foreign {n}" for n in range(FOREIGN_SENDS)}
        assert set(texts) == expected | {"the end"}
        assert set(texts.values()) == {1}
        assert len(set(sent)) == SENDS

        # Two events on the same previous event are a fork; it is ours if none of the two is foreign.
        children: dict[str, set[str]] = defaultdict(set)
        foreign_ids = set(interference.result())
        for stored in await foreign.stored_events([event["event_id"] for event in history]):
            for previous in orjson.loads(stored.event.pdu_json)["prev_events"]:
                children[previous].add(stored.event.event_id)
        forks = {previous: ids for previous, ids in children.items() if len(ids - foreign_ids) > 1}
        # From its third try on a writer may fork rather than wait on; between two edges that is rare.
        print(f"\nforks of our own: {len(forks)} in {SENDS} sends")
        assert len(forks) <= SENDS / 50

        metrics = first.url_of("metrics")
        assert metrics is not None
        rebuilds = await counter_value(session, metrics, r"arbor_\w*rebuil\w*_total")
        print(f"\nrebuilds at the first edge: {rebuilds:.0f}")
        assert rebuilds < SENDS

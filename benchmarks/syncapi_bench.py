"""What the sync API costs in CPU: applying, delivering, initial sync, `/messages`.

    .venv/bin/python -m benchmarks.syncapi_bench [--profile NAME]

Hand-made OUTPUT messages, SQLite, no HTTP and no NATS: those have figures of their own.
"""

import argparse
import asyncio
import cProfile
import pstats
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from syncapi.auth import Caller
from syncapi.filters import NO_FILTER
from syncapi.http import messages as messages_http
from syncapi.sync.request import SyncRequest
from syncapi.tokens import parse_sync_token
from tests.support.sync_world import ALICE, Room, SyncWorld

WAITERS = 100
MEMBERS = 2000
ROOMS = 50


def user(number: int) -> str:
    """Return a local user."""
    return f"@user{number}:here"


class Meter:
    """Prints CPU time (all threads) per operation; profiles the one that is named."""

    def __init__(self, profile: str | None) -> None:
        self._profile = profile

    async def measure(self, name: str, count: int, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work`, which does `count` operations."""
        profiler = cProfile.Profile() if self._profile == name else None
        if profiler:
            profiler.enable()
        started, wall = time.process_time(), time.perf_counter()
        await work()
        spent, passed = time.process_time() - started, time.perf_counter() - wall
        if profiler:
            profiler.disable()
            pstats.Stats(profiler).sort_stats("tottime").print_stats(35)
        print(f"{name:24} {spent / count * 1000:8.3f} ms CPU  {passed / count * 1000:8.3f} ms wall  x{count}")


def fill(world: SyncWorld) -> list[Room]:
    """Make the rooms: one with many members, the others with few; ALICE is in all."""
    world.hold()
    rooms = [world.room(ALICE) for _ in range(ROOMS)]
    for number in range(MEMBERS):
        rooms[0].join(user(number), displayname=f"User {number}", avatar_url="mxc://here/aaaaaaaaaaaaaaaaaa")
    rooms[0].state(ALICE, "m.room.name", "", {"name": "The big one"})
    for room in rooms[1:]:
        room.join(user(1))
        for number in range(20):
            room.say(ALICE, f"text {number}")
    world.release()
    return rooms


async def deliver(world: SyncWorld, room: Room, meter: Meter) -> None:
    """One message at a time to every waiting user."""
    since = {user(n): (await world.sync(user(n)))["next_batch"] for n in range(WAITERS)}

    def request(name: str) -> SyncRequest:
        return SyncRequest(name, "DEV", NO_FILTER, since=parse_sync_token(since[name]), timeout_ms=30_000)

    async def rounds() -> None:
        for number in range(20):
            async with asyncio.TaskGroup() as group:
                tasks = {name: group.create_task(world.engine.answer(request(name))) for name in since}
                while len([n for n in since if world.window.user(n).waiters]) < WAITERS:  # noqa: ASYNC110
                    await asyncio.sleep(0)
                room.say(ALICE, f"to all {number}")
            for name, task in tasks.items():
                body = task.result()
                since[name] = body[15 : body.index(b'"', 15)].decode()

    await meter.measure("delivery", 20 * WAITERS, rounds)


async def run(profile: str | None) -> None:
    """Run all."""
    meter = Meter(profile)
    with tempfile.TemporaryDirectory() as directory:
        world = SyncWorld(f"sqlite:///{Path(directory) / 'sync.db'}")
        rooms: list[Room] = []

        async def filling() -> None:
            rooms.extend(fill(world))

        await meter.measure("fill", MEMBERS + ROOMS * 25, filling)

        async def apply() -> None:
            for start in range(0, 3000, 100):
                world.hold()
                for number in range(100):
                    rooms[number % ROOMS].say(ALICE, f"more {start + number}")
                world.release()

        await meter.measure("apply_100", 3000, apply)

        async def apply_one() -> None:
            for number in range(300):
                rooms[number % ROOMS].say(ALICE, f"single {number}")

        await meter.measure("apply_1", 300, apply_one)

        async def initial() -> None:
            for _ in range(10):
                await world.engine.answer(SyncRequest(ALICE, "DEV", NO_FILTER))

        await meter.measure("initial_sync", 10, initial)
        await deliver(world, rooms[0], meter)

        async def pages() -> None:
            for _ in range(50):
                page = messages_http.Page(rooms[1].room_id, True, None, None, 100, NO_FILTER.timeline)
                await world.database.read(messages_http.load_page, Caller(ALICE, "DEV", False, 0), page)

        await meter.measure("messages_100", 50, pages)
        world.close()


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", help="name of the measurement to profile")
    asyncio.run(run(parser.parse_args().profile))


if __name__ == "__main__":
    main()

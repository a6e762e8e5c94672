"""One at a time for each key."""

import asyncio

from federation.turns import Turns


async def test_who_comes_while_the_turn_passes_on_waits_too() -> None:
    turns = Turns()
    inside: list[str] = []
    most = 0
    go_on = asyncio.Event()

    async def take(name: str) -> None:
        nonlocal most
        async with turns.of("key"):
            inside.append(name)
            most = max(most, len(inside))
            await asyncio.sleep(0)
            if name == "first":
                await go_on.wait()
            inside.remove(name)

    async with asyncio.TaskGroup() as group:
        group.create_task(take("first"))
        await asyncio.sleep(0)
        group.create_task(take("second"))
        await asyncio.sleep(0)
        go_on.set()
        # The first gives back its turn in this tick; the second has not got it yet.
        for number in range(5):
            group.create_task(take(f"late {number}"))
            await asyncio.sleep(0)
    assert most == 1
    async with turns.of("key"), turns.of("other"):
        pass  # keys do not wait for each other

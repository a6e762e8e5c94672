"""A read waits for what was written through this process, by whomever."""

import asyncio

from servicekit.positions import Untold, UserPositions
from syncapi.reads import WAIT_S, ReadsFollowWrites


async def no_flush() -> None:
    raise AssertionError("nothing is read")


async def test_a_read_waits_for_the_newest_write_of_all() -> None:
    positions, waited = UserPositions(), []
    applied = 3

    async def wait_for(sequence: int, timeout_s: float) -> bool:
        waited.append((sequence, timeout_s))
        return True

    reads = ReadsFollowWrites(positions, Untold(), wait_for, lambda: applied, no_flush)
    await reads.wait()
    positions.note("@alice:here", 3)
    await reads.wait()
    assert waited == []  # it is applied
    positions.note("@bob:here", 5)
    positions.note("@alice:here", 4)
    await reads.wait()
    assert waited == [(5, WAIT_S)]


async def test_a_read_waits_until_what_is_committed_is_told() -> None:
    positions, untold, waited = UserPositions(), Untold(), []

    async def wait_for(sequence: int, timeout_s: float) -> bool:
        waited.append(sequence)
        return True

    reads = ReadsFollowWrites(positions, untold, wait_for, lambda: 0, no_flush)
    untold.expect()
    mark = untold.mark
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(reads.wait())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not reading.done()
        untold.expect()  # a later one is not waited for
        positions.note("@alice:here", 7)
        untold.told(mark)
    assert waited == [7]


async def test_nobody_waits_for_long_and_only_once_while_output_is_away() -> None:
    untold = Untold()
    untold.expect()
    await untold.wait(0.001)
    async with asyncio.timeout(10):
        await untold.wait(3600)  # it is known to be away
    untold.told(untold.mark)
    untold.expect()
    await untold.wait(0.001)

"""A read waits for what was written through this process, by whomever."""

from servicekit.positions import UserPositions
from syncapi.reads import WAIT_S, ReadsFollowWrites


async def test_a_read_waits_for_the_newest_write_of_all() -> None:
    positions, waited = UserPositions(), []
    applied = 3

    async def wait_for(sequence: int, timeout_s: float) -> bool:
        waited.append((sequence, timeout_s))
        return True

    reads = ReadsFollowWrites(positions, wait_for, lambda: applied)
    await reads.wait()
    positions.note("@alice:here", 3)
    await reads.wait()
    assert waited == []  # it is applied
    positions.note("@bob:here", 5)
    positions.note("@alice:here", 4)
    await reads.wait()
    assert waited == [(5, WAIT_S)]

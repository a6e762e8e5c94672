"""No acknowledged event is lost and none is doubled, whatever process dies and when.

`make chaos` (`ARBOR_CHAOS=long`) kills for minutes, `make chaos-smoke` for one; without the variable it is
the smoke form. The order of random kills comes from `ARBOR_CHAOS_SEED`, which a failure prints.
"""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.arbor_server import ArborServer
from tests.support.talkers import Talkers

LONG = os.environ.get("ARBOR_CHAOS") == "long"
SEED = int(os.environ.get("ARBOR_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
PEOPLE = 20
ROOMS = 5
RANDOM_KILLS = 60 if LONG else 5
ROOMSERVER_DOWN_S = 60.0 if LONG else 8.0
# Longer than any publish waits for its ack.
NATS_HANGS_S = 7.0
# Sends flow again so soon after any process was killed, without anybody doing anything.
RECOVERY_S = 5.0
# That many new sends have to be acknowledged for sends to count as flowing.
FLOWING = 10

pytestmark = pytest.mark.timeout(1800 if LONG else 300)


@pytest.fixture
async def arbor(tmp_path: Path) -> AsyncIterator[ArborServer]:
    server = ArborServer(tmp_path / "arbor")
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def kill_and_see_it_flow(server: ArborServer, talkers: Talkers, service: str) -> float:
    """SIGKILL one process while all talk; returns after how many seconds sends flowed again."""
    killed = time.monotonic()
    old_pid = server.kill(service)
    flowing = await talkers.wait_for_acknowledged(killed, FLOWING, timeout_s=60)
    await server.wait_for_restart(service, old_pid)
    return flowing - killed


async def test_each_process_is_killed_under_load(arbor: ArborServer, session: aiohttp.ClientSession) -> None:
    choice = random.Random(SEED)
    supervisor, services = arbor.pid, sorted(arbor.pids())
    assert {"nats", "roomserver"} <= set(services)
    talkers = await Talkers.gather(arbor, session, people=PEOPLE, rooms=ROOMS)
    recovered: list[tuple[str, float]] = []
    async with talkers.talking():
        await talkers.wait_for_acknowledged(0, PEOPLE, timeout_s=30)
        kills = services + [choice.choice(services) for _ in range(RANDOM_KILLS)]
        for service in kills:
            # At a random point of the work, not always right after the last recovery.
            await talkers.wait_for_acknowledged(time.monotonic(), choice.randrange(1, 200), timeout_s=60)
            recovered.append((service, await kill_and_see_it_flow(arbor, talkers, service)))
        alive = arbor.pids()
    await talkers.verify()
    assert arbor.pid == supervisor
    assert sorted(alive) == services
    print(f"\n{len(talkers.all_acknowledged())} sends, recovered after (s):", recovered)
    slow = [(service, f"{seconds:.1f} s") for service, seconds in recovered if seconds > RECOVERY_S]
    assert not slow, f"sends flowed again too late (seed {SEED}): {slow}"


async def test_everything_is_killed_at_once(arbor: ArborServer, session: aiohttp.ClientSession) -> None:
    talkers = await Talkers.gather(arbor, session, people=5, rooms=2)
    for _ in range(3 if LONG else 1):
        async with talkers.talking():
            await talkers.wait_for_acknowledged(time.monotonic(), 50, timeout_s=30)
            arbor.kill_everything()
            await arbor.start()
            for talker in talkers.talkers:
                talker.client.base_url = arbor.base_url
            await talkers.wait_for_acknowledged(time.monotonic(), 20, timeout_s=60)
        await talkers.verify()


async def test_the_roomserver_is_away_for_a_while(arbor: ArborServer, session: aiohttp.ClientSession) -> None:
    talkers = await Talkers.gather(arbor, session, people=PEOPLE, rooms=ROOMS)
    async with talkers.talking():
        await talkers.wait_for_acknowledged(0, PEOPLE, timeout_s=30)
        arbor.send_signal("roomserver", signal.SIGSTOP)
        away_since = time.monotonic()
        try:
            with pytest.raises(TimeoutError):
                # What was under way may still be answered; what is sent from now on cannot be.
                await talkers.wait_for_acknowledged(away_since + 1, 1, timeout_s=ROOMSERVER_DOWN_S)
        finally:
            arbor.send_signal("roomserver", signal.SIGCONT)
        back = time.monotonic()
        flowing = await talkers.wait_for_acknowledged(back, FLOWING, timeout_s=60)
    await talkers.verify()
    assert flowing - back <= RECOVERY_S


async def test_the_log_hangs_until_acks_are_given_up(
    arbor: ArborServer, session: aiohttp.ClientSession
) -> None:
    talkers = await Talkers.gather(arbor, session, people=5, rooms=2)
    async with talkers.talking():
        for _ in range(3 if LONG else 1):
            await talkers.wait_for_acknowledged(time.monotonic(), 20, timeout_s=60)
            # What was published in this moment is stored when NATS goes on, long after its ack was given up.
            arbor.send_signal("nats", signal.SIGSTOP)
            await asyncio.sleep(NATS_HANGS_S)
            arbor.send_signal("nats", signal.SIGCONT)
            back = time.monotonic()
            flowing = await talkers.wait_for_acknowledged(back, FLOWING, timeout_s=60)
            assert flowing - back <= RECOVERY_S
    await talkers.verify()


# Fault point -> which pass through it is the last: late enough for people and rooms to be there.
FAULTS = {
    # between the INPUT ack and the answer to the client
    "input.after_ack": 40,
    "roomserver.before_commit": 40,
    # between the commit and the publish to OUTPUT
    "roomserver.after_commit": 40,
    "relay.before_publish": 40,
    # between the publish and the deletion from the outbox
    "relay.after_publish": 40,
    # in the edge, around the commit of what its services read from OUTPUT, and where it is told before that
    "follower.before_commit": 30,
    "follower.after_commit": 30,
    "follower.after_skim": 100,
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_process_dies_at_a_chosen_point(
    fault: str, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    died = tmp_path / "died"
    # The first process to pass the point so often dies there; its successor does not.
    environment = {"ARBOR_FAULT": f"{fault}:{FAULTS[fault]}", "ARBOR_FAULT_ONCE": str(died)}
    server = ArborServer(tmp_path / "arbor", environment=environment)
    await server.start()
    try:
        talkers = await Talkers.gather(server, session, people=5, rooms=2)
        async with talkers.talking(messages_each=60):
            pass
        await talkers.verify()
    finally:
        await server.stop()
    assert died.exists(), f"no process died at {fault}"

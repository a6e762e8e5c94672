"""A process killed at each fault point: after its restart everything stands in OUTPUT once, in order."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
from sqlalchemy import Connection

from servicekit.log.connection import LogConnection
from servicekit.log.faultpoints import make_fault_point
from servicekit.log.outbox import Outbox
from servicekit.log.reader import LogReader
from servicekit.log.subjects import room_input_subject
from tests.support import toy_service as toy
from tests.support.nats import NatsProcess

Connect = Callable[..., Awaitable[LogConnection]]
ROOMS = [f"!{number}:x" for number in range(5)]
ENTRIES = 400


@asynccontextmanager
async def toy_process(nats: NatsProcess, url: str, fault: str = "") -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "tests.support.toy_process", str(nats.run_dir), url],
        env=os.environ | {"ARBOR_FAULT": fault},
        cwd=Path(__file__).parents[3],
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize(
    "fault",
    [
        "follower.before_commit:3",
        "follower.after_commit:3",
        "relay.before_publish:5",
        "relay.after_publish:1",
        "relay.after_publish:5",
    ],
)
async def test_killed_there_each_entry_is_told_once(
    nats: NatsProcess, connect: Connect, tmp_path: Path, fault: str
) -> None:
    room = await connect("roomserver")
    edge = await connect("clientapi")
    written = 0

    async def write(count: int) -> None:
        nonlocal written
        for number in range(written, written + count):
            name = ROOMS[number % len(ROOMS)]
            edge.publish_nowait(room_input_subject(name, 16), toy.toy_entry(name, number))
        await edge.flush()
        written += count

    await write(ENTRIES)
    url = toy.sqlite_url(tmp_path)
    async with asyncio.timeout(60):
        async with toy_process(nats, url, fault) as process, asyncio.TaskGroup() as group:
            killed = group.create_task(process.wait())
            # The slower the machine, the fewer batches are made of what was there first.
            while not (await asyncio.wait([killed], timeout=0.05))[0]:
                await write(1)
            assert killed.result() == -signal.SIGKILL
        async with toy_process(nats, url):
            told: list[tuple[str, str, int]] = []
            async for batch in LogReader(room, "OUTPUT").batches():
                for message in batch.messages:
                    entry = orjson.loads(message.data)
                    stamp = (message.headers["Arbor-Partition"], message.headers["Arbor-Output-No"])
                    told.append((*stamp, entry["n"]))
                if len(told) >= written:
                    break
    assert len(told) == written
    assert len({(partition, number) for partition, number, _ in told}) == written
    for partition in {partition for partition, _, _ in told}:
        mine = [(int(number), n) for p, number, n in told if p == partition]
        assert [number for number, _ in mine] == list(range(1, len(mine) + 1))
        assert [n for _, n in mine] == sorted(n for _, n in mine)
    database = toy.open_database(url)
    try:
        stored = await database.read(toy.contents)
        assert [row[2] for row in stored["entries"]] == list(range(written))

        def left(conn: Connection) -> int:
            return len(Outbox(toy.outbox_tables).load(conn))

        assert await database.read(left) < written
    finally:
        database.close()


def test_a_fault_point_kills_at_the_nth_time_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, signal_number: killed.append(signal_number))
    once = str(tmp_path / "once")
    point = make_fault_point("here:2", once)
    point("elsewhere")
    point("here")
    assert not killed
    point("here")
    assert killed == [signal.SIGKILL]
    point("here")
    again = make_fault_point("here", once)
    again("here")
    assert len(killed) == 1
    make_fault_point(None)("here")
    assert len(killed) == 1

"""Following: position and effect together, dead letters, and what stops a follower."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
from sqlalchemy import Connection, select, update

from servicekit.database import Database
from servicekit.log.connection import LogConnection
from servicekit.log.errors import PositionTaken, PositionTooOld, UndecodableEntry, UnknownEntryKind
from servicekit.log.follower import Follower
from servicekit.log.reader import LogMessage
from tests.support import toy_service as toy
from tests.support.nats import NatsProcess, until

Connect = Callable[..., Awaitable[LogConnection]]
OUT = "room.output.3.IWE6eA"  # room !a:x


@pytest.fixture
def database(database_url: str) -> object:
    """The toy's database, on SQLite and on PostgreSQL."""
    database = toy.open_database(database_url)
    yield database
    database.close()


@pytest.fixture
def sqlite_database(tmp_path: Path) -> object:
    """The toy's database, on SQLite."""
    database = toy.open_database(toy.sqlite_url(tmp_path))
    yield database
    database.close()


def make(
    connection: LogConnection, database: Database, handler: toy.ToyHandler, **options: object
) -> Follower:
    return Follower(connection, "OUTPUT", [], database, toy.log_tables, handler, **options)  # type: ignore[arg-type]


@asynccontextmanager
async def following(follower: Follower) -> AsyncIterator[Follower]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(follower.run())
        try:
            yield follower
        finally:
            task.cancel()


async def test_the_effect_and_the_position_are_there_together(connect: Connect, database: Database) -> None:
    room, follower_connection = await connect("roomserver"), await connect("syncapi")
    handler, results = toy.ToyHandler(), []
    follower = make(follower_connection, database, handler, on_committed=results.extend)
    async with following(follower):
        for n in range(500):
            room.publish_nowait(OUT, toy.toy_entry("!a:x", n))
        assert await follower.wait_for(500, 10)
        assert results == list(range(500))
        stored = await database.read(toy.contents)
        assert [row[2] for row in stored["entries"]] == list(range(500))
        assert stored["counts"][0][1] == 500
        row = (await database.read(lambda c: c.execute(select(toy.log_tables.position)).all()))[0]
        assert tuple(row) == ("OUTPUT", room.epoch("OUTPUT"), 500)
        assert follower.lag == 0
        assert not await follower.wait_for(501, 0.05)
    assert len(handler.calls) < 250  # batches, not one unit of work an entry
    # A new process goes on from there.
    again = toy.ToyHandler()
    async with following(make(follower_connection, database, again)) as follower:
        await room.publish(OUT, toy.toy_entry("!a:x", 500))
        assert await follower.wait_for(501, 10)
    assert again.calls == [1]


async def test_one_bad_entry_becomes_a_dead_letter_and_the_others_go_on(
    connect: Connect, database: Database
) -> None:
    room, follower_connection = await connect("roomserver"), await connect("syncapi")
    for n in range(20):
        await room.publish(OUT, toy.toy_entry("!a:x", n, fail=n in (4, 11)), {"Trace": "t1"})
    quarantined: list[int] = []

    def on_dead(conn: Connection, message: LogMessage, error: Exception) -> None:
        assert isinstance(error, RuntimeError)
        quarantined.append(message.sequence)

    results: list[int] = []
    handler = toy.ToyHandler()
    follower = make(follower_connection, database, handler, on_committed=results.extend, on_dead=on_dead)
    async with following(follower):
        assert await follower.wait_for(20, 10)
    good = [n for n in range(20) if n not in (4, 11)]
    stored = await database.read(toy.contents)
    assert [row[2] for row in stored["entries"]] == good == results
    assert stored["counts"][0][1] == 18  # nothing of the failed ones is left
    assert quarantined == [5, 12]
    letters = await database.read(lambda c: c.execute(select(toy.log_tables.dead_letter)).all())
    assert [letter.sequence for letter in letters] == [5, 12]
    letter = letters[0]
    assert (letter.stream, letter.subject, letter.about) == ("OUTPUT", OUT, "!a:x")
    assert letter.data == toy.toy_entry("!a:x", 4, fail=True)
    assert letter.headers == '{"Trace":"t1"}'
    assert letter.error == "RuntimeError: this entry fails on purpose"
    assert "apply_batch" in letter.traceback
    assert letter.epoch == room.epoch("OUTPUT")


@pytest.mark.parametrize(
    ("data", "error"),
    [(b"not json", UndecodableEntry), (toy.toy_entry("!a:x", 9, kind="unknown"), UnknownEntryKind)],
)
async def test_what_must_not_be_skipped_stops_the_follower(
    connect: Connect, sqlite_database: Database, data: bytes, error: type[Exception]
) -> None:
    room, follower_connection = await connect("roomserver"), await connect("syncapi")
    await room.publish(OUT, toy.toy_entry("!a:x", 1))
    handler = toy.ToyHandler()
    follower = make(follower_connection, sqlite_database, handler)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(_stopped(follower))
        assert await follower.wait_for(1, 10)
        await room.publish(OUT, data)
        await room.publish(OUT, toy.toy_entry("!a:x", 3))
    assert isinstance(task.result(), error)
    assert follower.position == 1
    assert not follower.running
    stored = await sqlite_database.read(toy.contents)
    assert [row[2] for row in stored["entries"]] == [1]


async def _stopped(follower: Follower) -> Exception:
    try:
        async with asyncio.timeout(20):
            await follower.run()
    except Exception as error:
        return error
    raise AssertionError("it ended without error")


async def test_a_position_older_than_the_log_stops_it(connect: Connect, sqlite_database: Database) -> None:
    room, follower_connection = await connect("roomserver"), await connect("syncapi")
    for n in range(5):
        await room.publish(OUT, toy.toy_entry("!a:x", n))
    await room.request_api("STREAM.PURGE.OUTPUT", {"seq": 4})
    error = await _stopped(make(follower_connection, sqlite_database, toy.ToyHandler()))
    assert isinstance(error, PositionTooOld)
    assert error.first_sequence == 4


async def test_two_followers_on_one_database_apply_each_entry_once(
    connect: Connect, sqlite_database: Database
) -> None:
    room = await connect("roomserver")
    first = make(await connect("syncapi"), sqlite_database, toy.ToyHandler())
    second = make(await connect("syncapi"), sqlite_database, toy.ToyHandler())
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_stopped(first)), group.create_task(_stopped(second))]
        for n in range(300):
            await room.publish(OUT, toy.toy_entry("!a:x", n))
        done = [first.wait_for(300, 10), second.wait_for(300, 10)]
        assert any(await asyncio.gather(*done))
        for task in tasks:
            task.cancel()
    for task in tasks:
        if not task.cancelled():
            assert isinstance(task.result(), PositionTaken)
    stored = await sqlite_database.read(toy.contents)
    assert [row[2] for row in stored["entries"]] == list(range(300))


async def test_a_paused_follower_does_not_undo_what_another_did(
    connect: Connect, sqlite_database: Database
) -> None:
    room, follower_connection = await connect("roomserver"), await connect("syncapi")
    handler, loaded = toy.ToyHandler(), []
    follower = make(follower_connection, sqlite_database, handler, on_loaded=loaded.append)
    async with following(follower):
        await room.publish(OUT, toy.toy_entry("!a:x", 1))
        assert await follower.wait_for(1, 10)
        table = toy.log_tables.position
        await sqlite_database.write(lambda c: c.execute(update(table).values(position=3)))
        for n in (2, 3, 4):
            await room.publish(OUT, toy.toy_entry("!a:x", n))
        assert await follower.wait_for(4, 10)
    assert loaded[0] == 0
    assert loaded[-1] == 3
    stored = await sqlite_database.read(toy.contents)
    assert [row[2] for row in stored["entries"]] == [1, 4]


async def test_numbers_that_were_applied_are_dropped(connect: Connect, database: Database) -> None:
    room, follower_connection = await connect("roomserver"), await connect("syncapi")

    def stamp(writer: str, partition: int, number: int) -> dict[str, str]:
        return {"Arbor-Writer": writer, "Arbor-Partition": str(partition), "Arbor-Output-No": str(number)}

    async def tell(n: int, headers: dict[str, str]) -> None:
        await room.publish(OUT, toy.toy_entry("!a:x", n), headers)

    follower = make(follower_connection, database, toy.ToyHandler())
    async with following(follower):
        for n, headers in enumerate(
            [
                stamp("roomserver", 3, 1),
                stamp("roomserver", 3, 2),
                stamp("roomserver", 3, 2),
                stamp("roomserver", 4, 1),
                stamp("clientapi", 3, 1),
                stamp("roomserver", 3, 1),
                {},
                {},
            ]
        ):
            await tell(n, headers)
        assert await follower.wait_for(8, 10)
    async with following(make(follower_connection, database, toy.ToyHandler())) as follower:
        await tell(8, stamp("clientapi", 3, 1))
        await tell(9, stamp("clientapi", 3, 2))
        assert await follower.wait_for(10, 10)
    stored = await database.read(toy.contents)
    assert [row[2] for row in stored["entries"]] == [0, 1, 3, 4, 6, 7, 9]


async def test_a_locked_database_means_later_not_never(connect: Connect, tmp_path: Path) -> None:
    room, follower_connection = await connect("roomserver"), await connect("syncapi")
    database = toy.open_database(toy.sqlite_url(tmp_path))
    try:
        database.write_sync(lambda conn: conn.exec_driver_sql("PRAGMA busy_timeout = 10"))
        follower = make(follower_connection, database, toy.ToyHandler())
        async with following(follower):
            await room.publish(OUT, toy.toy_entry("!a:x", 0))
            assert await follower.wait_for(1, 10)
            other = sqlite3.connect(tmp_path / "toy.db", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            await room.publish(OUT, toy.toy_entry("!a:x", 1))
            assert not await follower.wait_for(2, 0.3)
            other.execute("ROLLBACK")
            other.close()
            assert await follower.wait_for(2, 10)
        stored = await database.read(toy.contents)
        assert [row[2] for row in stored["entries"]] == [0, 1]
        assert not await database.read(lambda c: c.execute(select(toy.log_tables.dead_letter)).all())
    finally:
        database.close()


class SkimmingHandler(toy.ToyHandler):
    """Leaves rooms that begin with `!quiet` alone."""

    def skim(self, messages: Sequence[LogMessage]) -> list[int] | None:
        decoded = [orjson.loads(message.data) for message in messages]
        if not all(entry["room"].startswith("!quiet") for entry in decoded):
            return None
        return [entry["n"] for entry in decoded]


async def test_what_asks_nothing_of_the_database_is_passed_over(
    connect: Connect, sqlite_database: Database
) -> None:
    room, follower_connection = await connect("roomserver"), await connect("syncapi")
    headers = {"Arbor-Writer": "roomserver", "Arbor-Partition": "3"}

    async def tell(room_id: str, n: int) -> None:
        await room.publish(OUT, toy.toy_entry(room_id, n), {**headers, "Arbor-Output-No": str(n)})

    def stored(conn: Connection) -> tuple[int, int]:
        position = conn.execute(select(toy.log_tables.position.c.position)).scalar_one()
        return position, conn.execute(select(toy.log_tables.output_no.c.output_no)).scalar_one()

    handler, results = SkimmingHandler(), []
    follower = make(follower_connection, sqlite_database, handler, on_committed=results.extend)
    async with following(follower):
        await tell("!loud:x", 1)  # the writer's first number makes a row
        assert await follower.wait_for(1, 10)
        await tell("!quiet:x", 2)
        await tell("!quiet:x", 3)
        assert await follower.wait_for(3, 10)
        assert results == [1, 2, 3]
        assert handler.calls == [1]
        assert await sqlite_database.read(stored) == (1, 1)

        await until(lambda: sqlite_database.read_sync(stored) == (3, 3), timeout_s=10)
        # Told again, as after a lost ack: a number that was skimmed is a number seen.
        await tell("!loud:x", 3)
        await tell("!quiet:x", 4)
        await tell("!loud:x", 5)
        assert await follower.wait_for(6, 10)
    assert results == [1, 2, 3, 4, 5]
    assert await sqlite_database.read(stored) == (6, 5)
    assert sum(handler.calls) <= 3
    rows = (await sqlite_database.read(toy.contents))["entries"]
    assert [row[2] for row in rows if row[1] == "!loud:x"] == [1, 5]


class DelayingHandler(toy.ToyHandler):
    """Keeps entries that say `later` and writes them with the next unit of work."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[LogMessage] = []
        self.broken = False

    def skim(self, messages: Sequence[LogMessage]) -> list[int] | None:
        decoded = [orjson.loads(message.data) for message in messages]
        if not all("later" in entry for entry in decoded):
            return None
        self.kept += messages
        return [entry["n"] for entry in decoded]

    def write_skimmed(self, conn: Connection) -> None:
        if self.kept:
            super().apply_batch(conn, self.kept)
            if self.broken:
                raise RuntimeError("what was kept is not right")

    def skimmed_written(self) -> None:
        self.kept = []


async def test_what_is_written_later_is_written_in_order_and_when_asked_for(
    connect: Connect, database: Database
) -> None:
    room, follower_connection = await connect("roomserver"), await connect("syncapi")

    async def stored() -> list[int]:
        return [row[2] for row in (await database.read(toy.contents))["entries"]]

    handler, results = DelayingHandler(), []
    follower = make(follower_connection, database, handler, on_committed=results.extend)
    async with following(follower):
        for n, more in enumerate([{}, {"later": 1}, {"later": 1}]):
            await room.publish(OUT, toy.toy_entry("!a:x", n, **more))
        assert await follower.wait_for(3, 10)
        assert results == [0, 1, 2]
        assert all(await asyncio.gather(*(follower.flush(10) for _ in range(3))))
        assert await stored() == [0, 1, 2]
        # With what comes next, before it.
        await room.publish(OUT, toy.toy_entry("!a:x", 3, later=1))
        assert await follower.wait_for(4, 10)
        await room.publish(OUT, toy.toy_entry("!a:x", 4))
        assert await follower.wait_for(5, 10)
        assert await stored() == [0, 1, 2, 3, 4] == results
        # And by itself after a while.
        await room.publish(OUT, toy.toy_entry("!a:x", 5, later=1))
        assert await follower.wait_for(6, 10)
        async with asyncio.timeout(10):
            while await stored() != [0, 1, 2, 3, 4, 5]:
                await asyncio.sleep(0.02)
    assert not handler.kept


async def test_what_was_to_be_written_later_is_read_again_after_a_crash(
    connect: Connect, sqlite_database: Database
) -> None:
    room, follower_connection = await connect("roomserver"), await connect("syncapi")
    async with following(make(follower_connection, sqlite_database, DelayingHandler())) as crashed:
        await room.publish(OUT, toy.toy_entry("!a:x", 0))
        assert await crashed.wait_for(1, 10)
        await room.publish(OUT, toy.toy_entry("!a:x", 1, later=1))
        assert await crashed.wait_for(2, 10)
    stopped = make(follower_connection, sqlite_database, DelayingHandler())
    async with following(stopped):
        assert await stopped.wait_for(2, 10)
        await room.publish(OUT, toy.toy_entry("!a:x", 2, later=1))
        assert await stopped.wait_for(3, 10)
    await stopped.store_rest()
    stored = await sqlite_database.read(toy.contents)
    assert [row[2] for row in stored["entries"]] == [0, 1, 2]
    # Somebody else's position is left alone.
    await crashed.store_rest()
    assert await sqlite_database.read(toy.contents) == stored
    handler = DelayingHandler()
    async with following(make(follower_connection, sqlite_database, handler)) as follower:
        assert await follower.wait_for(3, 10)
    assert handler.calls == []


async def test_what_cannot_be_written_later_is_applied_one_by_one(
    connect: Connect, sqlite_database: Database
) -> None:
    room, follower_connection = await connect("roomserver"), await connect("syncapi")
    handler, loaded = DelayingHandler(), []

    def on_loaded(position: int) -> None:
        loaded.append(position)
        handler.kept = []

    follower = make(follower_connection, sqlite_database, handler, on_loaded=on_loaded)
    async with following(follower):
        await room.publish(OUT, toy.toy_entry("!a:x", 0))
        assert await follower.wait_for(1, 10)
        handler.broken = True
        for n in (1, 2):
            await room.publish(OUT, toy.toy_entry("!a:x", n, later=1, fail=n == 1))
            assert await follower.wait_for(n + 1, 10)
        assert await follower.flush(10)
        handler.broken = False
        await room.publish(OUT, toy.toy_entry("!a:x", 3, later=1))
        assert await follower.wait_for(4, 10)
        assert await follower.flush(10)
    assert loaded == [0, 1]
    stored = await sqlite_database.read(toy.contents)
    assert [row[2] for row in stored["entries"]] == [0, 2, 3]
    letters = await sqlite_database.read(lambda c: c.execute(select(toy.log_tables.dead_letter)).all())
    assert [letter.sequence for letter in letters] == [2]


async def test_nats_killed_while_following(
    nats: NatsProcess, connect: Connect, sqlite_database: Database
) -> None:
    room, follower_connection = await connect("roomserver"), await connect("syncapi")
    follower = make(follower_connection, sqlite_database, toy.ToyHandler())
    async with following(follower):
        for round_ in range(2):
            for n in range(50):
                await room.publish(OUT, toy.toy_entry("!a:x", round_ * 50 + n))
            assert await follower.wait_for(round_ * 50 + 50, 10)
            nats.kill()
            await until(lambda: not room.connected)
            await asyncio.to_thread(nats.start)
            await room.wait_connected()
        await room.publish(OUT, toy.toy_entry("!a:x", 100))
        assert await follower.wait_for(101, 5)
    stored = await sqlite_database.read(toy.contents)
    assert [row[2] for row in stored["entries"]] == list(range(101))


async def test_those_who_gave_up_waiting_do_not_pile_up(connect: Connect, sqlite_database: Database) -> None:
    room, follower_connection = await connect("roomserver"), await connect("syncapi")
    follower = make(follower_connection, sqlite_database, toy.ToyHandler())
    async with following(follower):
        for _ in range(4):
            assert not any(await asyncio.gather(*(follower.wait_for(1, 0.001) for _ in range(300))))
        assert len(follower._waiting) <= 600
        waiting = asyncio.gather(*(follower.wait_for(1, 10) for _ in range(10)))
        await room.publish(OUT, toy.toy_entry("!a:x", 1))
        assert all(await waiting)

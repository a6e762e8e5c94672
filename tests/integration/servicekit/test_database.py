"""Units of work, migrations and their lock, on SQLite and PostgreSQL."""

import asyncio
import itertools
import stat
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from servicekit.database import Database, NestedAcquireError, SchemaTooNewError, create_engine, new_metadata
from servicekit.database.migrations import migrate
from servicekit.database.testing import schema_differences
from servicekit.log.applying import is_transient

_names = itertools.count()

metadata = new_metadata()
note = sa.Table(
    "note",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False, comment="number"),
    sa.Column("text", sa.Text, nullable=False, comment="what it says"),
)

FIRST = """
import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

def upgrade():
    op.create_table(
        "note",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_note"),
    )
"""
SECOND = """
from alembic import op

revision = "0002"
down_revision = "0001"

def upgrade():
    op.execute("INSERT INTO note (id, text) VALUES (1, 'made by a migration')")
"""
BROKEN = SECOND.replace("INSERT INTO note (id, text)", "INSERT INTO nothing (id, text)")


class Service:
    """A package with migrations, which a test adds one by one."""

    def __init__(self, directory: Path) -> None:
        self.name = f"toy_service_{next(_names)}"
        self.package = f"{self.name}.storage.migrations"
        self.versions = directory / self.name / "storage" / "migrations" / "versions"
        self.versions.mkdir(parents=True)
        for package in (self.versions.parent, self.versions.parent.parent, directory / self.name):
            (package / "__init__.py").touch()

    def add(self, revision: str, text: str) -> None:
        """Add a revision."""
        (self.versions / f"{revision}_x.py").write_text(text)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.syspath_prepend(tmp_path)
    made = Service(tmp_path)
    made.add("0001", FIRST)
    yield made
    for module in [name for name in sys.modules if name.startswith(made.name)]:
        del sys.modules[module]


@pytest.fixture
async def database(database_url: str, service: Service) -> AsyncIterator[Database]:
    made = Database(database_url, metadata, service.package, name=service.name)
    made.migrate()
    yield made
    made.close()


def insert(connection: sa.Connection, number: int, text: str = "x") -> int:
    connection.execute(note.insert().values(id=number, text=text))
    return number


def count(connection: sa.Connection) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(note)).scalar_one()


async def test_a_unit_commits_when_it_returns_and_rolls_back_when_it_raises(database: Database) -> None:
    assert await database.write(insert, 1) == 1

    def fail(connection: sa.Connection) -> None:
        insert(connection, 2)
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        await database.write(fail)
    with pytest.raises(sa.exc.IntegrityError):
        await database.write(insert, 1)
    assert await database.read(count) == 1
    assert await database.write(insert, 2, text="after failures it goes on") == 2


async def test_there_is_one_writer_and_its_units_go_one_by_one(database: Database) -> None:
    threads = set()

    def step(connection: sa.Connection, number: int) -> None:
        threads.add(threading.current_thread().name)
        assert count(connection) == number
        insert(connection, number)

    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(database.write(step, number))
    assert len(threads) == 1
    assert await database.read(count) == 50


async def test_a_reading_unit_sees_one_snapshot_and_cannot_write(database: Database) -> None:
    reading, written = threading.Event(), threading.Event()

    def read_twice(connection: sa.Connection) -> tuple[int, int]:
        before = count(connection)
        reading.set()
        assert written.wait(10)
        return before, count(connection)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(database.read(read_twice))
        await asyncio.to_thread(reading.wait, 10)
        await database.write(insert, 1)
        written.set()
    assert task.result() == (0, 0)
    with pytest.raises(sa.exc.DBAPIError):
        await database.read(insert, 2)
    assert await database.read(count) == 1


async def test_a_nested_unit_is_an_error_at_once(database: Database) -> None:
    def nested(_connection: sa.Connection) -> int:
        return database.write_sync(insert, 1)

    def nested_read(_connection: sa.Connection) -> int:
        return database.read_sync(count)

    with pytest.raises(NestedAcquireError):
        await database.write(nested)
    with pytest.raises(NestedAcquireError):
        await database.read(nested_read)


async def test_a_cancelled_caller_leaves_a_unit_that_has_begun_to_finish(database: Database) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(connection: sa.Connection) -> None:
        begun.set()
        assert go.wait(10)
        insert(connection, 1)

    async with asyncio.TaskGroup() as group:
        running = group.create_task(database.write(slow))
        queued = group.create_task(database.write(insert, 2))
        await asyncio.to_thread(begun.wait, 10)
        running.cancel()
        queued.cancel()
    go.set()
    await database.write(insert, 3)
    assert await database.read(lambda c: sorted(c.execute(sa.select(note.c.id)).scalars())) == [1, 3]


def thread_of(_connection: sa.Connection) -> int:
    return threading.get_ident()


async def test_a_small_unit_runs_on_the_loop_of_sqlite_only(database: Database) -> None:
    here = threading.get_ident()
    assert await database.write_here(insert, 1) == 1
    database._writer._sessions[0].usual_s = 0.0  # the first one connects
    assert (await database.write_here(thread_of) == here) is database.url.startswith("sqlite")
    with pytest.raises(sa.exc.IntegrityError):
        await database.write_here(insert, 1)
    assert await database.write_here(insert, 2) == 2
    assert await database.read(count) == 2


async def test_a_small_unit_waits_for_those_before_it_without_blocking_the_loop(database: Database) -> None:
    begun, end = threading.Event(), threading.Event()

    def hold(connection: sa.Connection) -> int:
        begun.set()
        assert end.wait(20)
        return insert(connection, 1)

    async def let_it_end() -> None:
        end.set()

    async with asyncio.TaskGroup() as group:
        held = group.create_task(database.write(hold))
        await asyncio.to_thread(begun.wait, 20)
        small = group.create_task(database.write_here(count))
        # Were the loop blocked, nobody would let the first unit end.
        group.create_task(let_it_end())
    assert (held.result(), small.result()) == (1, 1)


async def test_no_unit_blocks_the_loop_where_units_take_long(database: Database) -> None:
    # A slow disk, say; once units are quick again the loop does them.
    database._writer._sessions[0].usual_s = 1.0
    assert await database.write_here(thread_of) != threading.get_ident()
    database._writer._sessions[0].usual_s = 0.0
    assert (await database.write_here(thread_of) == threading.get_ident()) is database.url.startswith(
        "sqlite"
    )


async def test_a_unit_on_the_loop_must_not_start_another_one(database: Database) -> None:
    def nest(_connection: sa.Connection) -> int:
        return database.write_sync(count)

    with pytest.raises(NestedAcquireError):
        await database.write_here(nest)
    assert await database.write_here(count) == 0


async def test_closing_finishes_what_is_queued(database_url: str, service: Service) -> None:
    database = Database(database_url, metadata, service.package, name=service.name)
    database.migrate()
    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(database.write(insert, number))
        await asyncio.sleep(0)
        await asyncio.to_thread(database.close)
    again = Database(database_url, metadata, service.package, name=service.name)
    assert again.read_sync(count) == 20
    again.close()


def test_migrations_run_once_also_when_two_start_together(database_url: str, service: Service) -> None:
    service.add("0002", SECOND)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: migrate(database_url, metadata, service.package), range(4)))
    engine = create_engine(database_url)
    with engine.connect() as connection, connection.begin():
        assert count(connection) == 1
    engine.dispose()


def test_a_migration_that_fails_leaves_nothing_behind(database_url: str, service: Service) -> None:
    service.add("0002", BROKEN)
    with pytest.raises(sa.exc.DBAPIError):
        migrate(database_url, metadata, service.package)
    engine = create_engine(database_url)
    with engine.connect() as connection, connection.begin():
        assert not sa.inspect(connection).has_table("note")
    engine.dispose()


def test_a_newer_schema_is_refused(database_url: str, service: Service) -> None:
    service.add("0002", SECOND)
    migrate(database_url, metadata, service.package)
    (service.versions / "0002_x.py").unlink()
    with pytest.raises(SchemaTooNewError, match="0002"):
        migrate(database_url, metadata, service.package)


def test_head_is_compared_with_the_tables(service: Service, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert schema_differences(metadata, service.package, tmp_path / "a") == []
    other = new_metadata()
    sa.Table("note", other, *(column._copy() for column in note.columns), sa.Column("more", sa.Integer))
    (tmp_path / "b").mkdir()
    assert schema_differences(other, service.package, tmp_path / "b") != []


async def test_services_share_a_postgresql_database_without_seeing_each_other(
    postgres_url: str, service: Service
) -> None:
    from servicekit.config import load_config

    config = load_config(None, {}, {"database.url": postgres_url.replace("+psycopg", "")})
    first, second = (
        Database(config.database_url(name), metadata, service.package, name=f"{service.name}-{name}")
        for name in ("roomserver", "syncapi")
    )
    first.migrate()
    second.migrate()
    await first.write(insert, 1)
    assert await second.read(count) == 0
    assert await first.read(count) == 1
    first.close()
    second.close()


async def test_a_lost_postgresql_connection_is_made_anew(postgres_url: str, service: Service) -> None:
    database = Database(postgres_url, metadata, service.package, name=service.name, reader_threads=1)
    database.migrate()
    await database.write(insert, 1)
    assert await database.read(count) == 1
    kill = sa.text(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    engine = create_engine(postgres_url)

    def kill_all() -> None:
        with engine.connect() as connection:
            assert connection.execute(kill).scalar_one() >= 2

    kill_all()
    assert await database.read(count) == 1, "what reads is read again by itself"
    with pytest.raises(sa.exc.DBAPIError):
        await database.write(insert, 2)
    assert await database.write(insert, 3) == 3

    # The same for statements that go to the driver directly, whose errors SQLAlchemy never sees.
    def raw(connection: sa.Connection) -> int:
        driver: Any = connection.connection.dbapi_connection
        return int(driver.execute("SELECT 7").fetchone()[0])

    assert await database.read(raw) == await database.write(raw) == 7
    kill_all()
    engine.dispose()
    assert await database.read(raw) == 7
    with pytest.raises(Exception, match=r"terminat|clos|lost") as lost:
        await database.write(raw)
    assert is_transient(lost.value)
    assert await database.write(raw) == 7
    database.close()


def test_a_sqlite_file_is_its_owners_and_synced(tmp_path: Path, service: Service) -> None:
    url = f"sqlite:///{tmp_path / 'private' / 'x.db'}"
    full, relaxed = (
        Database(url, metadata, service.package, durability=durability, name=f"{service.name}-{durability}")
        for durability in ("full", "relaxed")
    )
    assert stat.S_IMODE((tmp_path / "private" / "x.db").stat().st_mode) == 0o600

    def pragma(connection: sa.Connection, name: str) -> object:
        return connection.exec_driver_sql(f"PRAGMA {name}").scalar()

    assert full.write_sync(pragma, "synchronous") == 2
    assert relaxed.write_sync(pragma, "synchronous") == 1
    assert full.write_sync(pragma, "journal_mode") == "wal"
    assert full.write_sync(pragma, "foreign_keys") == 1
    full.close()
    relaxed.close()

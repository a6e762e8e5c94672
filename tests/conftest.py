"""Fixtures that any test may ask for, and the rule that in CI nothing is skipped.

* `postgres_url`: a fresh PostgreSQL database of the test's own;
* `database_url`: the same test once on a fresh SQLite file and once on PostgreSQL;
* `homeserver`: a running Arbor, with `session` and `unique` to make users there;
* `node_tools`: skips, by name, where Node and the packages from npm are not installed.
"""

import asyncio
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path

import aiohttp
import pytest
from hypothesis import HealthCheck, settings

from servicekit.positions import user_positions
from tests.support import node
from tests.support.arbor_server import ArborServer
from tests.support.homeserver import Homeserver
from tests.support.matrix_client import http_session
from tests.support.postgres import PostgresServer
from tests.support.synapse_server import SynapseServer, ensure_installed

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fuzz", parent=settings.get_profile("default"), max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skipped test is a failed one: there everything the tests need has to be present."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {item.nodeid}: {call.excinfo.value if call.excinfo else ''}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself as a whole."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {collector.nodeid}"  # type: ignore[assignment]
    return report


@pytest.fixture(autouse=True)
def nothing_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no read wait for what another test wrote to another log in this process."""
    monkeypatch.setattr(user_positions, "newest", 0)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The PostgreSQL server of this test session, started when the first test asks for it."""
    # Not under pytest's own folder, which only its owner may enter: PostgreSQL may run as somebody else.
    with tempfile.TemporaryDirectory(prefix="arbor-postgres-") as folder:
        Path(folder).chmod(0o711)
        server = PostgresServer.start(Path(folder) / "cluster")
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """SQLAlchemy URL of a fresh PostgreSQL database."""
    url = postgres_server.create_database()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """SQLAlchemy URL of a fresh database: the test runs once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture(scope="session")
def node_tools() -> Path:
    """The Node executable from npm; skips the test where the npm packages are not installed."""
    if reason := node.missing():
        pytest.skip(reason)
    return node.NODE


@pytest.fixture(scope="session")
def homeserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeserver]:
    """A running Arbor that the tests of this session share: make users and rooms of your own.

    `ARBOR_TEST_SERVER=synapse` puts a Synapse in its place: that tells a wrong test from a wrong Arbor.
    """
    folder = tmp_path_factory.mktemp("homeserver")
    server: Homeserver
    if os.environ.get("ARBOR_TEST_SERVER") == "synapse":
        ensure_installed()
        server = SynapseServer(folder)
    else:
        server = ArborServer(folder)
    asyncio.run(server.start())
    try:
        yield server
    finally:
        asyncio.run(server.stop())


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP session for `homeserver.register(session, name)` and other clients."""
    async with http_session() as opened:
        yield opened


@pytest.fixture
def unique() -> Callable[[str], str]:
    """`unique("alice")`: a localpart that no other test uses."""
    return lambda name: f"{name}-{secrets.token_hex(5)}"

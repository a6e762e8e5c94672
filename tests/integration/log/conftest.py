"""A real nats-server, and connections to it, for each test."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from servicekit.log.connection import LogConnection
from tests.support.nats import NatsProcess, running_nats

Connect = Callable[..., Awaitable[LogConnection]]


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsProcess]:
    """A server of this test's own."""
    with running_nats(tmp_path) as server:
        yield server


@pytest.fixture
async def connect(nats: NatsProcess) -> AsyncIterator[Connect]:
    """`await connect("clientapi")`: a connection that is closed at the end.

    Streams are made for the RoomServer.
    """
    async with AsyncExitStack() as stack:

        async def _connect(
            service: str, *, streams: bool = True, first: int = 1, **settings: object
        ) -> LogConnection:
            connection = await LogConnection.connect(nats.settings(service, **settings), service)
            stack.push_async_callback(connection.close)
            if streams and service == "roomserver":
                await connection.ensure_streams(first)
            elif streams:
                await connection.wait_for_streams()
            return connection

        yield _connect

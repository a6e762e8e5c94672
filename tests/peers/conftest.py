"""Fixtures for tests with other servers."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.support.synapse_pair import Pair, make_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A running Arbor and a running Synapse, the same for all tests of a module."""
    made = make_pair(tmp_path_factory.mktemp("federation"))
    asyncio.run(made.start())
    try:
        yield made
    finally:
        asyncio.run(made.stop())

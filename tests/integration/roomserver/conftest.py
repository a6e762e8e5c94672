"""A judge on a fresh database, SQLite and PostgreSQL in turn."""

from collections.abc import Iterator

import pytest

from tests.support.judging import JudgeBench


@pytest.fixture
def bench(database_url: str) -> Iterator[JudgeBench]:
    """A judge that owns every partition."""
    made = JudgeBench(database_url)
    yield made
    made.close()

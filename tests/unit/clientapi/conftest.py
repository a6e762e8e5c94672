"""Fixtures: `world`, a clientapi with stand-ins for the log and the RoomServer."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.clientapi_alone import World, lone_clientapi


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A clientapi that runs alone."""
    async with lone_clientapi(tmp_path) as running:
        yield running

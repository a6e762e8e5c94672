"""Rooms as files, played in every version they speak of."""

from pathlib import Path

import pytest

from tests.support.room_fixtures import Fixture, load_fixtures, play

FIXTURES = load_fixtures(Path(__file__).parent / "rooms")


@pytest.mark.parametrize("fixture", FIXTURES, ids=str)
def test_room(fixture: Fixture) -> None:
    _, wrong = play(fixture)
    assert wrong == []

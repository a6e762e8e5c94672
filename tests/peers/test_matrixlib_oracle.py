"""Random rooms judged and resolved by us and by Synapse's own modules: same accepted set, same states.

A few rooms of each version run with the other tests; `ARBOR_ORACLE_ROOMS` sets how many rooms of each the
target marked `oracle` takes (2,000 unless said otherwise).
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from matrixlib.room_versions import ROOM_VERSIONS
from tests.support.random_rooms import random_room
from tests.support.room_fixtures import Fixture, load_fixtures, play
from tests.support.synapse_oracle.client import Oracle, is_installed
from tests.support.synapse_oracle.compare import differences

pytestmark = pytest.mark.skipif(not is_installed(), reason="no venv with Synapse: make peers")

FIXTURES = load_fixtures(Path(__file__).parents[1] / "unit" / "matrixlib" / "rooms")
MANY = int(os.environ.get("ARBOR_ORACLE_ROOMS", "2000"))


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    """One process for all."""
    with Oracle() as running:
        yield running


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_some_random_rooms(oracle: Oracle, version: str) -> None:
    for seed in range(4):
        room = random_room(version, seed)
        assert differences(room, oracle) == [], f"random_room({version!r}, {seed})"


@pytest.mark.parametrize("fixture", FIXTURES, ids=str)
def test_fixtures(oracle: Oracle, fixture: Fixture) -> None:
    if fixture.path.stem == "auth_events_of_12":
        pytest.xfail(
            "Synapse fails on such an event with an internal error instead of refusing it (rule 3.2)"
        )
    room, _ = play(fixture)
    assert differences(room, oracle) == []


@pytest.mark.oracle
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_many_random_rooms(oracle: Oracle, version: str) -> None:
    for seed in range(1000, 1000 + MANY):
        room = random_room(version, seed, steps=20 + seed % 40)
        assert differences(room, oracle) == [], f"random_room({version!r}, {seed}, steps={20 + seed % 40})"


def test_the_oracle_can_disagree(oracle: Oracle) -> None:
    # A comparison that never fails would prove nothing: judge one event otherwise, and it must show.
    room = random_room("10", 1)
    accepted = next(event_id for event_id in room.order if room.events[event_id].type == "m.room.message")
    if accepted in room.rejected:
        del room.rejected[accepted]
    else:
        room.rejected[accepted] = next(iter(room.rejected.values()))
    assert len(differences(room, oracle)) == 1

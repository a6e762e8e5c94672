"""Random rooms judged and resolved by us and by Synapse's own modules: same accepted set, same states.

A few rooms of each version run with the other tests; the target marked `oracle` takes `ARBOR_ORACLE_ROOMS` of each
(4,000 unless said otherwise), beginning with seed `ARBOR_ORACLE_SEED`, and prints what they held.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from matrixlib.events import Event
from matrixlib.room_versions import ROOM_VERSIONS
from matrixlib.signing import sign_json
from tests.support.random_rooms import random_room
from tests.support.room_fixtures import Fixture, load_fixtures, play
from tests.support.rooms import ALICE, BOB, Room, key_of
from tests.support.synapse_oracle.client import Oracle, is_installed
from tests.support.synapse_oracle.compare import differences

pytestmark = pytest.mark.skipif(not is_installed(), reason="no venv with Synapse: make peers")

FIXTURES = load_fixtures(Path(__file__).parents[1] / "unit" / "matrixlib" / "rooms")
MANY = int(os.environ.get("ARBOR_ORACLE_ROOMS", "4000"))
FIRST_SEED = int(os.environ.get("ARBOR_ORACLE_SEED", "1000"))
MAX_DIFFERENT = 5


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
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_many_random_rooms(oracle: Oracle, version: str, capsys: pytest.CaptureFixture[str]) -> None:
    held: Counter[str] = Counter()
    different: list[str] = []
    for seed in range(FIRST_SEED, FIRST_SEED + MANY):
        room = random_room(version, seed, steps=20 + seed % 40)
        held.update(what_it_holds(room))
        if found := differences(room, oracle):
            different.append(f"random_room({version!r}, {seed}, steps={20 + seed % 40}): {found}")
            if len(different) == MAX_DIFFERENT:
                break
    with capsys.disabled():
        print(f"\nversion {version}: {len(different)} rooms differ;", dict(sorted(held.items())))
    assert different == []
    # A comparison of rooms in which nothing happens would prove nothing.
    expected = {
        "events",
        "rejected",
        "soft-failed",
        "merges",
        "m.room.redaction",
        "third-party invite",
        "ban",
    }
    rules = ROOM_VERSIONS[version]
    expected |= {"knock"} if rules.knocking else set()
    expected |= {"restricted"} if rules.restricted_joins else set()
    expected |= {"creators"} if rules.privileged_creators else set()
    assert expected <= held.keys()


def what_it_holds(room: Room) -> Counter[str]:
    """Count what a room has of what decides: all events, and those accepted by kind."""
    held = Counter(rooms=1, events=len(room.order), rejected=len(room.rejected))
    held["soft-failed"] = len(room.soft_failed)
    held["creators"] = int("additional_creators" in room.create.content)
    for event_id in room.order:
        event = room.events[event_id]
        held["merges"] += len(event.prev_event_ids) > 1
        if event_id not in room.rejected:
            held[_kind(event)] += 1
    return held


def _kind(event: Event) -> str:
    if "third_party_invite" in event.content:
        return "third-party invite"
    if "join_authorised_via_users_server" in event.content:
        return "restricted"
    return str(event.membership or event.type)


def test_any_signature_of_a_third_party_invite_counts(oracle: Oracle) -> None:
    # "If any signature in signed matches any public key ..., allow": Synapse gives up at the first that does not.
    room = Room("11")
    keys = {name: key_of(name) for name in ("one.example", "two.example")}
    issued = {"public_key": keys["two.example"].verify_key.base64}
    room.send(ALICE, "m.room.third_party_invite", issued, state_key="token")
    signed: dict[str, Any] = {"mxid": BOB, "token": "token"}
    for name, key in keys.items():
        signed = sign_json(signed, name, key)
    event = room.member(BOB, "invite", by=ALICE, content={"third_party_invite": {"signed": signed}})
    assert event.event_id not in room.rejected
    assert [line for line in differences(room, oracle) if event.event_id in line and "ours accepted" in line]


def test_the_oracle_can_disagree(oracle: Oracle) -> None:
    # A comparison that never fails would prove nothing: judge one event otherwise, and it must show.
    room = random_room("10", 1)
    accepted = next(event_id for event_id in room.order if room.events[event_id].type == "m.room.message")
    if accepted in room.rejected:
        del room.rejected[accepted]
    else:
        room.rejected[accepted] = next(iter(room.rejected.values()))
    assert len(differences(room, oracle)) == 1

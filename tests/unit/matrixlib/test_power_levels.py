"""Power levels as they are read."""

import math

import pytest

from matrixlib.power_levels import (
    CREATOR_LEVEL,
    PowerLevels,
    parse_level,
    required_level,
    room_creators,
    user_level,
)
from matrixlib.room_versions import PowerLevelValues
from tests.support.rooms import ALICE, BOB, CAROL, Room

LAX, STRINGS, INTEGERS = PowerLevelValues.LAX, PowerLevelValues.STRINGS, PowerLevelValues.INTEGERS


@pytest.mark.parametrize(
    ("value", "lax", "strings", "integers"),
    [
        (5, 5, 5, 5),
        ("100", 100, 100, None),
        (" +00100\n", 100, 100, None),
        ("-7", -7, -7, None),
        (50.57, 50, None, None),
        (-1.9, -1, None, None),
        (5.114698e4, 51146, None, None),
        (math.nan, None, None, None),
        (math.inf, None, None, None),
        (True, None, None, None),
        (None, None, None, None),
        ("1_0", None, None, None),
        ("", None, None, None),
        ("1.5", None, None, None),
        ("١", None, None, None),
        ([], None, None, None),
        ("9" * 5000, None, None, None),
        ("+ 1", None, None, None),
    ],
)
def test_values(value: object, lax: int | None, strings: int | None, integers: int | None) -> None:
    assert parse_level(value, LAX) == lax
    assert parse_level(value, STRINGS) == strings
    assert parse_level(value, INTEGERS) == integers


def test_without_an_event() -> None:
    room = Room("10", bare=True).with_members(BOB)
    levels = PowerLevels.of(room.version, room.state)
    assert levels.user_level(ALICE) == 100
    assert levels.user_level(BOB) == 0
    assert levels.required_level("m.room.topic", is_state=True) == 50
    assert levels.required_level("m.room.message", is_state=False) == 0
    assert (levels.named("invite"), levels.named("kick"), levels.notification_level("room")) == (0, 50, 50)


def test_with_an_event() -> None:
    room = Room("10")
    content = {"users": {ALICE: 100, BOB: 7}, "users_default": 3, "events": {"m.x": 9}, "state_default": 60}
    room.send(ALICE, "m.room.power_levels", {**content, "notifications": {"room": 4}}, state_key="")
    assert user_level(room.version, room.state, BOB) == 7
    assert user_level(room.version, room.state, CAROL) == 3
    assert required_level(room.version, room.state, "m.x", is_state=False) == 9
    assert required_level(room.version, room.state, "m.room.topic", is_state=True) == 60
    assert PowerLevels.of(room.version, room.state).notification_level("room") == 4


def test_creators_by_version() -> None:
    content = {"creator": BOB, "additional_creators": [BOB, 5, "nobody"]}
    assert room_creators(Room("10", content=content).create) == {BOB}
    assert room_creators(Room("10", content={"creator": 5}).create) == set()
    assert room_creators(Room("11", content=content).create) == {ALICE}
    assert room_creators(Room("12", content=content).create) == {ALICE, BOB}
    room = Room("12", content={"additional_creators": [BOB]})
    room.send(ALICE, "m.room.power_levels", {"users": {}}, state_key="")
    assert user_level(room.version, room.state, ALICE) == CREATOR_LEVEL
    assert user_level(room.version, room.state, BOB) > 2**53
    assert user_level(room.version, room.state, CAROL) == 0


@pytest.mark.parametrize(
    "content", [{"users": []}, {"users": {ALICE: None}}, {"events": 5}, {"ban": {}}, {"users": 1}]
)
def test_malformed_contents_read_as_defaults(content: dict[str, object]) -> None:
    room = Room("10", bare=True)
    event = room.send(ALICE, "m.room.power_levels", content, state_key="")
    levels = PowerLevels(room.version, room.create, event)
    assert levels.user_level(ALICE) == 0
    assert levels.named("ban") == 50
    assert levels.required_level("x", is_state=False) == 0

"""History visibility, for users and servers."""

import pytest

from matrixlib.visibility import (
    deciding_keys,
    history_visibility_of,
    is_visible,
    is_visible_to_server,
    may_see,
    server_needs_members,
)
from tests.support.rooms import ALICE, BOB, CAROL, Room


def room_with(setting: str) -> Room:
    """A room with a history visibility."""
    room = Room("10")
    room.send(ALICE, "m.room.history_visibility", {"history_visibility": setting}, state_key="")
    return room


@pytest.mark.parametrize(
    ("setting", "membership", "joined_since", "expected"),
    [
        ("world_readable", "leave", False, True),
        ("world_readable", "ban", False, True),
        ("shared", "join", False, True),
        ("shared", "leave", True, True),
        ("shared", "leave", False, False),
        ("shared", "invite", False, False),
        ("shared", "ban", True, True),
        ("invited", "invite", False, True),
        ("invited", "invite", True, True),
        ("invited", "leave", True, False),
        ("invited", "join", False, True),
        ("joined", "join", False, True),
        ("joined", "invite", True, False),
        ("joined", "leave", True, False),
        ("joined", "knock", True, False),
    ],
)
def test_the_rules(setting: str, membership: str, joined_since: bool, expected: bool) -> None:
    assert may_see(setting, membership, joined_since=joined_since) is expected


def test_own_membership_counts_before_and_after() -> None:
    room = room_with("joined")
    before = room.state
    join = room.member(BOB, "join")
    assert is_visible(join, before, BOB, joined_since=True)
    assert not is_visible(join, before, CAROL, joined_since=True)
    leave = room.member(BOB, "leave")
    assert is_visible(leave, room.with_events(room.before[leave.event_id]), BOB, joined_since=False)
    kick_state = room.state
    after = room.send(ALICE, "m.room.message", {"body": "x"})
    assert not is_visible(after, kick_state, BOB, joined_since=False)


def test_a_change_of_visibility_counts_before_and_after() -> None:
    room = room_with("joined")
    opened = room.send(
        ALICE, "m.room.history_visibility", {"history_visibility": "world_readable"}, state_key=""
    )
    closed = room.send(ALICE, "m.room.history_visibility", {"history_visibility": "joined"}, state_key="")
    for event in (opened, closed):
        assert is_visible(event, room.with_events(room.before[event.event_id]), BOB, joined_since=False)
    message = room.send(ALICE, "m.room.message", {"body": "x"})
    assert not is_visible(message, room.state, BOB, joined_since=True)


@pytest.mark.parametrize("value", [None, 5, [], "unknown", {"a": 1}])
def test_what_is_not_understood_is_shared(value: object) -> None:
    room = Room("10")
    event = room.send(ALICE, "m.room.history_visibility", {"history_visibility": value}, state_key="")
    assert history_visibility_of(event) == "shared"
    assert history_visibility_of(None) == "shared"
    message = room.send(ALICE, "m.x")
    assert not is_visible(message, room.state, BOB, joined_since=False)
    assert is_visible(message, room.state, BOB, joined_since=True)


def test_servers() -> None:
    shared = Room("10")
    message = shared.send(ALICE, "m.room.message", {"body": "x"})
    assert is_visible_to_server(message, shared.state, "b.example")
    assert not server_needs_members(message, shared.state)
    room = room_with("joined")
    early = room.send(ALICE, "m.room.message", {"body": "early"})
    early_state = room.state
    join = room.member(BOB, "join")
    late = room.send(ALICE, "m.room.message", {"body": "late"})
    assert server_needs_members(early, early_state)
    assert not is_visible_to_server(early, early_state, "b.example")
    assert is_visible_to_server(join, early_state, "b.example")
    assert is_visible_to_server(late, room.state, "b.example")
    assert not is_visible_to_server(late, room.state, "c.example")
    assert is_visible_to_server(early, early_state, "a.example")
    invited = room_with("invited")
    invited.member(BOB, "invite", by=ALICE)
    secret = invited.send(ALICE, "m.room.message", {"body": "x"})
    assert is_visible_to_server(secret, invited.state, "b.example")


def test_what_decides() -> None:
    assert deciding_keys(BOB) == (("m.room.history_visibility", ""), ("m.room.member", BOB))

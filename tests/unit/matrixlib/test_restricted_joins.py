"""Restricted joins: who may be let in, in whose name."""

import pytest

from matrixlib.identifiers import server_name_of
from matrixlib.restricted_joins import allowed_rooms, authorising_user, is_restricted
from tests.support.rooms import ALICE, BOB, CAROL, Room


@pytest.mark.parametrize(
    ("version", "rule", "expected"),
    [
        ("7", "restricted", False),
        ("8", "restricted", True),
        ("9", "knock_restricted", False),
        ("10", "knock_restricted", True),
        ("12", "public", False),
    ],
)
def test_by_version(version: str, rule: str, expected: bool) -> None:
    room = Room(version)
    room.send(ALICE, "m.room.join_rules", {"join_rule": rule}, state_key="")
    assert is_restricted(room.version, room.state) is expected


@pytest.mark.parametrize(
    ("allow", "expected"),
    [
        ([{"type": "m.room_membership", "room_id": "!a:b"}] * 2, ["!a:b"]),
        ([{"type": "other", "room_id": "!a:b"}, {"type": "m.room_membership", "room_id": 5}, None, []], []),
        (None, []),
        ({}, []),
    ],
)
def test_allowed_rooms(allow: object, expected: list[str]) -> None:
    room = Room("10")
    room.send(ALICE, "m.room.join_rules", {"join_rule": "restricted", "allow": allow}, state_key="")
    assert allowed_rooms(room.state) == expected


def test_whose_name_it_bears() -> None:
    room = Room("10").with_members(BOB, "@bobby:b.example", CAROL)
    users = {ALICE: 100, "@bobby:b.example": 60, CAROL: 100}
    room.send(ALICE, "m.room.power_levels", {"users": users, "invite": 50}, state_key="")

    def chosen(server: str) -> str | None:
        members = [ALICE, BOB, "@bobby:b.example", CAROL]
        return authorising_user(
            room.version, room.state, members, lambda user: server_name_of(user) == server
        )

    assert chosen("b.example") == "@bobby:b.example"
    assert chosen("d.example") is None
    room.member("@bobby:b.example", "leave")
    assert chosen("b.example") is None
    room.send(ALICE, "m.room.join_rules", {"join_rule": "restricted"}, state_key="")
    join = room.member(
        "@dora:d.example", "join", content={"join_authorised_via_users_server": chosen("c.example")}
    )
    assert join.event_id not in room.rejected

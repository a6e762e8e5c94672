"""What redaction keeps, by version."""

from typing import Any

import pytest

from matrixlib.power_levels import may_redact
from matrixlib.redaction import redact_content, redact_pdu, redacts_of
from matrixlib.room_versions import ROOM_VERSIONS
from tests.support.rooms import ALICE, BOB, CAROL, Room

FULL: dict[str, dict[str, Any]] = {
    "m.room.member": {
        "membership": "join",
        "join_authorised_via_users_server": ALICE,
        "displayname": "x",
        "third_party_invite": {"signed": {"a": 1}, "display_name": "x"},
    },
    "m.room.create": {"creator": ALICE, "room_version": "1", "type": "x"},
    "m.room.join_rules": {"join_rule": "public", "allow": [], "x": 1},
    "m.room.power_levels": {"ban": 1, "invite": 2, "users": {}, "notifications": {}},
    "m.room.aliases": {"aliases": [], "x": 1},
    "m.room.history_visibility": {"history_visibility": "shared", "x": 1},
    "m.room.redaction": {"redacts": "$x", "reason": "x"},
    "m.room.message": {"body": "x"},
}


def kept(version: str, event_type: str) -> set[str]:
    """The content keys that survive."""
    return set(redact_content(event_type, FULL[event_type], ROOM_VERSIONS[version]))


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_contents(version: str) -> None:
    number = int(version)
    member = {"membership"}
    member |= {"join_authorised_via_users_server"} if number >= 9 else set()
    member |= {"third_party_invite"} if number >= 11 else set()
    assert kept(version, "m.room.member") == member
    assert kept(version, "m.room.create") == ({"creator"} if number < 11 else set(FULL["m.room.create"]))
    assert kept(version, "m.room.join_rules") == ({"join_rule", "allow"} if number >= 8 else {"join_rule"})
    levels = {"ban", "users"} | ({"invite"} if number >= 11 else set())
    assert kept(version, "m.room.power_levels") == levels
    assert kept(version, "m.room.aliases") == ({"aliases"} if number < 6 else set())
    assert kept(version, "m.room.history_visibility") == {"history_visibility"}
    assert kept(version, "m.room.redaction") == ({"redacts"} if number >= 11 else set())
    assert kept(version, "m.room.message") == set()


def test_of_a_third_party_invite_only_what_is_signed_is_kept() -> None:
    content = redact_content("m.room.member", FULL["m.room.member"], ROOM_VERSIONS["11"])
    assert content["third_party_invite"] == {"signed": {"a": 1}}


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_top_level(version: str) -> None:
    kept = {
        "event_id",
        "type",
        "room_id",
        "sender",
        "state_key",
        "hashes",
        "signatures",
        "depth",
        "prev_events",
    }
    kept |= {"auth_events", "origin_server_ts"}
    old = {"prev_state", "origin", "membership"}
    pdu = dict.fromkeys(kept | old | {"unsigned", "redacts", "other"}, "x")
    expected = kept | {"content"} | (old if int(version) < 11 else set())
    assert set(redact_pdu(pdu, ROOM_VERSIONS[version])) == expected


@pytest.mark.parametrize("content", [None, 1, [], "x"])
def test_a_content_that_is_none_becomes_empty(content: object) -> None:
    for version in ROOM_VERSIONS.values():
        assert redact_pdu({"type": "m.room.member", "content": content}, version)["content"] == {}
        assert redact_pdu({"type": [], "content": {"a": 1}}, version)["content"] == {}


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_the_target_is_where_the_version_keeps_it(version: str) -> None:
    room = Room(version)
    event = room.send(ALICE, "m.room.redaction", {}, redacts="$x")
    assert event.redacts == "$x"
    assert ("redacts" in event.content) == (int(version) >= 11)
    assert (
        redacts_of({"type": "m.room.message", "redacts": "$x", "content": {"redacts": "$x"}}, room.version)
        is None
    )
    assert (
        redacts_of({"type": "m.room.redaction", "redacts": 1, "content": {"redacts": []}}, room.version)
        is None
    )
    nowhere = {"type": "m.room.redaction", "redacts": "$a\0b", "content": {"redacts": "$a\0b"}}
    assert redacts_of(nowhere, room.version) is None


def test_who_may_redact_since_version_3() -> None:
    room = Room("10").with_members(BOB, CAROL)
    target = room.send(BOB, "m.room.message", {"body": "x"})
    state = room.state
    assert may_redact(room.version, state, ALICE, target)
    assert may_redact(room.version, state, BOB, target)
    assert may_redact(room.version, state, "@admin:b.example", target)
    assert not may_redact(room.version, state, CAROL, target)

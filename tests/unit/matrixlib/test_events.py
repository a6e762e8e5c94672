"""Parsing and building events: formats, ids, limits."""

from typing import Any

import pytest

from matrixlib.canonical_json import parse_json
from matrixlib.event_builder import build_event, next_depth
from matrixlib.events import EventFormatError, EventTooLargeError, parse_event, redact_event
from matrixlib.room_versions import ROOM_VERSIONS, V1, V3, V4, V5, V6, V10, V12
from tests.support.rooms import ALICE, Room, key_of

HASH = "A" * 43


def pdu(**changes: Any) -> dict[str, Any]:
    """A message PDU of version 10, with changes; a value of ... removes a key."""
    value: dict[str, Any] = {
        "type": "m.room.message",
        "room_id": "!r:a.example",
        "sender": ALICE,
        "content": {"body": "x"},
        "depth": 5,
        "origin_server_ts": 1,
        "prev_events": ["$" + HASH],
        "auth_events": ["$" + HASH],
        "hashes": {"sha256": "x"},
        "signatures": {"a.example": {"ed25519:1": "x"}},
    }
    value.update(changes)
    return {key: item for key, item in value.items() if item is not ...}


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_built_events_parse_to_themselves(version: str) -> None:
    room = Room(version)
    event = room.send(ALICE, "m.room.topic", {"topic": "é"}, state_key="")
    again = parse_event(event.pdu_json, room.version)
    assert again.event_id == event.event_id
    assert again.pdu == event.pdu
    assert again.key == ("m.room.topic", "")
    assert parse_json(again.pdu_json) == event.pdu
    assert again.prev_event_ids == event.prev_event_ids
    assert again.room_id == room.room_id


def test_event_ids_by_version() -> None:
    assert Room("1").create.event_id == "$e0:a.example"
    assert "+" in "".join(Room("3", creator=f"@u{n}:a").create.event_id for n in range(40))
    ids = "".join(Room("4", creator=f"@u{n}:a").create.event_id for n in range(40))
    assert "-" in ids
    assert "+" not in ids
    twelve = Room("12")
    assert twelve.room_id == "!" + twelve.create.event_id[1:]
    assert "room_id" not in twelve.create.pdu
    message = twelve.send(ALICE, "m.room.message", {"body": "x"})
    assert message.implied_create_event_id == twelve.create.event_id
    assert message.auth_links == (*message.auth_event_ids, twelve.create.event_id)
    assert twelve.create.implied_create_event_id is None


@pytest.mark.parametrize(
    "changes",
    [
        {"type": ...},
        {"type": 1},
        {"type": None},
        {"sender": "bob"},
        {"sender": ["@a:b"]},
        {"room_id": "!x"},
        {"room_id": ...},
        {"room_id": "!x:b c"},
        {"state_key": 1},
        {"state_key": None},
        {"content": []},
        {"content": None},
        {"content": ...},
        {"depth": "1"},
        {"depth": 1.0},
        {"depth": True},
        {"depth": -1},
        {"depth": 2**53},
        {"depth": None},
        {"origin_server_ts": "1"},
        {"origin_server_ts": ...},
        {"origin_server_ts": 2**53},
        {"prev_events": {}},
        {"prev_events": [1]},
        {"prev_events": ["$a\0b"]},
        {"auth_events": ["$a\0b"]},
        {"prev_events": [["$x", {}]]},
        {"prev_events": ["!x"]},
        {"auth_events": None},
        {"auth_events": "abc"},
        {"hashes": []},
        {"hashes": {"a": 1}},
        {"signatures": []},
        {"signatures": {"a": "b"}},
        {"signatures": {"a": {"b": 1}}},
        {"content": {"x": 1.5}},
        {"content": {"x": 2**53}},
        {"content": {"\ud800": 1}},
        {"type": "a\0b"},
        {"state_key": "a\0b"},
        {"content": {1: 2}},
    ],
    ids=str,
)
def test_malformed_events_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(EventFormatError):
        parse_event(pdu(**changes), V10)


@pytest.mark.parametrize("number", [2**63, -(2**63), 10**30])
def test_times_that_nothing_can_hold_are_refused_in_every_version(number: int) -> None:
    for version in ROOM_VERSIONS.values():
        event = {**pdu(origin_server_ts=number), "event_id": "$e:example.org"}
        with pytest.raises(EventFormatError):
            parse_event(event, version)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"null", b"1", b'"x"', b"{}", b"\xff", b"[" * 100_000, "\ud800"]
)
def test_what_is_no_event_at_all(text: bytes | str) -> None:
    for version in ROOM_VERSIONS.values():
        with pytest.raises(EventFormatError):
            parse_event(text, version)


@pytest.mark.parametrize(
    "changes",
    [
        {"content": {"body": "x" * 65_536}},
        {"type": "x" * 256},
        {"type": "é" * 128},
        {"state_key": "é" * 128},
        {"prev_events": ["$" + HASH] * 21},
        {"auth_events": ["$" + HASH] * 11},
    ],
    ids=["content", "type", "type in bytes", "state_key", "prev_events", "auth_events"],
)
def test_limits(changes: dict[str, Any]) -> None:
    with pytest.raises(EventTooLargeError):
        parse_event(pdu(**changes), V10)
    assert parse_event(pdu(**changes), V10, verify_size=False).sender == ALICE


def test_the_size_limit_is_exact() -> None:
    base = len(parse_event(pdu(content={"body": ""}), V10).pdu_json)
    parse_event(pdu(content={"body": "x" * (65_536 - base)}), V10)
    with pytest.raises(EventTooLargeError):
        parse_event(pdu(content={"body": "x" * (65_537 - base)}), V10)


def test_unsigned_is_dropped_and_unknown_keys_are_kept() -> None:
    event = parse_event(pdu(unsigned={"age": 1, "redacted_because": {}}, strange={"a": 1}), V10)
    assert "unsigned" not in event.pdu
    assert event.pdu["strange"] == {"a": 1}
    assert event.event_id == parse_event(pdu(strange={"a": 1}), V10).event_id


def test_lax_versions_take_what_strict_ones_refuse() -> None:
    changes = {"content": {"float": 1.5, "big": 2**70}, "depth": 2**60}
    event = parse_event(pdu(**changes), V5)
    assert parse_event(event.pdu_json, V5).event_id == event.event_id
    with pytest.raises(EventFormatError):
        parse_event(pdu(**changes), V6)
    with pytest.raises(EventFormatError):
        parse_event(pdu(depth=2**63), V5)
    for version in (V3, V4):
        assert parse_event(pdu(content={"n": -0.0}), version).content == {"n": -0.0}


def test_versions_1_and_2_have_ids_and_pairs() -> None:
    good = {"event_id": "$x:a", "prev_events": [["$p:a", {"sha256": "x"}]], "auth_events": [["$q:a", {}]]}
    event = parse_event(pdu(**good), V1)
    assert (event.event_id, event.prev_event_ids, event.auth_event_ids) == ("$x:a", ("$p:a",), ("$q:a",))
    bad: list[dict[str, Any]] = [
        {"event_id": ...},
        {"event_id": "$x"},
        {"event_id": 5},
        {"prev_events": ["$p:a"]},
        {"prev_events": [["$p:a"]]},
        {"prev_events": [["$p:a", 1]]},
        {"prev_events": [[1, {}]]},
    ]
    for changes in bad:
        with pytest.raises(EventFormatError):
            parse_event(pdu(**{**good, **changes}), V1)
    with pytest.raises(EventFormatError):
        parse_event(pdu(**good), V1, event_id="$other:a")


def test_version_12_room_ids() -> None:
    assert parse_event(pdu(room_id="!" + HASH), V12).room_id == "!" + HASH
    create = pdu(type="m.room.create", state_key="", prev_events=[], auth_events=[], room_id=...)
    event = parse_event(create, V12)
    assert event.room_id == "!" + event.event_id[1:]
    for changes in ({"room_id": "!r:a.example"}, {"room_id": ...}, {"room_id": "!short"}):
        with pytest.raises(EventFormatError):
            parse_event(pdu(**changes), V12)
    with pytest.raises(EventFormatError):
        parse_event({**create, "room_id": "!" + HASH}, V12)


def test_redaction_keeps_the_id() -> None:
    for version in ROOM_VERSIONS:
        event = Room(version).send(ALICE, "m.room.message", {"body": "secret"})
        redacted = redact_event(event)
        assert redacted.event_id == event.event_id
        assert redacted.content == {}
        assert b"secret" not in redacted.pdu_json
        if redacted.room_version.hashed_event_ids:
            assert parse_event(redacted.pdu_json, redacted.room_version).event_id == event.event_id


def test_building_refuses_what_cannot_be_sent() -> None:
    for content in ({"x": 1.5}, {"x": 2**53}, {"x": "\ud800"}, {"x": "x" * 70_000}):
        with pytest.raises(EventFormatError):
            build_event(
                V10,
                room_id="!r:a",
                sender=ALICE,
                type="x",
                content=content,
                prev_events=[],
                auth_event_ids=[],
                depth=1,
                origin_server_ts=1,
                server_name="a.example",
                signing_key=key_of("a.example"),
            )


def test_depth_stops_at_its_limit() -> None:
    assert next_depth(V10, []) == 1
    assert next_depth(V10, [3, 7]) == 8
    assert next_depth(V10, [2**53 - 1]) == 2**53 - 1
    assert next_depth(V1, [2**63 - 1]) == 2**63 - 1


def test_an_event_cannot_be_changed_by_accident() -> None:
    event = parse_event(pdu(), V10)
    with pytest.raises(AttributeError):
        event.depth = 7  # type: ignore[misc]
    with pytest.raises(ValueError, match="not a state event"):
        _ = event.key

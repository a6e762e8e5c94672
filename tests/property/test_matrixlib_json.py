"""Canonical JSON, redaction and signatures as properties."""

import json
from typing import Any

import canonicaljson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixlib.canonical_json import (
    CanonicalJsonError,
    check_strict,
    encode_canonical,
    encode_strict,
    parse_json,
)
from matrixlib.events import parse_event
from matrixlib.hashes import check_content_hash, hashed_event_id
from matrixlib.redaction import redact_pdu
from matrixlib.room_versions import ROOM_VERSIONS, RoomVersion
from matrixlib.signing import SignatureError, sign_json, verify_event_signature, verify_signed_json
from tests.support.json_strategies import event_types, lax_values, strict_objects, strict_values
from tests.support.rooms import ALICE, Room, key_of

versions = st.sampled_from(list(ROOM_VERSIONS.values()))
KEY = key_of("a.example")


@given(lax_values)
def test_equals_the_reference_and_round_trips(value: Any) -> None:
    encoded = encode_canonical(value)
    assert encoded == canonicaljson.encode_canonical_json(value)
    assert encode_canonical(parse_json(encoded)) == encoded


@given(strict_values)
def test_strict_is_a_part_of_lax(value: Any) -> None:
    check_strict(value)
    assert encode_strict(value) == encode_canonical(value)
    assert parse_json(encode_strict(value)) == value


@given(st.dictionaries(st.text(), st.integers(0, 9), min_size=2))
def test_keys_stand_in_the_order_of_code_points(value: dict[str, int]) -> None:
    pairs = json.loads(encode_canonical(value), object_pairs_hook=lambda items: items)
    assert [key for key, _ in pairs] == sorted(value, key=lambda key: [ord(char) for char in key])


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_parsing_raises_nothing_else(data: bytes | str) -> None:
    try:
        value = parse_json(data)
    except CanonicalJsonError:
        return
    encode_canonical(value)


@given(versions, event_types, strict_objects, strict_objects)
def test_redaction_is_idempotent_and_only_removes(
    version: RoomVersion, event_type: str, content: dict[str, Any], extra: dict[str, Any]
) -> None:
    pdu = {
        **extra,
        "type": event_type,
        "content": {**content, "membership": "join", "redacts": "x", "users": {}},
    }
    once = redact_pdu(pdu, version)
    assert redact_pdu(once, version) == once
    assert set(once) <= set(pdu)
    assert set(once["content"]) <= set(pdu["content"])
    assert all(once[key] == pdu[key] for key in once if key != "content")
    assert hashed_event_id(once, version) == hashed_event_id(pdu, version)


@given(strict_objects, st.data())
def test_any_changed_byte_breaks_the_signature(value: dict[str, Any], data: st.DataObject) -> None:
    value = {key: item for key, item in value.items() if key not in ("signatures", "unsigned")}
    signed = sign_json(value, "a.example", KEY)
    verify_signed_json(signed, "a.example", KEY.verify_key)
    encoded = bytearray(encode_canonical(value))
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        changed = parse_json(bytes(encoded))
    except CanonicalJsonError:
        return
    if not isinstance(changed, dict) or encode_canonical(changed) == encode_canonical(value):
        return
    if "signatures" in changed or "unsigned" in changed:
        return
    with pytest.raises(SignatureError):
        verify_signed_json({**changed, "signatures": signed["signatures"]}, "a.example", KEY.verify_key)


@given(versions, strict_objects, st.data())
def test_any_change_of_an_event_shows_in_hash_or_signature(
    version: RoomVersion, content: dict[str, Any], data: st.DataObject
) -> None:
    event = Room(version.identifier, bare=True).send(ALICE, "m.room.message", content)
    key = data.draw(
        st.sampled_from(["content", "depth", "origin_server_ts", "prev_events", "state_key", "extra"])
    )
    changed = {**event.pdu}
    match key:
        case "content":
            changed["content"] = {**content, "added": 1}
        case "depth" | "origin_server_ts":
            changed[key] += 1
        case "prev_events":
            changed[key] = []
        case _:
            changed[key] = "x"
    other = parse_event(changed, version)
    assert not check_content_hash(other.pdu)
    try:
        verify_event_signature(other, "a.example", key_of("a.example").verify_key)
    except SignatureError:
        return
    # What redaction removes is not signed, only hashed.
    assert redact_pdu(other.pdu, version) == redact_pdu(event.pdu, version)

"""Signatures and hashes against the spec's vectors and against `signedjson`."""

import json
from pathlib import Path
from typing import Any

import pytest
import signedjson.key
import signedjson.sign

from matrixlib.events import parse_event
from matrixlib.hashes import check_content_hash, content_hash, decode_base64, encode_base64
from matrixlib.room_versions import ROOM_VERSIONS, V1, V8, V10
from matrixlib.signing import (
    SignatureError,
    SigningKey,
    decode_signing_key,
    encode_signing_key,
    event_signers,
    generate_signing_key,
    sign_event,
    sign_json,
    verify_event_signature,
    verify_event_signatures,
    verify_key_from_base64,
    verify_signed_json,
)
from tests.support.rooms import ALICE, BOB, Room, key_of, sign_for_all

VECTORS = json.loads((Path(__file__).parent / "data" / "signing.json").read_text())
KEY = SigningKey(VECTORS["key_id"], decode_base64(VECTORS["signing_key_seed_base64"]))


@pytest.mark.parametrize("vector", VECTORS["json_signing"], ids=["empty", "data"])
def test_json_vectors(vector: dict[str, Any]) -> None:
    signed = sign_json(vector["input"], VECTORS["server_name"], KEY)
    assert signed == vector["signed"]
    verify_signed_json(signed, VECTORS["server_name"], KEY.verify_key)


@pytest.mark.parametrize("vector", VECTORS["event_signing"], ids=["minimal", "redacted"])
def test_event_vectors(vector: dict[str, Any]) -> None:
    assert sign_event(vector["input"], V1, VECTORS["server_name"], KEY) == vector["signed"]
    assert check_content_hash(vector["signed"])
    assert vector["signed"]["hashes"]["sha256"] == encode_base64(content_hash(vector["signed"]))


def test_agrees_with_signedjson() -> None:
    theirs = signedjson.key.decode_signing_key_base64("ed25519", "1", encode_base64(KEY.seed))
    value = {"b": ["é", 1, None], "unsigned": {"x": 1}}
    ours = sign_json(value, "domain", KEY)
    assert ours == signedjson.sign.sign_json(dict(value), "domain", theirs)
    other = sign_json(ours, "other", generate_signing_key("2"))
    signedjson.sign.verify_signed_json(other, "domain", signedjson.key.get_verify_key(theirs))
    verify_signed_json(other, "domain", KEY.verify_key)


def test_key_files_and_secrets() -> None:
    key = generate_signing_key("a_1")
    assert decode_signing_key(encode_signing_key(key)).verify_key == key.verify_key
    assert encode_base64(key.seed) not in repr(key)
    with pytest.raises(ValueError, match="letters"):
        generate_signing_key("a-b")
    for line in ("", "ed25519 a", "rsa a AAAA", "ed25519 a !!!", "ed25519 a AAAA"):
        with pytest.raises(ValueError, match=r"key|Base64"):
            decode_signing_key(line)
    with pytest.raises(ValueError, match="not an ed25519 key"):
        verify_key_from_base64("ed25519:a", "AAAA")


@pytest.mark.parametrize(
    "signatures",
    [
        None,
        [],
        {},
        {"domain": None},
        {"domain": {}},
        {"domain": {"ed25519:1": 5}},
        {"domain": {"ed25519:1": "AAAA"}},
        {"domain": {"ed25519:1": "é"}},
        {"domain": {"ed25519:1": "A" * 86}},
    ],
)
def test_malformed_signatures_are_wrong_signatures(signatures: object) -> None:
    with pytest.raises(SignatureError):
        verify_signed_json({"a": 1, "signatures": signatures}, "domain", KEY.verify_key)


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_signatures_survive_redaction_and_nothing_else(version: str) -> None:
    room = Room(version)
    event = room.send(ALICE, "m.room.message", {"body": "hello"})
    key = key_of("a.example").verify_key
    verify_event_signature(event, "a.example", key)
    redacted = parse_event({**event.pdu, "content": {}}, room.version)
    verify_event_signature(redacted, "a.example", key)
    assert not check_content_hash(redacted.pdu)
    altered = parse_event({**event.pdu, "depth": event.depth + 1}, room.version)
    with pytest.raises(SignatureError):
        verify_event_signature(altered, "a.example", key)


def test_who_must_sign() -> None:
    room = Room("10").with_members(BOB)
    message = room.send(BOB, "m.room.message", {"body": "x"})
    assert event_signers(message) == {"b.example"}
    content: dict[str, Any] = {"membership": "join", "join_authorised_via_users_server": ALICE}
    join = room.send(BOB, "m.room.member", content, state_key=BOB)
    assert event_signers(join) == {"a.example", "b.example"}
    old = Room("7").with_members(BOB)
    assert event_signers(old.send(BOB, "m.room.member", content, state_key=BOB)) == {"b.example"}
    content = {"membership": "invite", "third_party_invite": {"signed": {}}}
    pdu = room.send(ALICE, "m.room.member", content, state_key=BOB).pdu
    assert event_signers(parse_event(pdu, V10)) == set()


def test_in_versions_1_and_2_the_server_of_the_event_id_signs_too() -> None:
    room = Room("1").with_members(BOB)
    pdu = {**room.send(BOB, "m.room.message", {"body": "x"}).pdu, "event_id": "$other:c.example"}
    assert event_signers(parse_event(pdu, V1)) == {"b.example", "c.example"}


def test_unknown_keys_are_skipped_but_known_ones_must_be_right() -> None:
    room = Room("10")
    event = room.send(ALICE, "m.room.message", {"body": "x"})
    good = key_of("a.example")
    known = {"a.example": {good.key_id: good.verify_key}}
    verify_event_signatures(event, known)
    with pytest.raises(SignatureError):
        verify_event_signatures(event, {})
    strange = parse_event(sign_event(event.pdu, V10, "a.example", generate_signing_key("strange")), V10)
    verify_event_signatures(strange, known)
    wrong = generate_signing_key("wrong")
    forged = {**event.pdu["signatures"]["a.example"], "ed25519:wrong": "A" * 86}
    pdu = {**event.pdu, "signatures": {"a.example": forged}}
    with pytest.raises(SignatureError):
        verify_event_signatures(
            parse_event(pdu, V10), {"a.example": {**known["a.example"], wrong.key_id: wrong.verify_key}}
        )


def test_a_second_signature_leaves_the_hash_alone() -> None:
    room = Room("8").with_members(BOB)
    event = sign_for_all({**room.send(BOB, "m.room.message", {"body": "x"}).pdu}, V8)
    again = sign_event(event.pdu, V8, "a.example", key_of("a.example"))
    assert again["hashes"] == event.pdu["hashes"]
    assert set(again["signatures"]) == {"a.example", "b.example"}

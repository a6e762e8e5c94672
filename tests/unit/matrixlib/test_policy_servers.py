"""Policy servers: what of a room's state names one, which events it signs, and which signatures count."""

from typing import Any

import pytest

from matrixlib.events import MAX_EVENT_BYTES, Event, EventTooLargeError, parse_event
from matrixlib.policy_servers import (
    KEY_ID,
    PolicyServer,
    is_exempt,
    is_signed,
    policy_server_of,
    with_signature,
)
from matrixlib.redaction import redact_pdu
from matrixlib.room_versions import ROOM_VERSIONS
from matrixlib.signing import SignatureError, SigningKey, signing_key_ids
from tests.support.policy import OTHER_KEY, POLICY_KEY_OF_SERVER, policy_answer, policy_content
from tests.support.rooms import ALICE, Room, key_of

NAME = "policy.example"
KEY, OTHER = POLICY_KEY_OF_SERVER, OTHER_KEY
SERVER = PolicyServer(NAME, KEY.verify_key)
CONTENT = policy_content(NAME)


def policy(content: dict[str, Any], state_key: str | None = "") -> Event:
    return Room("10").send(ALICE, "m.room.policy", content, state_key=state_key)


def answer_of(event: Event, key: SigningKey = KEY, name: str = NAME) -> dict[str, Any]:
    return policy_answer(event.pdu, event.room_version, name, key)


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_a_signature_is_added_and_found(version: str) -> None:
    event = Room(version).send(ALICE, "m.room.message", {"body": "x"})
    assert not is_signed(event, SERVER)
    signed = with_signature(event, SERVER, answer_of(event))
    assert is_signed(signed, SERVER)
    assert signed.event_id == event.event_id
    assert signed.pdu["signatures"]["a.example"] == event.pdu["signatures"]["a.example"]
    assert {**signed.pdu, "signatures": {}} == {**event.pdu, "signatures": {}}


def test_a_room_names_its_policy_server() -> None:
    assert policy_server_of(policy(CONTENT)) == SERVER
    # Base64 of the other alphabet, as the spec's own example has it, and keys that nobody knows yet.
    url_safe = KEY.verify_key.base64.replace("+", "-").replace("/", "_")
    more = {"via": NAME, "public_keys": {"ed25519": url_safe, "falcon": 7}, "x": []}
    assert policy_server_of(policy(more)) == SERVER
    assert policy_server_of(None) is None


@pytest.mark.parametrize("odd", [None, 7, True, [], {}, ["policy.example"], {"ed25519": "x"}])
def test_what_is_malformed_names_none(odd: Any) -> None:
    assert policy_server_of(policy({**CONTENT, "via": odd})) is None
    assert policy_server_of(policy({**CONTENT, "public_keys": {"ed25519": odd}})) is None
    if not isinstance(odd, dict):
        assert policy_server_of(policy({**CONTENT, "public_keys": odd})) is None
    for key in CONTENT:
        assert policy_server_of(policy({name: CONTENT[name] for name in CONTENT if name != key})) is None
    assert policy_server_of(policy({})) is None


@pytest.mark.parametrize("name", ["", "x\0y", "not a name", "policy.example:", "policy.example/x", "\ud800"])
def test_what_is_no_server_name_names_none(name: str) -> None:
    event = policy(CONTENT)
    event.content["via"] = name  # some of these no canonical JSON can hold
    assert policy_server_of(event) is None


def test_only_the_state_event_with_the_empty_key_names_one() -> None:
    for state_key in ("x", ALICE, None):
        assert policy_server_of(policy(CONTENT, state_key)) is None
    assert policy_server_of(Room("10").send(ALICE, "m.room.topic", CONTENT, state_key="")) is None


def test_a_redacted_policy_names_none() -> None:
    event = policy(CONTENT)
    assert redact_pdu(event.pdu, event.room_version)["content"] == {}


@pytest.mark.parametrize("text", ["", "x", "é", "A" * 42, "A" * 86, KEY.verify_key.base64 + "A"])
def test_a_string_that_is_no_key_counts_and_lets_nothing_through(text: str) -> None:
    server = policy_server_of(policy({**CONTENT, "public_keys": {"ed25519": text}}))
    assert server == PolicyServer(NAME, None)
    event = Room("10").send(ALICE, "m.room.message", {"body": "x"})
    assert not is_signed(with_signature(event, SERVER, answer_of(event)), server)


def test_only_the_policy_itself_is_exempt() -> None:
    assert is_exempt(policy(CONTENT))
    assert is_exempt(policy({}))
    for state_key in ("x", None):
        assert not is_exempt(policy(CONTENT, state_key))
    for kind in ("m.room.topic", "m.room.power_levels", "m.room.policy.x"):
        assert not is_exempt(Room("10").send(ALICE, kind, {}, state_key=""))


def test_signatures_by_others_with_other_keys_or_over_other_events_do_not_count() -> None:
    room = Room("10")
    event = room.send(ALICE, "m.room.message", {"body": "x"})
    another = room.send(ALICE, "m.room.message", {"body": "x"})
    named_otherwise = SigningKey("ed25519:other", KEY.seed)
    wrong: list[Any] = [
        answer_of(event, OTHER),
        answer_of(another),
        answer_of(event, KEY, "elsewhere.example"),
        answer_of(event, named_otherwise),
        {NAME: {KEY_ID: "A" * 86}},
        {NAME: {KEY_ID: "A"}},
        {NAME: {KEY_ID: "A" * 100_000}},
        {NAME: {KEY_ID: "é"}},
        {NAME: {KEY_ID: 7}},
        {NAME: {KEY_ID: None}},
        {NAME: {}},
        {NAME: []},
        {NAME: "x"},
        {},
        [],
        None,
        "x",
        7,
    ]
    for answer in wrong:
        with pytest.raises(SignatureError):
            with_signature(event, SERVER, answer)
    forged = {**event.pdu, "signatures": {**event.pdu["signatures"], **answer_of(another)}}
    assert not is_signed(parsed(forged, event), SERVER)


def parsed(pdu: dict[str, Any], like: Event) -> Event:
    return parse_event(pdu, like.room_version)


def test_nothing_else_of_the_answer_is_taken() -> None:
    event = Room("10").send(ALICE, "m.room.message", {"body": "x"})
    answer = answer_of(event)
    answer[NAME]["ed25519:more"] = "A" * 86
    answer[NAME][KEY_ID] += "=" * 1000
    answer["a.example"] = {"ed25519:test": "B" * 86}
    answer["x"] = 7
    signed = with_signature(event, SERVER, answer)
    assert signed.pdu["signatures"] == {**event.pdu["signatures"], **answer_of(event)}


def test_a_policy_server_that_is_the_origin_keeps_its_signature() -> None:
    event = Room("10").send(ALICE, "m.room.message", {"body": "x"})
    ours = PolicyServer("a.example", KEY.verify_key)
    signed = with_signature(event, ours, answer_of(event, name="a.example"))
    assert signing_key_ids(signed.pdu, "a.example") == [key_of("a.example").key_id, KEY_ID]
    # A wrong one that is there already is replaced.
    stale = parsed(
        {
            **signed.pdu,
            "signatures": {"a.example": {**signed.pdu["signatures"]["a.example"], KEY_ID: "A" * 86}},
        },
        event,
    )
    assert not is_signed(stale, ours)
    assert is_signed(with_signature(stale, ours, answer_of(event, name="a.example")), ours)


def test_an_event_without_room_for_the_signature_is_too_large() -> None:
    room = Room("10")
    small = room.send(ALICE, "m.room.message", {"body": ""})
    event = room.send(ALICE, "m.room.message", {"body": "x" * (MAX_EVENT_BYTES - len(small.pdu_json) - 20)})
    with pytest.raises(EventTooLargeError):
        with_signature(event, SERVER, answer_of(event))

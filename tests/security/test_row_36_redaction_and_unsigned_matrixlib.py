"""Row 36: trust in `unsigned`, and what is left of a redacted event."""

import pytest

from matrixlib.client_event import client_event, client_event_json
from matrixlib.events import parse_event, redact_event
from matrixlib.push_rules import PushEvaluator
from matrixlib.room_versions import ROOM_VERSIONS
from tests.support.rooms import ALICE, BOB, Room

FORGED = {
    "prev_content": {"membership": "leave"},
    "redacted_because": {"x": 1},
    "age": -5,
    "transaction_id": "t",
}


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_a_peers_unsigned_is_dropped(version: str) -> None:
    event = Room(version).send(ALICE, "m.room.message", {"body": "x"})
    forged = parse_event({**event.pdu, "unsigned": FORGED}, event.room_version)
    assert forged.event_id == event.event_id
    assert forged.pdu == event.pdu
    assert b"redacted_because" not in forged.pdu_json
    assert "unsigned" not in client_event(forged)


@pytest.mark.parametrize("version", ROOM_VERSIONS)
@pytest.mark.parametrize("unsigned", [None, 5, "x", [], {"a": {"b": []}}])
def test_unsigned_of_any_shape_is_no_reason_to_fail(version: str, unsigned: object) -> None:
    event = Room(version).send(ALICE, "m.room.message", {"body": "x"})
    assert parse_event({**event.pdu, "unsigned": unsigned}, event.room_version).pdu == event.pdu


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_nothing_of_a_redacted_message_is_left(version: str) -> None:
    content = {"body": "secret", "formatted_body": "secret", "m.relates_to": {"event_id": "$secret"}}
    event = Room(version).send(ALICE, "m.room.message", {**content, "m.mentions": {"user_ids": [BOB]}})
    hidden = parse_event({**event.pdu, "secret_key": "secret"}, event.room_version)
    for redacted in (redact_event(event), redact_event(hidden), redact_event(redact_event(hidden))):
        assert redacted.content == {}
        assert b"secret" not in redacted.pdu_json
        assert b"secret" not in client_event_json(redacted)
        rule = {"rule_id": "x", "pattern": "secret", "actions": ["notify"]}
        assert not PushEvaluator(redacted, member_count=2).evaluate({"content": [rule]}, BOB).notify


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_redacting_does_not_change_who_may_do_what(version: str) -> None:
    room = Room(version).with_members(BOB)
    for event in list(room.events.values()):
        redacted = redact_event(event)
        assert redacted.membership == event.membership
        assert redacted.content.get("users") == event.content.get("users")
        assert redacted.content.get("join_rule") == event.content.get("join_rule")
        assert (redacted.key, redacted.sender, redacted.auth_event_ids) == (
            event.key,
            event.sender,
            event.auth_event_ids,
        )

"""Events as clients get them."""

import orjson
import pytest

from matrixlib.client_event import client_event, client_event_json, splice_unsigned, stripped_state_event
from matrixlib.events import parse_event
from matrixlib.room_versions import V5
from tests.support.rooms import ALICE, Room


def test_message_and_state() -> None:
    room = Room("10")
    event = room.send(ALICE, "m.room.message", {"body": "x"})
    assert client_event(event) == {
        "content": {"body": "x"},
        "event_id": event.event_id,
        "origin_server_ts": event.origin_server_ts,
        "room_id": room.room_id,
        "sender": ALICE,
        "type": "m.room.message",
    }
    assert "room_id" not in client_event(event, with_room_id=False)
    state = room.send(ALICE, "m.room.topic", {"topic": "x"}, state_key="")
    assert client_event(state)["state_key"] == ""
    assert stripped_state_event(state) == {
        "type": "m.room.topic",
        "state_key": "",
        "sender": ALICE,
        "content": {"topic": "x"},
    }


def test_what_peers_put_into_unsigned_is_gone() -> None:
    event = Room("10").send(ALICE, "m.room.message", {"body": "x"})
    forged = parse_event(
        {**event.pdu, "unsigned": {"redacted_because": {}, "prev_content": {}}}, event.room_version
    )
    assert "unsigned" not in client_event(forged)
    assert client_event(forged, unsigned={"age": 1})["unsigned"] == {"age": 1}


def test_bytes_and_splicing() -> None:
    event = Room("10").send(ALICE, "m.room.message", {"body": "é"})
    plain = client_event_json(event)
    assert orjson.loads(plain) == client_event(event)
    spliced = splice_unsigned(plain, b'{"age":5}')
    assert orjson.loads(spliced) == client_event(event, unsigned={"age": 5})


@pytest.mark.parametrize("version", ["10", "11", "12"])
def test_redacts_in_both_places(version: str) -> None:
    event = Room(version).send(ALICE, "m.room.redaction", {"reason": "x"}, redacts="$x")
    value = client_event(event)
    assert value["redacts"] == "$x"
    assert value["content"] == {"reason": "x", "redacts": "$x"}


def test_old_rooms_may_hold_what_the_fast_encoder_refuses() -> None:
    event = Room("5").send(ALICE, "m.x", {})
    big = parse_event({**event.pdu, "content": {"big": 2**80}}, V5)
    assert b"1208925819614629174706176" in client_event_json(big)

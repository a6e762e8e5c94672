"""Which messages of OUTPUT the sender's follower passes over without its database."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection

from arbor.log.v1 import output_pb2
from federation.sender.consumer import Heard, OutputHandler
from federation.storage import fetching, outgoing
from federation.storage.tables import metadata
from servicekit.database import create_engine
from servicekit.log.reader import LogMessage
from servicekit.log.subjects import event_position

ROOM = "!r:us.example"
PEER = "peer.example"


@pytest.fixture
def conn() -> Iterator[Connection]:
    """An empty database."""
    engine = create_engine("sqlite://")
    with engine.connect() as connection, connection.begin():
        metadata.create_all(connection)
        yield connection
    engine.dispose()


@pytest.fixture
def handler() -> OutputHandler:
    """Ours is us.example."""
    return OutputHandler(lambda name: name == "us.example", lambda: 1)


def told(sequence: int, sender: str = "@a:us.example", **fields: object) -> LogMessage:
    values: dict[str, Any] = {
        "event_id": f"${sequence}",
        "sender": sender,
        "type": "m.room.message",
        "placement": output_pb2.PLACEMENT_TIMELINE,
        "pdu_json": b"{}",
    }
    event = output_pb2.RoomEvent(**(values | fields))
    message = output_pb2.OutputMessage(room_id=ROOM, entries=[output_pb2.OutputEntry(room_event=event)])
    return LogMessage(sequence, "room.output.1.x", message.SerializeToString(), None, b"0")


def test_a_message_in_a_room_of_ours_alone_is_passed_over(conn: Connection, handler: OutputHandler) -> None:
    assert handler.skim([told(1)]) is None, "nothing is known of the room yet"
    handler.apply_batch(conn, [told(1)])
    join = told(3, type="m.room.member", state_key="@c:us.example")
    assert handler.skim([told(2), join]) == Heard(event_position(3, 0))
    handler.forget()
    assert handler.skim([told(2)]) is None


def test_whatever_may_concern_another_server_is_applied(conn: Connection, handler: OutputHandler) -> None:
    handler.apply_batch(conn, [told(1)])
    acl = output_pb2.StateChange(type="m.room.server_acl", event_id="$x")
    taken_back = {
        "type": "m.room.member",
        "state_key": "@b:peer.example",
        "replaces_state": "$1",
        "prev_content_json": b'{"membership":"invite"}',
    }
    for message in (
        told(2, sender="@b:peer.example"),
        told(2, **taken_back),
        told(2, participation_began=True),
        told(2, servers_joined=[PEER]),
        told(2, state_changes=[acl]),
        told(2, state_changes=[output_pb2.StateChange(type="m.room.policy", event_id="$x")]),
        LogMessage(2, "room.output.1.x", b"\xff", None, b"0"),
    ):
        assert handler.skim([told(2), message]) is None
    heard = handler.apply_batch(conn, [told(2)])
    assert heard.events == [], "nobody to tell, nothing to store"


def test_events_are_stored_again_once_another_server_is_there(
    conn: Connection, handler: OutputHandler
) -> None:
    handler.apply_batch(conn, [told(1)])
    # In one batch: the join, and what comes after it.
    heard = handler.apply_batch(conn, [told(2, servers_joined=[PEER]), told(3)])
    assert [event.event_id for event in heard.events] == ["$2", "$3"]
    assert handler.skim([told(4)]) is None
    assert [event.event_id for event in handler.apply_batch(conn, [told(4)]).events] == ["$4"]
    pending = outgoing.load_pending(conn, PEER, 0, event_position(9, 0), 10)
    assert [event.event_id for event in pending] == ["$3", "$4"]
    handler.apply_batch(conn, [told(5, servers_left=[PEER])])
    assert handler.skim([told(6)]) is not None


def test_nobody_is_asked_about_a_room_made_here(conn: Connection, handler: OutputHandler) -> None:
    create = told(1, type="m.room.create", participation_began=True)
    heard = handler.apply_batch(conn, [create, told(2, servers_joined=["us.example"]), told(3)])
    assert not heard.unknown_rooms
    assert heard.events == [], "nobody to tell"
    assert handler.skim([told(4)]) is not None
    heard = handler.apply_batch(conn, [told(5, servers_joined=[PEER]), told(6)])
    assert [event.event_id for event in heard.events] == ["$5", "$6"]


def test_servers_of_a_room_made_elsewhere_are_asked_for(conn: Connection, handler: OutputHandler) -> None:
    create = told(1, sender="@b:peer.example", type="m.room.create", participation_began=True)
    assert handler.apply_batch(conn, [create]).unknown_rooms
    assert handler.apply_batch(conn, [told(2, participation_began=True)]).unknown_rooms
    heard = handler.apply_batch(conn, [told(3)])
    assert [event.event_id for event in heard.events] == ["$3"], "kept until it is known who is there"


def test_nothing_is_passed_over_while_an_event_is_wanted(conn: Connection, handler: OutputHandler) -> None:
    handler.apply_batch(conn, [told(1)])
    missing = output_pb2.RoomMissing(waiting_event_id="$3", missing_event_ids=["$gone"], origin_server=PEER)
    message = output_pb2.OutputMessage(room_id=ROOM, entries=[output_pb2.OutputEntry(room_missing=missing)])
    waits = LogMessage(2, "room.output.1.x", message.SerializeToString(), None, b"0")
    assert handler.skim([waits]) is None
    assert handler.apply_batch(conn, [waits]).missing
    assert handler.skim([told(3)]) is None
    handler.apply_batch(conn, [told(3)])
    assert not fetching.is_anything_wanted(conn)
    assert handler.skim([told(4)]) is not None


@pytest.mark.parametrize("kind", ["m.room.server_acl", "m.room.policy", "m.room.topic"])
def test_views_are_forgotten_with_the_state_that_they_are_made_of(
    conn: Connection, handler: OutputHandler, kind: str
) -> None:
    """Replaced, removed or redacted; in a room of ours alone, too."""
    matters = kind != "m.room.topic"
    handler.apply_batch(conn, [told(1)])
    for number, change in enumerate(({"event_id": "$x"}, {"event_id": ""}), 2):
        changes = [output_pb2.StateChange(type=kind, **change)]
        heard = handler.apply_batch(conn, [told(number, type=kind, state_changes=changes)])
        assert (ROOM in heard.changed_rooms) == matters
    redacted = output_pb2.EventRedacted(
        redacted_event_id="$x", redacted_pdu_json=f'{{"content":{{}},"type":"{kind}"}}'.encode()
    )
    message = output_pb2.OutputMessage(
        room_id=ROOM, entries=[output_pb2.OutputEntry(event_redacted=redacted)]
    )
    gone = LogMessage(4, "room.output.1.x", message.SerializeToString(), None, b"0")
    assert handler.skim([gone]) is None
    assert (ROOM in handler.apply_batch(conn, [gone]).changed_rooms) == matters

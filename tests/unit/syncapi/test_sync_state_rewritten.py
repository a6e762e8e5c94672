"""State that is replaced as a whole: after a join of a room on another server, or a large change."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from sqlalchemy import Connection

from arbor.log.v1 import output_pb2
from syncapi.applied import Applied
from syncapi.http import members as members_http
from syncapi.storage import rooms, state
from syncapi.storage.state import load_state
from tests.support.sync_world import ALICE, BOB, CAROL, Envelope, Room, SyncWorld

MEMBER = "m.room.member"


@pytest.fixture
def world(database_url: str) -> Iterator[SyncWorld]:
    made = SyncWorld(database_url)
    yield made
    made.close()


def rewrite(
    world: SyncWorld, room: Room, snapshot: dict[str, tuple[str, str, dict[str, Any]]], *, participation: int
) -> Applied:
    """Tell that the room's state is `snapshot`: event id -> type, state key, content."""
    pdus = [
        (
            event_id,
            orjson.dumps(
                {
                    "type": type_,
                    "state_key": state_key,
                    "sender": BOB,
                    "content": content,
                    "depth": 3,
                    "origin_server_ts": 1,
                }
            ),
        )
        for event_id, (type_, state_key, content) in snapshot.items()
    ]
    entry = output_pb2.StateRewritten(
        snapshot_id=1,
        entries=len(pdus),
        room_version="11",
        participation=participation,
        participation_began=participation > 1,
    )
    message = output_pb2.OutputMessage(
        room_id=room.room_id, entries=[output_pb2.OutputEntry(state_rewritten=entry)]
    )
    world.sequence += 1
    envelope = Envelope(world.sequence, message.SerializeToString())

    def work(connection: Connection) -> Applied:
        return world.applier.apply(connection, [envelope], {1: pdus})

    applied = world.database.write_sync(work)
    world.applier.committed()
    world.window.apply(applied)
    return applied


@pytest.mark.parametrize("participation", [1, 2], ids=["while we are in it", "when we are back"])
def test_what_stands_is_what_the_snapshot_has(world: SyncWorld, participation: int) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    room.state(ALICE, "m.room.topic", "", {"topic": "goes"})
    kept = {event_id: (*key, content) for key, (event_id, content) in room.current.items()}
    topic = next(event_id for event_id, (type_, _, _) in kept.items() if type_ == "m.room.topic")
    bob = next(event_id for event_id, (_, key, _) in kept.items() if key == BOB)
    del kept[topic], kept[bob]
    snapshot = {
        **kept,
        "$bob-left": (MEMBER, BOB, {"membership": "leave"}),
        "$carol": (MEMBER, CAROL, {"membership": "join", "displayname": "Carol"}),
        "$far": (MEMBER, "@far:there", {"membership": "invite"}),
        "$name": ("m.room.name", "", {"name": "New"}),
    }
    applied = rewrite(world, room, snapshot, participation=participation)
    changed = {change.event.event_id if change.event is not None else "" for change in applied.changes}
    assert {"$bob-left", "$carol", "$far", "$name"} <= changed
    found = world.database.read_sync(load_state, room.room_id, None)
    assert {event.event_id for event in found} == set(snapshot)
    row = world.database.read_sync(rooms.load_room, room.room_id)
    assert row is not None
    assert (row.joined, row.invited) == (2, 1)
    joined = orjson.loads(
        world.database.read_sync(members_http.load_joined, world.caller(ALICE), room.room_id)
    )
    assert joined == {"joined": {ALICE: {}, CAROL: {"display_name": "Carol"}}}
    # Once more: nothing changes.
    assert rewrite(world, room, snapshot, participation=participation).changes == []
    again = world.database.read_sync(state.load_all_members, room.room_id, None)
    assert {event.event_id: membership for event, membership in again} == {
        "$bob-left": "leave",
        "$carol": "join",
        "$far": "invite",
        **{event_id: "join" for event_id, (_, key, _) in kept.items() if key == ALICE},
    }

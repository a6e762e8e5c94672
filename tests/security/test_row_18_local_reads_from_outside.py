"""Row 18: what outsiders, ex-members and invitees read of a room, on every reading endpoint."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import Connection

from arbor.log.v1 import output_pb2
from servicekit.errors import MatrixError
from syncapi.filters import EventFilter
from syncapi.http import event as event_http
from syncapi.http import hierarchy as hierarchy_http
from syncapi.http import members as members_http
from syncapi.http import messages as messages_http
from syncapi.http import old_sync as old_sync_http
from syncapi.http import relations as relations_http
from syncapi.http import state as state_http
from syncapi.http import timestamp as timestamp_http
from tests.support.sync_world import ALICE, BOB, SyncWorld

Read = Callable[[Connection, Any, str, str], bytes]

READS: dict[str, Read] = {
    "messages": lambda connection, caller, room, event: messages_http.load_page(
        connection, caller, messages_http.Page(room, True, None, None, 10, EventFilter())
    ),
    "context": lambda connection, caller, room, event: event_http.load_context(
        connection, caller, room, event, 10, EventFilter()
    ),
    "event": event_http.load_one,
    "state": lambda connection, caller, room, event: state_http.load_all(connection, caller, room),
    "state_entry": lambda connection, caller, room, event: state_http.load_one(
        connection, caller, room, "m.room.topic", "", False
    ),
    "members": lambda connection, caller, room, event: members_http.load_members(
        connection, caller, room, None, None, None
    ),
    "joined_members": lambda connection, caller, room, event: members_http.load_joined(
        connection, caller, room
    ),
    "relations": lambda connection, caller, room, event: relations_http.load_relations(
        connection,
        caller,
        relations_http.RelationsPage(room, event, None, None, True, None, None, 5, False),
    ),
    "threads": lambda connection, caller, room, event: relations_http.load_threads(
        connection, caller, room, False, None, 5
    ),
    "initial_sync": lambda connection, caller, room, event: old_sync_http.load_room(
        connection, caller, room, 10
    ),
    "timestamp_to_event": lambda connection, caller, room, event: timestamp_http.load_nearest(
        connection, caller, room, 2**50, True
    ),
}


def outside(name: str) -> tuple[int, str]:
    """How an endpoint refuses who is outside: reading one event has 404 for that, and no other refusal."""
    return (404, "M_NOT_FOUND") if name == "event" else (403, "M_FORBIDDEN")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[SyncWorld]:
    made = SyncWorld(f"sqlite:///{tmp_path / 'sync.db'}")
    yield made
    made.close()


def read(world: SyncWorld, name: str, user: str, room_id: str, event_id: str) -> str:
    return world.database.read_sync(READS[name], world.caller(user), room_id, event_id).decode()


def refused(world: SyncWorld, name: str, user: str, room_id: str, event_id: str) -> tuple[int, str, str]:
    with pytest.raises(MatrixError) as caught:
        read(world, name, user, room_id, event_id)
    return caught.value.http_status, caught.value.errcode, caught.value.message


@pytest.mark.parametrize("name", READS)
async def test_outsider_and_invitee_read_nothing(world: SyncWorld, name: str) -> None:
    room = world.room(ALICE)
    room.state(ALICE, "m.room.topic", "", {"topic": "secret"})
    sent = room.say(ALICE, "secret")
    outsider = refused(world, name, BOB, room.room_id, sent)
    assert outsider[:2] == outside(name)
    # A room that does not exist looks the same.
    assert refused(world, name, BOB, "!none:here", sent) == outsider
    room.invite(ALICE, BOB)
    assert refused(world, name, BOB, room.room_id, sent)[:2] == outside(name)
    assert read(world, name, ALICE, room.room_id, sent)


@pytest.mark.parametrize("name", READS)
async def test_ex_member_reads_as_of_leaving(world: SyncWorld, name: str) -> None:
    room = world.room(ALICE)
    room.state(ALICE, "m.room.topic", "", {"topic": "open"})
    room.join(BOB)
    open_event = room.say(ALICE, "open")
    room.leave(BOB)
    hidden = room.say(ALICE, "secret")
    room.say(ALICE, "secret", **{"m.relates_to": {"rel_type": "m.thread", "event_id": open_event}})
    room.state(ALICE, "m.room.topic", "", {"topic": "secret"})
    if name == "joined_members":
        assert refused(world, name, BOB, room.room_id, open_event)[0] == 403
    else:
        assert "secret" not in read(world, name, BOB, room.room_id, open_event)
    if name in ("context", "event", "relations"):
        assert refused(world, name, BOB, room.room_id, hidden)[:2] == (404, "M_NOT_FOUND")
    room.invite(ALICE, BOB)
    if name != "joined_members":
        assert "secret" not in read(world, name, BOB, room.room_id, open_event)


@pytest.mark.parametrize("name", READS)
async def test_world_readable_room_is_read_from_outside(world: SyncWorld, name: str) -> None:
    room = world.room(ALICE)
    room.state(ALICE, "m.room.topic", "", {"topic": "t"})
    before = room.say(ALICE, "secret, as it was said before")
    room.state(ALICE, "m.room.history_visibility", "", {"history_visibility": "world_readable"})
    after = room.say(ALICE, "open")
    if name == "joined_members":
        assert refused(world, name, BOB, room.room_id, after)[0] == 403
        return
    assert "secret" not in read(world, name, BOB, room.room_id, after)
    if name in ("context", "event", "relations"):
        assert refused(world, name, BOB, room.room_id, before)[0] == 404


@pytest.mark.parametrize("name", READS)
async def test_forgotten_room_is_as_never_joined(world: SyncWorld, name: str) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    sent = room.say(ALICE, "hello")
    room.leave(BOB)
    world.user_entry(BOB, room_forgotten=output_pb2.RoomForgotten(room_id=room.room_id))
    assert refused(world, name, BOB, room.room_id, sent)[:2] == outside(name)


@pytest.mark.parametrize("name", ["event", "context", "relations"])
async def test_event_of_another_room_is_not_found(world: SyncWorld, name: str) -> None:
    mine, other = world.room(BOB), world.room(ALICE)
    sent = other.say(ALICE, "secret")
    assert refused(world, name, BOB, mine.room_id, sent)[:2] == (404, "M_NOT_FOUND")


def hierarchy(world: SyncWorld, user: str, room_id: str) -> list[str]:
    body, _ = world.database.read_sync(
        hierarchy_http.load_hierarchy,
        world.caller(user),
        room_id,
        start=0,
        limit=10,
        max_depth=3,
        suggested_only=False,
        told={},
    )
    answer = orjson.loads(body)
    return [room["room_id"] for room in answer["rooms"]]


async def test_hierarchy_leaves_out_rooms_one_may_not_look_into(world: SyncWorld) -> None:
    space = world.room(ALICE)
    space.state(ALICE, "m.room.create", "", {"type": "m.space"})
    private = world.room(ALICE, join_rule="invite")
    public = world.room(ALICE)
    gone = world.room(ALICE, join_rule="invite")
    gone.join(BOB)
    gone.leave(BOB)
    for child in (private, public, gone):
        space.state(ALICE, "m.space.child", child.room_id, {"via": ["here"]})
    assert hierarchy(world, ALICE, space.room_id) == [
        space.room_id,
        private.room_id,
        public.room_id,
        gone.room_id,
    ]
    assert hierarchy(world, BOB, space.room_id) == [space.room_id, public.room_id]
    with pytest.raises(MatrixError) as caught:
        hierarchy(world, BOB, private.room_id)
    assert caught.value.errcode == "M_FORBIDDEN"

"""Users who had their content erased: who comes later gets their events redacted."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from arbor.log.v1 import output_pb2
from syncapi.http import relations as relations_http
from syncapi.http import search as search_http
from tests.support.sync_world import ALICE, BOB, CAROL, Room, SyncWorld


@pytest.fixture
def world(database_url: str) -> Iterator[SyncWorld]:
    made = SyncWorld(database_url)
    yield made
    made.close()


def erase(world: SyncWorld, room: Room, user: str) -> None:
    """Erase a user, a moment after the room's last event."""
    erased_ms = 1_700_000_000_000 + room.depth + 1
    room.depth += 1
    world.user_entry(user, account_changed=output_pb2.AccountChanged(erased_ms=erased_ms))


def contents(page: dict[str, Any]) -> dict[str, Any]:
    return {event["event_id"]: event["content"] for event in page["chunk"]}


async def test_who_comes_later_sees_redacted_copies(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    said = room.say(BOB, "mine alone")
    answered = room.say(ALICE, "an answer")
    topic = room.state(BOB, "m.room.topic", "", {"topic": "secret"})
    room.state(BOB, "m.room.topic", "", {"topic": "more"})
    room.leave(BOB)
    erase(world, room, BOB)
    room.join(CAROL)
    whole = {"msgtype": "m.text", "body": "mine alone"}
    assert contents(world.messages_page(ALICE, room.room_id, limit=50))[said] == whole
    page = world.messages_page(CAROL, room.room_id, limit=50)
    found = contents(page)
    assert (found[said], found[topic]) == ({}, {})
    assert found[answered]["body"] == "an answer"
    assert "mine alone" not in str(page)
    assert "secret" not in str(page)
    assert world.event(CAROL, room.room_id, said)["content"] == {}
    assert world.event(ALICE, room.room_id, said)["content"] == whole
    synced = await world.sync(CAROL, filter_={"room": {"timeline": {"limit": 50}}})
    assert "an answer" in str(synced)
    assert "mine alone" not in str(synced)


async def test_who_was_there_before_the_erasure_still_sees_the_events(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    said = room.say(BOB, "mine alone")
    room.join(CAROL)
    room.leave(BOB)
    erase(world, room, BOB)
    assert contents(world.messages_page(CAROL, room.room_id, limit=50))[said]["body"] == "mine alone"
    # Coming once more is coming later, for what was said in between.
    between = room.say(BOB, "while Carol was away")
    assert contents(world.messages_page(CAROL, room.room_id, limit=50))[between]["body"]


async def test_neither_bundles_nor_searches_tell_what_is_erased(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    root = room.say(ALICE, "a thread")
    room.say(BOB, "erased reply", **{"m.relates_to": {"rel_type": "m.thread", "event_id": root}})
    room.leave(BOB)
    erase(world, room, BOB)
    room.join(CAROL)
    assert "erased reply" in str(world.event(ALICE, room.room_id, root))
    assert "erased reply" not in str(world.event(CAROL, room.room_id, root))
    page = relations_http.RelationsPage(room.room_id, root, None, None, True, None, None, 10, False)
    related = world.database.read_sync(relations_http.load_relations, world.caller(CAROL), page)
    assert len(orjson.loads(related)["chunk"]) == 1
    assert b"erased reply" not in related
    for user, count in ((ALICE, 1), (CAROL, 0)):
        criteria = search_http.parse_criteria(
            {"search_categories": {"room_events": {"search_term": "erased"}}}, None
        )
        assert criteria is not None
        answer = orjson.loads(
            world.database.read_sync(search_http.load_results, world.caller(user), criteria)
        )
        assert answer["search_categories"]["room_events"]["count"] == count

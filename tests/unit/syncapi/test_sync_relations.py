"""Relations, threads and bundled aggregations."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from syncapi.http import relations as relations_http
from syncapi.http import timestamp as timestamp_http
from tests.support.sync_world import ALICE, BOB, SyncWorld


@pytest.fixture
def world(database_url: str) -> Iterator[SyncWorld]:
    made = SyncWorld(database_url)
    yield made
    made.close()


def relates(rel_type: str, event_id: str) -> dict[str, Any]:
    return {"m.relates_to": {"rel_type": rel_type, "event_id": event_id}}


def relations(world: SyncWorld, user: str, room_id: str, event_id: str, **more: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "rel_type": None,
        "type": None,
        "backwards": True,
        "start": None,
        "to": None,
        "limit": 5,
        "recurse": False,
        **more,
    }
    page = relations_http.RelationsPage(room_id, event_id, **options)
    answer: dict[str, Any] = orjson.loads(
        world.database.read_sync(relations_http.load_relations, world.caller(user), page)
    )
    return answer


def ids(answer: dict[str, Any]) -> list[str]:
    return [event["event_id"] for event in answer["chunk"]]


async def test_relations_are_paged_and_filtered(world: SyncWorld) -> None:
    room = world.room(ALICE)
    root = room.say(ALICE, "root")
    replies = [room.say(ALICE, str(n), **relates("m.thread", root)) for n in range(4)]
    reaction = room.put(room.entry(BOB, "m.reaction", relates("m.annotation", root)))
    nested = room.say(ALICE, "edit", **relates("m.replace", replies[0]))
    first = relations(world, ALICE, room.room_id, root, limit=3)
    assert ids(first) == [reaction, replies[3], replies[2]]
    second = relations(world, ALICE, room.room_id, root, limit=3, start=first["next_batch"])
    assert ids(second) == [replies[1], replies[0]]
    assert "next_batch" not in second
    assert ids(relations(world, ALICE, room.room_id, root, backwards=False, limit=9)) == [*replies, reaction]
    assert ids(relations(world, ALICE, room.room_id, root, rel_type="m.annotation")) == [reaction]
    assert ids(relations(world, ALICE, room.room_id, root, rel_type="m.thread", type="m.reaction")) == []
    assert nested in ids(relations(world, ALICE, room.room_id, root, recurse=True, limit=9))


async def test_threads_and_bundles(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    older, newer = room.say(ALICE, "older"), room.say(ALICE, "newer")
    room.say(BOB, "reply", **relates("m.thread", newer))
    last = room.say(ALICE, "reply", **relates("m.thread", older))
    edit = room.say(ALICE, "edited", **relates("m.replace", newer))
    room.say(BOB, "forged edit", **relates("m.replace", newer))

    def threads(user: str, participated: bool = False, start: str | None = None, limit: int = 9) -> Any:
        return orjson.loads(
            world.database.read_sync(
                relations_http.load_threads, world.caller(user), room.room_id, participated, start, limit
            )
        )

    assert ids(threads(ALICE)) == [older, newer]
    assert ids(threads(BOB, participated=True)) == [newer]
    page = threads(ALICE, limit=1)
    assert ids(threads(ALICE, start=page["next_batch"])) == [newer]
    for event in (
        world.event(BOB, room.room_id, newer),
        next(
            event
            for event in (await world.sync(BOB))["rooms"]["join"][room.room_id]["timeline"]["events"]
            if event["event_id"] == newer
        ),
    ):
        bundled = event["unsigned"]["m.relations"]
        assert bundled["m.replace"]["event_id"] == edit
        assert (bundled["m.thread"]["count"], bundled["m.thread"]["current_user_participated"]) == (1, True)
    thread = world.event(BOB, room.room_id, older)["unsigned"]["m.relations"]["m.thread"]
    assert (thread["latest_event"]["event_id"], thread["current_user_participated"]) == (last, False)
    room.redact(ALICE, edit)
    assert "m.replace" not in world.event(BOB, room.room_id, newer)["unsigned"]["m.relations"]


async def test_a_redacted_root_keeps_its_thread_and_loses_its_edits(world: SyncWorld) -> None:
    room = world.room(ALICE)
    root = room.say(ALICE, "root")
    last = room.say(ALICE, "in it", **relates("m.thread", root))
    room.say(ALICE, "* better", **relates("m.replace", root))
    referring = room.say(ALICE, "see", **relates("m.reference", root))
    room.redact(ALICE, root)
    bundled = world.event(ALICE, room.room_id, root)["unsigned"]["m.relations"]
    assert set(bundled) == {"m.thread", "m.reference"}
    assert (bundled["m.thread"]["count"], bundled["m.thread"]["latest_event"]["event_id"]) == (1, last)
    assert bundled["m.reference"] == {"chunk": [{"event_id": referring}]}


async def test_timestamp_to_event(world: SyncWorld) -> None:
    room = world.room(ALICE)
    events = [room.say(ALICE, str(number)) for number in range(3)]
    at = world.event(ALICE, room.room_id, events[1])["origin_server_ts"]

    def nearest(when: int, backwards: bool) -> str:
        found = world.database.read_sync(
            timestamp_http.load_nearest, world.caller(ALICE), room.room_id, when, backwards
        )
        answer = orjson.loads(found)
        return str(answer["event_id"])

    assert nearest(at, True) == events[1]
    assert nearest(at + 1, False) == events[2]
    assert nearest(at - 1, True) == events[0]

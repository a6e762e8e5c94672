"""Unread counts by thread (client-server API, "Threading"), from memory and from the database alike."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from syncapi.http import notifications
from tests.support.sync_world import ALICE, BOB, CAROL, Room, SyncWorld

BY_THREAD = {"room": {"timeline": {"unread_thread_notifications": True}}}


@pytest.fixture(params=["window", "database"])
def world(request: pytest.FixtureRequest, database_url: str) -> Iterator[SyncWorld]:
    """A world whose incremental answers come from memory, or from the database, of either kind."""
    made = SyncWorld(database_url, use_window=request.param == "window")
    yield made
    made.close()


def counts(notify: int, highlight: int = 0) -> dict[str, int]:
    return {"highlight_count": highlight, "notification_count": notify}


def in_thread(root: str, **more: Any) -> dict[str, Any]:
    return {"m.relates_to": {"rel_type": "m.thread", "event_id": root}, **more}


class Reader:
    """A client that keeps what it was told of one room's counts."""

    def __init__(self, world: SyncWorld, room: Room, user: str, filter_: dict[str, Any]) -> None:
        self.world, self.room, self.user, self.filter = world, room, user, filter_
        self.since: str | None = None

    async def sync(self) -> tuple[dict[str, int], dict[str, Any]]:
        """Return the counts of the main timeline (or of all), and those of threads."""
        answer = await self.world.sync(self.user, self.since, filter_=self.filter)
        self.since = answer["next_batch"]
        joined = answer["rooms"]["join"][self.room.room_id]
        again = await self.world.sync(self.user, filter_=self.filter)
        fresh = again["rooms"]["join"][self.room.room_id]
        for key in ("unread_notifications", "unread_thread_notifications"):
            assert joined.get(key) == fresh.get(key)
        return joined["unread_notifications"], joined.get("unread_thread_notifications", {})


async def test_threads_are_counted_apart(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    reader = Reader(world, room, BOB, BY_THREAD)
    plain = Reader(world, room, BOB, {})
    assert await reader.sync() == (counts(0), {})
    root = room.say(ALICE, "root")
    other = room.say(ALICE, "another root")
    assert await reader.sync() == (counts(2), {})
    first = room.say(ALICE, "in", **in_thread(root))
    room.say(ALICE, "in", **in_thread(root, **{"m.mentions": {"user_ids": [BOB]}}))
    assert await reader.sync() == (counts(2), {root: counts(2, 1)})
    room.say(ALICE, "in the other", **in_thread(other))
    main = room.say(ALICE, "main")
    assert await reader.sync() == (counts(3), {root: counts(2, 1), other: counts(1)})
    assert await plain.sync() == (counts(6, 1), {})

    # A receipt of the main timeline leaves threads as they are.
    room.receipt(BOB, main, thread_id="main")
    assert await reader.sync() == (counts(0), {root: counts(2, 1), other: counts(1)})
    # One of a thread reads that thread, up to its event.
    room.receipt(BOB, first, "m.read.private", thread_id=root)
    assert await reader.sync() == (counts(0), {root: counts(1, 1), other: counts(1)})
    assert await plain.sync() == (counts(2, 1), {})
    last = room.say(ALICE, "more", **in_thread(root))
    assert await reader.sync() == (counts(0), {root: counts(2, 1), other: counts(1)})
    room.receipt(BOB, last, thread_id=root)
    assert await reader.sync() == (counts(0), {other: counts(1)})
    # One without a thread reads everything.
    room.say(ALICE, "main again")
    end = room.say(ALICE, "more", **in_thread(root))
    assert await reader.sync() == (counts(1), {root: counts(1), other: counts(1)})
    room.receipt(BOB, end)
    assert await reader.sync() == (counts(0), {})
    assert await plain.sync() == (counts(0), {})


async def test_writing_in_a_thread_reads_the_thread_alone(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    reader = Reader(world, room, BOB, BY_THREAD)
    root = room.say(ALICE, "root")
    room.say(ALICE, "in", **in_thread(root))
    assert await reader.sync() == (counts(1), {root: counts(1)})
    room.say(BOB, "an answer", **in_thread(root))
    assert await reader.sync() == (counts(1), {})
    room.say(ALICE, "in", **in_thread(root))
    assert await reader.sync() == (counts(1), {root: counts(1)})
    room.say(BOB, "to all")
    assert await reader.sync() == (counts(0), {root: counts(1)})


async def test_who_came_later_has_not_missed_what_was_before(world: SyncWorld) -> None:
    room = world.room(ALICE)
    root = room.say(ALICE, "root")
    room.say(ALICE, "in", **in_thread(root))
    room.join(CAROL)
    reader = Reader(world, room, CAROL, BY_THREAD)
    assert await reader.sync() == (counts(0), {})
    room.say(ALICE, "in", **in_thread(root))
    assert await reader.sync() == (counts(0), {root: counts(1)})


async def test_notifications_say_what_was_read_in_threads(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    root = room.say(ALICE, "root")
    first = room.say(ALICE, "in", **in_thread(root))
    second = room.say(ALICE, "in", **in_thread(root))
    main = room.say(ALICE, "main")

    def read() -> dict[str, bool]:
        found = orjson.loads(
            world.database.read_sync(
                notifications.load_notifications, world.caller(BOB), None, 100, highlights=False
            )
        )
        return {item["event"]["event_id"]: item["read"] for item in found["notifications"]}

    room.receipt(BOB, main, thread_id="main")
    assert read() == {root: True, first: False, second: False, main: True}
    room.receipt(BOB, first, thread_id=root)
    assert read() == {root: True, first: True, second: False, main: True}
    room.receipt(BOB, second)
    assert read() == {root: True, first: True, second: True, main: True}

"""`/notifications`: what notified, in agreement with the unread counts."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from syncapi.http import notifications
from tests.support.sync_world import ALICE, BOB, SyncWorld


@pytest.fixture
def world(database_url: str) -> Iterator[SyncWorld]:
    made = SyncWorld(database_url)
    yield made
    made.close()


def listed(
    world: SyncWorld, user: str, before: int | None = None, limit: int = 100, *, highlights: bool = False
) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(
        world.database.read_sync(
            notifications.load_notifications, world.caller(user), before, limit, highlights=highlights
        )
    )
    return found


def ids(found: dict[str, Any]) -> list[str]:
    return [item["event"]["event_id"] for item in found["notifications"]]


async def test_what_notified_and_whether_it_was_read(world: SyncWorld) -> None:
    room, other = world.room(ALICE), world.room(ALICE)
    room.say(ALICE, "before Bob came")
    room.join(BOB)
    other.join(BOB)
    first = room.say(ALICE, "one")
    room.put(room.entry(ALICE, "m.room.message", {"msgtype": "m.notice", "body": "silent"}))
    mention = other.say(ALICE, "two", **{"m.mentions": {"user_ids": [BOB]}})
    last = room.say(ALICE, "three")
    room.receipt(BOB, first)
    found = listed(world, BOB)
    assert ids(found) == [last, mention, first]
    assert [item["read"] for item in found["notifications"]] == [False, False, True]
    assert found["notifications"][1]["actions"] == ["notify", {"set_tweak": "highlight"}]
    assert found["notifications"][0]["actions"] == ["notify"]
    assert found["notifications"][0]["room_id"] == room.room_id
    assert "next_token" not in found
    assert ids(listed(world, BOB, highlights=True)) == [mention]
    assert ids(listed(world, ALICE)) == []
    joined = (await world.sync(BOB))["rooms"]["join"]
    unread = sum(one["unread_notifications"]["notification_count"] for one in joined.values())
    assert unread == sum(not item["read"] for item in found["notifications"])


async def test_pages(world: SyncWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifications, "PAGE", 3)
    rooms = [world.room(ALICE), world.room(ALICE)]
    for room in rooms:
        room.join(BOB)
    sent = [rooms[number % 2].say(ALICE, str(number)) for number in range(20)]
    found: list[str] = []
    before: int | None = None
    for _ in range(20):
        page = listed(world, BOB, before, 3)
        found += ids(page)
        if "next_token" not in page:
            break
        before = int(page["next_token"])
    assert found == sent[::-1]

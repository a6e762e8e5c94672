"""`/notifications`: what notified, in agreement with the unread counts."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from syncapi.http import notifications
from tests.support.sync_world import ALICE, BOB, CAROL, SyncWorld


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
    assert {"set_tweak": "highlight"} in found["notifications"][1]["actions"]
    assert "notify" in found["notifications"][0]["actions"]
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


async def test_the_actions_are_those_of_the_rule_that_matched(world: SyncWorld) -> None:
    direct, group = world.room(ALICE), world.room(ALICE)
    direct.join(BOB)
    group.join(BOB)
    to_two = direct.say(ALICE, "there are two of us")
    # Whoever comes later does not change what the event was.
    direct.join("@carol:here")
    to_three = direct.say(ALICE, "and now three")
    mention = direct.say(ALICE, "you", **{"m.mentions": {"user_ids": [BOB]}})
    sound, highlight = {"set_tweak": "sound", "value": "default"}, {"set_tweak": "highlight"}
    assert {item["event"]["event_id"]: item["actions"] for item in listed(world, BOB)["notifications"]} == {
        to_two: ["notify", sound],
        to_three: ["notify"],
        mention: ["notify", sound, highlight],
    }
    bell = {"set_tweak": "sound", "value": "bell"}
    rules = {"room": [{"rule_id": group.room_id, "enabled": True, "actions": ["notify", bell]}]}
    world.account_data(BOB, "m.push_rules", {"global": rules})
    ring = group.say(ALICE, "ring")
    found = {item["event"]["event_id"]: item["actions"] for item in listed(world, BOB)["notifications"]}
    assert found[ring] == ["notify", bell]
    # By the rules of now these would not have notified: what is known of then is told.
    assert (found[to_two], found[mention]) == (["notify"], ["notify", highlight])
    assert listed(world, BOB, limit=0)["notifications"] == []


async def test_what_ignored_users_say_does_not_notify(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    room.join(CAROL)
    heard = room.say(ALICE, "before")
    world.account_data(BOB, "m.ignored_user_list", {"ignored_users": {ALICE: {}}})
    room.say(ALICE, "unheard", **{"m.mentions": {"user_ids": [BOB]}})
    others = room.say(CAROL, "another")
    unread = (await world.sync(BOB))["rooms"]["join"][room.room_id]["unread_notifications"]
    assert unread == {"notification_count": 2, "highlight_count": 0}
    assert others in ids(listed(world, BOB))
    world.account_data(BOB, "m.ignored_user_list", {"ignored_users": {}})
    again = room.say(ALICE, "again")
    assert ids(listed(world, BOB)) == [again, others, heard]
    unread = (await world.sync(CAROL))["rooms"]["join"][room.room_id]["unread_notifications"]
    assert unread["notification_count"] == 1

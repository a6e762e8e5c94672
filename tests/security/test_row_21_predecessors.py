"""Row 21: what a room says of its predecessor is believed only when that room says the same.

Tags, push rules, `m.direct`, aliases and the place in the directory move to a successor that the old room's
tombstone names, and to no other.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.clientapi_alone import Client, World, lone_clientapi


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with lone_clientapi(tmp_path) as running:
        yield running


async def set_up(user: Client, room_id: str) -> None:
    """Set for a room all that can be set."""
    await user.ok("PUT", f"/user/{user.user_id}/rooms/{room_id}/tags/m.favourite", {"order": 0.5})
    await user.ok("PUT", f"/user/{user.user_id}/account_data/m.direct", {"@friend:here.example": [room_id]})
    rule = f"/pushrules/global/room/{room_id}"
    await user.ok("PUT", rule, {"actions": ["dont_notify"]})
    condition = {"kind": "event_match", "key": "room_id", "pattern": room_id}
    await user.ok("PUT", f"/pushrules/global/override/{room_id}", {"actions": [], "conditions": [condition]})
    await user.ok(
        "PUT", "/pushrules/global/underride/mine", {"actions": ["notify"], "conditions": [condition]}
    )


async def what_is_set(user: Client, room_id: str) -> dict[str, Any]:
    """What is set for a room."""
    tags = await user.ok("GET", f"/user/{user.user_id}/rooms/{room_id}/tags")
    direct = await user.ok("GET", f"/user/{user.user_id}/account_data/m.direct")
    rules = (await user.ok("GET", "/pushrules/"))["global"]
    condition = {"kind": "event_match", "key": "room_id", "pattern": room_id}
    return {
        "tags": tags["tags"],
        "direct": [friend for friend, rooms in direct.items() if room_id in rooms],
        "room rules": [rule["actions"] for rule in rules["room"] if rule["rule_id"] == room_id],
        "rules with conditions": {
            rule["rule_id"]
            for kind in ("override", "underride")
            for rule in rules[kind]
            if condition in rule.get("conditions", ())
        },
    }


async def test_the_settings_follow_whoever_upgrades_and_whoever_joins(world: World) -> None:
    alice, bob = await world.user(), await world.user()
    room_id = (await alice.ok("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
    await bob.ok("POST", f"/join/{room_id}")
    for user in (alice, bob):
        await set_up(user, room_id)
    answer = await alice.ok("POST", f"/rooms/{room_id}/upgrade", {"new_version": "12"})
    new = answer["replacement_room"]
    await bob.ok("POST", f"/join/{new}")
    for user in (alice, bob):
        assert await what_is_set(user, new) == {
            "tags": {"m.favourite": {"order": 0.5}},
            "direct": ["@friend:here.example"],
            "room rules": [["dont_notify"]],
            "rules with conditions": {new, f"mine_{new}"},
        }
        # The old room keeps them.
        assert (await what_is_set(user, room_id))["rules with conditions"] == {room_id, "mine"}


async def test_they_follow_when_the_tombstone_comes_last(world: World) -> None:
    alice = await world.user()
    room_id = (await alice.ok("POST", "/createRoom", {}))["room_id"]
    await set_up(alice, room_id)
    creation = {"predecessor": {"room_id": room_id}}
    new = (await alice.ok("POST", "/createRoom", {"creation_content": creation}))["room_id"]
    assert (await what_is_set(alice, new))["tags"] == {}
    await alice.ok("PUT", f"/rooms/{room_id}/state/m.room.tombstone", {"replacement_room": new})
    assert (await what_is_set(alice, new))["rules with conditions"] == {new, f"mine_{new}"}


async def test_what_is_set_already_stays(world: World) -> None:
    alice, bob = await world.user(), await world.user()
    room_id = (await alice.ok("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
    await bob.ok("POST", f"/join/{room_id}")
    await set_up(bob, room_id)
    new = (await alice.ok("POST", f"/rooms/{room_id}/upgrade", {"new_version": "12"}))["replacement_room"]
    await bob.ok("PUT", f"/user/{bob.user_id}/rooms/{new}/tags/u.other", {})
    await bob.ok("PUT", f"/pushrules/global/room/{new}", {"actions": ["notify"]})
    await bob.ok("POST", f"/join/{new}")
    assert (await what_is_set(bob, new))["tags"] == {"u.other": {}}
    assert (await what_is_set(bob, new))["room rules"] == [["notify"]]


@pytest.mark.parametrize("predecessor", ["the room", "another's", "strange"])
async def test_a_claim_alone_moves_nothing(world: World, predecessor: str) -> None:
    alice, mallory = await world.user(), await world.user()
    body = {"room_alias_name": "mine", "visibility": "public"}
    room_id = (await alice.ok("POST", "/createRoom", body))["room_id"]
    await set_up(alice, room_id)
    if predecessor == "another's":
        # A tombstone is there, and names a third room.
        other = (await alice.ok("POST", f"/rooms/{room_id}/upgrade", {"new_version": "12"}))[
            "replacement_room"
        ]
    claim: Any = {"room_id": room_id} if predecessor != "strange" else [room_id]
    trap = await mallory.ok(
        "POST", "/createRoom", {"preset": "public_chat", "creation_content": {"predecessor": claim}}
    )
    await alice.ok("POST", f"/join/{trap['room_id']}")
    assert await what_is_set(alice, trap["room_id"]) == {
        "tags": {},
        "direct": [],
        "room rules": [],
        "rules with conditions": set(),
    }
    owner = other if predecessor == "another's" else room_id
    assert (await alice.ok("GET", "/directory/room/%23mine:here.example"))["room_id"] == owner
    listed = (await alice.ok("GET", "/publicRooms"))["chunk"]
    assert [entry["room_id"] for entry in listed] == [owner]


async def test_many_push_rules_keep_no_setting_from_following(world: World) -> None:
    alice = await world.user()
    room_id = (await alice.ok("POST", "/createRoom", {}))["room_id"]
    await set_up(alice, room_id)
    # More than other account data may hold.
    for number in range(30):
        rule = f"/pushrules/global/content/{number}"
        await alice.ok("PUT", rule, {"pattern": "x" * 2500, "actions": ["notify"]})
    answer = await alice.ok("POST", f"/rooms/{room_id}/upgrade", {"new_version": "12"})
    followed = await what_is_set(alice, answer["replacement_room"])
    assert followed["tags"] == {"m.favourite": {"order": 0.5}}
    assert followed["room rules"] == [["dont_notify"]]

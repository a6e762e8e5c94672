"""Lazy-loading clients get a membership event once, unless they ask for redundant ones or lost the answer."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.sync_world import ALICE, BOB, CAROL, Room, SyncWorld

LAZY = {"room": {"state": {"lazy_load_members": True}}}
REDUNDANT = {"room": {"state": {"lazy_load_members": True, "include_redundant_members": True}}}


@pytest.fixture(params=["window", "database"])
def world(request: pytest.FixtureRequest, database_url: str) -> Iterator[SyncWorld]:
    """A world whose incremental answers come from memory, or from the database, of either kind."""
    made = SyncWorld(database_url, use_window=request.param == "window")
    yield made
    made.close()


def members(answer: dict[str, Any], room: Room) -> set[str]:
    joined = answer["rooms"]["join"][room.room_id]
    return {event["state_key"] for event in joined["state"]["events"] if event["type"] == "m.room.member"}


def full_room(world: SyncWorld) -> Room:
    room = world.room(ALICE)
    for user in (BOB, CAROL, "@dan:here"):
        room.join(user)
    room.state(ALICE, "m.room.name", "", {"name": "named"})
    for number in range(12):
        room.say(ALICE, str(number))
    return room


async def test_a_member_is_sent_once(world: SyncWorld) -> None:
    room = full_room(world)
    first = await world.sync(BOB, filter_=LAZY)
    assert members(first, room) == {ALICE, BOB}
    room.say(ALICE, "known")
    second = await world.sync(BOB, first["next_batch"], filter_=LAZY)
    assert members(second, room) == set()
    room.say(CAROL, "new")
    third = await world.sync(BOB, second["next_batch"], filter_=LAZY)
    assert members(third, room) == {CAROL}
    # Lost on its way: the client asks again, and gets it again.
    again = await world.sync(BOB, second["next_batch"], filter_=LAZY)
    assert members(again, room) == {CAROL}
    room.say(CAROL, "known now")
    fourth = await world.sync(BOB, again["next_batch"], filter_=LAZY)
    assert members(fourth, room) == set()


async def test_who_steps_back_gets_members_again(world: SyncWorld) -> None:
    room = full_room(world)
    first = await world.sync(BOB, filter_=LAZY)
    room.say(CAROL, "one")
    second = await world.sync(BOB, first["next_batch"], filter_=LAZY)
    room.say(CAROL, "two")
    assert members(await world.sync(BOB, second["next_batch"], filter_=LAZY), room) == set()
    # The client went back to what it had stored.
    assert members(await world.sync(BOB, first["next_batch"], filter_=LAZY), room) == {CAROL}


async def test_each_device_and_filter_has_its_own(world: SyncWorld) -> None:
    room = full_room(world)
    first = await world.sync(BOB, filter_=LAZY)
    other = await world.sync(BOB, filter_=LAZY, device="OTHER")
    redundant = await world.sync(BOB, filter_=REDUNDANT)
    room.say(CAROL, "one")
    one = await world.sync(BOB, first["next_batch"], filter_=LAZY)
    assert members(one, room) == {CAROL}
    room.say(CAROL, "two")
    assert members(await world.sync(BOB, one["next_batch"], filter_=LAZY), room) == set()
    assert members(await world.sync(BOB, other["next_batch"], filter_=LAZY, device="OTHER"), room) == {CAROL}
    for _ in range(2):
        room.say(CAROL, "again")
        redundant = await world.sync(BOB, redundant["next_batch"], filter_=REDUNDANT)
        assert members(redundant, room) == {CAROL}


async def test_a_changed_profile_and_a_full_state_are_sent(world: SyncWorld) -> None:
    room = full_room(world)
    first = await world.sync(BOB, filter_=LAZY)
    room.join(CAROL, displayname="Carol")
    for number in range(12):
        room.say(CAROL, str(number))
    second = await world.sync(BOB, first["next_batch"], filter_=LAZY)
    assert members(second, room) == {CAROL}
    room.say(CAROL, "more")
    third = await world.sync(BOB, second["next_batch"], filter_=LAZY, full_state=True)
    assert CAROL in members(third, room)

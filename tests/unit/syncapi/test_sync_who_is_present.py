"""Whose presence a `/sync` tells: of those in one's rooms, also of other servers, and of who comes."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.sync_world import ALICE, BOB, CAROL, SyncWorld

REMOTE = "@remote:elsewhere"


@pytest.fixture
def world(database_url: str) -> Iterator[SyncWorld]:
    made = SyncWorld(database_url)
    yield made
    made.close()


def present(answer: dict[str, Any]) -> dict[str, str]:
    events = answer.get("presence", {}).get("events", [])
    return {event["sender"]: event["content"]["presence"] for event in events}


async def test_users_of_other_servers_are_present_in_their_rooms(world: SyncWorld) -> None:
    room, other = world.room(ALICE), world.room(BOB)
    room.join(REMOTE)
    since = {user: (await world.sync(user))["next_batch"] for user in (ALICE, BOB)}
    world.presence(REMOTE, "online", room.room_id)
    assert present(await world.sync(ALICE, since[ALICE])) == {REMOTE: "online"}
    assert present(await world.sync(BOB, since[BOB])) == {}
    assert present(await world.sync(ALICE)) == {REMOTE: "online"}
    other.join(ALICE)
    assert present(await world.sync(BOB)) == {}


async def test_who_comes_is_told_and_is_told_who_is_there(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(REMOTE)
    for user in (ALICE, BOB, CAROL):
        world.presence(user, "unavailable")
    world.presence(REMOTE, "online", room.room_id)
    since = {user: (await world.sync(user))["next_batch"] for user in (ALICE, BOB)}
    room.join(BOB)
    assert present(await world.sync(ALICE, since[ALICE])) == {BOB: "unavailable"}
    assert present(await world.sync(BOB, since[BOB])) == {ALICE: "unavailable", REMOTE: "online"}

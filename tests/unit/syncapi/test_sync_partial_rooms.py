"""Rooms joined with partial state: shown at once to who loads members lazily, to others when they are whole."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from arbor.log.v1 import output_pb2
from servicekit.errors import MatrixError
from syncapi.partial_rooms import PartialRooms
from tests.support.sync_world import ALICE, BOB, REMOTE, Room, SyncWorld

LAZY = {"room": {"state": {"lazy_load_members": True}}}
OTHERS = [REMOTE, "@two:there", "@three:there"]


@pytest.fixture(params=["window", "database"])
def world(request: pytest.FixtureRequest, database_url: str) -> Iterator[SyncWorld]:
    made = SyncWorld(database_url, use_window=request.param == "window")
    yield made
    made.close()


class FarRoom:
    """A room of other servers that Alice joins with partial state."""

    def __init__(self, world: SyncWorld) -> None:
        self.room = Room(world, "!far:there")
        state = output_pb2.PLACEMENT_STATE
        self.state = [
            self.room.entry(REMOTE, "m.room.create", {"room_version": "11"}, "", placement=state),
            self.room.entry(REMOTE, "m.room.name", {"name": "Far"}, "", placement=state),
        ]
        self.members = [
            self.room.entry(user, "m.room.member", {"membership": "join"}, user, placement=state)
            for user in OTHERS
        ]
        self.room.rewrite(*self.state, participation_began=True, partial=True)
        self.joined = self.room.entry(ALICE, "m.room.member", {"membership": "join"}, ALICE)
        self.room.put(self.joined)

    def complete(self) -> None:
        self.room.rewrite(*self.state, *self.members, self.joined)


def shown(answer: dict[str, Any], section: str = "join") -> dict[str, Any] | None:
    found: dict[str, Any] | None = answer.get("rooms", {}).get(section, {}).get("!far:there")
    return found


def members_in(room: dict[str, Any] | None) -> set[str]:
    events = [] if room is None else [*room["state"]["events"], *room["timeline"]["events"]]
    return {event["state_key"] for event in events if event["type"] == "m.room.member"}


async def test_lazy_clients_have_it_at_once_and_the_counts_later(world: SyncWorld) -> None:
    far = FarRoom(world)
    first = await world.sync(ALICE, filter_=LAZY)
    assert members_in(shown(first)) == {ALICE}
    far.room.say(ALICE, "hello")
    second = await world.sync(ALICE, first["next_batch"], filter_=LAZY)
    room = shown(second)
    assert room is not None
    assert [event["content"]["body"] for event in room["timeline"]["events"]] == ["hello"]
    far.complete()
    third = await world.sync(ALICE, second["next_batch"], filter_=LAZY)
    room = shown(third)
    assert room is not None
    assert room["summary"]["m.joined_member_count"] == 4
    assert not room["timeline"]["limited"]
    assert members_in(room) == set(), "they come with what they say"
    assert set(third["device_lists"]["changed"]) == set(OTHERS)
    far.room.say(REMOTE, "welcome")
    fourth = await world.sync(ALICE, third["next_batch"], filter_=LAZY)
    assert members_in(shown(fourth)) == {REMOTE}


async def test_others_get_it_whole_once_it_is(world: SyncWorld) -> None:
    own = world.room(ALICE)
    before = (await world.sync(ALICE))["next_batch"]
    far = FarRoom(world)
    far.room.say(ALICE, "one")
    assert shown(await world.sync(ALICE)) is None
    hidden = await world.sync(ALICE, before)
    assert shown(hidden) is None
    own.say(ALICE, "elsewhere")
    far.room.say(ALICE, "two")
    meanwhile = await world.sync(ALICE, hidden["next_batch"])
    assert list(meanwhile["rooms"]["join"]) == [own.room_id]
    far.complete()
    for since in (None, before, hidden["next_batch"], meanwhile["next_batch"]):
        room = shown(await world.sync(ALICE, since))
        assert room is not None
        assert members_in(room) == {ALICE, *OTHERS}
        bodies = [event["content"].get("body") for event in room["timeline"]["events"]]
        assert bodies == [None, "one", "two"]
    after = await world.sync(ALICE, meanwhile["next_batch"])
    assert set(after["device_lists"]["changed"]) == set(OTHERS)
    far.room.say(REMOTE, "three")
    room = shown(await world.sync(ALICE, after["next_batch"]))
    assert room is not None
    assert members_in(room) == set(), "it is new once only"


async def test_a_poll_wakes_when_it_is_whole(world: SyncWorld) -> None:
    before = (await world.sync(ALICE))["next_batch"]
    far = FarRoom(world)
    before = (await world.sync(ALICE, before))["next_batch"]
    async with asyncio.TaskGroup() as group:
        poll = group.create_task(world.sync(ALICE, before, timeout_ms=20_000))
        while not (view := world.window.users.get(ALICE)) or not view.waiters:
            await asyncio.sleep(0.01)
        far.complete()
    assert members_in(shown(poll.result())) == {ALICE, *OTHERS}


async def test_leaving_before_it_is_whole(world: SyncWorld) -> None:
    before = (await world.sync(ALICE))["next_batch"]
    far = FarRoom(world)
    lazy = (await world.sync(ALICE, filter_=LAZY))["next_batch"]
    assert world.window.is_partial("!far:there")
    far.room.member(ALICE, ALICE, "leave")
    far.room.end_participation()
    assert not world.window.is_partial("!far:there")
    for filter_, since in ((None, before), (LAZY, lazy)):
        answer = await world.sync(ALICE, since, filter_=filter_)
        assert shown(answer) is None
        assert shown(answer, "leave") is not None
    assert set(world.members(ALICE, "!far:there")) == {ALICE}


async def test_who_is_not_in_it_hears_nothing(world: SyncWorld) -> None:
    far = FarRoom(world)
    since = (await world.sync(BOB))["next_batch"]
    far.complete()
    answer = await world.sync(BOB, since)
    assert shown(answer) is None
    assert shown(answer, "leave") is None


async def test_readers_of_members_wait_for_them(world: SyncWorld) -> None:
    far = FarRoom(world)
    rooms = PartialRooms(world.window)
    assert not await rooms.wait("!far:there", 0)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(rooms.require_whole("!far:there"))
        await asyncio.sleep(0)
        assert not waiting.done()
        far.complete()
    assert set(world.members(ALICE, "!far:there")) == {ALICE, *OTHERS}


async def test_who_waited_too_long_is_to_come_back(world: SyncWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    FarRoom(world)
    monkeypatch.setattr("syncapi.partial_rooms.WAIT_S", 0)
    with pytest.raises(MatrixError) as caught:
        await PartialRooms(world.window).require_whole("!far:there")
    assert caught.value.http_status == 503
    assert caught.value.retry_after_ms


async def test_a_restart_knows_what_is_partial(world: SyncWorld) -> None:
    far = FarRoom(world)
    since = (await world.sync(ALICE))["next_batch"]
    world.load_window()
    assert world.window.is_partial("!far:there")
    far.complete()
    world.load_window()
    assert not world.window.is_partial("!far:there")
    assert members_in(shown(await world.sync(ALICE, since))) == {ALICE, *OTHERS}

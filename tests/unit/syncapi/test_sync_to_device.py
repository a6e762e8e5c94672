"""To-device messages: delivered until the client's next token says that they were received, and not again."""

from collections.abc import Iterator
from typing import Any

import pytest

from arbor.log.v1 import output_pb2
from tests.support.sync_world import ALICE, BOB, SyncWorld


@pytest.fixture
def world(database_url: str) -> Iterator[SyncWorld]:
    made = SyncWorld(database_url)
    yield made
    made.close()


def send(world: SyncWorld, device: str, type_: str, message_id: str = "") -> None:
    world.user_entry(
        BOB,
        to_device=output_pb2.ToDevice(
            device_id=device, sender=ALICE, type=type_, content_json=b'{"k":1}', message_id=message_id
        ),
    )


def types(answer: dict[str, Any]) -> list[str]:
    return [event["type"] for event in answer.get("to_device", {}).get("events", ())]


async def test_delivered_until_received(world: SyncWorld) -> None:
    for device in ("ONE", "TWO"):
        world.user_entry(BOB, device_changed=output_pb2.DeviceChanged(device_id=device))
    since = (await world.sync(BOB, device="ONE"))["next_batch"]
    send(world, "ONE", "first")
    send(world, "*", "second")
    answer = await world.sync(BOB, since, device="ONE")
    assert types(answer) == ["first", "second"]
    assert answer["to_device"]["events"][0] == {"type": "first", "sender": ALICE, "content": {"k": 1}}
    assert types(await world.sync(BOB, since, device="ONE")) == ["first", "second"]
    answer = await world.sync(BOB, answer["next_batch"], device="ONE")
    assert types(answer) == []
    assert "ONE" not in world.window.user(BOB).inboxes
    assert types(await world.sync(BOB, device="ONE")) == []
    assert types(await world.sync(BOB, since, device="TWO")) == ["second"]
    assert types(await world.sync(ALICE, since, device="ONE")) == []


async def test_more_than_one_answer_holds_comes_in_several(world: SyncWorld) -> None:
    since = (await world.sync(BOB, device="ONE"))["next_batch"]
    for number in range(250):
        send(world, "ONE", str(number))
    found: list[str] = []
    for size in (100, 100, 50, 0):
        answer = await world.sync(BOB, since, device="ONE")
        # Lost on its way, it comes again.
        assert types(await world.sync(BOB, since, device="ONE")) == types(answer)
        assert len(types(answer)) == size
        found += types(answer)
        since = answer["next_batch"]
    assert found == [str(number) for number in range(250)]
    room = world.room(ALICE)
    page = world.messages_page(ALICE, room.room_id, start=since)
    assert page["chunk"] == []


async def test_same_message_is_kept_once(world: SyncWorld) -> None:
    send(world, "ONE", "first", "m1")
    send(world, "ONE", "first", "m1")
    assert types(await world.sync(BOB, device="ONE")) == ["first"]


async def test_deleted_device_loses_its_inbox(world: SyncWorld) -> None:
    send(world, "ONE", "first")
    world.user_entry(BOB, device_changed=output_pb2.DeviceChanged(device_id="ONE", deleted=True))
    assert types(await world.sync(BOB, device="ONE")) == []


async def test_changed_device_list_is_told_to_who_shares_a_room(world: SyncWorld) -> None:
    room = world.room(ALICE)
    since = (await world.sync(BOB))["next_batch"]
    world.user_entry(ALICE, device_list_changed=output_pb2.DeviceListChanged(stream_id=1))
    assert "device_lists" not in await world.sync(BOB, since)
    room.join(BOB)
    answer = await world.sync(BOB, since)
    assert answer["device_lists"]["changed"] == [ALICE]
    world.user_entry(ALICE, device_list_changed=output_pb2.DeviceListChanged(stream_id=2))
    answer = await world.sync(BOB, answer["next_batch"])
    assert answer["device_lists"]["changed"] == [ALICE]
    room.leave(BOB)
    answer = await world.sync(BOB, answer["next_batch"])
    assert answer["device_lists"]["left"] == [ALICE]

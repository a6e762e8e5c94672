"""Changes of device lists: told once, and where one is missing the whole list is asked for until it comes."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from arbor.log.v1 import output_pb2
from federation.clock import now_ms
from federation.receipt.device_lists import DeviceLists
from federation.storage import device_lists as storage
from tests.support.evil_peer import Answer, EvilPeer
from tests.support.federation import until
from tests.support.federation_alone import FederationAlone
from tests.support.rooms import Room
from tests.support.tls_ca import TestCa

World = tuple[EvilPeer, FederationAlone, str]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        eve = f"@eve:{peer.server_name}"
        room = Room("10", creator=us.user("owner")).with_members(eve)
        us.rooms.of[room.create.room_id] = room
        yield peer, us, eve


def change(user_id: str, stream_id: int, *prev: int, **more: Any) -> dict[str, Any]:
    content = {"user_id": user_id, "device_id": "D", "stream_id": stream_id, "prev_id": list(prev), **more}
    return {"edu_type": "m.device_list_update", "content": content}


async def tell(world: World, txn: str, *edus: dict[str, Any]) -> None:
    peer, us, _ = world
    path = f"/_matrix/federation/v1/send/{txn}"
    body = {"pdus": [], "edus": list(edus)}
    assert await peer.ask("PUT", us.base_url, path, us.server_name, body) == (200, {"pdus": {}})


def told(us: FederationAlone) -> list[output_pb2.DeviceListChanged]:
    return [
        entry.device_list_changed
        for data in us.log.about("user.device_list")
        for entry in output_pb2.OutputMessage.FromString(data).entries
    ]


async def gaps(us: FederationAlone) -> list[str]:
    due = await us.database.read(storage.load_incomplete, 2**60, 100)
    return [item.user_id for item in due]


def whole(user_id: str, stream_id: int, *device_ids: str) -> dict[str, Any]:
    devices = [{"device_id": d, "keys": {"user_id": user_id, "device_id": d}} for d in device_ids]
    return {"user_id": user_id, "stream_id": stream_id, "devices": devices}


async def test_changes_in_sequence_ask_for_nothing(world: World) -> None:
    _, us, eve = world
    await tell(world, "1", change(eve, 1), change(eve, 2, 1))
    await tell(world, "2", change(eve, 3, 2), change(eve, 3, 2))
    assert [item.stream_id for item in told(us)] == [1, 2, 3]
    assert await gaps(us) == []


async def test_a_gap_has_the_whole_list_asked_for_and_told(world: World) -> None:
    peer, us, eve = world
    peer.answer("user", lambda _: whole(eve, 7, "D", "E"))
    await tell(world, "1", change(eve, 1), change(eve, 7, 6))
    assert await gaps(us) == [eve]
    async with us.running(us.parts.device_lists.run):

        async def done() -> bool:
            return await gaps(us) == []

        await until(done, "the list is whole")
    [asked] = peer.asked("user")
    assert asked.path.startswith("/_matrix/federation/v1/user/devices/")
    last = told(us)[-1]
    assert last.whole_list
    assert [d["device_id"] for d in orjson.loads(last.keys_json)["devices"]] == ["D", "E"]
    # What comes after the list, and after what came before it, is in sequence.
    await tell(world, "2", change(eve, 8, 7), change(eve, 9, 8))
    assert await gaps(us) == []


async def test_what_comes_while_the_list_is_on_its_way_asks_for_it_again(world: World) -> None:
    peer, us, eve = world
    answers = [whole(eve, 7, "D"), whole(eve, 8, "D", "E")]

    async def answer(_: Any) -> dict[str, Any]:
        if len(answers) == 2:
            await tell(world, "meanwhile", change(eve, 8, 7))
        return answers.pop(0)

    peer.answer("user", answer)
    await tell(world, "1", change(eve, 7, 6))
    assert await us.parts.device_lists.ask_due() == 1
    assert await gaps(us) == [eve]
    assert await us.parts.device_lists.ask_due() == 1
    assert await gaps(us) == []
    assert [item.stream_id for item in told(us)] == [7, 8, 7, 8]


@pytest.mark.parametrize(
    "answer",
    [
        Answer(500),
        Answer(200, b"[]"),
        Answer(200, b'{"user_id":"@other:x.example","stream_id":1,"devices":[]}'),
        Answer(200, b"{" + b" " * 800_000 + b"}"),
    ],
)
async def test_a_list_that_does_not_come_is_asked_for_later_across_restarts(
    world: World, answer: Answer
) -> None:
    peer, us, eve = world
    peer.answer("user", lambda _: answer)
    await tell(world, "1", change(eve, 7, 6))
    clock = [now_ms()]
    before = DeviceLists(us.parts.client, us.rooms, us.database, us.parts.teller, lambda: clock[0])
    assert await before.ask_due() == 1
    assert await before.ask_due() == 0, "not again at once"
    assert await gaps(us) == [eve]
    # A new process finds it, and the server is well again.
    us.destinations.reset(peer.server_name)
    peer.answer("user", lambda _: whole(eve, 7, "D"))
    clock[0] += 60_000
    after = DeviceLists(us.parts.client, us.rooms, us.database, us.parts.teller, lambda: clock[0])
    assert await after.ask_due() == 1
    assert await gaps(us) == []


async def test_users_who_share_no_room_are_of_no_interest(world: World) -> None:
    peer, us, eve = world
    stranger = f"@stranger:{peer.server_name}"
    keys = {"edu_type": "m.signing_key_update", "content": {"user_id": stranger, "master_key": {}}}
    await tell(world, "1", change(stranger, 7, 6), keys)
    assert told(us) == []
    assert await gaps(us) == []
    # Somebody who left meanwhile is not asked for.
    await tell(world, "2", change(eve, 7, 6))
    room = next(iter(us.rooms.of.values()))
    room.member(eve, "leave")
    assert await us.parts.device_lists.ask_due() == 1
    assert peer.asked("user") == []
    assert await gaps(us) == []


async def test_malformed_changes_are_ignored_alone(world: World) -> None:
    _, us, eve = world
    bad = [
        change(eve, -1),
        change(eve, 2**53),
        change(eve, 5, prev_id=4),
        change(eve, 5, prev_id=["4"]),
        change(eve, 5, device_id=""),
        change(eve, 5, device_id=7),
    ]
    await tell(world, "1", *bad, change(eve, 5))
    assert [item.stream_id for item in told(us)] == [5]
    assert await gaps(us) == []


async def test_signing_keys_are_told_in_their_order(world: World) -> None:
    _, us, eve = world
    keys = {"edu_type": "m.signing_key_update", "content": {"user_id": eve, "master_key": {}}}
    await tell(world, "1", change(eve, 1), keys, change(eve, 2, 1))
    assert [item.stream_id for item in told(us)] == [1, 0, 2]


async def test_devices_that_are_not_the_users_are_left_out(world: World) -> None:
    peer, us, eve = world
    bad = [
        7,
        {"device_id": 7},
        {"device_id": "x", "keys": {"user_id": "@a:b.example", "device_id": "x"}},
        {"device_id": "x", "keys": {"user_id": eve, "device_id": "y"}},
        {"device_id": "x", "device_display_name": 7},
    ]
    answer = whole(eve, 7, "D") | {"master_key": {"user_id": "@a:b.example"}}
    answer["devices"] += bad
    peer.answer("user", lambda _: answer)
    await tell(world, "1", change(eve, 7, 6))
    await us.parts.device_lists.ask_due()
    assert orjson.loads(told(us)[-1].keys_json) == whole(eve, 7, "D")


async def test_many_messages_to_one_user_go_in_pieces_that_the_log_takes(world: World) -> None:
    _, us, eve = world
    content = {
        "sender": eve,
        "type": "m.test",
        "message_id": "many",
        "messages": {us.user("owner"): {f"D{n}": {"text": "x" * 100_000} for n in range(20)}},
    }
    await tell(world, "1", {"edu_type": "m.direct_to_device", "content": content})
    pieces = us.log.about("user.to_device")
    assert max(map(len, pieces)) < 2**20
    entries = [e for data in pieces for e in output_pb2.OutputMessage.FromString(data).entries]
    assert [entry.to_device.device_id for entry in entries] == [f"D{n}" for n in range(20)]

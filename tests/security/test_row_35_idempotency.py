"""Row 35: a repeated transaction gives the same event, also after a crash and from another process."""

import asyncio
from pathlib import Path

from clientapi.rooms import input_writer
from clientapi.rooms.requests import TransactionKey
from tests.support.clientapi_alone import lone_clientapi
from tests.support.fake_roomserver import FakeRoomServer


async def test_the_same_transaction_after_a_restart_gives_the_same_event(tmp_path: Path) -> None:
    roomserver = FakeRoomServer()
    async with lone_clientapi(tmp_path, roomserver) as world:
        alice = await world.user("alice")
        room_id = (await alice.ok("POST", "/createRoom", {}))["room_id"]
        path = f"/rooms/{room_id}/send/m.room.message/t1"
        first = await alice.ok("PUT", path, {"body": "x"})
        token = alice.token
    # Nothing of the first process is left but the database and what the RoomServer stored.
    async with lone_clientapi(tmp_path, roomserver) as world:
        again = world.client(token)
        assert await again.ok("PUT", path, {"body": "x"}) == first
        # Another body under the same transaction is the same transaction.
        assert await again.ok("PUT", path, {"body": "something else"}) == first
        redacted = f"/rooms/{room_id}/redact/{first['event_id']}/t1"
        one = await again.ok("PUT", redacted, {})
        assert await again.ok("PUT", redacted, {}) == one
    room = roomserver.rooms[room_id]
    assert [room.events[event_id].type for event_id in room.order][-2:] == [
        "m.room.message",
        "m.room.redaction",
    ]
    assert len(room.extremities) == 1


async def test_a_verdict_lost_in_a_crash_is_found_by_the_retry(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(input_writer, "VERDICT_TIMEOUT_S", 60)
    roomserver = FakeRoomServer()
    async with lone_clientapi(tmp_path, roomserver) as world:
        alice = await world.user("alice")
        room_id = (await alice.ok("POST", "/createRoom", {}))["room_id"]
        path = f"/rooms/{room_id}/send/m.room.message/t1"
        roomserver.lose_verdicts = True
        before = len(roomserver.rooms[room_id].order)
        lost = asyncio.ensure_future(alice("PUT", path, {"body": "x"}))  # noqa: TID251 - it is cancelled below
        async with asyncio.timeout(5):
            while len(roomserver.rooms[room_id].order) == before:
                await asyncio.sleep(0.005)
        lost.cancel()
        token = alice.token
    roomserver.lose_verdicts = False
    async with lone_clientapi(tmp_path, roomserver) as world:
        found = await world.client(token).ok("PUT", path, {"body": "x"})
    room = roomserver.rooms[room_id]
    assert found["event_id"] == room.order[-1]
    assert len(room.order) == before + 1


async def test_every_part_of_the_key_counts() -> None:
    key = TransactionKey("@a:b", "D", "send", "!r", "t")
    others = [key._replace(**{name: "other"}) for name in key._fields]
    assert len({key, *others}) == len(key._fields) + 1

"""Derived tables made anew: the same rows, and clients' old tokens go on."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from arbor.accounts.v1 import accounts_pb2
from arbor.log.v1 import output_pb2
from arbor.roomserver.v1 import query_pb2
from servicekit.log.applying import store_dead_letter
from servicekit.log.reader import LogMessage
from servicekit.log.subjects import OUTPUT, room_output_subject
from syncapi.rebuild import fetch_exports, replace_tables
from syncapi.storage import dead_letters, receipts
from syncapi.storage.accounts import load_position
from syncapi.storage.tables import derived_tables, log_tables, metadata
from tests.support.sync_world import ALICE, BOB, CAROL, EPOCH, SyncWorld


@pytest.fixture
def world(database_url: str) -> Iterator[SyncWorld]:
    made = SyncWorld(database_url)
    yield made
    made.close()


def dump(connection: Connection, names: list[str] | None = None) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of the derived tables, ordered."""
    tables = [metadata.tables[name] for name in names] if names else derived_tables()
    return {
        table.name: sorted((tuple(row) for row in connection.execute(table.select())), key=repr)
        for table in tables
    }


class Owners:
    """Exports what the world wrote, as the owners would."""

    def __init__(self, world: SyncWorld, rooms_through: int | None = None) -> None:
        self._world = world
        self._through = world.sequence if rooms_through is None else rooms_through

    def _messages(self) -> Iterator[tuple[int, bytes, output_pb2.OutputMessage]]:
        for envelope in self._world.messages:
            yield envelope.sequence, envelope.data, output_pb2.OutputMessage.FromString(envelope.data)

    async def rooms(self, request: Any, timeout: float) -> AsyncIterator[query_pb2.ExportResponse]:
        for sequence, data, message in self._messages():
            if sequence <= self._through and message.room_id and not message.entries[0].HasField("receipt"):
                yield query_pb2.ExportResponse(sequence=sequence, message=data)
        yield query_pb2.ExportResponse(complete_through=self._through)

    async def accounts(self, request: Any, timeout: float) -> AsyncIterator[accounts_pb2.ExportResponse]:
        for _, data, message in self._messages():
            if message.user_id and not message.entries[0].HasField("to_device"):
                yield accounts_pb2.ExportResponse(message=data)
        yield accounts_pb2.ExportResponse(complete_through=self._world.sequence)


class Stub:
    """A stub with one method."""

    def __init__(self, export: Any) -> None:
        self.Export = export


async def rebuild(world: SyncWorld, owners: Owners, first_sequence: int = 1) -> int:
    with tempfile.TemporaryFile() as spool:
        exports = await fetch_exports(Stub(owners.rooms), Stub(owners.accounts), spool)
        position = world.database.write_sync(
            replace_tables, world.applier.is_local, exports, EPOCH, first_sequence, world.sequence
        )
    world.applier.forget()
    return position


def converse(world: SyncWorld) -> tuple[Any, str]:
    world.account_data(BOB, "m.tag", {"tags": {}}, "!r1:here")
    world.user_entry(BOB, device_changed=output_pb2.DeviceChanged(device_id="DEV"))
    room = world.room(ALICE)
    room.join(BOB)
    room.invite(ALICE, CAROL)
    first = room.say(ALICE, "one", **{"m.mentions": {"user_ids": [BOB]}})
    room.state(ALICE, "m.room.topic", "", {"topic": "t"})
    room.history(ALICE, "old", 1, {BOB: "leave"})
    room.redact(ALICE, first)
    second = room.say(ALICE, "two")
    room.receipt(BOB, second)
    room.say(ALICE, "three")
    world.user_entry(
        BOB, to_device=output_pb2.ToDevice(device_id="*", sender=ALICE, type="t", content_json=b"{}")
    )
    return room, second


async def test_rebuild_gives_the_same_rows_and_old_tokens_go_on(world: SyncWorld) -> None:
    room, _ = converse(world)
    since = (await world.sync(BOB))["next_batch"]
    room.say(ALICE, "four")
    expected = await world.sync(BOB, since)
    full = world.database.read_sync(dump)
    inbox = world.database.read_sync(dump, ["to_device", "receipt"])
    position = await rebuild(world, Owners(world))
    assert position == world.sequence
    after = world.database.read_sync(dump)
    for name in full:
        if name == "account_data":  # the owner exports what is set now, not when it was set
            assert [row[:4] for row in after[name]] == [row[:4] for row in full[name]]
        else:
            assert after[name] == full[name], name
    assert world.database.read_sync(dump, ["to_device", "receipt"]) == inbox
    world.load_window()
    again = await world.sync(BOB, since)
    for answer in (again, expected):
        answer["rooms"]["join"][room.room_id].pop("account_data")
    assert again == expected


async def test_what_the_export_did_not_reach_is_followed(world: SyncWorld) -> None:
    room, second = converse(world)
    room.say(ALICE, "four")
    room.receipt(BOB, second, "m.read.private")
    full = world.database.read_sync(dump)
    through = world.sequence - 2  # the export did not reach the last message and receipt
    position = await rebuild(world, Owners(world, through))
    assert position <= through
    world.apply([envelope for envelope in world.messages if envelope.sequence > position])
    after = world.database.read_sync(dump)
    for name in ("event", "room", "room_state", "user_room", "notification_exception"):
        assert after[name] == full[name], name


async def test_log_that_begins_later_is_followed_from_its_beginning(world: SyncWorld) -> None:
    converse(world)
    position = await rebuild(world, Owners(world), first_sequence=world.sequence + 1)
    assert position == world.sequence
    assert world.database.read_sync(load_position) == (EPOCH, world.sequence)


async def test_replay_from_zero_gives_the_same_rows(world: SyncWorld, tmp_path: Path) -> None:
    converse(world)
    full = world.database.read_sync(dump)
    other = SyncWorld(f"sqlite:///{tmp_path / 'other.db'}")
    try:
        other.apply(world.messages)  # all in one batch instead of one by one
        assert other.database.read_sync(dump) == full
        other.apply(world.messages)  # and once more: nothing is applied twice
        again = other.database.read_sync(dump)
        for name in ("event", "room_state", "notification_exception", "relation", "device"):
            assert again[name] == full[name], name
    finally:
        other.close()


async def test_a_rebuild_mends_quarantined_rooms_and_keeps_receipts_put_aside(world: SyncWorld) -> None:
    room, second = converse(world)
    receipt = output_pb2.OutputMessage(
        room_id=room.room_id,
        entries=[
            output_pb2.OutputEntry(
                receipt=output_pb2.Receipt(user_id=CAROL, receipt_type="m.read", event_id=second)
            )
        ],
    ).SerializeToString()
    world.sequence += 1
    letters = [(receipt, world.sequence), *((one.data, one.sequence) for one in world.messages[-4:-2])]

    def put_aside(connection: Connection) -> None:
        for data, sequence in letters:
            subject = room_output_subject(room.room_id, 16)
            message = LogMessage(sequence, subject, data, None, b"0")
            store_dead_letter(
                connection, log_tables, OUTPUT, EPOCH, message, ValueError("a test's"), now_ms=0
            )

    world.database.write_sync(put_aside)
    assert world.database.read_sync(dead_letters.load_quarantined) == {room.room_id}
    await rebuild(world, Owners(world))
    assert world.database.read_sync(dead_letters.load_letters) == []
    kept = world.database.read_sync(receipts.load_all)
    assert (CAROL, second) in {(moved.user_id, moved.event_id) for moved in kept}

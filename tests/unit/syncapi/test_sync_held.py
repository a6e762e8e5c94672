"""Messages are told from memory, and their rows written later: the same answers, and in the end the same rows."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, text

from arbor.log.v1 import output_pb2
from servicekit.log.errors import PositionTaken
from syncapi.storage import accounts
from syncapi.storage.tables import derived_tables
from tests.support.sync_world import ALICE, BOB, REMOTE, Room, SyncWorld


@pytest.fixture(params=[True, False])
def world(request: pytest.FixtureRequest, database_url: str) -> Iterator[SyncWorld]:
    """A world that holds rows, with a window or without one."""
    made = SyncWorld(database_url, holds=True, use_window=request.param)
    yield made
    made.close()


@pytest.fixture
def holding(database_url: str) -> Iterator[SyncWorld]:
    """A world that holds rows."""
    made = SyncWorld(database_url, holds=True)
    yield made
    made.close()


def dump(connection: Connection) -> dict[str, list[tuple[Any, ...]]]:
    return {
        table.name: sorted(map(tuple, connection.execute(table.select())), key=repr)
        for table in derived_tables()
        if table.name != "marker"
    }


def converse(world: SyncWorld) -> Room:
    """Everything that a message may touch: totals, mentions, threads, relations, what the sender has read."""
    room = world.room(ALICE)
    room.join(BOB)
    other = world.room(BOB)
    for number in range(3):
        room.say(ALICE, f"one {number}", txn=("DEV", f"a{number}"))
        other.say(BOB, f"two {number}", txn=("DEV", f"b{number}"))
    root = room.say(ALICE, "root", txn=("DEV", "r"))
    thread = {"m.relates_to": {"rel_type": "m.thread", "event_id": root}}
    room.say(BOB, "in the thread", txn=("DEV", "t1"), **thread)
    room.say(ALICE, "look, Bob", txn=("DEV", "m"), **{"m.mentions": {"user_ids": [BOB]}})
    room.say(ALICE, "all", txn=("DEV", "all"), **{"m.mentions": {"room": True}})
    room.say(BOB, "read", txn=("DEV", "t2"))
    room.state(ALICE, "m.room.topic", "", {"topic": "t"})
    last = room.say(ALICE, "last", txn=("DEV", "l"))
    room.receipt(BOB, last)
    room.say(ALICE, "after the receipt", txn=("DEV", "l2"))
    return room


def stored(world: SyncWorld) -> int:
    return world.database.read_sync(accounts.load_position)[1]


async def test_the_rows_are_those_of_writing_at_once(holding: SyncWorld, tmp_path: Any) -> None:
    converse(holding)
    assert stored(holding) < holding.sequence
    holding.write_held()
    at_once = SyncWorld(f"sqlite:///{tmp_path / 'other.db'}")
    try:
        converse(at_once)
        assert holding.database.read_sync(dump) == at_once.database.read_sync(dump)
    finally:
        at_once.close()


async def test_what_is_held_is_told_at_once(world: SyncWorld) -> None:
    room = converse(world)
    since = (await world.sync(BOB))["next_batch"]
    before = stored(world)
    sent = [room.say(ALICE, text_, txn=("DEV", text_)) for text_ in ("x", "y")]
    if world.use_window:
        assert stored(world) == before
        assert world.unwritten == 2
    answer = (await world.sync(BOB, since))["rooms"]["join"][room.room_id]
    assert [event["event_id"] for event in answer["timeline"]["events"]] == sent
    assert answer["unread_notifications"]["notification_count"] == 3
    # Who asks the database finds it there.
    fresh = (await world.sync(BOB))["rooms"]["join"][room.room_id]
    assert [event["event_id"] for event in fresh["timeline"]["events"]][-2:] == sent
    assert stored(world) == world.sequence


async def test_what_may_ask_for_more_is_not_held(holding: SyncWorld) -> None:
    room = holding.room(ALICE)
    room.join(BOB)

    def is_held(event_id: str) -> bool:
        held = holding.unwritten > 0
        holding.write_held()
        return held

    assert is_held(room.say(ALICE, "mine", txn=("DEV", "1")))
    assert not is_held(room.say(REMOTE, "of another server"))
    assert not is_held(room.state(ALICE, "m.room.topic", "", {"topic": "t"}))
    # What was counted for Bob alone has to be summed up when he reads on.
    room.say(ALICE, "Bob", txn=("DEV", "2"), **{"m.mentions": {"user_ids": [BOB]}})
    assert holding.unwritten
    assert not is_held(room.say(BOB, "here", txn=("DEV", "3")))
    assert is_held(room.say(BOB, "and again", txn=("DEV", "4")))
    # A room that is not in memory.
    holding.applier.begin_anew()
    assert not is_held(room.say(ALICE, "first", txn=("DEV", "5")))
    assert is_held(room.say(ALICE, "second", txn=("DEV", "6")))


async def test_a_message_that_memory_does_not_suffice_for_is_applied_in_the_database(
    holding: SyncWorld, tmp_path: Any
) -> None:
    def speak(world: SyncWorld) -> Room:
        room = world.room(ALICE)
        room.join(BOB)
        world.applier.forget()
        room.say(ALICE, "zero", txn=("DEV", "0"))
        room.say(ALICE, "one", txn=("DEV", "1"))
        before = world.unwritten
        # Whether Alice may ping the room, nobody has looked up yet: the first of the two is half done by then.
        entries = [
            room.entry(ALICE, "m.room.message", {"msgtype": "m.text", "body": "b", **more}, txn=("DEV", body))
            for body, more in (("2", {}), ("3", {"m.mentions": {"room": True}}))
        ]
        room.put(*entries)
        if before:
            assert not world.unwritten
            room.say(ALICE, "now", txn=("DEV", "4"), **{"m.mentions": {"room": True}})
            assert world.unwritten
            world.write_held()
        else:
            room.say(ALICE, "now", txn=("DEV", "4"), **{"m.mentions": {"room": True}})
        return room

    room = speak(holding)
    at_once = SyncWorld(f"sqlite:///{tmp_path / 'other.db'}")
    try:
        speak(at_once)
        assert holding.database.read_sync(dump) == at_once.database.read_sync(dump)
    finally:
        at_once.close()
    counts = (await holding.sync(BOB))["rooms"]["join"][room.room_id]["unread_notifications"]
    assert (counts["notification_count"], counts["highlight_count"]) == (5, 2)


async def test_rows_are_not_written_into_tables_that_were_made_anew(holding: SyncWorld) -> None:
    room = holding.room(ALICE)
    room.say(ALICE, "held", txn=("DEV", "1"))

    def make_anew(connection: Connection) -> None:
        accounts.store_marker(connection, "generation", 1)

    holding.database.write_sync(make_anew)
    with pytest.raises(PositionTaken):
        holding.database.write_sync(holding.applier.write_held)
    found = holding.database.read_sync(lambda c: c.execute(text("SELECT count(*) FROM event")).scalar_one())
    assert found == 5
    holding.applier.begin_anew()
    holding.unwritten = 0


async def test_only_so_many_rows_are_held(holding: SyncWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncapi.consumer.MAX_HELD", 3)
    room = holding.room(ALICE)
    for number in range(3):
        room.say(ALICE, str(number), txn=("DEV", str(number)))
    assert holding.unwritten == 3
    room.say(ALICE, "one more", txn=("DEV", "more"))
    assert holding.unwritten == 0
    assert stored(holding) == holding.sequence


async def test_rooms_that_were_put_aside_are_not_held(holding: SyncWorld) -> None:
    room = holding.room(ALICE)
    holding.applier.quarantined = frozenset({room.room_id})
    message = output_pb2.OutputMessage(
        room_id=room.room_id,
        entries=[
            output_pb2.OutputEntry(
                room_event=room.entry(ALICE, "m.room.message", {"body": "b"}, txn=("DEV", "1"))
            )
        ],
    )
    envelope = type(holding.messages[0])(holding.sequence + 1, message.SerializeToString())
    assert holding.applier.hold([envelope]) is None
    assert not holding.unwritten

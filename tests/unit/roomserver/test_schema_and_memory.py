"""The schema's head is what the code uses; the memory of hot rooms stays bounded; keys do not collide."""

from pathlib import Path

from arbor.log.v1.common_pb2 import TransactionKey
from roomserver.input.heads import first_heads
from roomserver.rooms import Room, RoomCache, RoomWork
from roomserver.storage.rooms import RoomRow
from roomserver.storage.tables import metadata
from roomserver.storage.transactions import hash_of
from servicekit.database.testing import schema_differences


def room(number: int, entries: int = 0) -> Room:
    row = RoomRow(number, f"!{number}:a", "10", number % 4, (), 0, 0, 0, 0, 0, 0, False, 0, 0)
    made = Room(row, {})
    made.state.update({("m.room.member", f"@{n}:a"): None for n in range(entries)})
    return made


def test_migrations_make_the_tables(tmp_path: Path) -> None:
    assert schema_differences(metadata, "roomserver.storage.migrations", tmp_path) == []


def test_hot_rooms_are_bounded_by_number_and_by_state() -> None:
    cache = RoomCache(max_rooms=3, max_entries=100)
    for number in range(5):
        cache.put(room(number, 10))
    assert [cache.get(f"!{number}:a") is not None for number in range(5)] == [False, False, True, True, True]
    cache.put(room(9, 90))
    assert cache.get("!2:a") is None
    cache.put(room(10, 500))  # larger than everything: its members are dropped
    kept = cache.get("!10:a")
    assert kept is not None
    assert kept.state == {}


def test_a_batch_works_on_a_copy() -> None:
    base = room(1)
    work = RoomWork(base)
    work.row.joined = 5
    work.state["m.room.name", ""] = None
    assert base.row.joined == 0
    assert base.state == {}
    work.commit()
    assert base.row.joined == 5
    assert work.known(("m.room.name", ""))


def test_transaction_keys_are_told_apart_by_their_parts() -> None:
    one = TransactionKey(user_id="@a:x", device_id="D", endpoint="send", room_id="!r", txn_id="1")
    other = TransactionKey(user_id="@a:x", device_id="", endpoint="Dsend", room_id="!r", txn_id="1")
    assert hash_of(one) != hash_of(other)
    assert hash_of(one) == hash_of(TransactionKey.FromString(one.SerializeToString()))


def test_at_most_twenty_heads_the_deepest_first() -> None:
    depths = {f"${number}": number for number in range(30)}
    assert first_heads(depths) == [f"${number}" for number in range(29, 9, -1)]

"""Who sees back-filled events: by the memberships that were told with them, all of them or those that differ."""

from collections.abc import Iterator

import pytest

from tests.support.sync_world import ALICE, BOB, CAROL, SyncWorld


@pytest.fixture
def world(database_url: str) -> Iterator[SyncWorld]:
    made = SyncWorld(database_url)
    yield made
    made.close()


@pytest.mark.parametrize("redacted", [False, True])
def test_only_differences_are_told(world: SyncWorld, redacted: bool) -> None:
    room = world.room(ALICE)
    room.depth += 20
    room.join(BOB)
    room.join(CAROL)
    room.leave(CAROL)
    same = room.history(ALICE, "as now", 9, differ=True, visibility="joined")
    others = {BOB: "leave", CAROL: "join"}
    other = room.history(ALICE, "otherwise", 8, others, differ=True, visibility="joined")
    everybody = room.history(ALICE, "all are told", 7, {CAROL: "join"}, visibility="joined")
    if redacted:
        for event_id in (same, other, everybody):
            room.redact(ALICE, event_id)
    # Who comes and goes later changes nothing about it.
    room.leave(BOB)
    room.join(CAROL)
    told = {same, other, everybody}
    assert told & set(world.all_messages(ALICE, room.room_id)) == {same, other}
    assert told & set(world.all_messages(BOB, room.room_id)) == {same}
    assert told & set(world.all_messages(CAROL, room.room_id)) == {other, everybody}

"""`/messages` paged both ways over a room that is back-filled in between: everything once, in order."""

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.sync_world import ALICE, BOB, SyncWorld


def page_all(world: SyncWorld, room: Any, backwards: bool, limit: int, interrupt: Any) -> list[str]:
    """Page to the end, with `interrupt` called before each page."""
    found: list[str] = []
    start: str | None = None
    for _ in range(1000):
        interrupt()
        page = world.messages_page(BOB, room.room_id, backwards=backwards, start=start, limit=limit)
        found += [event["event_id"] for event in page["chunk"]]
        if "end" not in page:
            return found
        start = page["end"]
    raise AssertionError("no end")


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), backwards=st.booleans(), limit=st.integers(1, 6))
def test_paging_over_back_fill(data: st.DataObject, backwards: bool, limit: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "sync.db"
        world = SyncWorld(f"sqlite:///{file}")
        try:
            room = world.room(ALICE)
            # A gap of depths to fill, as a join over federation leaves it.
            room.depth += 40
            room.join(BOB)
            present = [room.say(ALICE, f"new {n}") for n in range(data.draw(st.integers(0, 8)))]

            budget = 12

            def interrupt() -> None:
                nonlocal budget
                budget -= 1
                if budget < 0:
                    return
                if data.draw(st.booleans()):
                    depth = data.draw(st.integers(6, 45))
                    present.append(room.history(ALICE, "old", depth, {BOB: "leave"}))
                if data.draw(st.integers(0, 3)) == 0:
                    present.append(room.say(ALICE, "newer"))

            found = page_all(world, room, backwards, limit, interrupt)
            assert len(set(found)) == len(found), "an event came twice"
            settled = page_all(world, room, backwards, limit, lambda: None)
            assert set(settled) >= set(present)
            # What was there all the time is missed by nobody, and the order is the same both times.
            assert [id_ for id_ in settled if id_ in set(found)] == found
            other_way = page_all(world, room, not backwards, limit + 1, lambda: None)
            assert other_way == settled[::-1]
        finally:
            world.close()

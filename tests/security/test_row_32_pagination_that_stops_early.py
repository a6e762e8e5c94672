"""Row 32: pages full of what the reader may not or does not want to see still lead to the end."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from arbor.log.v1 import output_pb2
from syncapi.http import messages as messages_http
from tests.support.sync_world import ALICE, BOB, SyncWorld


@pytest.fixture
def world(tmp_path: Path) -> Iterator[SyncWorld]:
    made = SyncWorld(f"sqlite:///{tmp_path / 'sync.db'}")
    yield made
    made.close()


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page looks at few events, so that whole pages see nothing that passes."""
    monkeypatch.setattr(messages_http, "MAX_SCANNED", 10)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("backwards", [True, False])
async def test_invisible_events_do_not_end_pagination(world: SyncWorld, backwards: bool) -> None:
    room = world.room(ALICE, visibility="joined")
    room.join(BOB)
    first = [room.say(ALICE, f"early {n}") for n in range(3)]
    room.leave(BOB)
    for n in range(300):
        room.say(ALICE, f"hidden {n}")
    room.join(BOB)
    last = [room.say(ALICE, f"late {n}") for n in range(3)]
    found = world.all_messages(BOB, room.room_id, backwards=backwards, limit=3)
    assert [id_ for id_ in found if id_ in first + last] == (
        (first + last)[::-1] if backwards else first + last
    )
    assert len(set(found)) == len(found)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("backwards", [True, False])
async def test_filtered_events_do_not_end_pagination(world: SyncWorld, backwards: bool) -> None:
    room = world.room(ALICE)
    wanted = [room.put(room.entry(ALICE, "org.example.wanted", {}))]
    for n in range(300):
        room.say(ALICE, f"unwanted {n}")
    wanted.append(room.put(room.entry(ALICE, "org.example.wanted", {})))
    found: list[str] = []
    start: str | None = None
    for _ in range(1000):
        page = world.messages_page(
            ALICE,
            room.room_id,
            backwards=backwards,
            start=start,
            limit=3,
            filter_={"types": ["org.example.wanted"]},
        )
        found += [event["event_id"] for event in page["chunk"]]
        if "end" not in page:
            break
        assert page["end"] != start
        start = page["end"]
    assert found == (wanted[::-1] if backwards else wanted)


async def test_hidden_and_soft_failed_events_are_never_shown(world: SyncWorld) -> None:
    """Soft-failed and rejected events are never told on OUTPUT; what is told as hidden is shown to nobody."""
    room = world.room(ALICE)
    since = (await world.sync(ALICE))["next_batch"]
    hidden = room.put(room.entry(ALICE, "org.example.merge", {}, placement=output_pb2.PLACEMENT_HIDDEN))
    shown = room.say(ALICE, "shown")
    assert hidden not in str(await world.sync(ALICE, since))
    assert hidden not in str(await world.sync(ALICE))
    found = world.all_messages(ALICE, room.room_id)
    assert hidden not in found
    assert shown in found

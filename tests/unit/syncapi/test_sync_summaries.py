"""`/room_summary` and `/mutual_rooms`."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from servicekit.errors import MatrixError
from syncapi.http import room_summary
from tests.support.sync_world import ALICE, BOB, CAROL, REMOTE, SyncWorld


@pytest.fixture
def world(database_url: str) -> Iterator[SyncWorld]:
    made = SyncWorld(database_url)
    yield made
    made.close()


def summary(world: SyncWorld, user: str | None, room_id: str) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(
        world.database.read_sync(room_summary.load_room_summary, user, room_id)
    )
    return found


async def test_summary_is_for_who_may_see_the_room(world: SyncWorld) -> None:
    public = world.room(ALICE)
    public.state(ALICE, "m.room.name", "", {"name": "Open"})
    told = summary(world, None, public.room_id)
    assert told["name"] == "Open"
    assert told["num_joined_members"] == 1
    assert told["join_rule"] == "public"
    assert "membership" not in told
    assert summary(world, ALICE, public.room_id)["membership"] == "join"
    assert summary(world, BOB, public.room_id)["membership"] == "leave"
    private = world.room(ALICE, join_rule="invite")
    private.invite(ALICE, BOB)
    assert summary(world, BOB, private.room_id)["membership"] == "invite"
    for user, room_id in ((CAROL, private.room_id), (None, private.room_id), (ALICE, "!none:here")):
        with pytest.raises(MatrixError) as caught:
            summary(world, user, room_id)
        assert caught.value.http_status == 404


async def test_mutual_rooms(world: SyncWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = [world.room(ALICE) for _ in range(4)]
    for room in rooms[:3]:
        room.join(REMOTE)
    rooms[0].member(REMOTE, REMOTE, "leave")
    rooms[3].invite(ALICE, REMOTE)

    def mutual(user: str, after: str = "") -> Any:
        caller = world.caller(ALICE)
        return orjson.loads(world.database.read_sync(room_summary.load_mutual_rooms, caller, user, after))

    shared = sorted([rooms[1].room_id, rooms[2].room_id])
    assert mutual(REMOTE) == {"joined": shared, "count": 2}
    assert mutual("@nobody:else") == {"joined": [], "count": 0}
    monkeypatch.setattr(room_summary, "MAX_MUTUAL", 1)
    page = mutual(REMOTE)
    assert page == {"joined": shared[:1], "count": 2, "next_batch": shared[0]}
    assert mutual(REMOTE, page["next_batch"]) == {"joined": shared[1:], "count": 2}

"""Row 16: after a leave or ban nothing later is seen by /sync or any read; foreign tokens are refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from servicekit.errors import MatrixError
from syncapi.filters import EventFilter
from syncapi.http import event as event_http
from syncapi.http import members as members_http
from syncapi.http import state as state_http
from tests.support.sync_world import ALICE, BOB, CAROL, Room, SyncWorld


@pytest.fixture(params=["window", "database"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SyncWorld]:
    made = SyncWorld(f"sqlite:///{tmp_path / 'sync.db'}", use_window=request.param == "window")
    yield made
    made.close()


def go_on_without(room: Room) -> None:
    """What nobody who left may learn."""
    room.say(ALICE, "secret message")
    room.state(ALICE, "m.room.topic", "", {"topic": "secret topic"})
    room.state(ALICE, "m.room.secret", "", {"secret": "yes"})
    room.join(CAROL, displayname="secret name")


@pytest.mark.parametrize("how", ["leave", "ban", "kick", "leave_then_ban"])
@pytest.mark.parametrize("visibility", ["shared", "joined", "invited"])
async def test_nothing_after_leaving_is_seen(world: SyncWorld, how: str, visibility: str) -> None:
    room = world.room(ALICE, visibility=visibility)
    room.join(BOB)
    before = room.say(ALICE, "before")
    since = (await world.sync(BOB))["next_batch"]
    if how == "ban":
        room.ban(ALICE, BOB)
    elif how == "kick":
        room.member(ALICE, BOB, "leave")
    else:
        room.leave(BOB)
    go_on_without(room)
    if how == "leave_then_ban":
        room.ban(ALICE, BOB)
        room.say(ALICE, "secret again")
    answers: list[Any] = [await world.sync(BOB, since)]
    answers.append(await world.sync(BOB, since, state_after=True))
    answers.append(await world.sync(BOB, since, full_state=True))
    answers.append(await world.sync(BOB, answers[0]["next_batch"], full_state=True))
    archived: dict[str, Any] = {"room": {"include_leave": True}}
    answers.append(await world.sync(BOB, filter_=archived))
    answers.append(await world.sync(BOB, since, filter_=archived))
    answers.append(world.messages_page(BOB, room.room_id, limit=100))
    answers.append(world.messages_page(BOB, room.room_id, backwards=False, limit=100))
    answers.append(world.members(BOB, room.room_id))
    answers.append(world.members(BOB, room.room_id, at=str(answers[0]["next_batch"])))
    caller = world.caller(BOB)
    answers.append(orjson.loads(world.database.read_sync(state_http.load_all, caller, room.room_id)))
    answers.append(
        orjson.loads(
            world.database.read_sync(event_http.load_context, caller, room.room_id, before, 20, EventFilter())
        )
    )
    assert "secret" not in str(answers)
    assert CAROL not in str(answers)
    assert room.room_id in answers[0]["rooms"]["leave"]
    assert before in str(answers[6])
    with pytest.raises(MatrixError) as caught:
        world.database.read_sync(state_http.load_one, caller, room.room_id, "m.room.secret", "", False)
    assert caught.value.http_status == 404
    with pytest.raises(MatrixError):
        world.database.read_sync(members_http.load_joined, caller, room.room_id)


async def test_ban_without_having_been_there_shows_the_ban_only(world: SyncWorld) -> None:
    room = world.room(ALICE)
    since = (await world.sync(BOB))["next_batch"]
    go_on_without(room)
    room.ban(ALICE, BOB)
    answer = await world.sync(BOB, since)
    assert "secret" not in str(answer)
    events = answer["rooms"]["leave"][room.room_id]["timeline"]["events"]
    assert [event["type"] for event in events] == ["m.room.member"]


@pytest.mark.parametrize(
    "token",
    [
        "s72594_4483_1934",
        "t1_5_99999999999999999999999",
        "a1_e1.5",
        "a1_e1.-5_l1.0",
        "a1_e1.999999999_l1.0",
        "a1_../../x.1_l1.0",
        "a1_e1.1_l1.0\n",
        "",
    ],
)
async def test_foreign_tokens_are_a_clean_400(world: SyncWorld, token: str) -> None:
    room = world.room(ALICE)
    if token:
        with pytest.raises(MatrixError) as caught:
            await world.sync(ALICE, token)
        assert (caught.value.http_status, caught.value.errcode) == (400, "M_INVALID_PARAM")
        with pytest.raises(MatrixError) as caught:
            world.messages_page(ALICE, room.room_id, start=token)
        assert (caught.value.http_status, caught.value.errcode) == (400, "M_INVALID_PARAM")


async def test_token_of_another_user_opens_nothing(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.say(ALICE, "secret")
    token = (await world.sync(ALICE))["next_batch"]
    room.say(ALICE, "secret")
    answer = await world.sync(BOB, token)
    assert "rooms" not in answer
    with pytest.raises(MatrixError) as caught:
        world.messages_page(BOB, room.room_id, start=token)
    assert caught.value.errcode == "M_FORBIDDEN"

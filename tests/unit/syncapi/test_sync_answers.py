"""`/sync` answers over hand-made OUTPUT, each from memory and from the database."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from arbor.log.v1 import output_pb2
from servicekit.errors import MatrixError
from syncapi.http.event import load_anywhere
from tests.support.sync_world import ALICE, BOB, CAROL, SyncWorld


@pytest.fixture(params=["window", "database"])
def world(request: pytest.FixtureRequest, database_url: str) -> Iterator[SyncWorld]:
    """A world whose incremental answers come from memory, or from the database, of either kind."""
    made = SyncWorld(database_url, use_window=request.param == "window")
    yield made
    made.close()


def ids(section: dict[str, Any]) -> list[str]:
    return [event["event_id"] for event in section["events"]]


def bodies(room: dict[str, Any]) -> list[str]:
    return [event["content"].get("body") for event in room["timeline"]["events"]]


async def test_initial_sync_has_state_before_timeline_and_the_rest_in_it(world: SyncWorld) -> None:
    room = world.room(ALICE)
    for number in range(12):
        room.say(ALICE, str(number))
    answer = await world.sync(ALICE)
    joined = answer["rooms"]["join"][room.room_id]
    assert bodies(joined) == [str(number) for number in range(2, 12)]
    assert joined["timeline"]["limited"] is True
    types = {event["type"] for event in joined["state"]["events"]}
    assert types == {
        "m.room.create",
        "m.room.member",
        "m.room.power_levels",
        "m.room.join_rules",
        "m.room.history_visibility",
    }
    page = world.messages_page(ALICE, room.room_id, start=joined["timeline"]["prev_batch"], limit=100)
    assert [event["content"].get("body") for event in page["chunk"]][:2] == ["1", "0"]
    assert len(page["chunk"]) == 7
    assert "end" not in page


async def test_increment_brings_new_message_once(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    since = (await world.sync(BOB))["next_batch"]
    sent = room.say(ALICE, "hi", txn=("DEV", "t1"))
    answer = await world.sync(BOB, since)
    joined = answer["rooms"]["join"][room.room_id]
    assert ids(joined["timeline"]) == [sent]
    assert joined["timeline"]["limited"] is False
    assert joined["state"]["events"] == []
    assert "transaction_id" not in joined["timeline"]["events"][0]["unsigned"]
    assert joined["timeline"]["events"][0]["unsigned"]["membership"] == "join"
    assert joined["unread_notifications"] == {"highlight_count": 0, "notification_count": 1}
    assert "rooms" not in await world.sync(BOB, answer["next_batch"])


async def test_a_token_from_within_a_batch_misses_nothing(world: SyncWorld) -> None:
    # Another replica, or this one before a restart, applied in smaller pieces.
    busy, quiet = world.room(ALICE), world.room(ALICE)
    before = (await world.sync(ALICE))["next_batch"]
    world.hold()
    busy.say(ALICE, "first")
    quiet.say(ALICE, "second")
    last = busy.say(ALICE, "third")
    world.release()
    within = before.replace(f".{world.sequence - 3}_", f".{world.sequence - 1}_", 1)
    assert within != before
    joined = (await world.sync(ALICE, within))["rooms"]["join"]
    assert {room_id: ids(room["timeline"]) for room_id, room in joined.items()} == {busy.room_id: [last]}


async def test_transaction_id_is_for_the_sending_device_only(world: SyncWorld) -> None:
    room = world.room(ALICE)
    since = (await world.sync(ALICE))["next_batch"]
    room.say(ALICE, "hi", txn=("DEV", "t1"))
    own = await world.sync(ALICE, since)
    other = await world.sync(ALICE, since, device="OTHER")
    event = own["rooms"]["join"][room.room_id]["timeline"]["events"][0]
    assert event["unsigned"]["transaction_id"] == "t1"
    assert "transaction_id" not in other["rooms"]["join"][room.room_id]["timeline"]["events"][0]["unsigned"]


async def test_limited_increment_has_the_state_of_the_gap(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    since = (await world.sync(BOB))["next_batch"]
    topic = room.state(ALICE, "m.room.topic", "", {"topic": "first"})
    for number in range(11):
        room.say(ALICE, str(number))
    second = room.state(ALICE, "m.room.topic", "", {"topic": "second"})
    joined = (await world.sync(BOB, since))["rooms"]["join"][room.room_id]
    assert joined["timeline"]["limited"] is True
    assert ids(joined["state"]) == [topic]
    assert ids(joined["timeline"])[-1] == second
    after = (await world.sync(BOB, since, state_after=True))["rooms"]["join"][room.room_id]
    assert ids(after["state_after"]) == [second]
    assert "state" not in after


async def test_state_whose_event_the_timeline_filter_drops_is_in_state(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    only_messages = {"room": {"timeline": {"types": ["m.room.message"]}}}
    since = (await world.sync(BOB, filter_=only_messages))["next_batch"]
    topic = room.state(ALICE, "m.room.topic", "", {"topic": "first"})
    message = room.say(ALICE, "hi")
    joined = (await world.sync(BOB, since, filter_=only_messages))["rooms"]["join"][room.room_id]
    assert ids(joined["timeline"]) == [message]
    assert ids(joined["state"]) == [topic]


async def test_long_poll_wakes_for_own_rooms_only(tmp_path: Path) -> None:
    world = SyncWorld(f"sqlite:///{tmp_path / 'sync.db'}")
    try:
        room = world.room(ALICE)
        room.join(BOB)
        other = world.room(CAROL)
        since = (await world.sync(BOB))["next_batch"]
        task = asyncio.get_running_loop().create_task(world.sync(BOB, since, timeout_ms=60_000))
        while not world.window.user(BOB).waiters:
            await asyncio.sleep(0)
        other.say(CAROL, "not for bob")
        await asyncio.sleep(0)
        assert world.window.user(BOB).waiters, "woken by somebody else's room"
        room.say(ALICE, "for bob")
        answer = await task
        assert bodies(answer["rooms"]["join"][room.room_id]) == ["for bob"]
        assert list(answer["rooms"]["join"]) == [room.room_id]
    finally:
        world.close()


async def test_long_poll_ends_empty_and_token_goes_on(world: SyncWorld) -> None:
    world.room(ALICE)
    since = (await world.sync(ALICE))["next_batch"]
    world.room(BOB).say(BOB, "elsewhere")
    answer = await world.sync(ALICE, since, timeout_ms=1)
    assert "rooms" not in answer
    assert answer["next_batch"] != since


async def test_invite_then_join_then_leave(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.state(ALICE, "m.room.topic", "", {"topic": "t"})
    since = (await world.sync(BOB))["next_batch"]
    room.invite(ALICE, BOB)
    answer = await world.sync(BOB, since)
    stripped = answer["rooms"]["invite"][room.room_id]["invite_state"]["events"]
    assert {"m.room.join_rules", "m.room.member"} == {event["type"] for event in stripped}
    assert all(set(event) == {"type", "state_key", "sender", "content"} for event in stripped)
    room.join(BOB)
    answer = await world.sync(BOB, answer["next_batch"])
    joined = answer["rooms"]["join"][room.room_id]
    everything = {event["type"] for event in joined["state"]["events"] + joined["timeline"]["events"]}
    assert "m.room.topic" in everything
    assert "invite" not in answer["rooms"]
    assert joined["summary"]["m.joined_member_count"] == 2
    assert joined["summary"]["m.heroes"] == [ALICE]
    room.say(ALICE, "one")
    room.leave(BOB)
    secret = room.say(ALICE, "after")
    room.state(ALICE, "m.room.topic", "", {"topic": "secret"})
    answer = await world.sync(BOB, answer["next_batch"])
    left = answer["rooms"]["leave"][room.room_id]
    assert [event["type"] for event in left["timeline"]["events"]] == ["m.room.message", "m.room.member"]
    assert secret not in str(answer)
    assert "secret" not in str(answer)
    assert "rooms" not in await world.sync(BOB, answer["next_batch"])


async def test_full_state_and_archived_rooms(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    since = (await world.sync(BOB))["next_batch"]
    joined = (await world.sync(BOB, since, full_state=True, timeout_ms=60_000))["rooms"]["join"][room.room_id]
    assert len(joined["state"]["events"]) == 6
    room.leave(BOB)
    assert "rooms" not in await world.sync(BOB)
    archived = await world.sync(BOB, filter_={"room": {"include_leave": True}})
    assert room.room_id in archived["rooms"]["leave"]


async def test_lazy_loading_gives_senders_and_oneself(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    room.join(CAROL)
    lazy: dict[str, Any] = {"room": {"state": {"lazy_load_members": True}, "timeline": {"limit": 1}}}
    room.say(ALICE, "hi")
    answer = await world.sync(BOB, filter_=lazy)
    joined = answer["rooms"]["join"][room.room_id]
    # The room has no name: its heroes are needed as well.
    shown = {event["state_key"] for event in joined["state"]["events"] if event["type"] == "m.room.member"}
    assert shown == {ALICE, BOB, CAROL}
    room.state(ALICE, "m.room.name", "", {"name": "named"})
    room.say(ALICE, "again")
    joined = (await world.sync(BOB, filter_=lazy))["rooms"]["join"][room.room_id]
    shown = {event["state_key"] for event in joined["state"]["events"] if event["type"] == "m.room.member"}
    assert shown == {ALICE, BOB}
    lazy["room"]["state"]["include_redundant_members"] = True
    since = (await world.sync(BOB, filter_=lazy))["next_batch"]
    for _ in range(2):  # the first asks the database, the second finds the member in memory
        room.say(CAROL, "hello")
        answer = await world.sync(BOB, since, filter_=lazy)
        joined = answer["rooms"]["join"][room.room_id]
        assert [event["state_key"] for event in joined["state"]["events"]] == [CAROL]
        since = answer["next_batch"]


async def test_receipts_and_typing(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    sent = room.say(ALICE, "hi")
    since = (await world.sync(BOB))["next_batch"]
    room.receipt(BOB, sent)
    room.receipt(ALICE, sent, "m.read.private")
    world.typing(room.room_id, ALICE)
    answer = await world.sync(BOB, since)
    joined = answer["rooms"]["join"][room.room_id]
    by_type = {event["type"]: event["content"] for event in joined["ephemeral"]["events"]}
    assert by_type["m.typing"] == {"user_ids": [ALICE]}
    assert by_type["m.receipt"] == {sent: {"m.read": {BOB: {"ts": 1_700_000_000_000}}}}
    assert joined["unread_notifications"]["notification_count"] == 0
    world.typing(room.room_id, ALICE, typing=False)
    answer = await world.sync(BOB, answer["next_batch"])
    assert answer["rooms"]["join"][room.room_id]["ephemeral"]["events"] == [
        {"type": "m.typing", "content": {"user_ids": []}}
    ]


async def test_typing_told_while_the_database_is_asked_comes_next(
    world: SyncWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    world.typing(room.room_id, BOB)
    read = world.database.read

    async def read_meanwhile(*args: Any, **kwargs: Any) -> Any:
        found = await read(*args, **kwargs)
        world.typing(room.room_id, BOB, typing=False)
        return found

    monkeypatch.setattr(world.database, "read", read_meanwhile)
    first = await world.sync(ALICE)
    (event,) = first["rooms"]["join"][room.room_id]["ephemeral"]["events"]
    assert event["content"]["user_ids"] == [BOB]
    monkeypatch.undo()
    then = await world.sync(ALICE, first["next_batch"])
    (event,) = then["rooms"]["join"][room.room_id]["ephemeral"]["events"]
    assert event["content"]["user_ids"] == []


async def test_unread_counts_mentions_and_own_messages(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB, displayname="Bobby Tables")
    since = (await world.sync(BOB))["next_batch"]

    async def unread() -> tuple[int, int]:
        counts = (await world.sync(BOB))["rooms"]["join"][room.room_id]["unread_notifications"]
        assert counts == (await world.sync(BOB, since))["rooms"]["join"][room.room_id]["unread_notifications"]
        return counts["notification_count"], counts["highlight_count"]

    room.say(ALICE, "plain")
    assert await unread() == (1, 0)
    mention = room.say(ALICE, "x", **{"m.mentions": {"user_ids": [BOB, CAROL]}})
    assert await unread() == (2, 1)
    room.put(room.entry(ALICE, "m.room.message", {"msgtype": "m.notice", "body": "bob"}))
    assert await unread() == (2, 1)
    room.say(ALICE, "look", **{"m.mentions": {"room": True}})
    assert await unread() == (3, 2)
    room.receipt(BOB, mention)
    assert await unread() == (1, 1)
    room.say(BOB, "my own words")
    assert await unread() == (0, 0)


async def test_account_data_and_ignored_users(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    world.account_data(BOB, "m.tag", {"tags": {"u.x": {}}}, room.room_id)
    answer = await world.sync(BOB)
    assert answer["rooms"]["join"][room.room_id]["account_data"]["events"][0]["type"] == "m.tag"
    world.account_data(BOB, "m.ignored_user_list", {"ignored_users": {ALICE: {}}})
    room.say(ALICE, "hidden")
    answer = await world.sync(BOB, answer["next_batch"])
    assert answer["account_data"]["events"][0]["type"] == "m.ignored_user_list"
    assert "hidden" not in str(answer)


async def test_invites_of_who_takes_none_are_not_shown(world: SyncWorld) -> None:
    room = world.room(ALICE)
    since = (await world.sync(BOB))["next_batch"]
    world.account_data(BOB, "m.invite_permission_config", {"default_action": "block"})
    room.invite(ALICE, BOB)
    for answer in (await world.sync(BOB, since), await world.sync(BOB)):
        assert "rooms" not in answer
    world.account_data(BOB, "m.invite_permission_config", {})
    assert room.room_id in (await world.sync(BOB))["rooms"]["invite"]


async def test_an_event_is_found_without_its_room(world: SyncWorld) -> None:
    room = world.room(ALICE)
    said = room.say(ALICE, "hello")

    def read(user: str, event_id: str) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(
            world.database.read_sync(load_anywhere, world.caller(user), event_id)
        )
        return found

    assert read(ALICE, said)["content"]["body"] == "hello"
    for user, event_id in ((BOB, said), (ALICE, "$unknown")):
        with pytest.raises(MatrixError) as caught:
            read(user, event_id)
        assert (caught.value.http_status, caught.value.errcode) == (404, "M_NOT_FOUND")


@pytest.mark.parametrize("kept", [True, False])
async def test_purged_history_spares_local_users_events_where_it_says_so(
    world: SyncWorld, kept: bool
) -> None:
    far = "@far:elsewhere.example"
    room = world.room(ALICE)
    room.join(far)
    for number in range(3):
        room.say(ALICE, f"ours {number}")
        room.say(far, f"theirs {number}")
    last = room.say(ALICE, "the last")
    purged = output_pb2.RoomPurged(before_event_id=last, local_events_kept=kept)
    world.put(
        output_pb2.OutputMessage(room_id=room.room_id, entries=[output_pb2.OutputEntry(room_purged=purged)])
    )
    joined = (await world.sync(ALICE))["rooms"]["join"][room.room_id]
    said = [body for body in bodies(joined) if body is not None]
    assert said == ([f"ours {number}" for number in range(3)] if kept else []) + ["the last"]


async def test_redaction_reaches_what_is_read_later(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    since = (await world.sync(BOB))["next_batch"]
    secret = room.say(ALICE, "secret words")
    topic = room.state(ALICE, "m.room.topic", "", {"topic": "secret topic"})
    room.state(ALICE, "m.room.topic", "", {"topic": "harmless"})
    room.redact(ALICE, secret)
    room.redact(ALICE, topic)
    for answer in (await world.sync(BOB, since), await world.sync(BOB)):
        assert "secret" not in str(answer)
        events = answer["rooms"]["join"][room.room_id]["timeline"]["events"]
        redacted = next(event for event in events if event["event_id"] == secret)
        assert redacted["unsigned"]["redacted_because"]["type"] == "m.room.redaction"
    assert world.event(BOB, room.room_id, secret)["content"] == {}


async def test_a_room_that_loses_its_name_has_heroes(world: SyncWorld) -> None:
    room = world.room(ALICE)
    name = room.state(ALICE, "m.room.name", "", {"name": "secret name"})
    room.join(BOB)
    first = await world.sync(BOB)
    assert "m.heroes" not in first["rooms"]["join"][room.room_id]["summary"]
    room.redact(ALICE, name)
    answer = (await world.sync(BOB, first["next_batch"]))["rooms"]["join"][room.room_id]
    assert answer["summary"]["m.heroes"] == [ALICE]
    assert [event["content"] for event in answer["state"]["events"] if event["type"] == "m.room.name"] == [{}]
    world.apply(world.messages[-2:])  # once more: nothing is renewed twice
    renamed = room.state(ALICE, "m.room.name", "", {"name": "new"})
    room.redact(ALICE, name)  # which holds no more
    answer = (await world.sync(BOB, first["next_batch"]))["rooms"]["join"][room.room_id]
    assert "m.heroes" not in answer["summary"]
    assert renamed in ids(answer["timeline"])


async def test_bad_and_future_tokens_are_refused(world: SyncWorld) -> None:
    world.room(ALICE)
    for since in ("", "s12_3", "a1_e1.x_l1.0"):
        if since:
            with pytest.raises(MatrixError) as caught:
                await world.sync(ALICE, since)
            assert (caught.value.errcode, caught.value.http_status) == ("M_INVALID_PARAM", 400)
    with pytest.raises(MatrixError) as caught:
        await world.sync(ALICE, "a1_e1.999999_l1.0")
    assert (caught.value.errcode, caught.value.http_status) == ("M_INVALID_PARAM", 400)


async def test_repeated_request_gets_the_same_answer(tmp_path: Path) -> None:
    world = SyncWorld(f"sqlite:///{tmp_path / 'sync.db'}", cache_seconds=60)
    try:
        room = world.room(ALICE)
        since = (await world.sync(ALICE))["next_batch"]
        room.say(ALICE, "one")
        first = await world.sync(ALICE, since)
        room.say(ALICE, "two")
        assert await world.sync(ALICE, since) == first
        world.positions.note(ALICE, world.sequence)
        assert len((await world.sync(ALICE, since))["rooms"]["join"][room.room_id]["timeline"]["events"]) == 2
    finally:
        world.close()

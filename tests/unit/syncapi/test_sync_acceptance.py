"""What clients rely on in `/sync` beside the plain case, each from memory and from the database."""

from collections.abc import Iterator
from typing import Any

import pytest

from servicekit.errors import MatrixError
from syncapi.filters import parse_filter
from tests.support.sync_world import ALICE, BOB, CAROL, Room, SyncWorld


@pytest.fixture(params=["window", "database"])
def world(request: pytest.FixtureRequest, database_url: str) -> Iterator[SyncWorld]:
    """A world whose incremental answers come from memory, or from the database, of either kind."""
    made = SyncWorld(database_url, use_window=request.param == "window")
    yield made
    made.close()


def texts(section: dict[str, Any]) -> list[Any]:
    return [event["content"].get("body", event["type"]) for event in section["timeline"]["events"]]


def types(section: dict[str, Any]) -> list[str]:
    return [event["type"] for event in section["events"]]


def joined(answer: dict[str, Any], room: Room) -> dict[str, Any]:
    found: dict[str, Any] = answer["rooms"]["join"][room.room_id]
    return found


async def test_a_limit_of_nothing_still_leads_back_to_what_was_left_out(world: SyncWorld) -> None:
    room = world.room(ALICE)
    filter_ = {"room": {"timeline": {"limit": 0}}}
    since = (await world.sync(ALICE, filter_=filter_))["next_batch"]
    room.say(ALICE, "one")
    room.say(ALICE, "two")
    section = joined(await world.sync(ALICE, since, filter_=filter_), room)
    assert (section["timeline"]["events"], section["timeline"]["limited"]) == ([], True)
    page = world.messages_page(ALICE, room.room_id, start=section["timeline"]["prev_batch"], limit=2)
    assert [event["content"].get("body") for event in page["chunk"]] == ["two", "one"]
    first = joined(await world.sync(ALICE, filter_=filter_), room)
    assert (first["timeline"]["events"], first["timeline"]["limited"]) == ([], True)
    page = world.messages_page(ALICE, room.room_id, start=first["timeline"]["prev_batch"], limit=1)
    assert [event["content"].get("body") for event in page["chunk"]] == ["two"]


async def test_filters_of_rooms_types_senders_and_urls(world: SyncWorld) -> None:
    one, other = world.room(ALICE), world.room(ALICE)
    for room in (one, other):
        room.join(BOB)
    since = (await world.sync(BOB))["next_batch"]
    for room in (one, other):
        room.say(ALICE, "text")
        room.say(ALICE, "picture", url="mxc://here/a")
        room.put(room.entry(CAROL, "org.example.thing", {"body": "thing"}))

    async def told(**filter_: Any) -> dict[str, list[Any]]:
        answer = await world.sync(BOB, since, filter_={"room": filter_})
        rooms = answer.get("rooms", {}).get("join", {})
        return {room_id: texts(section) for room_id, section in rooms.items()}

    everything = ["text", "picture", "thing"]
    assert await told() == {one.room_id: everything, other.room_id: everything}
    assert await told(not_rooms=[one.room_id]) == {other.room_id: everything}
    assert await told(rooms=[one.room_id]) == {one.room_id: everything}
    assert await told(rooms=[one.room_id], not_rooms=[one.room_id]) == {}
    assert await told(rooms=[]) == {}
    assert await told(rooms=[one.room_id], timeline={"types": ["org.*"]}) == {one.room_id: ["thing"]}
    assert await told(rooms=[one.room_id], timeline={"not_types": ["m.*.message", "m.room.*"]}) == {
        one.room_id: ["thing"]
    }
    assert await told(rooms=[one.room_id], timeline={"contains_url": True}) == {one.room_id: ["picture"]}
    assert await told(rooms=[one.room_id], timeline={"contains_url": False}) == {
        one.room_id: ["text", "thing"]
    }
    assert await told(rooms=[one.room_id], timeline={"senders": [CAROL]}) == {one.room_id: ["thing"]}
    assert await told(rooms=[one.room_id], timeline={"not_senders": [CAROL]}) == {
        one.room_id: ["text", "picture"]
    }
    assert await told(rooms=[one.room_id], timeline={"types": []}) == {}
    assert await told(timeline={"rooms": [one.room_id]}) == {one.room_id: everything}


@pytest.mark.parametrize(
    "filter_",
    [
        {"room": []},
        {"room": {"timeline": {"limit": "5"}}},
        {"room": {"timeline": {"limit": -1}}},
        {"room": {"timeline": {"types": "m.room.message"}}},
        {"room": {"timeline": {"senders": [1]}}},
        {"room": {"state": {"lazy_load_members": "yes"}}},
        {"room": {"rooms": "!a:here"}},
        {"room": {"rooms": ["a:here"]}},
        {"room": {"timeline": {"not_rooms": ["a:here"]}}},
        {"room": {"state": {"senders": ["alice"]}}},
        {"presence": {"not_senders": ["alice"]}},
        {"event_format": "other"},
        {"event_fields": "content"},
        {"presence": []},
    ],
)
async def test_filters_that_are_none_are_refused(world: SyncWorld, filter_: dict[str, Any]) -> None:
    with pytest.raises(MatrixError) as caught:
        parse_filter(filter_)
    assert (caught.value.errcode, caught.value.http_status) == ("M_BAD_JSON", 400)


async def test_a_page_of_nothing_leads_on_from_where_it_was_asked(world: SyncWorld) -> None:
    room = world.room(ALICE)
    said = [room.say(ALICE, str(number)) for number in range(3)]
    for backwards, first in ((True, said[-1]), (False, "m.room.create")):
        nothing = world.messages_page(ALICE, room.room_id, backwards=backwards, limit=0)
        assert nothing["chunk"] == []
        page = world.messages_page(ALICE, room.room_id, backwards=backwards, start=nothing["end"], limit=1)
        assert first in (page["chunk"][0]["event_id"], page["chunk"][0]["type"])


async def test_a_rescinded_and_a_rejected_invite_are_left_rooms(world: SyncWorld) -> None:
    room = world.room(ALICE, join_rule="invite")
    start = (await world.sync(BOB))["next_batch"]
    room.invite(ALICE, BOB)
    invited = await world.sync(BOB, start)
    assert room.room_id in invited["rooms"]["invite"]
    rescinded = room.member(ALICE, BOB, "leave")
    room.say(ALICE, "not for Bob")
    answer = await world.sync(BOB, invited["next_batch"])
    left = answer["rooms"]["leave"][room.room_id]
    assert [event["event_id"] for event in left["timeline"]["events"]] == [rescinded]
    assert left["state"]["events"] == []
    assert "invite" not in answer["rooms"]
    # Who never heard of the invite hears no more than that either.
    assert "not for Bob" not in str(await world.sync(BOB, start))

    room.invite(ALICE, BOB)
    again = await world.sync(BOB, answer["next_batch"])
    assert room.room_id in again["rooms"]["invite"]
    rejected = room.leave(BOB)
    answer = await world.sync(BOB, again["next_batch"])
    left = answer["rooms"]["leave"][room.room_id]
    assert [event["event_id"] for event in left["timeline"]["events"]] == [rejected]
    assert "rooms" not in await world.sync(BOB, answer["next_batch"])
    # Nor is the invite repeated to who did not hear of it, or asks for rooms that were left.
    only_left = {"room": {"include_leave": True, "timeline": {"limit": 1}}}
    for late in (await world.sync(BOB, start), await world.sync(BOB, filter_=only_left)):
        timeline = late["rooms"]["leave"][room.room_id]["timeline"]
        assert [event["event_id"] for event in timeline["events"]] == [rejected]
        assert timeline["limited"] is False
    none = {"room": {"timeline": {"limit": 0}}}
    left = (await world.sync(BOB, again["next_batch"], filter_=none))["rooms"]["leave"][room.room_id]
    assert left["timeline"]["events"] == []


async def test_a_room_joined_left_and_joined_again_between_two_syncs(world: SyncWorld) -> None:
    room = world.room(ALICE)
    since = (await world.sync(BOB))["next_batch"]
    room.join(BOB)
    room.leave(BOB)
    room.say(ALICE, "between")
    room.join(BOB)
    answer = await world.sync(BOB, since)
    assert "leave" not in answer["rooms"]
    section = joined(answer, room)
    state = {event["type"] for event in section["state"]["events"]}
    assert "m.room.create" in state | {event["type"] for event in section["timeline"]["events"]}


async def test_a_room_left_and_archived_has_the_state_of_leaving(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.state(ALICE, "m.room.topic", "", {"topic": "then"})
    room.join(BOB)
    for number in range(12):
        room.say(ALICE, str(number))
    since = (await world.sync(BOB))["next_batch"]
    room.say(ALICE, "last words")
    room.leave(BOB)
    room.state(ALICE, "m.room.topic", "", {"topic": "later"})
    room.say(ALICE, "later")
    archived = (await world.sync(BOB, filter_={"room": {"include_leave": True}}))["rooms"]["leave"]
    section = archived[room.room_id]
    assert texts(section)[-2:] == ["last words", "m.room.member"]
    topics = [
        event["content"]["topic"] for event in section["state"]["events"] if event["type"] == "m.room.topic"
    ]
    assert topics == ["then"]
    left = (await world.sync(BOB, since))["rooms"]["leave"][room.room_id]
    assert texts(left) == ["last words", "m.room.member"]
    assert "later" not in str(left)
    # Also where the sync says nothing of rooms that were left before.
    assert "leave" not in (await world.sync(BOB)).get("rooms", {})


async def test_a_ban_is_a_left_room(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    since = (await world.sync(BOB))["next_batch"]
    banned = room.ban(ALICE, BOB)
    room.say(ALICE, "behind his back")
    left = (await world.sync(BOB, since))["rooms"]["leave"][room.room_id]
    assert [event["event_id"] for event in left["timeline"]["events"]] == [banned]


@pytest.mark.parametrize(
    ("visibility", "seen"),
    [
        ("joined", ["m.room.member"]),
        ("invited", ["after the invite", "m.room.member"]),
        ("shared", ["before", "m.room.member", "after the invite", "m.room.member"]),
        ("world_readable", ["before", "m.room.member", "after the invite", "m.room.member"]),
    ],
)
async def test_history_visibility_at_a_join(world: SyncWorld, visibility: str, seen: list[str]) -> None:
    room = world.room(ALICE, visibility=visibility)
    room.say(ALICE, "before")
    room.invite(ALICE, BOB)
    since = (await world.sync(BOB))["next_batch"]
    room.say(ALICE, "after the invite")
    room.join(BOB)
    for answer in (await world.sync(BOB, since), await world.sync(BOB)):
        shown = texts(joined(answer, room))
        invite = [] if visibility in ("shared", "world_readable") else ["m.room.member"]
        told = [text for text in shown if not text.startswith("m.room.") or text == "m.room.member"]
        # One's own invite may be seen; what came before the sight begins may not.
        assert [text for text in told if text != "m.room.member"] == [
            text for text in seen if text != "m.room.member"
        ]
        assert told[-1] == "m.room.member"
        assert len(told) <= len(seen) + len(invite) + 1


async def test_a_gap_has_the_changed_state_and_leads_back(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    since = (await world.sync(BOB))["next_batch"]
    room.state(ALICE, "m.room.topic", "", {"topic": "one"})
    room.join(CAROL)
    for number in range(20):
        room.say(ALICE, str(number))
    room.state(ALICE, "m.room.topic", "", {"topic": "two"})
    section = joined(await world.sync(BOB, since, filter_={"room": {"timeline": {"limit": 3}}}), room)
    assert section["timeline"]["limited"] is True
    assert texts(section) == ["18", "19", "m.room.topic"]
    state = {(event["type"], event["state_key"]): event["content"] for event in section["state"]["events"]}
    assert state["m.room.topic", ""] == {"topic": "one"}
    assert state["m.room.member", CAROL]["membership"] == "join"
    assert set(state) == {("m.room.topic", ""), ("m.room.member", CAROL)}
    page = world.messages_page(BOB, room.room_id, start=section["timeline"]["prev_batch"], limit=2)
    assert [event["content"].get("body") for event in page["chunk"]] == ["17", "16"]


async def test_receipts_come_with_an_initial_sync(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    sent = room.say(ALICE, "hi")
    room.receipt(BOB, sent)
    room.receipt(BOB, sent, "m.read.private")
    for user, kinds in ((ALICE, {"m.read"}), (BOB, {"m.read", "m.read.private"})):
        section = joined(await world.sync(user), room)
        assert types(section["ephemeral"]) == ["m.receipt"]
        assert set(section["ephemeral"]["events"][0]["content"][sent]) == kinds
    quiet = await world.sync(ALICE, filter_={"room": {"ephemeral": {"types": []}}})
    assert joined(quiet, room)["ephemeral"]["events"] == []
    only = await world.sync(ALICE, filter_={"room": {"ephemeral": {"not_types": ["m.receipt"]}}})
    assert joined(only, room)["ephemeral"]["events"] == []


async def test_first_sync_tells_the_push_rules_also_of_who_changed_none(world: SyncWorld) -> None:
    world.room(ALICE)
    events = (await world.sync(ALICE))["account_data"]["events"]
    assert [event["type"] for event in events] == ["m.push_rules"]
    rules = events[0]["content"]["global"]
    assert set(rules) == {"override", "content", "room", "sender", "underride"}
    assert rules["override"][0]["rule_id"] == ".m.rule.master"
    edited = {"global": {"override": [], "content": [], "room": [], "sender": [], "underride": []}}
    world.account_data(ALICE, "m.push_rules", edited)
    events = (await world.sync(ALICE))["account_data"]["events"]
    assert [event["content"] for event in events] == [edited]


async def test_account_data_is_told_once_and_by_its_filter(world: SyncWorld) -> None:
    room = world.room(ALICE)
    world.account_data(ALICE, "org.example.a", {"n": 1})
    world.account_data(ALICE, "org.example.b", {"n": 1}, room.room_id)
    answer = await world.sync(ALICE)
    assert types(answer["account_data"]) == ["m.push_rules", "org.example.a"]
    assert answer["account_data"]["events"][1]["content"] == {"n": 1}
    assert types(joined(answer, room)["account_data"]) == ["org.example.b"]
    again = await world.sync(ALICE, answer["next_batch"])
    assert "account_data" not in again
    assert "rooms" not in again
    world.account_data(ALICE, "org.example.a", {"n": 2})
    world.account_data(ALICE, "org.example.b", {"n": 2}, room.room_id)
    none = {"account_data": {"not_types": ["*"]}, "room": {"account_data": {"types": []}}}
    filtered = await world.sync(ALICE, answer["next_batch"], filter_=none)
    assert "account_data" not in filtered
    third = await world.sync(ALICE, answer["next_batch"])
    assert third["account_data"]["events"] == [{"type": "org.example.a", "content": {"n": 2}}]
    assert joined(third, room)["account_data"]["events"] == [{"type": "org.example.b", "content": {"n": 2}}]


async def test_ignored_users_messages_are_left_out_and_their_state_is_not(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    room.join(CAROL)
    world.account_data(BOB, "m.ignored_user_list", {"ignored_users": {CAROL: {}}})
    since = (await world.sync(BOB))["next_batch"]
    room.say(CAROL, "ignored")
    room.say(ALICE, "heard")
    room.join(CAROL, displayname="Carol")
    section = joined(await world.sync(BOB, since), room)
    assert texts(section) == ["heard", "m.room.member"]
    invite = world.room(CAROL)
    invite.invite(CAROL, BOB)
    assert "invite" not in (await world.sync(BOB, since))["rooms"]
    page = world.messages_page(BOB, room.room_id, limit=100)
    assert "ignored" not in [event["content"].get("body") for event in page["chunk"]]


async def test_related_events_alone(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    since = (await world.sync(ALICE))["next_batch"]
    plain = room.say(ALICE, "plain")
    root = room.say(ALICE, "root")
    other = room.say(ALICE, "liked")
    room.say(BOB, "in", **{"m.relates_to": {"rel_type": "m.thread", "event_id": root}})
    room.put(
        room.entry(
            ALICE, "m.reaction", {"m.relates_to": {"rel_type": "m.annotation", "event_id": other, "key": "+"}}
        )
    )

    def page(**filter_: Any) -> list[str]:
        found = world.messages_page(ALICE, room.room_id, limit=50, filter_=filter_)
        return [event["event_id"] for event in found["chunk"]]

    assert plain in page()
    assert page(related_by_rel_types=["m.thread"]) == [root]
    assert page(related_by_rel_types=["m.thread", "m.annotation"]) == [other, root]
    assert page(related_by_senders=[BOB]) == [root]
    assert page(related_by_senders=[ALICE], related_by_rel_types=["m.thread"]) == []
    filter_ = {"room": {"timeline": {"related_by_rel_types": ["m.thread"]}}}
    for answer in (await world.sync(ALICE, since, filter_=filter_), await world.sync(ALICE, filter_=filter_)):
        assert texts(joined(answer, room)) == ["root"]


async def test_a_page_of_a_room_that_its_filter_excludes_is_empty(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.say(ALICE, "hi")
    page = world.messages_page(ALICE, room.room_id, filter_={"not_rooms": [room.room_id]})
    assert page["chunk"] == []
    assert "end" not in page


async def test_a_limited_timeline_bundles_what_relates_to_its_events(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    since = (await world.sync(BOB))["next_batch"]
    for number in range(12):
        root = room.say(ALICE, str(number))
    reply = room.say(ALICE, "in", **{"m.relates_to": {"rel_type": "m.thread", "event_id": root}})
    section = joined(await world.sync(BOB, since), room)
    assert section["timeline"]["limited"] is True
    events = {event["event_id"]: event for event in section["timeline"]["events"]}
    thread = events[root]["unsigned"]["m.relations"]["m.thread"]
    assert (thread["count"], thread["latest_event"]["event_id"]) == (1, reply)

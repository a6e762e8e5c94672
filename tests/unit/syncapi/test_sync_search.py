"""`/search`: what is found, for whom, in which order, and how pages lead on."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from servicekit.errors import MatrixError
from syncapi.http import search as search_http
from tests.support.sync_world import ALICE, BOB, CAROL, SyncWorld


@pytest.fixture
def world(database_url: str) -> Iterator[SyncWorld]:
    made = SyncWorld(database_url)
    yield made
    made.close()


def search(
    world: SyncWorld, user: str, term: str, next_batch: str | None = None, **more: Any
) -> dict[str, Any]:
    criteria = search_http.parse_criteria(
        {"search_categories": {"room_events": {"search_term": term, "order_by": "recent", **more}}},
        next_batch,
    )
    assert criteria is not None
    answer = orjson.loads(world.database.read_sync(search_http.load_results, world.caller(user), criteria))
    found: dict[str, Any] = answer["search_categories"]["room_events"]
    return found


def ids(found: dict[str, Any]) -> list[str]:
    return [item["result"]["event_id"] for item in found["results"]]


async def test_words_keys_and_filters(world: SyncWorld) -> None:
    room, other = world.room(ALICE), world.room(ALICE)
    room.join(BOB)
    first = room.say(ALICE, "The Martians are coming")
    second = room.say(BOB, "martians, again: coming and going")
    third = other.say(ALICE, "coming MARTIANS elsewhere")
    name = room.state(ALICE, "m.room.name", "", {"name": "Martians coming"})
    topic = room.state(ALICE, "m.room.topic", "", {"topic": "no martians coming"})
    room.say(ALICE, "a martian comes")
    room.put(room.entry(ALICE, "m.room.message", {"msgtype": "m.text", "body": 7}))
    found = search(world, ALICE, "martians COMING")
    assert ids(found) == [topic, name, third, second, first]
    assert found["count"] == 5
    assert found["highlights"] == ["martians", "coming"]
    assert found["results"][0]["result"]["room_id"] == room.room_id
    assert ids(search(world, ALICE, "martians", keys=["content.name"])) == [name]
    assert ids(search(world, ALICE, "martians", filter={"rooms": [other.room_id]})) == [third]
    assert ids(search(world, ALICE, "martians", filter={"senders": [BOB]})) == [second]
    assert ids(search(world, ALICE, "martians nowhere")) == []
    assert ids(search(world, ALICE, "!?")) == []
    best = search(world, ALICE, "martians", order_by="rank")
    assert ids(best)[0] == name  # one of two words
    ranks = [item["rank"] for item in best["results"]]
    assert ranks == sorted(ranks, reverse=True)
    groups = search(world, ALICE, "martians", groupings={"group_by": [{"key": "room_id"}, {"key": "sender"}]})
    assert groups["groups"]["room_id"][other.room_id]["results"] == [third]
    assert groups["groups"]["sender"][BOB]["results"] == [second]


async def test_only_what_the_reader_may_see(world: SyncWorld) -> None:
    room = world.room(ALICE, visibility="joined")
    before = room.say(ALICE, "needle before Bob")
    room.join(BOB)
    during = room.say(ALICE, "needle with Bob")
    secret = room.say(ALICE, "needle that was redacted")
    room.redact(ALICE, secret)
    room.member(BOB, BOB, "leave")
    after = room.say(ALICE, "needle after Bob")
    assert ids(search(world, ALICE, "needle")) == [after, during, before]
    assert ids(search(world, BOB, "needle")) == [during]
    assert ids(search(world, CAROL, "needle")) == []
    world.account_data(BOB, "m.ignored_user_list", {"ignored_users": {ALICE: {}}})
    assert ids(search(world, BOB, "needle")) == []
    world.account_data(BOB, "m.ignored_user_list", {"ignored_users": {}})
    context = search(world, BOB, "needle", event_context={}, include_state=True)
    bodies = str(context)
    assert "before Bob" not in bodies
    assert "after Bob" not in bodies
    members = {
        event["state_key"]: event["content"]["membership"]
        for event in context["state"][room.room_id]
        if event["type"] == "m.room.member"
    }
    assert set(members) == {ALICE, BOB}


async def test_context(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.member(ALICE, ALICE, "join", displayname="Alice")
    sent = [room.say(ALICE, f"word{number}") for number in range(9)]
    wanted = {"before_limit": 2, "after_limit": 3, "include_profile": True}
    context = search(world, ALICE, "word4", event_context=wanted)["results"][0]["context"]
    assert [event["event_id"] for event in context["events_before"]] == [sent[3], sent[2]]
    assert [event["event_id"] for event in context["events_after"]] == sent[5:8]
    assert context["profile_info"] == {ALICE: {"displayname": "Alice"}}
    page = world.messages_page(ALICE, room.room_id, start=context["start"], limit=1)
    assert page["chunk"][0]["event_id"] == sent[1]
    page = world.messages_page(ALICE, room.room_id, backwards=False, start=context["end"], limit=1)
    assert page["chunk"][0]["event_id"] == sent[8]


@pytest.mark.parametrize("order", ["recent", "rank"])
async def test_pages_lead_through_everything_once(
    world: SyncWorld, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = [world.room(ALICE), world.room(ALICE)]
    sent = [rooms[number % 2].say(ALICE, f"common {number}") for number in range(25)]
    if order == "recent":
        monkeypatch.setattr(search_http, "MAX_SCANNED", 7)  # a page may be cut before it is full
    found: list[str] = []
    token: str | None = None
    for _ in range(30):
        page = search(world, ALICE, "common", token, order_by=order, filter={"limit": 4})
        assert len(page["results"]) <= 4
        found += ids(page)
        token = page.get("next_batch")
        if token is None:
            break
    assert sorted(found) == sorted(sent)
    if order == "recent":
        assert found == sent[::-1]


@pytest.mark.parametrize(
    ("room_events", "next_batch", "errcode"),
    [
        ({}, None, "M_MISSING_PARAM"),
        ({"search_term": 1}, None, "M_BAD_JSON"),
        ({"search_term": "x", "keys": ["content.x"]}, None, "M_BAD_JSON"),
        ({"search_term": "x", "order_by": "age"}, None, "M_BAD_JSON"),
        ({"search_term": "x", "filter": []}, None, "M_BAD_JSON"),
        ({"search_term": "x", "event_context": {"before_limit": "1"}}, None, "M_BAD_JSON"),
        ({"search_term": "x", "groupings": {"group_by": [1]}}, None, "M_BAD_JSON"),
        ({"search_term": "x"}, "s1_5", "M_INVALID_PARAM"),
        ({"search_term": "x"}, "zzz", "M_INVALID_PARAM"),
        ([], None, "M_BAD_JSON"),
    ],
)
def test_bad_requests(room_events: Any, next_batch: str | None, errcode: str) -> None:
    with pytest.raises(MatrixError) as caught:
        search_http.parse_criteria({"search_categories": {"room_events": room_events}}, next_batch)
    assert (caught.value.errcode, caught.value.http_status) == (errcode, 400)
    assert search_http.parse_criteria({"search_categories": {}}, None) is None


async def test_a_search_in_a_room_is_one_in_those_before_it(world: SyncWorld) -> None:
    oldest, old, new, stranger = [world.room(ALICE) for _ in range(4)]
    for before, after in ((oldest, old), (old, new)):
        before.state(ALICE, "m.room.tombstone", "", {"replacement_room": after.room_id})
        after.state(ALICE, "m.room.create", "", {"predecessor": {"room_id": before.room_id}})
    # One that only says that it followed.
    stranger.state(ALICE, "m.room.create", "", {"predecessor": {"room_id": old.room_id}})
    said = [room.say(ALICE, "martians") for room in (oldest, old, new)]
    assert ids(search(world, ALICE, "martians", filter={"rooms": [new.room_id]})) == said[::-1]
    assert ids(search(world, ALICE, "martians", filter={"rooms": [oldest.room_id]})) == said[:1]
    assert ids(search(world, ALICE, "martians", filter={"rooms": [stranger.room_id]})) == []
    without = {"rooms": [new.room_id], "not_rooms": [oldest.room_id]}
    assert ids(search(world, ALICE, "martians", filter=without)) == [said[2], said[1]]

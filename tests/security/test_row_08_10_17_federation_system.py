"""Rows 8, 10 and 17 with a running server: what a hostile member of a room sends, and what it gets to see."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from matrixlib.events import Event, parse_event
from tests.support.evil_peer import Asked
from tests.support.federation import until
from tests.support.visited_server import VisitedServer, visited_server
from tests.support.visitor import V1, Visitor, segment


@pytest.fixture
async def world(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[VisitedServer]:
    async with visited_server(tmp_path, session) as made:
        yield made


def parsed(visitor: Visitor, pdu: dict[str, Any]) -> Event:
    return parse_event(pdu, visitor.version)


async def is_shown(world: VisitedServer, event: Event) -> bool:
    """Whether a client sees the event."""
    shown = [item["event_id"] for item in await world.alice.all_messages(event.room_id)]
    return event.event_id in shown


# -- row 8 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2", "6", "10", "12"])
async def test_a_rejected_event_is_told_as_state_and_stays_out(world: VisitedServer, version: str) -> None:
    visitor = await world.visited_room(version)
    grab = parsed(
        visitor, visitor.event("m.room.power_levels", {"users": {visitor.user_id: 100}}, state_key="")
    )
    # First it is refused as an event of its own.
    (result,) = (await visitor.send([grab.pdu])).values()
    assert result["error"]
    honest = [event for key, event in visitor.state.items() if key != grab.key]
    gap = parsed(visitor, visitor.event("m.room.message", {"body": "never sent"}))
    after = parsed(
        visitor,
        visitor.event(
            "m.room.message",
            {"body": "after the gap"},
            prev_events=[visitor.reference(gap)],
            depth=gap.depth + 1,
        ),
    )
    told: list[str] = []

    def state_ids(_: Asked) -> Any:
        told.append("state_ids")
        state = [event.event_id for event in honest] + [grab.event_id]
        return {"pdu_ids": state, "auth_chain_ids": [event.event_id for event in visitor.state.values()]}

    visitor.peer.answer("get_missing_events", lambda _: {"events": []})
    visitor.peer.answer("state_ids", state_ids)
    assert await visitor.send([after.pdu]) == {after.event_id: {}}
    await until(lambda: is_shown(world, after), "the event after the gap is judged by the told state")
    assert told
    assert grab.event_id not in await world.state_ids(visitor.room_id)
    # As a prev event it is part of the graph and changes nothing; as an auth event it spoils what stands on it.
    on_it = parsed(visitor, visitor.event("m.room.message", {}, prev_events=[visitor.reference(grab)]))
    assert await visitor.send([on_it.pdu]) == {on_it.event_id: {}}
    replaced = visitor.reference(visitor.state[grab.key])
    auth = [visitor.reference(grab) if item == replaced else item for item in after.pdu["auth_events"]]
    topic = visitor.event("m.room.topic", {"topic": "mine"}, state_key="", auth_events=auth)
    (result,) = (await visitor.send([topic])).values()
    assert result["error"]
    state = await world.state_ids(visitor.room_id)
    assert not state & {grab.event_id, parsed(visitor, topic).event_id}
    await world.goes_on(visitor)


# -- row 10 --------------------------------------------------------------------------------------------------

DEEP = 10_000


@pytest.mark.parametrize("shape", ["deep", "wide"])
async def test_an_auth_chain_of_10_000_events(world: VisitedServer, shape: str) -> None:
    """Told in answer to our question: taken or left, and the room goes on meanwhile and afterwards."""
    visitor = await world.visited_room()
    base = [visitor.state["m.room.create", ""].event_id, visitor.state["m.room.power_levels", ""].event_id]
    member = visitor.state["m.room.member", visitor.user_id]
    chain: list[Event] = [member]
    for number in range(DEEP):
        last = chain[-1] if shape == "deep" else member
        content = {"membership": "join", "displayname": str(number)}
        pdu = visitor.event(
            "m.room.member",
            content,
            state_key=visitor.user_id,
            auth_events=[*base, last.event_id],
            depth=visitor.depth + 1,
        )
        chain.append(parsed(visitor, pdu))
    last_auth = chain[-1] if shape == "deep" else chain[1]
    bomb = parsed(visitor, visitor.event("m.room.message", {}, auth_events=[*base, last_auth.event_id]))
    everything = [event.pdu for event in [*visitor.state.values(), *chain[1:]]]
    asked: list[Asked] = []

    def event_auth(request: Asked) -> Any:
        asked.append(request)
        return {"auth_chain": everything}

    visitor.peer.answer("event_auth", event_auth)
    visitor.peer.answer("get_missing_events", lambda _: {"events": []})
    assert await visitor.send([bomb.pdu]) == {bomb.event_id: {}}

    async def was_asked() -> bool:
        return bool(asked)

    await until(was_asked, "the chain is asked for")
    await world.goes_on(visitor)
    await until(lambda: is_shown(world, bomb), "the event is judged by its auth chain", timeout_s=60)
    assert len(asked) <= 2, "once, and not event by event"
    assert len(visitor.peer.asked("event")) == 0
    await world.goes_on(visitor)


@pytest.mark.parametrize(
    "changes",
    [
        {"prev_events": [f"${number:043d}" for number in range(21)]},
        {"prev_events": [f"${number:043d}" for number in range(100_000)]},
        {"auth_events": [f"${number:043d}" for number in range(11)]},
        {"auth_events": [f"${number:043d}" for number in range(50_000)]},
        {"prev_events": []},
        {"prev_events": ["$self"], "auth_events": []},
    ],
    ids=["21 prev", "100,000 prev", "11 auth", "50,000 auth", "no prev", "no auth"],
)
async def test_more_references_than_an_event_may_have(world: VisitedServer, changes: Any) -> None:
    visitor = await world.visited_room()
    if changes["prev_events" if "prev_events" in changes else "auth_events"] == ["$self"]:
        changes = {**changes, "prev_events": visitor.prev_events}
    bad = visitor.event("m.room.message", {"body": "bad"}, **changes)
    results = await visitor.send([bad])
    assert all(result["error"] for result in results.values())
    assert visitor.peer.asked("get_missing_events") == []
    assert visitor.peer.asked("event_auth") == []
    await world.goes_on(visitor)


async def test_events_whose_past_nobody_gives_are_given_up_one_by_one(world: VisitedServer) -> None:
    """500 events upon events that are not there: kept aside, and what is right is judged at once."""
    visitor = await world.visited_room()
    visitor.peer.answer("get_missing_events", lambda _: {"events": []})
    visitor.peer.answer("state_ids", lambda _: {"pdu_ids": [], "auth_chain_ids": []})
    for start in range(0, 500, 50):
        bad = [
            visitor.event("m.room.message", {"n": n}, prev_events=[f"${n:043d}"], depth=5)
            for n in range(start, start + 50)
        ]
        results = await visitor.send(bad)
        assert all(result == {} for result in results.values()), "taken, and waiting"
        await world.goes_on(visitor)


async def test_500_forks_become_few_heads(world: VisitedServer) -> None:
    visitor = await world.visited_room()
    for start in range(0, 500, 50):
        forks = [visitor.event("org.example.fork", {"n": n}) for n in range(start, start + 50)]
        results = await visitor.send(forks)
        assert all(result == {} for result in results.values())
    sent = await world.alice.send(visitor.room_id, "after the forks")
    status, body = await visitor.ask("GET", f"{V1}/event/{segment(sent)}")
    assert status == 200
    assert len(body["pdus"][0]["prev_events"]) <= 20
    await world.goes_on(visitor)


# -- row 17 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("visibility", ["joined", "invited", "shared", "world_readable"])
async def test_the_history_visibility_holds_for_each_event(world: VisitedServer, visibility: str) -> None:
    alice = world.alice
    room_id = await alice.create_room(
        preset="public_chat",
        room_version="10",
        initial_state=[
            {
                "type": "m.room.history_visibility",
                "state_key": "",
                "content": {"history_visibility": visibility},
            }
        ],
    )
    before = await alice.send(room_id, "before they came")
    visitor = Visitor(world.peer, world.server_name, room_id)
    await visitor.join()
    after = await alice.send(room_id, "after they came")
    hidden = visibility in ("joined", "invited")
    earliest, latest = [visitor.state["m.room.create", ""].event_id], [after]
    questions: list[tuple[str, str, Any, Callable[[Any], list[Any]]]] = [
        ("GET", f"/event/{segment(before)}", None, lambda body: body["pdus"]),
        ("GET", f"/backfill/{room_id}?limit=100&v={segment(after)}", None, lambda body: body["pdus"]),
        (
            "POST",
            f"/get_missing_events/{room_id}",
            {"earliest_events": earliest, "latest_events": latest, "limit": 20},
            lambda body: body["events"],
        ),
    ]
    for method, path, content, pdus_of in questions:
        status, body = await visitor.ask(method, V1 + path, content)
        assert status == 200, (path, body)
        found = {parsed(visitor, pdu).event_id: pdu for pdu in pdus_of(body)}
        assert found[before]["content"].get("body") == (None if hidden else "before they came"), path
        if after in found:
            assert found[after]["content"]["body"] == "after they came", path
    created = next(iter(visitor.state.values())).origin_server_ts
    path = f"{V1}/timestamp_to_event/{room_id}?dir=b&ts={2**50}"
    status, body = await visitor.ask("GET", path)
    assert (status, body.get("event_id")) == (200, after), body
    assert created <= body["origin_server_ts"]


async def test_events_of_rooms_that_one_is_not_in_are_out_of_reach(world: VisitedServer) -> None:
    visitor = await world.visited_room()
    alice = world.alice
    secret = await alice.create_room(preset="private_chat", room_version="10")
    sent = segment(await alice.send(secret, "a secret"))
    mine = visitor.room_id
    for room_id in (secret, mine):
        for method, path, content in (
            ("GET", f"/state/{room_id}?event_id={sent}", None),
            ("GET", f"/state_ids/{room_id}?event_id={sent}", None),
            ("GET", f"/event_auth/{room_id}/{sent}", None),
            ("GET", f"/event/{sent}", None),
            ("GET", f"/backfill/{room_id}?v={sent}&limit=10", None),
            ("GET", f"/timestamp_to_event/{secret}?ts=1&dir=f", None),
            ("GET", f"/hierarchy/{secret}", None),
            ("GET", f"/make_join/{secret}/{visitor.user_id}?ver=10", None),
            ("GET", f"/make_leave/{secret}/{visitor.user_id}", None),
            (
                "POST",
                f"/get_missing_events/{room_id}",
                {"earliest_events": [], "latest_events": [sent], "limit": 10},
            ),
        ):
            status, body = await visitor.ask(method, V1 + path, content)
            if status == 200:
                assert room_id == mine
                assert body.get("pdus", body.get("events")) == [], path
            else:
                assert status in (403, 404), (path, body)
                assert body["errcode"] in ("M_FORBIDDEN", "M_NOT_FOUND"), path
            assert "a secret" not in str(body)

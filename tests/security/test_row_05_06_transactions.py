"""Rows 5 and 6: a bad PDU is dropped alone, and no way in skips the checks of signature and hash."""

from collections.abc import AsyncIterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import orjson
import pytest

from federation.receipt.pdu_checks import Dropped
from matrixlib.events import Event, parse_event
from matrixlib.hashes import hashed_event_id
from matrixlib.signing import sign_event
from tests.support.evil_peer import EvilPeer
from tests.support.federation_alone import FederationAlone
from tests.support.rooms import Room, key_of
from tests.support.tls_ca import TestCa


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[tuple[EvilPeer, FederationAlone, Room]]:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        room = Room("10", creator=us.user("owner")).with_members(f"@eve:{peer.server_name}")
        us.rooms.of[room.create.room_id] = room
        yield peer, us, room


def message(room: Room, peer: EvilPeer, number: int, prev: list[str], state_key: str | None = None) -> Event:
    """An event of the peer that the room does not have yet."""
    heads, order = list(room.heads), list(room.order)
    kind = "m.room.message" if state_key is None else "org.example.note"
    eve = f"@eve:{peer.server_name}"
    event = room.send(eve, kind, {"body": f"{number}"}, state_key=state_key, prev=prev)
    del room.events[event.event_id]
    room.heads, room.order = heads, order
    return event


async def send(
    peer: EvilPeer, us: FederationAlone, pdus: list[Any], txn: str = "1", edus: list[Any] | None = None
) -> tuple[int, Any]:
    body = {"origin": peer.server_name, "origin_server_ts": 1, "pdus": pdus, "edus": edus or []}
    return await peer.ask("PUT", us.base_url, f"/_matrix/federation/v1/send/{txn}", us.server_name, body)


def forged(event: Event) -> dict[str, Any]:
    pdu = deepcopy(event.pdu)
    server = next(iter(pdu["signatures"]))
    pdu["signatures"][server] = dict.fromkeys(pdu["signatures"][server], "A" * 86)
    return pdu


BAD: dict[str, Any] = {
    "depth beyond 53 bits": {"depth": 2**53},
    "depth beyond 63 bits": {"depth": 2**63},
    "a float depth": {"depth": 1.5},
    "a depth in letters": {"depth": "1"},
    "a negative depth": {"depth": -(2**53)},
    "content that is no object": {"content": []},
    "a sender that is no user": {"sender": 7},
    "21 prev events": {"prev_events": [f"${n:043d}" for n in range(21)]},
    "signatures that are no object": {"signatures": "x"},
    "hashes that are no object": {"hashes": None},
    "too large": {"content": {"body": "x" * 70_000}},
    "a float in the content": {"content": {"n": 1.1}},
}


@pytest.mark.parametrize("name", list(BAD))
async def test_one_bad_pdu_among_49_good_ones(
    world: tuple[EvilPeer, FederationAlone, Room], name: str
) -> None:
    peer, us, room = world
    good = [message(room, peer, number, room.heads) for number in range(49)]
    bad = {**message(room, peer, 50, room.heads).pdu, **BAD[name]}
    status, answer = await send(
        peer, us, [*(event.pdu for event in good[:20]), bad, *(e.pdu for e in good[20:])]
    )
    assert status == 200, answer
    assert all(answer["pdus"].pop(event.event_id) == {} for event in good)
    (result,) = answer["pdus"].values()
    assert result["error"]
    assert all(event.event_id in room.events for event in good)
    assert len(us.input.inputs) == 49


async def test_pdus_that_are_not_even_objects(world: tuple[EvilPeer, FederationAlone, Room]) -> None:
    peer, us, room = world
    good = message(room, peer, 1, room.heads)
    status, answer = await send(peer, us, [None, 7, "x", [], {}, {"room_id": 5}, good.pdu])
    assert (status, answer) == (200, {"pdus": {good.event_id: {}}})


async def test_a_repeated_transaction_gets_the_same_answer(
    world: tuple[EvilPeer, FederationAlone, Room],
) -> None:
    peer, us, room = world
    event = message(room, peer, 1, room.heads)
    first = await send(peer, us, [event.pdu], "again")
    second = await send(peer, us, [], "again")
    assert first == second == (200, {"pdus": {event.event_id: {}}})
    assert len(us.input.inputs) == 1


async def test_what_was_not_judged_stays_and_is_judged_later(
    world: tuple[EvilPeer, FederationAlone, Room],
) -> None:
    peer, us, room = world
    event = message(room, peer, 1, room.heads)
    us.input.silent = True
    assert await send(peer, us, [event.pdu]) == (200, {"pdus": {event.event_id: {}}})
    assert event.event_id not in room.events
    us.input.silent = False
    assert await us.parts.staging.judge_left(2**60) == 1
    assert event.event_id in room.events
    assert await us.parts.staging.judge_left(2**60) == 0


async def test_too_many_pdus_or_edus_are_refused_whole(
    world: tuple[EvilPeer, FederationAlone, Room],
) -> None:
    peer, us, _ = world
    assert (await send(peer, us, [{}] * 51))[0] == 400
    assert (await send(peer, us, [], edus=[{}] * 101))[0] == 400


async def test_a_forged_signature_is_refused_and_altered_content_is_redacted(
    world: tuple[EvilPeer, FederationAlone, Room],
) -> None:
    peer, us, room = world
    event = message(room, peer, 1, room.heads)
    status, answer = await send(peer, us, [forged(event)], "a")
    assert status == 200
    assert "signature" in answer["pdus"][event.event_id]["error"]
    assert event.event_id not in room.events
    altered = {**event.pdu, "content": {"body": "altered"}}
    assert await send(peer, us, [altered], "b") == (200, {"pdus": {event.event_id: {}}})
    assert room.events[event.event_id].content == {}


async def test_an_event_signed_by_another_server_than_its_senders_is_dropped(
    world: tuple[EvilPeer, FederationAlone, Room],
) -> None:
    peer, us, room = world
    event = message(room, peer, 1, room.heads)
    stolen = {**event.pdu, "sender": us.user("owner"), "signatures": {}}
    stolen = sign_event(stolen, room.version, peer.server_name, key_of(peer.server_name))
    status, answer = await send(peer, us, [stolen])
    assert status == 200
    assert "error" in answer["pdus"][hashed_event_id(stolen, room.version)]
    assert us.input.inputs == []


async def test_the_acl_and_the_room_decide_for_each_pdu(
    world: tuple[EvilPeer, FederationAlone, Room],
) -> None:
    peer, us, room = world
    event = message(room, peer, 1, room.heads)
    room.send(room.creator, "m.room.server_acl", {"allow": ["*"], "deny": ["localhost"]}, state_key="")
    elsewhere = Room("10", creator=f"@eve:{peer.server_name}")
    unknown = elsewhere.send(elsewhere.creator, "m.room.message", {})
    status, answer = await send(peer, us, [event.pdu, unknown.pdu])
    assert status == 200
    assert "banned" in answer["pdus"][event.event_id]["error"]
    assert us.input.inputs == []


# -- row 6: every other way in goes through the same checker ------------------------------------------------


@pytest.mark.parametrize(
    "way",
    ["get_missing_events", "backfill", "event_auth", "event", "state", "send_join state", "send_join chain"],
)
async def test_answers_to_our_questions_are_checked_too(
    world: tuple[EvilPeer, FederationAlone, Room], way: str
) -> None:
    peer, us, room = world
    view = await us.rooms.view(room.create.room_id)
    assert view is not None
    in_state = f"@eve:{peer.server_name}" if way == "send_join state" else None
    event = message(room, peer, 1, room.heads, in_state)
    altered = {**event.pdu, "content": {"body": "altered"}}
    other = Room("10", creator=f"@eve:{peer.server_name}")
    answer = {
        key: [forged(event), altered, other.create.pdu, {"type": 7}]
        for key in ("events", "pdus", "auth_chain")
    }
    fetcher, history = us.parts.fetcher, us.parts.history
    peer.answer(way, lambda _: answer)
    found: list[Event]
    if way.startswith("send_join"):
        found = await joined_with(us, room, peer, answer["pdus"], in_chain=way.endswith("chain"))
    elif way == "get_missing_events":
        found = await fetcher._missing_events(view, room.create, peer.server_name)
    elif way == "backfill":
        found = await history._ask(view, peer.server_name, [room.create.event_id], 10)
    elif way == "event_auth":
        await fetcher._fetch_auth(view, event, peer.server_name)
        found = list(us.rooms.outliers.values())
    elif way == "event":
        found = await fetcher._fetch_events(view, event, [event.event_id], peer.server_name)
    else:
        wanted = [event.event_id, *(f"${number:043d}" for number in range(200))]
        found = (await fetcher._fetch_events(view, event, wanted, peer.server_name))[:1]
    assert [item.event_id for item in found] == [event.event_id]
    assert found[0].content == {}, "a wrong hash means the redacted form"


async def joined_with(
    us: FederationAlone, room: Room, peer: EvilPeer, extra: list[Any], *, in_chain: bool
) -> list[Event]:
    """Those of some PDUs that a join's answer brings in, besides the room's state and its auth chain."""
    state = [room.events[event_id] for event_id in room.state_before(room.heads).values()]
    chain = [room.events[event_id] for event_id in room.order if event_id in room.events]
    owner = us.user("joiner")
    levels = [event for event in state if event.type in ("m.room.create", "m.room.power_levels")]
    rules = [event for event in state if event.type == "m.room.join_rules"]
    template = {
        "type": "m.room.member",
        "room_id": room.create.room_id,
        "sender": owner,
        "state_key": owner,
        "content": {"membership": "join"},
        "prev_events": list(room.heads),
        "auth_events": [event.event_id for event in [*levels, *rules]],
        "depth": 9,
    }
    del us.rooms.of[room.create.room_id]
    peer.answer("make_join", lambda _: {"room_version": "10", "event": template})
    told = {"state": [event.pdu for event in state], "auth_chain": [event.pdu for event in chain]}
    told["auth_chain" if in_chain else "state"] += extra
    peer.answer("send_join", lambda asked: {**told, "event": asked.content})
    await us.parts.joins.join(owner, room.create.room_id, [peer.server_name], {})
    imported = [item for part in us.rooms.imported for item in (*part.state, *part.auth_chain)]
    known = {event.event_id for event in (*state, *chain)}
    return [parse_event(i.pdu_json, room.version) for i in imported if i.event_id not in known]


async def test_what_a_knock_is_answered_is_checked_where_the_room_version_demands_it(
    world: tuple[EvilPeer, FederationAlone, Room],
) -> None:
    peer, us, _ = world
    boss = f"@eve:{peer.server_name}"
    room = Room("12", creator=boss)
    room.send(boss, "m.room.join_rules", {"join_rule": "knock"}, state_key="")
    name = room.send(boss, "m.room.name", {"name": "x"}, state_key="")
    topic = room.send(boss, "m.room.topic", {"topic": "x"}, state_key="")
    other = Room("12", creator=boss, content={"m.federate": True})
    user_id = us.user("knocker")
    template = {
        "type": "m.room.member",
        "room_id": room.create.room_id,
        "sender": user_id,
        "state_key": user_id,
        "content": {"membership": "knock"},
        "prev_events": list(room.heads),
        "auth_events": [event.event_id for event in room.state.values() if event.type == "m.room.join_rules"],
        "depth": 9,
    }
    altered = {**topic.pdu, "content": {"topic": "altered"}}
    stripped = {"type": "m.room.avatar", "state_key": "", "sender": boss, "content": {"url": "mxc://x/y"}}
    state = [room.create.pdu, forged(name), altered, other.create.pdu, stripped, 7]
    peer.answer("make_knock", lambda _: {"room_version": "12", "event": template})
    peer.answer("send_knock", lambda _: {"knock_room_state": state})
    await us.parts.memberships.knock(user_id, room.create.room_id, [peer.server_name], {})
    (entry,) = us.input.inputs
    told = [orjson.loads(item) for item in entry.submit_events.stripped_state_json]
    assert [(item["type"], item["content"]) for item in told] == [
        ("m.room.create", room.create.content),
        ("m.room.topic", {}),
    ]


async def test_the_checker_itself(world: tuple[EvilPeer, FederationAlone, Room]) -> None:
    peer, us, room = world
    event = message(room, peer, 1, room.heads)
    checker = us.parts.checker
    checked = await checker.check([event.pdu, forged(event)], room.version, room_id=event.room_id)
    assert isinstance(checked[0], Event)
    assert isinstance(checked[1], Dropped)
    assert isinstance(await checker.check_one(event.pdu, room.version, room_id="!other:x"), Dropped)

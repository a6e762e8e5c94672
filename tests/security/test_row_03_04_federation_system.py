"""Rows 3 and 4 with a running server: what another server must not send harms neither the room nor what goes out.

A user of the scripted server is in a room of ours. After each attack the room goes on in both directions, and
everything that the room holds can still be handed out.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from matrixlib.canonical_json import parse_json
from matrixlib.events import EventFormatError, parse_event
from matrixlib.hashes import hashed_event_id
from matrixlib.room_versions import ROOM_VERSIONS
from tests.support.visited_server import VisitedServer, visited_server
from tests.support.visitor import V1


@pytest.fixture
async def world(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[VisitedServer]:
    async with visited_server(tmp_path, session) as made:
        yield made


# -- row 3 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1", "10", "12"])
async def test_what_names_another_room_or_event_than_its_path_leaves_no_trace(
    world: VisitedServer, version: str
) -> None:
    visitor = await world.visited_room(version)
    other = await world.alice.create_room(preset="public_chat", room_version=version)
    memberships = ["join", "leave", *(["knock"] if visitor.version.knocking else [])]
    for membership in memberships:
        mallory = f"@mallory-{membership}:{world.peer.server_name}"
        pdu = visitor.event("m.room.member", {"membership": membership}, state_key=mallory, sender=mallory)
        event_id = parse_event(pdu, visitor.version).event_id.replace("/", "%2F")
        forms = ("v1",) if membership == "knock" else ("v1", "v2")
        for form in forms:
            path = f"/_matrix/federation/{form}/send_{membership}"
            for room_id, named in ((other, event_id), (visitor.room_id, "$" + "x" * 43)):
                status, body = await visitor.ask("PUT", f"{path}/{room_id}/{named}", pdu)
                assert (status, body["errcode"]) == (400, "M_INVALID_PARAM"), (path, body)
        for room_id in (other, visitor.room_id):
            members = (await world.alice.get(f"/rooms/{room_id}/members"))["chunk"]
            assert mallory not in {member["state_key"] for member in members}
    invite = {
        "type": "m.room.member",
        "room_id": other,
        "sender": world.alice.user_id,
        "state_key": visitor.user_id,
        "content": {"membership": "invite", "third_party_invite": {"signed": {}}},
    }
    path = f"{V1}/exchange_third_party_invite/{visitor.room_id}"
    status, body = await visitor.ask("PUT", path, invite)
    assert (status, body["errcode"]) == (400, "M_INVALID_PARAM"), body
    await world.goes_on(visitor)


# -- row 4 ---------------------------------------------------------------------------------------------------

NUMBERS: dict[str, Any] = {
    "2^53": 2**53,
    "-2^53": -(2**53),
    "2^63": 2**63,
    "2^64": 2**64,
    "-2^63": -(2**63),
    "a float": 1.5,
    "a whole float": 3.0,
    "minus zero as a float": -0.0,
    "the largest float": 1.7976931348623157e308,
    "a string": "5",
    "true": True,
    "null": None,
}
ANYWHERE_IN_CONTENT = ("a string", "true", "null")


@pytest.mark.parametrize("version", ["1", "5", "6", "10", "12"])
async def test_numbers_that_are_none_of_canonical_json(world: VisitedServer, version: str) -> None:
    """In the depth, in the content and in `unsigned`: taken or dropped, alone, and the room goes on."""
    visitor = await world.visited_room(version)
    strict = ROOM_VERSIONS[version].strict_canonical_json
    for name, number in NUMBERS.items():
        for place in ("depth", "content", "origin_server_ts", "unsigned"):
            good = visitor.messages(1)[0]
            content = {"number": number} if place == "content" else {}
            changes = {place: number} if place in ("depth", "origin_server_ts") else {}
            bad = visitor.event("m.room.message", content, **changes)
            if place == "unsigned":
                bad["unsigned"] = {"age": number, "prev_content": {"number": number}}
            results = await visitor.send([bad, good.pdu])
            assert results[good.event_id] == {}, (name, place)
            try:
                event_id = parse_event(bad, visitor.version).event_id
            except EventFormatError:
                assert place != "unsigned"
                # Dropped alone; an error tells so where the event has an id that can be known.
                results.pop(good.event_id)
                assert all(results.values()), (name, place, results)
                continue
            allowed = not strict or place == "unsigned" or name in ANYWHERE_IN_CONTENT
            assert allowed, (name, place)
            if place == "origin_server_ts":
                # So late that no key is valid any more, in the room versions that look at that.
                assert results[event_id] == {} or "known key" in results[event_id]["error"]
                continue
            assert results[event_id] == {}, (name, place, results)
            status, body = await visitor.ask("GET", f"{V1}/event/{event_id.replace('/', '%2F')}")
            assert status == 200
            (told,) = body["pdus"]
            assert parse_event(told, visitor.version).event_id == event_id
    await world.goes_on(visitor)
    await world.alice.sync()


def nested(depth: int, opening: bytes, closing: bytes) -> bytes:
    return opening * depth + b"1" + closing * depth


# What stands for the content of an event: JSON that is none, or that means something else than it says.
RAW: dict[str, bytes] = {
    "10,000 arrays": nested(10_000, b"[", b"]"),
    "10,000 objects": nested(10_000, b'{"a":', b"}"),
    "100,000 arrays": nested(100_000, b"[", b"]"),
    "arrays that never end": b"[" * 10_000,
    "a lone surrogate": b'{"a":"\\ud800"}',
    "a lone surrogate in a key": b'{"\\udfff":1}',
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":-Infinity}',
    "no UTF-8": b'{"a":"\xff"}',
    "an overlong form": b'{"a":"\xc0\x80"}',
}


async def test_what_cannot_be_parsed_is_refused_whole_and_harms_nothing(world: VisitedServer) -> None:
    """A body that is no JSON has no signature that could be right: there is nothing to tell apart in it."""
    visitor = await world.visited_room()
    event = visitor.messages(1)[0]
    body = visitor.transaction([event.pdu])
    for number, (name, raw) in enumerate(RAW.items()):
        marked = visitor.transaction([event.pdu, "HERE"])
        status, answer = await visitor.ask("PUT", f"{V1}/send/raw{number}", marked, raw=encoded(marked, raw))
        assert (status, answer["errcode"]) in ((400, "M_NOT_JSON"), (400, "M_BAD_JSON")), (name, answer)
    status, answer = await visitor.ask("PUT", f"{V1}/send/good", body)
    assert (status, answer) == (200, {"pdus": {event.event_id: {}}})
    await world.goes_on(visitor)


def encoded(transaction: dict[str, Any], raw: bytes) -> bytes:
    """A transaction's JSON with these bytes for the word `HERE`."""
    return orjson.dumps(transaction).replace(b'"HERE"', raw)


async def test_keys_that_come_twice_mean_what_was_hashed(world: VisitedServer) -> None:
    """The last one counts, everywhere: what is checked is what is stored and told."""
    visitor = await world.visited_room()
    event = visitor.messages(1)[0]
    transaction = visitor.transaction([event.pdu])
    twice = encoded(visitor.transaction(["HERE"]), b'{"depth":-5,"content":{"body":"evil"},"type":7,')
    assert twice.count(b",]") == 1
    inner = encoded({"x": event.pdu}, b"")[5:-1]
    twice = twice.replace(b",]", b"," + inner[1:] + b"]")
    assert parse_json(twice)["pdus"] == [event.pdu]
    transaction["origin_server_ts"] = parse_json(twice)["origin_server_ts"]
    status, answer = await visitor.ask("PUT", f"{V1}/send/twice", transaction, raw=twice)
    assert (status, answer) == (200, {"pdus": {event.event_id: {}}})
    shown = await world.alice.get(f"/rooms/{visitor.room_id}/event/{event.event_id}")
    assert shown["content"] == event.content
    status, body = await visitor.ask("GET", f"{V1}/event/{event.event_id}")
    assert hashed_event_id(body["pdus"][0], visitor.version) == event.event_id
    await world.goes_on(visitor)

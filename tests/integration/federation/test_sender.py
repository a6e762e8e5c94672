"""Sending to a scripted server, over TLS and with a database: order, limits, retries, catching up."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from arbor.log.v1 import output_pb2
from federation.sender.consumer import Heard, LocalReceipt
from federation.sender.queue import MAX_EDUS, MAX_PDUS
from federation.storage import outgoing
from federation.storage.outgoing import OutgoingEvent
from tests.support.evil_peer import Answer, Asked, EvilPeer
from tests.support.federation import until
from tests.support.federation_alone import FederationAlone
from tests.support.tls_ca import TestCa

ROOM = "!r:x.example"
World = tuple[EvilPeer, FederationAlone]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """The peer is in a room from position 1 on."""
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        await us.database.write(outgoing.note_joined, ROOM, peer.server_name, 1)
        peer.answer("send", lambda _: {"pdus": {}})
        yield peer, us


def event(position: int, room_id: str = ROOM, size: int = 1) -> OutgoingEvent:
    pdu = orjson.dumps({"sender": "@a:b.example", "n": position, "body": "x" * size})
    return OutgoingEvent(position, room_id, f"${position}", pdu)


async def happen(us: FederationAlone, *events: OutgoingEvent) -> None:
    """Store events as the consumer does, and have them given out."""
    await us.database.write(outgoing.store_events, events, 1)
    us.parts.sender.hear(Heard(through=events[-1].position, events=list(events)))


def numbers(request: Asked) -> list[int]:
    return [pdu["n"] for pdu in request.content["pdus"]]


async def all_sent(peer: EvilPeer, expected: list[int]) -> list[Asked]:
    async def look() -> list[Asked] | None:
        sent = peer.asked("send")
        return sent if [n for request in sent for n in numbers(request)] == expected else None

    return await until(look, f"the peer has {len(expected)} events")


def running(us: FederationAlone) -> Any:
    return us.running(us.parts.sender.run)


async def test_events_arrive_in_order_in_bounded_transactions(world: World) -> None:
    peer, us = world
    us.parts.sender.start_at(1)
    async with running(us):
        for position in range(10, 130):
            await happen(us, event(position, size=1000))
        sent = await all_sent(peer, list(range(10, 130)))
    assert all(len(request.content["pdus"]) <= MAX_PDUS for request in sent)
    assert len({request.path for request in sent}) == len(sent), "each transaction has an id of its own"
    assert us.destinations.get(peer.server_name).sent_position == 129


async def test_one_transaction_at_a_time_and_the_same_until_it_is_taken(world: World) -> None:
    peer, us = world
    us.parts.sender.start_at(1)
    in_flight = 0
    most = 0
    refusals = 2

    async def take(request: Asked) -> Any:
        nonlocal in_flight, most, refusals
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.02)
        in_flight -= 1
        if refusals:
            refusals -= 1
            return Answer(500)
        return {"pdus": {}}

    peer.answer("send", take)
    async with running(us):
        await happen(us, event(10))
        for position in range(11, 20):
            await happen(us, event(position))

        async def failing() -> bool:
            # Its backoff ends when it speaks to us.
            us.parts.authenticator._on_contact(peer.server_name)
            return refusals == 0

        await until(failing, "two refusals")
        us.parts.authenticator._on_contact(peer.server_name)

        async def taken() -> list[Asked] | None:
            us.parts.authenticator._on_contact(peer.server_name)
            sent = peer.asked("send")
            return sent if numbers(sent[-1])[-1] == 19 else None

        sent = await until(taken, "all events")
    assert most == 1
    assert sent[0].path == sent[1].path == sent[2].path
    assert sent[0].content["pdus"] == sent[1].content["pdus"] == sent[2].content["pdus"]
    assert [n for request in sent[2:] for n in numbers(request)] == list(range(10, 20))


async def test_who_was_away_for_long_is_told_the_newest_of_each_room(world: World) -> None:
    peer, us = world
    other = "!s:x.example"
    await us.database.write(outgoing.note_joined, other, peer.server_name, 1)
    many = [event(position, ROOM if position % 2 else other) for position in range(10, 300)]
    await us.database.write(outgoing.store_events, many, 1)
    us.parts.sender.start_at(299)
    async with running(us):
        await all_sent(peer, [298, 299])
        await happen(us, event(300))
        await all_sent(peer, [298, 299, 300])


async def test_a_short_absence_is_told_whole_after_a_restart(world: World) -> None:
    peer, us = world
    await us.database.write(outgoing.store_events, [event(position) for position in range(10, 20)], 1)
    us.parts.sender.start_at(19)
    async with running(us):
        await all_sent(peer, list(range(10, 20)))


async def test_nothing_is_lost_between_catching_up_and_following(world: World) -> None:
    peer, us = world
    await us.database.write(outgoing.store_events, [event(position) for position in range(10, 40)], 1)
    us.parts.sender.start_at(39)
    async with running(us):
        for position in range(40, 80):
            await happen(us, event(position))
        await all_sent(peer, list(range(10, 80)))


async def test_durable_edus_are_kept_until_they_are_taken(world: World) -> None:
    peer, us = world
    us.parts.sender.start_at(1)
    name = peer.server_name
    for number in range(MAX_EDUS + 30):
        edu = orjson.dumps({"edu_type": "m.direct_to_device", "content": {"n": number}})
        await us.database.write(outgoing.store_edu, name, f"s{number}", edu, 1)
    peer.answer("send", lambda _: Answer(503))
    async with running(us):
        us.parts.sender.hear(Heard(edu_servers={name}))

        async def tried() -> bool:
            return bool(peer.asked("send"))

        await until(tried, "a first try")
        assert await us.database.read(outgoing.count_edus, name) == MAX_EDUS + 30
        peer.answer("send", lambda _: {"pdus": {}})

        async def taken() -> bool:
            us.destinations.reset(name)
            return await us.database.read(outgoing.count_edus, name) == 0

        await until(taken, "all are taken")
    got = [edu["content"]["n"] for request in peer.asked("send")[1:] for edu in request.content["edus"]]
    assert sorted(set(got)) == list(range(MAX_EDUS + 30))
    assert list(dict.fromkeys(got)) == sorted(set(got)), "in order"
    assert all(len(request.content["edus"]) <= MAX_EDUS for request in peer.asked("send"))


async def test_a_receipt_goes_to_the_servers_of_the_room(world: World) -> None:
    peer, us = world
    us.parts.sender.start_at(1)
    receipt = output_pb2.Receipt(
        user_id=us.user("alice"), receipt_type="m.read", event_id="$e", thread_id="main", timestamp_ms=5
    )
    async with running(us):
        us.parts.sender.hear(Heard(receipts=[LocalReceipt(ROOM, receipt)]))

        async def arrived() -> list[Asked] | None:
            return peer.asked("send") or None

        (request,) = await until(arrived, "the receipt")
    assert request.content["edus"] == [
        {
            "edu_type": "m.receipt",
            "content": {
                ROOM: {
                    "m.read": {
                        us.user("alice"): {"event_ids": ["$e"], "data": {"ts": 5, "thread_id": "main"}}
                    }
                }
            },
        }
    ]


async def test_status_says_what_waits_and_why(world: World) -> None:
    peer, us = world
    us.parts.sender.start_at(1)
    peer.answer("send", lambda _: Answer(502))
    async with running(us):
        await happen(us, event(10))

        async def failed() -> Any:
            answer = await us.parts.status.list()
            return next((d for d in answer.destinations if d.failures), None)

        destination = await until(failed, "the failure shows")
    assert destination.server_name == peer.server_name
    assert destination.pending_rooms == 1
    assert "502" in destination.last_error
    assert destination.next_try_ms > 0

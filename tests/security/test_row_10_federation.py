"""Row 10, by way of other servers: graphs that go in circles, and ids that stand for several events."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from federation.receipt.fetcher import NothingHelped
from federation.storage.fetching import Wanted
from matrixlib.events import Event, parse_event
from matrixlib.room_versions import ROOM_VERSIONS
from matrixlib.signing import sign_event
from tests.support.evil_peer import EvilPeer
from tests.support.federation_alone import FederationAlone
from tests.support.rooms import Room
from tests.support.tls_ca import TestCa

V1 = ROOM_VERSIONS["1"]
World = tuple[EvilPeer, FederationAlone, Room]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A room of version 1, whose events are called as their servers like."""
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        room = Room("1", creator=us.user("owner")).with_members(f"@eve:{peer.server_name}")
        us.rooms.of[room.create.room_id] = room
        yield peer, us, room


def event_of(world: World, name: str, prev: list[str], **changes: Any) -> Event:
    """An event of the peer's under an id of its choice; its previous events are not looked at."""
    peer, _, room = world
    heads, order = list(room.heads), list(room.order)
    model = room.send(f"@eve:{peer.server_name}", "m.room.message", {"body": name})
    del room.events[model.event_id]
    room.heads, room.order = heads, order
    pdu = {key: value for key, value in model.pdu.items() if key not in ("hashes", "signatures")}
    pdu |= {
        "event_id": f"${name}:{peer.server_name}",
        "prev_events": [[event_id, {"sha256": "x"}] for event_id in prev],
        **changes,
    }
    return parse_event(sign_event(pdu, V1, peer.server_name, peer.key), V1)


async def test_previous_events_in_a_circle_end_the_fetching(world: World) -> None:
    peer, us, room = world

    def called(name: str) -> str:
        return f"${name}:{peer.server_name}"

    circle = [event_of(world, name, [called(prev)]) for name, prev in (("a", "b"), ("b", "c"), ("c", "a"))]
    waiting = event_of(world, "last", [called("a")])
    us.rooms.outliers[waiting.event_id] = waiting
    us.rooms.waiting.add(waiting.event_id)
    peer.answer("get_missing_events", lambda _: {"events": [event.pdu for event in circle]})
    peer.answer("state_ids", lambda _: {"pdu_ids": [], "auth_chain_ids": []})
    wanted = Wanted(waiting.event_id, waiting.room_id, waiting.prev_event_ids, peer.server_name, 0)
    with pytest.raises(NothingHelped):
        await us.parts.fetcher.fetch(wanted)
    assert len(peer.requests) < 20
    assert not {event.event_id for event in circle} & set(room.events)


async def test_auth_events_in_a_circle_end_the_fetching(world: World) -> None:
    peer, us, room = world
    circle: list[Event] = []
    for name, other in (("a", "b"), ("b", "a")):
        auth = [[f"${other}:{peer.server_name}", {"sha256": "x"}]]
        circle.append(event_of(world, name, list(room.heads), auth_events=auth))
    auth = [[circle[0].event_id, {"sha256": "x"}]]
    waiting = event_of(world, "last", list(room.heads), auth_events=auth)
    us.rooms.outliers[waiting.event_id] = waiting
    us.rooms.waiting.add(waiting.event_id)
    peer.answer("event_auth", lambda _: {"auth_chain": [event.pdu for event in circle]})
    peer.answer("get_missing_events", lambda _: {"events": []})
    wanted = Wanted(waiting.event_id, waiting.room_id, tuple(waiting.auth_links), peer.server_name, 0)
    with pytest.raises(NothingHelped):
        await us.parts.fetcher.fetch(wanted)
    assert len(peer.requests) < 20
    assert not set(us.rooms.outliers) & {event.event_id for event in circle}


async def test_two_events_of_one_id_are_one(world: World) -> None:
    peer, us, room = world
    first = event_of(world, "same", list(room.heads))
    second = event_of(world, "same", list(room.heads), content={"body": "something else"})
    body = {"pdus": [first.pdu, second.pdu], "edus": []}
    path = "/_matrix/federation/v1/send/1"
    assert await peer.ask("PUT", us.base_url, path, us.server_name, body) == (
        200,
        {"pdus": {first.event_id: {}}},
    )
    assert room.events[first.event_id].content == {"body": "same"}

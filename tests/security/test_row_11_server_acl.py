"""Row 11: a server that a room's ACL keeps out gets nothing of the room, by any endpoint and any PDU."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from matrixlib.events import Event
from tests.support.evil_peer import EvilPeer
from tests.support.federation_alone import FederationAlone
from tests.support.federation_endpoints import ACL_PROTECTED, SERVED
from tests.support.rooms import Room
from tests.support.spec_endpoints import parse
from tests.support.tls_ca import TestCa

World = tuple[EvilPeer, FederationAlone, Room]

# Scoped to a room like these, protected here too although the specification does not say so.
ALSO = [
    ("GET", "/_matrix/federation/v1/event/{eventId}"),
    ("GET", "/_matrix/federation/v1/timestamp_to_event/{roomId}"),
    ("PUT", "/_matrix/federation/v1/exchange_third_party_invite/{roomId}"),
    ("PUT", "/_matrix/federation/v1/send_join/{roomId}/{eventId}"),
    ("PUT", "/_matrix/federation/v1/send_leave/{roomId}/{eventId}"),
]
# Hidden rather than refused: who may not see a space is told that there is none.
HIDDEN = {("GET", "/_matrix/federation/v1/hierarchy/{roomId}")}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        room = Room("10", creator=us.user("owner")).with_members(f"@eve:{peer.server_name}")
        us.rooms.of[room.create.room_id] = room
        yield peer, us, room


def shut_out(room: Room, *names: str) -> None:
    room.send(room.creator, "m.room.server_acl", {"allow": ["*"], "deny": list(names)}, state_key="")


def body_for(path: str, room: Room, event: Event, us: FederationAlone) -> Any:
    """A body that would be good, were it not for the ACL."""
    eve = event.sender
    if "/v2/invite/" in path:
        return {"event": event.pdu, "room_version": "10", "invite_room_state": [room.create.pdu]}
    if "/exchange_third_party_invite/" in path:
        signed = {"mxid": eve, "token": "abc", "signatures": {}}
        return {
            "type": "m.room.member",
            "room_id": room.create.room_id,
            "sender": room.creator,
            "state_key": eve,
            "content": {"membership": "invite", "third_party_invite": {"signed": signed}},
        }
    if "/get_missing_events/" in path:
        return {"earliest_events": [], "latest_events": [room.heads[0]]}
    return event.pdu


async def ask(world: World, method: str, template: str) -> tuple[int, Any]:
    peer, us, room = world
    eve = f"@eve:{peer.server_name}"
    event_id = room.heads[0]
    body = None
    if method != "GET":
        # The first form of an invite is for rooms of the first versions only.
        fork = Room("1" if "/v1/invite/" in template else "10", creator=us.user("owner")).with_members(eve)
        membership = next((m for m in ("invite", "knock", "leave") if m in template), "join")
        event = (
            fork.member(us.user("friend"), "invite", by=eve)
            if membership == "invite"
            else fork.member(eve, membership)
        )
        event_id = event.event_id
        body = body_for(template, room, event, us)
    path = template.format(roomId=room.create.room_id, eventId=event_id, userId=eve)
    if method == "GET":
        path += f"?event_id={event_id}&v={event_id}&limit=1&ver=10&ts=1&dir=f"
    return await peer.ask(method, us.base_url, path, us.server_name, body)


@pytest.mark.parametrize(("method", "path"), [*parse(ACL_PROTECTED), *ALSO])
@pytest.mark.parametrize("denied", ["localhost", "LOCALHOST", "*calho?t"])
async def test_every_endpoint_of_a_room_is_shut(world: World, method: str, path: str, denied: str) -> None:
    shut_out(world[2], denied)
    status, body = await ask(world, method, path)
    assert (status, body["errcode"]) == (403, "M_FORBIDDEN"), body
    assert world[1].input.inputs == []


async def test_a_space_is_not_there_for_a_server_that_is_shut_out(world: World) -> None:
    shut_out(world[2], "localhost")
    for method, path in HIDDEN:
        assert (await ask(world, method, path))[0] == 404


def test_no_endpoint_of_a_room_is_forgotten() -> None:
    scoped = {item for item in parse(SERVED) if "{roomId}" in item[1] or "{eventId}" in item[1]}
    assert scoped <= {*parse(ACL_PROTECTED), *ALSO, *HIDDEN}


async def test_each_pdu_is_measured_by_the_acl_of_its_own_room(world: World) -> None:
    peer, us, room = world
    eve = f"@eve:{peer.server_name}"
    other = Room("12", creator=us.user("owner")).with_members(eve)
    us.rooms.of[other.create.room_id] = other
    shut_out(room, "localhost")
    pdus = []
    for target in (room, other):
        heads = list(target.heads)
        message = target.send(eve, "m.room.message", {"body": "x"})
        # Said, and not known here yet.
        del target.events[message.event_id]
        target.heads = heads
        pdus.append(message)
    body = {"pdus": [event.pdu for event in pdus], "edus": []}
    status, answer = await peer.ask("PUT", us.base_url, "/_matrix/federation/v1/send/1", us.server_name, body)
    assert status == 200
    assert "banned" in answer["pdus"][pdus[0].event_id]["error"]
    assert answer["pdus"][pdus[1].event_id] == {}

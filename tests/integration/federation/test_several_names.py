"""Several local server names: each peer sees each name, and each name speaks for its own users only."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from arbor.log.v1 import output_pb2
from federation.sender.consumer import Heard, LocalReceipt
from federation.storage import outgoing
from federation.storage.fetching import Wanted
from federation.storage.outgoing import OutgoingEvent
from matrixlib.request_auth import parse_authorization_header, signed_request
from matrixlib.signing import sign_json, verify_signed_json
from tests.support.evil_peer import Asked, EvilPeer
from tests.support.federation import until
from tests.support.federation_alone import FederationAlone
from tests.support.ports import free_port
from tests.support.rooms import Room
from tests.support.tls_ca import TestCa

ROOM = "!r:x.example"
V1 = "/_matrix/federation/v1"


class Two(FederationAlone):
    """A server of two names."""

    def __init__(self, folder: Path, ca: TestCa) -> None:
        port = free_port()
        self.second = "second.example"
        super().__init__(folder, ca, port=port, server_names=[f"localhost:{port}", self.second])


World = tuple[EvilPeer, Two]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, Two(tmp_path, ca) as us:
        peer.answer("send", lambda _: {"pdus": {}})
        yield peer, us


def speaker(asked: Asked, us: Two) -> str:
    """The name that signed a request to the peer; the signature is right."""
    header = parse_authorization_header(asked.headers["Authorization"])
    key = us.own.signing[header.origin].verify_key
    uri = asked.path if not asked.query else f"{asked.path}?{asked.raw_query}"
    signed = signed_request(asked.method, uri, header.origin, header.destination, asked.content)
    signed["signatures"] = {header.origin: {header.key_id: header.signature}}
    verify_signed_json(signed, header.origin, key)
    return header.origin


async def test_each_name_has_keys_of_its_own(world: World) -> None:
    _, us = world
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session:
        for host, name in (
            (us.server_name, us.server_name),
            (us.second, us.second),
            (f"{us.second}:8448", us.second),
            ("unknown.example", us.server_name),
        ):
            url = f"{us.base_url}/_matrix/key/v2/server"
            async with session.get(url, headers={"Host": host}) as response:
                value = await response.json()
            assert value["server_name"] == name
            key = us.own.signing[name].verify_key
            assert value["verify_keys"] == {key.key_id: {"key": key.base64}}
            verify_signed_json(value, name, key)
    assert us.own.signing[us.second].seed != us.own.signing[us.server_name].seed


async def test_a_request_may_be_for_any_name(world: World) -> None:
    peer, us = world
    us.users.profiles[f"@bob:{us.second}"] = {"displayname": "Bob"}
    path = f"{V1}/query/profile?user_id=@bob:{us.second}"
    for name in (us.server_name, us.second):
        assert await peer.ask("GET", us.base_url, path, name) == (200, {"displayname": "Bob"})
    status, body = await peer.ask("GET", us.base_url, path, "third.example")
    assert (status, body["errcode"]) == (401, "M_UNAUTHORIZED")


@pytest.mark.parametrize("named", ["first", "second", "other"])
async def test_old_servers_sign_the_name_without_saying_it(world: World, named: str) -> None:
    peer, us = world
    us.users.profiles[f"@bob:{us.second}"] = {}
    name = {"first": us.server_name, "second": us.second, "other": "third.example"}[named]
    path = f"{V1}/query/profile?user_id=@bob:{us.second}"
    signed = sign_json(signed_request("GET", path, peer.server_name, name, None), peer.server_name, peer.key)
    signature = signed["signatures"][peer.server_name][peer.key.key_id]
    header = f'X-Matrix origin="{peer.server_name}",key="{peer.key.key_id}",sig="{signature}"'
    status, _ = await peer.ask("GET", us.base_url, path, None, header=header)
    assert status == (401 if named == "other" else 200)


async def test_neither_name_is_taken_from_outside(world: World) -> None:
    peer, us = world
    path = f"{V1}/query/profile?user_id=@bob:{us.second}"
    for name in (us.server_name, us.second):
        status, _ = await peer.ask("GET", us.base_url, path, us.second, origin=name, key=us.own.signing[name])
        assert status == 401


def event(position: int, sender: str) -> OutgoingEvent:
    pdu = orjson.dumps({"sender": sender, "n": position})
    return OutgoingEvent(position, ROOM, f"${position}", pdu)


async def test_events_and_edus_go_as_the_name_of_their_user(world: World) -> None:
    peer, us = world
    await us.database.write(outgoing.note_joined, ROOM, peer.server_name, 1)
    first, second = f"@a:{us.server_name}", f"@b:{us.second}"
    us.parts.sender.start_at(1)
    events = [event(10 + n, sender) for n, sender in enumerate([first, second, second, first, second])]

    def store(conn: Any) -> None:
        outgoing.store_events(conn, events, 1)
        for user_id in (first, second):
            content = {
                "sender": user_id,
                "type": "m.test",
                "message_id": user_id,
                "messages": {f"@x:{peer.server_name}": {"*": {}}},
            }
            edu = orjson.dumps({"edu_type": "m.direct_to_device", "content": content})
            outgoing.store_edu(conn, peer.server_name, user_id, edu, 1)

    await us.database.write(store)
    receipts = [
        LocalReceipt(
            ROOM,
            output_pb2.Receipt(user_id=user, receipt_type="m.read", event_id="$10", timestamp_ms=1),
        )
        for user in (first, second)
    ]
    heard = Heard(through=14, events=events, receipts=receipts, edu_servers={peer.server_name})
    async with us.running(us.parts.sender.run):
        us.parts.sender.hear(heard)
        for user in (first, second):
            edu = {"edu_type": "m.typing", "content": {"room_id": ROOM, "user_id": user, "typing": True}}
            us.parts.sender.give_ephemeral([peer.server_name], ("m.typing", ROOM, user), edu)

        async def all_there() -> bool:
            sent = peer.asked("send")
            pdus = [pdu["n"] for request in sent for pdu in request.content["pdus"]]
            edus = [edu for request in sent for edu in request.content["edus"]]
            return pdus == [10, 11, 12, 13, 14] and len(edus) == 6

        await until(all_there, "everything arrives in its order")
    assert us.destinations.get(peer.server_name).sent_position == 14
    for request in peer.asked("send"):
        origin = speaker(request, us)
        assert request.content["origin"] == origin
        text = orjson.dumps([*request.content["pdus"], *request.content["edus"]]).decode()
        other = first if origin == us.second else second
        assert other not in text
        assert request.content["pdus"] or request.content["edus"]


@pytest.mark.parametrize("member", ["first", "second"])
async def test_what_is_missing_is_asked_for_as_the_name_that_is_in_the_room(
    world: World, member: str
) -> None:
    peer, us = world
    name = us.server_name if member == "first" else us.second
    eve = f"@eve:{peer.server_name}"
    room = Room("10", creator=f"@owner:{name}").with_members(eve)
    us.rooms.of[room.create.room_id] = room
    heads = list(room.heads)
    missing = [room.send(eve, "m.room.message", {"body": f"{number}"}) for number in range(3)]
    for item in missing:
        del room.events[item.event_id], room.before[item.event_id], room.after[item.event_id]
    room.heads = heads
    us.rooms.outliers[missing[-1].event_id] = missing[-1]
    us.rooms.waiting.add(missing[-1].event_id)
    peer.answer("get_missing_events", lambda _: {"events": [item.pdu for item in missing[:-1]]})
    last = missing[-1]
    wanted = Wanted(last.event_id, last.room_id, last.prev_event_ids, peer.server_name, 0)
    assert await us.parts.fetcher.fetch(wanted)
    [request] = peer.asked("get_missing_events")
    assert speaker(request, us) == name

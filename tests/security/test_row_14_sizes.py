"""Row 14: what we send is never larger than others take, whatever our users put into a room."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from federation.sender.consumer import Heard
from federation.storage import outgoing
from federation.storage.outgoing import OutgoingEvent
from matrixlib.events import MAX_EVENT_BYTES, Event, parse_event
from matrixlib.signing import sign_event
from servicekit.errors import MatrixError
from tests.support.evil_peer import Answer, Asked, EvilPeer
from tests.support.federation import until
from tests.support.federation_alone import FederationAlone
from tests.support.rooms import Room
from tests.support.tls_ca import TestCa


async def test_an_invite_to_a_room_with_giant_state(tmp_path: Path) -> None:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        owner = us.user("owner")
        room = Room("10", creator=owner)
        giant = "x" * 60_000
        for kind, field in (("m.room.name", "name"), ("m.room.topic", "topic"), ("m.room.avatar", "url")):
            room.send(owner, kind, {field: giant}, state_key="")
        state = [room.events[event_id] for event_id in room.state_before(room.heads).values()]
        invite = room.member(f"@eve:{peer.server_name}", "invite", by=owner)

        def sign(request: Asked) -> Any:
            event = request.content["event"]
            return {"event": sign_event(event, room.version, peer.server_name, peer.key)}

        peer.answer("invite", sign)
        signed = await us.parts.memberships.invite(invite, state)
        (request,) = peer.asked("invite")
        assert len(orjson.dumps(request.content["event"])) <= MAX_EVENT_BYTES
        assert "unsigned" not in request.content["event"]
        assert set(signed.pdu["signatures"]) == {us.server_name, peer.server_name}
        assert len(signed.pdu_json) <= MAX_EVENT_BYTES


async def test_only_the_signature_is_taken_from_the_other_servers_answer(tmp_path: Path) -> None:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        owner = us.user("owner")
        room = Room("10", creator=owner)
        invite = room.member(f"@eve:{peer.server_name}", "invite", by=owner)
        smuggled = {"m.evil": {"ed25519:x": "y" * 6_000}}

        def sign(request: Asked) -> Any:
            event = sign_event(request.content["event"], room.version, peer.server_name, peer.key)
            return {
                "event": {**event, "unsigned": smuggled, "signatures": {**event["signatures"], **smuggled}}
            }

        peer.answer("invite", sign)
        signed = await us.parts.memberships.invite(invite, [])
        assert set(signed.pdu["signatures"]) == {us.server_name, peer.server_name}
        for answer in ({}, {"event": {}}, {"event": invite.pdu}, {"event": room.create.pdu}):
            peer.answer("invite", lambda _, answer=answer: answer)  # type: ignore[misc]
            with pytest.raises(MatrixError):
                await us.parts.memberships.invite(invite, [])


async def test_the_older_form_of_an_invite_is_no_larger_than_an_event(tmp_path: Path) -> None:
    """There the state lies in the event, in `unsigned`."""
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        owner = us.user("owner")
        room = Room("2", creator=owner)
        giant = "x" * 60_000
        for kind, field in (("m.room.name", "name"), ("m.room.topic", "topic"), ("m.room.avatar", "url")):
            room.send(owner, kind, {field: giant}, state_key="")
        state = [room.events[event_id] for event_id in room.state_before(room.heads).values()]
        invite = room.member(f"@eve:{peer.server_name}", "invite", by=owner)

        def sign(request: Asked) -> Any:
            if "/v2/" in request.path:
                return Answer(404, b'{"errcode":"M_UNRECOGNIZED"}')
            return [200, {"event": sign_event(request.content, room.version, peer.server_name, peer.key)}]

        peer.answer("invite", sign)
        signed = await us.parts.memberships.invite(invite, state)
        assert set(signed.pdu["signatures"]) == {us.server_name, peer.server_name}
        _, old = peer.asked("invite")
        assert len(orjson.dumps(old.content)) <= MAX_EVENT_BYTES
        told = {item["type"] for item in old.content["unsigned"]["invite_room_state"]}
        assert told >= {"m.room.create", "m.room.join_rules", "m.room.name"}, "as much as fits, in its order"
        assert "m.room.topic" not in told


def near_the_limit(room: Room, user_id: str, membership: str, by: str, **content: Any) -> Event:
    """A membership event into which no further signature fits."""
    heads = list(room.heads)
    small = room.member(user_id, membership, by=by, content={"reason": "", **content}, prev=heads)
    room.heads = heads
    fill = "x" * (MAX_EVENT_BYTES - 20 - len(small.pdu_json))
    event = room.member(user_id, membership, by=by, content={"reason": fill, **content}, prev=heads)
    room.heads = heads
    assert MAX_EVENT_BYTES - 40 < len(event.pdu_json) <= MAX_EVENT_BYTES
    return event


async def test_an_invite_that_two_signatures_make_too_large(tmp_path: Path) -> None:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        ours = Room("10", creator=us.user("owner"))
        invite = near_the_limit(ours, f"@eve:{peer.server_name}", "invite", ours.creator)
        with pytest.raises(MatrixError) as raised:
            await us.parts.memberships.invite(invite, [])
        assert (raised.value.http_status, raised.value.errcode) == (413, "M_TOO_LARGE")
        assert peer.asked("invite") == []
        # And the other way round.
        theirs = Room("10", creator=f"@boss:{peer.server_name}")
        invite = near_the_limit(theirs, us.user("alice"), "invite", theirs.creator)
        path = f"/_matrix/federation/v2/invite/{invite.room_id}/{invite.event_id}"
        body = {"event": invite.pdu, "room_version": "10", "invite_room_state": []}
        status, answer = await peer.ask("PUT", us.base_url, path, us.server_name, body)
        assert (status, answer["errcode"]) == (413, "M_TOO_LARGE"), answer
        assert us.input.inputs == []


async def test_a_restricted_join_that_our_signature_makes_too_large(tmp_path: Path) -> None:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        eve = f"@eve:{peer.server_name}"
        lobby = Room("10", creator=us.user("owner")).with_members(eve)
        room = Room("12", creator=us.user("owner"))
        rules = {
            "join_rule": "restricted",
            "allow": [{"type": "m.room_membership", "room_id": lobby.create.room_id}],
        }
        room.send(room.creator, "m.room.join_rules", rules, state_key="")
        via = {"join_authorised_via_users_server": room.creator}
        join = near_the_limit(room, eve, "join", eve, **via)
        signatures = {peer.server_name: join.pdu["signatures"][peer.server_name]}
        padding = "x" * len(orjson.dumps(join.pdu["signatures"][us.server_name]))
        pdu = {**join.pdu, "content": {**join.content, "reason": join.content["reason"] + padding}}
        del pdu["hashes"]
        pdu = sign_event({**pdu, "signatures": {}}, room.version, peer.server_name, peer.key)
        assert set(pdu["signatures"]) == set(signatures)
        event = parse_event(pdu, room.version)
        del room.events[join.event_id]
        us.rooms.of |= {item.create.room_id: item for item in (lobby, room)}
        path = f"/_matrix/federation/v2/send_join/{event.room_id}/{event.event_id}"
        status, answer = await peer.ask("PUT", us.base_url, path, us.server_name, event.pdu)
        assert (status, answer["errcode"]) == (413, "M_TOO_LARGE"), answer
        assert us.input.inputs == []


async def test_transactions_stay_within_their_limits(tmp_path: Path) -> None:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        await us.database.write(outgoing.note_joined, "!r:x", peer.server_name, 1)
        peer.answer("send", lambda _: {"pdus": {}})
        us.parts.sender.start_at(1)
        events = [
            OutgoingEvent(position, "!r:x", f"${position}", orjson.dumps({"n": position, "b": "x" * 64_000}))
            for position in range(10, 130)
        ]
        edus = [orjson.dumps({"edu_type": "m.direct_to_device", "content": {"n": n}}) for n in range(250)]
        async with us.running(us.parts.sender.run):
            us.parts.sender.hear(Heard(through=2))

            async def started() -> bool:
                return us.parts.sender.position == 2

            await until(started, "the sender has started with nothing left over")
            for number, edu in enumerate(edus):
                await us.database.write(outgoing.store_edu, peer.server_name, f"s{number}", edu, 1)
            await us.database.write(outgoing.store_events, events, 1)
            us.parts.sender.hear(Heard(through=129, events=events, edu_servers={peer.server_name}))

            async def done() -> bool:
                sent = peer.asked("send")
                return (
                    sum(len(request.content["pdus"]) for request in sent) == 120
                    and sum(len(request.content["edus"]) for request in sent) == 250
                )

            await until(done, "everything is sent")
        for request in peer.asked("send"):
            assert len(request.content["pdus"]) <= 50
            assert len(request.content["edus"]) <= 100


async def test_a_server_that_takes_less_is_sent_less(tmp_path: Path) -> None:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        await us.database.write(outgoing.note_joined, "!r:x", peer.server_name, 1)
        taken: list[int] = []

        def take(request: Asked) -> Any:
            numbers = [pdu["n"] for pdu in request.content["pdus"]]
            if len(numbers) > 8:
                return Answer(413, b'{"errcode":"M_TOO_LARGE"}')
            taken.extend(numbers)
            return {"pdus": {}}

        peer.answer("send", take)
        events = [
            OutgoingEvent(position, "!r:x", f"${position}", orjson.dumps({"n": position}))
            for position in range(10, 40)
        ]
        await us.database.write(outgoing.store_events, events, 1)
        us.parts.sender.start_at(39)
        async with us.running(us.parts.sender.run):

            async def done() -> bool:
                return taken == list(range(10, 40))

            await until(done, "everything is sent, in order")

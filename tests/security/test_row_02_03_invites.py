"""Rows 2 and 3: only an invite is signed as an invite, and the body says the same as the path.

`/invite` v1 and v2 with other events, senders, users and states; `/send_*` with another room or event in the
body than in the path. Nothing is signed, stored or queued.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from matrixlib.events import Event
from tests.support.evil_peer import EvilPeer
from tests.support.federation_alone import FederationAlone
from tests.support.rooms import Room
from tests.support.tls_ca import TestCa


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[tuple[EvilPeer, FederationAlone]]:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        yield peer, us


async def invite_v2(
    peer: EvilPeer,
    us: FederationAlone,
    event: Event,
    *,
    version: str,
    room_id: str | None = None,
    event_id: str | None = None,
    state: Any = None,
) -> tuple[int, Any]:
    path = f"/_matrix/federation/v2/invite/{room_id or event.room_id}/{event_id or event.event_id}"
    body = {"event": event.pdu, "room_version": version, "invite_room_state": state or []}
    return await peer.ask("PUT", us.base_url, path, us.server_name, body)


def peers_room(peer: EvilPeer, version: str = "10") -> Room:
    return Room(version, creator=f"@boss:{peer.server_name}")


@pytest.mark.parametrize("version", ["10", "12"])
async def test_a_right_invite_is_signed_and_told(
    world: tuple[EvilPeer, FederationAlone], version: str
) -> None:
    peer, us = world
    room = peers_room(peer, version)
    invite = room.member(us.user("alice"), "invite", by=room.creator)
    status, body = await invite_v2(peer, us, invite, version=version, state=[room.create.pdu])
    assert status == 200, body
    assert us.key.key_id in body["event"]["signatures"][us.server_name]
    assert us.rooms.outlier_memberships[invite.room_id, us.user("alice")].event_id == invite.event_id
    assert b"m.room.create" in us.input.inputs[0].submit_events.stripped_state_json[0]


async def refused(us: FederationAlone, answer: tuple[int, Any], errcode: str = "M_INVALID_PARAM") -> None:
    status, body = answer
    expected = 403 if errcode == "M_FORBIDDEN" else 400
    assert (status, body["errcode"]) == (expected, errcode), body
    assert us.input.inputs == []
    assert "signatures" not in body


async def test_other_events_are_not_signed(world: tuple[EvilPeer, FederationAlone]) -> None:
    peer, us = world
    room = peers_room(peer)
    alice = us.user("alice")
    join = room.member(f"@friend:{peer.server_name}", "join")
    message = room.send(room.creator, "m.room.message", {"body": "x"})
    levels = room.send(room.creator, "m.room.power_levels", {"users": {alice: 100}}, state_key="")
    for event in (join, message, levels, room.create):
        await refused(us, await invite_v2(peer, us, event, version="10"))


async def test_an_invite_of_nobody_here_or_by_somebody_else_is_not_signed(
    world: tuple[EvilPeer, FederationAlone],
) -> None:
    peer, us = world
    room = peers_room(peer)
    other = room.member("@dora:elsewhere.example", "invite", by=room.creator)
    await refused(us, await invite_v2(peer, us, other, version="10"))
    foreign = Room("10", creator="@boss:elsewhere.example")
    invite = foreign.member(us.user("alice"), "invite", by=foreign.creator)
    await refused(us, await invite_v2(peer, us, invite, version="10"), "M_FORBIDDEN")


async def test_a_forged_invite_is_not_signed(world: tuple[EvilPeer, FederationAlone]) -> None:
    peer, us = world
    room = peers_room(peer)
    invite = room.member(us.user("alice"), "invite", by=room.creator)
    forged = {**invite.pdu, "signatures": {peer.server_name: {peer.key.key_id: "A" * 86}}}
    path = f"/_matrix/federation/v2/invite/{invite.room_id}/{invite.event_id}"
    body = {"event": forged, "room_version": "10", "invite_room_state": []}
    await refused(us, await peer.ask("PUT", us.base_url, path, us.server_name, body), "M_FORBIDDEN")
    del forged["signatures"]
    await refused(us, await peer.ask("PUT", us.base_url, path, us.server_name, body), "M_FORBIDDEN")


@pytest.mark.parametrize("number", [1.5, 2**53])
async def test_an_invite_that_is_no_event_of_its_room_version_is_bad_json(
    world: tuple[EvilPeer, FederationAlone], number: float
) -> None:
    peer, us = world
    room = peers_room(peer)
    invite = room.member(us.user("alice"), "invite", by=room.creator)
    path = f"/_matrix/federation/v2/invite/{invite.room_id}/{invite.event_id}"
    event = {**invite.pdu, "content": {**invite.content, "number": number}}
    body = {"event": event, "room_version": "10", "invite_room_state": []}
    # The request is signed as the older room versions have it, in which such numbers may stand.
    await refused(us, await peer.ask("PUT", us.base_url, path, us.server_name, body), "M_BAD_JSON")


async def test_the_path_names_the_event(world: tuple[EvilPeer, FederationAlone]) -> None:
    peer, us = world
    room = peers_room(peer)
    invite = room.member(us.user("alice"), "invite", by=room.creator)
    await refused(us, await invite_v2(peer, us, invite, version="10", room_id="!other:x.example"))
    await refused(us, await invite_v2(peer, us, invite, version="10", event_id="$" + "x" * 43))
    # Read as another room version it is another event.
    await refused(us, await invite_v2(peer, us, invite, version="12"), "M_BAD_JSON")
    await refused(
        us,
        await invite_v2(peer, us, invite, version="none"),
        "M_INCOMPATIBLE_ROOM_VERSION",
    )


async def test_in_version_12_the_state_must_be_of_the_room(world: tuple[EvilPeer, FederationAlone]) -> None:
    peer, us = world
    room = peers_room(peer, "12")
    invite = room.member(us.user("alice"), "invite", by=room.creator)
    await refused(us, await invite_v2(peer, us, invite, version="12"), "M_MISSING_PARAM")
    other = Room("12", creator=room.creator, content={"m.federate": True})
    await refused(us, await invite_v2(peer, us, invite, version="12", state=[other.create.pdu]))
    stripped = {"type": "m.room.create", "state_key": "", "sender": room.creator, "content": {}}
    await refused(us, await invite_v2(peer, us, invite, version="12", state=[stripped]))


@pytest.mark.parametrize("membership", ["join", "leave", "knock"])
async def test_send_takes_only_the_event_of_the_path(
    world: tuple[EvilPeer, FederationAlone], membership: str
) -> None:
    peer, us = world
    ours = Room("10", creator=us.user("owner"))
    other = Room("12", creator=us.user("owner"))
    for room in (ours, other):
        us.rooms.of[room.create.room_id] = room
        room.send(room.creator, "m.room.join_rules", {"join_rule": "public"}, state_key="")
    heads = list(ours.heads)
    user_id = f"@eve:{peer.server_name}"
    event = ours.member(user_id, membership)
    # Not yet there: what came of building it is taken back.
    del ours.events[event.event_id]
    ours.heads = heads
    body = event.pdu
    base = f"/_matrix/federation/{'v1' if membership == 'knock' else 'v2'}/send_{membership}"
    for room_id, event_id, errcode in (
        # Read as another room version it is no event.
        (other.create.room_id, event.event_id, "M_BAD_JSON"),
        (event.room_id, "$" + "x" * 43, "M_INVALID_PARAM"),
    ):
        status, answer = await peer.ask(
            "PUT", us.base_url, f"{base}/{room_id}/{event_id}", us.server_name, body
        )
        assert (status, answer["errcode"]) == (400, errcode), answer
    assert us.input.inputs == []


_REFUSALS = {
    "a user of a third server": (403, "M_FORBIDDEN"),
    "a user of ours": (403, "M_FORBIDDEN"),
    "not signed": (403, "M_FORBIDDEN"),
    "no signatures": (403, "M_FORBIDDEN"),
    "forged": (403, "M_FORBIDDEN"),
    "signed by another": (403, "M_FORBIDDEN"),
    "no object": (400, "M_BAD_JSON"),
    "no event": (400, "M_BAD_JSON"),
    "a fraction": (400, "M_BAD_JSON"),
}


@pytest.mark.parametrize(
    ("membership", "form"),
    [("join", "v1"), ("join", "v2"), ("leave", "v1"), ("leave", "v2"), ("knock", "v1")],
)
async def test_send_takes_only_the_senders_own_membership(
    world: tuple[EvilPeer, FederationAlone], membership: str, form: str
) -> None:
    peer, us = world
    room = Room("10", creator=us.user("owner"))
    us.rooms.of[room.create.room_id] = room
    heads = list(room.heads)
    eve, mallory = f"@eve:{peer.server_name}", f"@mallory:{peer.server_name}"
    right = room.member(eve, membership, prev=heads)
    another = "leave" if membership == "join" else "join"
    unsigned = {**right.pdu, "signatures": {}}
    forged = {**right.pdu, "signatures": {peer.server_name: {peer.key.key_id: "A" * 86}}}
    by_another = {**right.pdu, "signatures": {us.server_name: right.pdu["signatures"][peer.server_name]}}
    made: dict[str, Any] = {
        "a user of a third server": room.member("@eve:elsewhere.example", membership, prev=heads),
        "a user of ours": room.member(us.user("other"), membership, prev=heads),
        "another membership": room.member(eve, another, prev=heads),
        "no membership": room.send(eve, "m.room.member", {}, state_key=eve, prev=heads),
        "about somebody else": room.member(mallory, membership, by=eve, prev=heads),
        "no state": room.send(eve, "m.room.member", {"membership": membership}, prev=heads),
        "another type": room.send(eve, "m.room.topic", {"membership": membership}, state_key=eve, prev=heads),
        "not signed": unsigned,
        "no signatures": {key: value for key, value in right.pdu.items() if key != "signatures"},
        "forged": forged,
        "signed by another": by_another,
        "no object": [right.pdu],
        "no event": {"membership": membership},
        "a fraction": {**right.pdu, "content": {"membership": membership, "number": 1.5}},
    }
    for name, event in made.items():
        event_id, body = (event.event_id, event.pdu) if isinstance(event, Event) else (right.event_id, event)
        path = f"/_matrix/federation/{form}/send_{membership}/{room.create.room_id}/{event_id}"
        status, answer = await peer.ask("PUT", us.base_url, path, us.server_name, body)
        assert (status, answer["errcode"]) == _REFUSALS.get(name, (400, "M_INVALID_PARAM")), (name, answer)
        assert us.input.inputs == [], name


@pytest.mark.parametrize("version", ["1", "12"])
async def test_who_takes_no_invites_gets_none(world: tuple[EvilPeer, FederationAlone], version: str) -> None:
    peer, us = world
    room = peers_room(peer, version)
    invite = room.member(us.user("alice"), "invite", by=room.creator)
    us.users.blocking.add(us.user("alice"))
    if version == "12":
        answer = await invite_v2(peer, us, invite, version=version, state=[room.create.pdu])
    else:
        path = f"/_matrix/federation/v1/invite/{invite.room_id}/{invite.event_id}"
        answer = await peer.ask("PUT", us.base_url, path, us.server_name, invite.pdu)
    assert (answer[0], answer[1]["errcode"]) == (403, "M_INVITE_BLOCKED")
    assert not us.rooms.outlier_memberships
    assert not us.input.inputs

"""Rows 2 and 3: only an invite is signed as an invite, and the body says the same as the path.

`/invite` v1 and v2 with other events, senders, users and states; `/send_*` with another room or event in the
body than in the path. Nothing is signed, stored or queued.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from matrixlib.events import Event
from matrixlib.signing import sign_event
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


async def invite_by(
    peer: EvilPeer, us: FederationAlone, form: str, event: Event, pdu: dict[str, Any] | None = None
) -> tuple[int, Any]:
    """Ask for an invite in the older or the newer form, with a state as it should be."""
    pdu = pdu or event.pdu
    path = f"/_matrix/federation/{form}/invite/{event.room_id}/{event.event_id.replace('/', '%2F')}"
    body = {"event": pdu, "room_version": event.room_version.identifier, "invite_room_state": []}
    if form == "v1":
        body = {**pdu, "unsigned": {"invite_room_state": []}}
    return await peer.ask("PUT", us.base_url, path, us.server_name, body)


FORMS = [("v1", "1"), ("v1", "2"), ("v2", "1"), ("v2", "2"), ("v2", "6"), ("v2", "10"), ("v2", "11")]


@pytest.mark.parametrize(("form", "version"), FORMS)
async def test_what_is_no_invite_of_a_user_here_is_not_signed(
    world: tuple[EvilPeer, FederationAlone], form: str, version: str
) -> None:
    peer, us = world
    room = peers_room(peer, version)
    boss, alice = room.creator, us.user("alice")
    foreign = Room(version, creator="@boss:elsewhere.example")
    ours = Room(version, creator=us.user("bob"))
    events = {
        "a join": room.member(f"@friend:{peer.server_name}", "join"),
        "a leave of the user's": room.member(alice, "leave", by=boss),
        "a ban of the user": room.member(alice, "ban", by=boss),
        "a message": room.send(boss, "m.room.message", {"membership": "invite"}),
        "a state event": room.send(boss, "m.room.topic", {"membership": "invite"}, state_key=alice),
        "power levels": room.send(boss, "m.room.power_levels", {"users": {alice: 100}}, state_key=""),
        "the creation": room.create,
        "no state event": room.send(boss, "m.room.member", {"membership": "invite"}),
        "no membership": room.send(boss, "m.room.member", {}, state_key=alice),
        "a membership that is no string": room.send(
            boss, "m.room.member", {"membership": ["invite"]}, state_key=alice
        ),
        "a user of a third server": room.member("@dora:elsewhere.example", "invite", by=boss),
        "a user of the inviting server": room.member(f"@dora:{peer.server_name}", "invite", by=boss),
        "a whole server": room.member(us.server_name, "invite", by=boss),
        "nobody": room.member("", "invite", by=boss),
        "somebody by a third server's user": foreign.member(alice, "invite", by=foreign.creator),
        "somebody by a user of ours": ours.member(alice, "invite", by=ours.creator),
    }
    for name, event in events.items():
        status, body = await invite_by(peer, us, form, event)
        assert (status, body["errcode"]) == (400, "M_INVALID_PARAM"), (name, body)
        assert "signatures" not in str(body), name
        assert us.input.inputs == [], name
    assert us.rooms.outlier_memberships == {}


@pytest.mark.parametrize(("form", "version"), FORMS)
async def test_a_forged_invite_is_not_signed(
    world: tuple[EvilPeer, FederationAlone], form: str, version: str
) -> None:
    peer, us = world
    room = peers_room(peer, version)
    invite = room.member(us.user("alice"), "invite", by=room.creator)
    by_us = sign_event({**invite.pdu, "signatures": {}}, room.version, us.server_name, us.key)
    bad: list[dict[str, Any]] = [
        {**invite.pdu, "signatures": {}},
        {**invite.pdu, "signatures": {peer.server_name: {}}},
        {**invite.pdu, "signatures": {peer.server_name: {peer.key.key_id: "A" * 86}}},
        {**invite.pdu, "signatures": {peer.server_name: {"ed25519:other": "A" * 86}}},
        {**invite.pdu, "signatures": by_us["signatures"]},
        {key: value for key, value in invite.pdu.items() if key != "signatures"},
    ]
    for pdu in bad:
        await refused(us, await invite_by(peer, us, form, invite, pdu), "M_FORBIDDEN")


@pytest.mark.parametrize(("form", "version"), FORMS)
async def test_what_of_an_invite_was_altered_is_not_told(
    world: tuple[EvilPeer, FederationAlone], form: str, version: str
) -> None:
    """The content hash is wrong: like every such event it is redacted before anything is made of it."""
    peer, us = world
    room = peers_room(peer, version)
    invite = room.member(us.user("alice"), "invite", by=room.creator)
    altered = {**invite.pdu, "content": {"membership": "invite", "reason": "altered"}}
    status, body = await invite_by(peer, us, form, invite, altered)
    assert status == 200, body
    signed = body["event"] if form == "v2" else body[1]["event"]
    assert signed["content"] == {"membership": "invite"}
    assert us.rooms.outlier_memberships[invite.room_id, us.user("alice")].content == signed["content"]


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


@pytest.mark.parametrize(("form", "version"), FORMS)
async def test_the_path_names_the_event(
    world: tuple[EvilPeer, FederationAlone], form: str, version: str
) -> None:
    peer, us = world
    room = peers_room(peer, version)
    alice = us.user("alice")
    invite = room.member(alice, "invite", by=room.creator)
    event_id = invite.event_id.replace("/", "%2F")
    for room_id, named in (
        ("!other:x.example", event_id),
        (invite.room_id, "$" + "x" * 43),
        (invite.room_id, room.create.event_id.replace("/", "%2F")),
    ):
        path = f"/_matrix/federation/{form}/invite/{room_id}/{named}"
        body = invite.pdu if form == "v1" else {"event": invite.pdu, "room_version": version}
        await refused(us, await peer.ask("PUT", us.base_url, path, us.server_name, body))


async def test_the_room_version_is_one_that_the_event_has(world: tuple[EvilPeer, FederationAlone]) -> None:
    peer, us = world
    room = peers_room(peer)
    invite = room.member(us.user("alice"), "invite", by=room.creator)
    # Read as another room version it is another event.
    await refused(us, await invite_v2(peer, us, invite, version="12"), "M_BAD_JSON")
    for version in ("none", "", "010"):
        answer = await invite_v2(peer, us, invite, version=version)
        await refused(us, answer, "M_INCOMPATIBLE_ROOM_VERSION")
    path = f"/_matrix/federation/v2/invite/{invite.room_id}/{invite.event_id}"
    for strange in (10, None, ["10"]):
        body = {"event": invite.pdu, "room_version": strange}
        await refused(us, await peer.ask("PUT", us.base_url, path, us.server_name, body), "M_MISSING_PARAM")
    for event in (None, [], "x", 7, {}):
        body = {"event": event, "room_version": "10"}
        await refused(us, await peer.ask("PUT", us.base_url, path, us.server_name, body), "M_BAD_JSON")


async def test_in_version_12_the_state_must_be_of_the_room(world: tuple[EvilPeer, FederationAlone]) -> None:
    peer, us = world
    room = peers_room(peer, "12")
    invite = room.member(us.user("alice"), "invite", by=room.creator)
    name = room.send(room.creator, "m.room.name", {"name": "x"}, state_key="")
    message = room.send(room.creator, "m.room.message", {"body": "x"})
    other = Room("12", creator=room.creator, content={"m.federate": True})
    stripped = {"type": "m.room.create", "state_key": "", "sender": room.creator, "content": {}}
    forged = {**name.pdu, "signatures": {peer.server_name: {peer.key.key_id: "A" * 86}}}
    create = room.create.pdu
    bad: dict[str, Any] = {
        "none": [],
        "no array": {"m.room.create": create},
        "no create event": [name.pdu],
        "another room's create event": [other.create.pdu],
        "a stripped create event": [stripped],
        "an event of another room": [create, other.send(room.creator, "m.room.name", {}, state_key="").pdu],
        "a forged event": [create, forged],
        "a stripped event": [create, {**stripped, "type": "m.room.name"}],
        "no state event": [create, message.pdu],
        "no event": [create, 7],
        "too many": [create] * 61,
    }
    for what, state in bad.items():
        status, body = await invite_v2(peer, us, invite, version="12", state=state)
        assert (status, body["errcode"]) == (400, "M_INVALID_PARAM"), (what, body)
        assert us.input.inputs == [], what
    assert (await invite_v2(peer, us, invite, version="12", state=[create, name.pdu]))[0] == 200


@pytest.mark.parametrize(("form", "version"), [("v1", "1"), ("v2", "10")])
async def test_bad_state_of_older_rooms_is_left_out(
    world: tuple[EvilPeer, FederationAlone], form: str, version: str
) -> None:
    """The spec lets it through there, with a warning; what clients could not read is not told them."""
    peer, us = world
    room = peers_room(peer, version)
    invite = room.member(us.user("alice"), "invite", by=room.creator)
    good = {"type": "m.room.name", "state_key": "", "sender": room.creator, "content": {"name": "x"}}
    state = [7, None, [], {**good, "content": "x"}, {**good, "type": 5}, {**good, "sender": "boss"}, good]
    path = f"/_matrix/federation/{form}/invite/{invite.room_id}/{invite.event_id}"
    body = {"event": invite.pdu, "room_version": version, "invite_room_state": state}
    if form == "v1":
        body = {**invite.pdu, "unsigned": {"invite_room_state": state}}
    status, answer = await peer.ask("PUT", us.base_url, path, us.server_name, body)
    assert status == 200, answer
    told = us.input.inputs[0].submit_events.stripped_state_json
    assert [orjson.loads(item) for item in told] == [good]


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


async def test_nobody_is_invited_to_a_blocked_room(world: tuple[EvilPeer, FederationAlone]) -> None:
    peer, us = world
    room = peers_room(peer)
    invite = room.member(us.user("alice"), "invite", by=room.creator)
    us.users.blocked_rooms.add(invite.room_id)
    await refused(us, await invite_v2(peer, us, invite, version="10"), "M_FORBIDDEN")
    us.users.blocked_rooms.clear()
    assert (await invite_v2(peer, us, invite, version="10"))[0] == 200


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

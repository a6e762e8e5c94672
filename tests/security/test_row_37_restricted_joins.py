"""Row 37: restricted joins, as the resident server and as the joining one."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from matrixlib.events import Event, parse_event
from matrixlib.identifiers import server_name_of
from matrixlib.signing import sign_event, signing_key_ids
from servicekit.errors import MatrixError
from tests.support.evil_peer import Asked, EvilPeer
from tests.support.federation_alone import FederationAlone
from tests.support.rooms import Room, key_of
from tests.support.tls_ca import TestCa

World = tuple[EvilPeer, FederationAlone, Room, Room]
V1 = "/_matrix/federation/v1"


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    return TestCa(tmp_path / "ca")


@pytest.fixture
async def world(tmp_path: Path, ca: TestCa) -> AsyncIterator[World]:
    """We are resident in a restricted room; who is in the lobby may join."""
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        lobby = Room("12", creator=us.user("owner")).with_members(f"@eve:{peer.server_name}")
        room = Room("10", creator=us.user("owner"))
        rules = {
            "join_rule": "restricted",
            "allow": [{"type": "m.room_membership", "room_id": lobby.create.room_id}],
        }
        room.send(room.creator, "m.room.join_rules", rules, state_key="")
        us.rooms.of[lobby.create.room_id] = lobby
        us.rooms.of[room.create.room_id] = room
        yield peer, us, room, lobby


async def make_join(peer: EvilPeer, us: FederationAlone, room: Room, user: str) -> tuple[int, Any]:
    path = f"{V1}/make_join/{room.create.room_id}/{user}?ver=9&ver=10"
    return await peer.ask("GET", us.base_url, path, us.server_name)


def join_of(peer: EvilPeer, room: Room, template: dict[str, Any], **content: Any) -> Event:
    return peer.member_event(room.version, template, **content)


async def send_join(peer: EvilPeer, us: FederationAlone, event: Event) -> tuple[int, Any]:
    path = f"/_matrix/federation/v2/send_join/{event.room_id}/{event.event_id}"
    return await peer.ask("PUT", us.base_url, path, us.server_name, event.pdu)


async def test_a_member_of_the_lobby_joins_by_authority_of_a_user_here(world: World) -> None:
    peer, us, room, _ = world
    status, body = await make_join(peer, us, room, f"@eve:{peer.server_name}")
    assert status == 200, body
    assert body["event"]["content"]["join_authorised_via_users_server"] == us.user("owner")
    event = join_of(peer, room, body["event"])
    status, answer = await send_join(peer, us, event)
    assert status == 200, answer
    assert signing_key_ids(answer["event"], us.server_name) == [us.key.key_id]
    assert event.event_id in room.events
    assert {item["type"] for item in answer["state"]} >= {"m.room.create", "m.room.join_rules"}


async def test_a_stranger_to_the_lobby_does_not_join(world: World) -> None:
    peer, us, room, _ = world
    status, body = await make_join(peer, us, room, f"@mallory:{peer.server_name}")
    assert (status, body["errcode"]) == (403, "M_FORBIDDEN")
    status, body = await make_join(peer, us, room, f"@eve:{peer.server_name}")
    template = {**body["event"], "sender": f"@mallory:{peer.server_name}"}
    status, body = await send_join(peer, us, join_of(peer, room, template))
    assert (status, body["errcode"]) == (403, "M_FORBIDDEN")
    assert us.input.inputs == []


async def test_who_left_the_lobby_meanwhile_does_not_join(world: World) -> None:
    peer, us, room, lobby = world
    _, body = await make_join(peer, us, room, f"@eve:{peer.server_name}")
    lobby.member(f"@eve:{peer.server_name}", "leave")
    status, body = await send_join(peer, us, join_of(peer, room, body["event"]))
    assert (status, body["errcode"]) == (403, "M_FORBIDDEN")
    assert us.input.inputs == []


async def test_a_lobby_that_we_left_says_nothing(world: World) -> None:
    peer, us, room, lobby = world
    lobby.member(us.user("owner"), "leave")
    status, body = await make_join(peer, us, room, f"@eve:{peer.server_name}")
    assert (status, body["errcode"]) == (400, "M_UNABLE_TO_AUTHORISE_JOIN")


async def test_without_somebody_who_may_invite_another_server_is_asked(world: World) -> None:
    peer, us, room, _ = world
    room.send(room.creator, "m.room.power_levels", {"users": {room.creator: 50}, "invite": 100}, state_key="")
    status, body = await make_join(peer, us, room, f"@eve:{peer.server_name}")
    assert (status, body["errcode"]) == (400, "M_UNABLE_TO_GRANT_JOIN")


async def test_an_authoriser_who_may_no_longer_invite_lets_nobody_in(world: World) -> None:
    peer, us, room, _ = world
    _, body = await make_join(peer, us, room, f"@eve:{peer.server_name}")
    room.send(room.creator, "m.room.power_levels", {"users": {room.creator: 50}, "invite": 100}, state_key="")
    status, answer = await send_join(peer, us, join_of(peer, room, body["event"]))
    assert (status, answer["errcode"]) == (400, "M_UNABLE_TO_GRANT_JOIN")
    assert us.input.inputs == []


@pytest.mark.parametrize(
    "allow",
    [
        None,
        "everybody",
        [],
        [7, None, [], {}],
        [{"type": "org.example.other", "room_id": "LOBBY"}],
        [{"type": "m.room_membership"}, {"type": "m.room_membership", "room_id": 7}],
        [{"type": ["m.room_membership"], "room_id": "LOBBY"}],
    ],
)
async def test_conditions_of_no_right_form_are_all_failed(world: World, allow: Any) -> None:
    peer, us, room, lobby = world
    if isinstance(allow, list):
        allow = [
            {**item, "room_id": lobby.create.room_id}
            if isinstance(item, dict) and item.get("room_id") == "LOBBY"
            else item
            for item in allow
        ]
    rules = {"join_rule": "restricted", **({} if allow is None else {"allow": allow})}
    room.send(room.creator, "m.room.join_rules", rules, state_key="")
    status, body = await make_join(peer, us, room, f"@eve:{peer.server_name}")
    assert (status, body["errcode"]) == (403, "M_FORBIDDEN")


async def test_one_condition_that_holds_is_enough(world: World) -> None:
    peer, us, room, lobby = world
    names = ["!unknown:elsewhere.example", lobby.create.room_id]
    allow = [{"type": "m.room_membership", "room_id": name} for name in names]
    room.send(room.creator, "m.room.join_rules", {"join_rule": "restricted", "allow": allow}, state_key="")
    status, body = await make_join(peer, us, room, f"@eve:{peer.server_name}")
    assert status == 200, body
    # Whether the unknown room would let this one in cannot be said here.
    status, body = await make_join(peer, us, room, f"@mallory:{peer.server_name}")
    assert (status, body["errcode"]) == (400, "M_UNABLE_TO_AUTHORISE_JOIN")


async def test_we_sign_for_no_other_authoriser(world: World) -> None:
    peer, us, room, _ = world
    _, body = await make_join(peer, us, room, f"@eve:{peer.server_name}")
    for authoriser in (us.user("nobody"), f"@eve:{peer.server_name}", "@dora:elsewhere.example", "x", 7):
        event = join_of(peer, room, body["event"], join_authorised_via_users_server=authoriser)
        status, answer = await send_join(peer, us, event)
        assert status in (400, 403), (authoriser, answer)
        # Refused before, or by the RoomServer; nowhere with a signature of ours.
        assert event.event_id not in room.events or event.event_id in room.rejected


async def test_a_lobby_that_we_left_meanwhile_says_nothing(world: World) -> None:
    peer, us, room, lobby = world
    _, body = await make_join(peer, us, room, f"@eve:{peer.server_name}")
    lobby.member(us.user("owner"), "leave")
    status, answer = await send_join(peer, us, join_of(peer, room, body["event"]))
    assert (status, answer["errcode"]) == (400, "M_UNABLE_TO_AUTHORISE_JOIN"), answer
    assert us.input.inputs == []


async def test_it_is_the_server_that_must_be_in_the_lobby_not_the_authoriser(world: World) -> None:
    peer, us, room, lobby = world
    lobby.member(us.user("other"), "join")
    lobby.member(us.user("owner"), "leave")
    status, body = await make_join(peer, us, room, f"@eve:{peer.server_name}")
    assert status == 200, body
    assert body["event"]["content"]["join_authorised_via_users_server"] == us.user("owner")
    status, answer = await send_join(peer, us, join_of(peer, room, body["event"]))
    assert status == 200, answer


@pytest.mark.parametrize("membership", ["leave", "ban"])
async def test_an_authoriser_who_is_no_longer_in_the_room_lets_nobody_in(
    world: World, membership: str
) -> None:
    peer, us, room, _ = world
    boss = us.user("boss")
    invite = room.member(boss, "invite", by=room.creator)
    room.member(boss, "join", prev=[invite.event_id])
    room.send(room.creator, "m.room.power_levels", {"users": {room.creator: 100, boss: 100}}, state_key="")
    _, body = await make_join(peer, us, room, f"@eve:{peer.server_name}")
    authoriser = body["event"]["content"]["join_authorised_via_users_server"]
    other = boss if authoriser == room.creator else room.creator
    # Nobody lowers another of the same level: the authoriser does so, and stays able to invite.
    levels = {"users": {other: 100, authoriser: 50}, "ban": 50}
    room.send(authoriser, "m.room.power_levels", levels, state_key="")
    room.member(authoriser, membership, by=authoriser if membership == "leave" else other)
    assert room.state["m.room.member", authoriser].membership == membership
    status, answer = await send_join(peer, us, join_of(peer, room, body["event"]))
    assert (status, answer["errcode"]) == (400, "M_UNABLE_TO_GRANT_JOIN"), answer
    assert us.input.inputs == []


# -- a join that comes in a transaction ----------------------------------------------------------------------


async def send(peer: EvilPeer, us: FederationAlone, pdu: dict[str, Any]) -> dict[str, Any]:
    """Send one PDU; returns its result."""
    body = {"origin": peer.server_name, "origin_server_ts": 1, "pdus": [pdu], "edus": []}
    status, answer = await peer.ask("PUT", us.base_url, f"{V1}/send/one", us.server_name, body)
    assert status == 200, answer
    (result,) = answer["pdus"].values()
    return dict(result)


@pytest.fixture
async def third(world: World, ca: TestCa) -> AsyncIterator[str]:
    """A user of a third server, who is in the restricted room and may invite."""
    _, _, room, _ = world
    async with EvilPeer(ca) as server:
        dora = f"@dora:{server.server_name}"
        invite = room.member(dora, "invite", by=room.creator)
        room.member(dora, "join", prev=[invite.event_id])
        room.send(room.creator, "m.room.power_levels", {"users": {room.creator: 100, dora: 50}}, state_key="")
        yield dora


def restricted_join(world: World, authoriser: Any) -> Event:
    """Eve's join by authority of somebody, signed by both servers; not in the room yet."""
    peer, _, room, _ = world
    heads = list(room.heads)
    eve = f"@eve:{peer.server_name}"
    content = {"join_authorised_via_users_server": authoriser}
    event = room.member(eve, "join", content=content, prev=heads)
    del room.events[event.event_id]
    room.rejected.pop(event.event_id, None)
    room.order.remove(event.event_id)
    room.heads = heads
    return event


async def test_both_signatures_make_a_join_right(world: World, third: str) -> None:
    peer, us, room, _ = world
    event = restricted_join(world, third)
    assert set(event.pdu["signatures"]) == {peer.server_name, server_name_of(third)}
    assert await send(peer, us, event.pdu) == {}
    assert event.event_id not in room.rejected


@pytest.mark.parametrize("missing", ["the joining server's", "the authoriser's", "a right one"])
async def test_one_signature_is_not_enough(world: World, third: str, missing: str) -> None:
    peer, us, room, _ = world
    event = restricted_join(world, third)
    signatures = dict(event.pdu["signatures"])
    if missing == "the joining server's":
        del signatures[peer.server_name]
    elif missing == "the authoriser's":
        del signatures[server_name_of(third)]
    else:
        signatures[server_name_of(third)] = {key_of(server_name_of(third)).key_id: "A" * 86}
    result = await send(peer, us, {**event.pdu, "signatures": signatures})
    assert "signature" in result["error"]
    assert event.event_id not in room.events


async def test_a_join_in_the_name_of_a_user_of_ours_needs_our_signature(world: World) -> None:
    peer, us, room, _ = world
    event = restricted_join(world, room.creator)
    signatures = {peer.server_name: event.pdu["signatures"][peer.server_name]}
    result = await send(peer, us, {**event.pdu, "signatures": signatures})
    assert "signature" in result["error"]
    assert event.event_id not in room.events


@pytest.mark.parametrize("why", ["left", "may not invite", "was never there"])
async def test_an_authoriser_who_may_not_authorises_nothing(world: World, third: str, why: str) -> None:
    peer, us, room, _ = world
    if why == "left":
        room.member(third, "leave")
    elif why == "may not invite":
        users = {room.creator: 100}
        room.send(room.creator, "m.room.power_levels", {"users": users, "invite": 50}, state_key="")
    else:
        third = f"@nobody:{server_name_of(third)}"
    event = restricted_join(world, third)
    result = await send(peer, us, event.pdu)
    assert result["error"]
    assert event.event_id in room.rejected


# -- as the joining server -----------------------------------------------------------------------------------

WRONG_ANSWERS = [
    "nothing",
    "our own event",
    "a forged signature",
    "a third server's signature",
    "another event",
    "another authoriser",
    "another content",
]


@pytest.fixture
async def joining(tmp_path: Path, ca: TestCa) -> AsyncIterator[tuple[EvilPeer, FederationAlone, Room]]:
    """A restricted room of the peer's, into which its make_join lets everybody."""
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        boss = f"@boss:{peer.server_name}"
        room = Room("10", creator=boss)
        room.send(boss, "m.room.join_rules", {"join_rule": "restricted", "allow": []}, state_key="")

        def make_join(_: Asked) -> Any:
            state = room.state_before(room.heads)
            wanted = ("m.room.create", "m.room.join_rules", "m.room.power_levels")
            auth = [state[kind, ""] for kind in wanted] + [state["m.room.member", boss]]
            event = {
                "type": "m.room.member",
                "room_id": room.create.room_id,
                "sender": us.user("alice"),
                "state_key": us.user("alice"),
                "content": {"membership": "join", "join_authorised_via_users_server": boss},
                "prev_events": list(room.heads),
                "auth_events": auth,
                "depth": 9,
            }
            return {"room_version": "10", "event": event}

        peer.answer("make_join", make_join)
        yield peer, us, room


def answers_joins(peer: EvilPeer, room: Room, event_of: Callable[[Asked], Any]) -> None:
    """Have the peer answer send_join with the room's state, and an event of this making."""
    state = [room.events[event_id].pdu for event_id in room.state_before(room.heads).values()]
    chain = [room.events[event_id].pdu for event_id in room.order]
    peer.answer("send_join", lambda asked: {"state": state, "auth_chain": chain, "event": event_of(asked)})


async def test_as_joiner_we_take_the_residents_signature_over(
    joining: tuple[EvilPeer, FederationAlone, Room],
) -> None:
    peer, us, room = joining
    answers_joins(peer, room, lambda a: sign_event(a.content, room.version, peer.server_name, peer.key))
    joined = await us.parts.joins.join(us.user("alice"), room.create.room_id, [peer.server_name], {})
    (entry,) = us.input.inputs
    join = parse_event(entry.commit_import.join_event.pdu_json, room.version)
    assert join.event_id == joined.event_id
    assert set(join.pdu["signatures"]) == {us.server_name, peer.server_name}


@pytest.mark.parametrize("name", WRONG_ANSWERS)
async def test_as_joiner_we_believe_only_a_join_that_the_resident_signed(
    joining: tuple[EvilPeer, FederationAlone, Room], name: str
) -> None:
    peer, us, room = joining

    def signed(pdu: dict[str, Any]) -> dict[str, Any]:
        return sign_event(pdu, room.version, peer.server_name, peer.key)

    def event_of(asked: Asked) -> Any:
        ours: dict[str, Any] = asked.content
        content = ours["content"]
        match name:
            case "nothing":
                return None
            case "our own event":
                return ours
            case "a forged signature":
                forged = {peer.server_name: {peer.key.key_id: "A" * 86}}
                return {**ours, "signatures": {**ours["signatures"], **forged}}
            case "a third server's signature":
                return sign_event(ours, room.version, "third.example", key_of("third.example"))
            case "another event":
                return room.create.pdu
            case "another authoriser":
                other = {**content, "join_authorised_via_users_server": f"@other:{peer.server_name}"}
                return signed({**ours, "content": other})
            case _:
                return signed({**ours, "content": {**content, "displayname": "Evil"}})

    answers_joins(peer, room, event_of)
    profile = {"displayname": "Alice"}
    with pytest.raises(MatrixError) as raised:
        await us.parts.joins.join(us.user("alice"), room.create.room_id, [peer.server_name], profile)
    assert raised.value.http_status == 502
    assert len(peer.asked("send_join")) == 1
    assert us.input.inputs == []


@pytest.mark.parametrize("why", ["is not joined", "may not invite"])
async def test_as_joiner_we_see_that_the_authoriser_may_not(
    joining: tuple[EvilPeer, FederationAlone, Room], why: str
) -> None:
    peer, us, room = joining
    boss = room.creator
    if why == "is not joined":
        room.member(boss, "leave")
    else:
        room.send(boss, "m.room.power_levels", {"users": {boss: 10}, "invite": 50}, state_key="")
    answers_joins(peer, room, lambda a: sign_event(a.content, room.version, peer.server_name, peer.key))
    with pytest.raises(MatrixError) as raised:
        await us.parts.joins.join(us.user("alice"), room.create.room_id, [peer.server_name], {})
    assert raised.value.http_status == 502
    assert us.input.inputs == []

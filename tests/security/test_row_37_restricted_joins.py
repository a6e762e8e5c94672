"""Row 37: restricted joins, as the resident server and as the joining one."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from matrixlib.events import Event
from matrixlib.signing import signing_key_ids
from servicekit.errors import MatrixError
from tests.support.evil_peer import EvilPeer
from tests.support.federation_alone import FederationAlone
from tests.support.rooms import Room
from tests.support.tls_ca import TestCa

World = tuple[EvilPeer, FederationAlone, Room, Room]
V1 = "/_matrix/federation/v1"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """We are resident in a restricted room; who is in the lobby may join."""
    ca = TestCa(tmp_path / "ca")
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


async def test_as_joiner_we_believe_only_a_join_that_the_resident_signed(tmp_path: Path) -> None:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        boss = f"@boss:{peer.server_name}"
        room = Room("10", creator=boss)
        rules = {"join_rule": "restricted", "allow": []}
        room.send(boss, "m.room.join_rules", rules, state_key="")
        state = [room.events[event_id].pdu for event_id in room.state_before(room.heads).values()]
        user_id = us.user("alice")
        auth = [
            room.state_before(room.heads)[key]
            for key in (
                ("m.room.create", ""),
                ("m.room.join_rules", ""),
                ("m.room.member", boss),
                ("m.room.power_levels", ""),
            )
        ]
        template = {
            "type": "m.room.member",
            "room_id": room.create.room_id,
            "sender": user_id,
            "state_key": user_id,
            "content": {"membership": "join", "join_authorised_via_users_server": boss},
            "prev_events": room.heads,
            "auth_events": auth,
            "depth": 9,
        }
        peer.answer("make_join", lambda _: {"room_version": "10", "event": template})
        answers = {
            "not signed by the resident": lambda request: request.content,
            "nothing": lambda _: None,
            "another event": lambda _: state[0],
        }
        for name, returned in answers.items():
            peer.answer(
                "send_join",
                lambda request, returned=returned: {  # type: ignore[misc]
                    "state": state,
                    "auth_chain": state,
                    "event": returned(request),
                },
            )
            with pytest.raises(MatrixError):
                await us.parts.joins.join(user_id, room.create.room_id, [peer.server_name], {})
            assert us.input.inputs == [], name

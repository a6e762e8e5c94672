"""What other servers and third parties ask besides rooms: our directory, OpenID tokens, third-party invites."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from matrixlib.signing import sign_json
from tests.support.evil_peer import Answer, EvilPeer
from tests.support.federation_alone import FederationAlone
from tests.support.rooms import Room, key_of
from tests.support.tls_ca import TestCa

World = tuple[EvilPeer, FederationAlone]
V1 = "/_matrix/federation/v1"
IDENTITY = key_of("identity.example")
ROOM = {"room_id": "!a:a.example", "num_joined_members": 1, "world_readable": False, "guest_can_join": False}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    ca = TestCa(tmp_path / "ca")
    opened = {"room_directory.public_over_federation": True}
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca, **opened) as us:
        yield peer, us


# -- the directory -----------------------------------------------------------------------------------------


async def public(world: World, method: str, query: str = "", content: Any = None) -> tuple[int, Any]:
    peer, us = world
    return await peer.ask(method, us.base_url, f"{V1}/publicRooms{query}", us.server_name, content)


async def test_the_directory_is_open_where_the_operator_says_so(tmp_path: Path) -> None:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        for method, content in (("GET", None), ("POST", {})):
            status, body = await public((peer, us), method, content=content)
            assert (status, body["errcode"]) == (403, "M_FORBIDDEN")


async def test_what_is_asked_for_reaches_the_directory(world: World) -> None:
    _, us = world
    us.users.page = {"chunk": [ROOM], "total_room_count_estimate": 3, "next_batch": "p1"}
    assert await public(world, "GET", "?limit=1&since=p7") == (200, us.users.page)
    asked = us.users.asked[-1]
    assert (asked.limit, asked.since, asked.search_term, asked.room_types) == (1, "p7", "", None)
    chosen = {"generic_search_term": "tea", "room_types": [None, "m.space"]}
    assert (await public(world, "POST", content={"limit": 10_000, "filter": chosen}))[0] == 200
    asked = us.users.asked[-1]
    assert (asked.limit, asked.search_term, asked.room_types) == (500, "tea", (None, "m.space"))
    # Of other networks there is nothing.
    assert (await public(world, "GET", "?third_party_instance_id=irc"))[0] == 200
    assert us.users.asked[-1].room_types == ()
    assert (await public(world, "GET", "?include_all_networks=true"))[0] == 200
    assert us.users.asked[-1].room_types is None


@pytest.mark.parametrize(
    ("content", "errcode"),
    [
        ({"limit": -1}, "M_INVALID_PARAM"),
        ({"limit": "1"}, "M_BAD_JSON"),
        ({"since": 7}, "M_BAD_JSON"),
        ({"since": "x" * 300}, "M_INVALID_PARAM"),
        ({"filter": []}, "M_BAD_JSON"),
        ({"filter": {"generic_search_term": {}}}, "M_BAD_JSON"),
        ({"filter": {"room_types": "m.space"}}, "M_BAD_JSON"),
        ({"filter": {"room_types": [7]}}, "M_BAD_JSON"),
        ({"filter": {"room_types": ["a"] * 51}}, "M_INVALID_PARAM"),
        ({"include_all_networks": "yes"}, "M_BAD_JSON"),
        ({"include_all_networks": True, "third_party_instance_id": "irc"}, "M_INVALID_PARAM"),
    ],
)
async def test_malformed_questions_are_refused(world: World, content: Any, errcode: str) -> None:
    status, body = await public(world, "POST", content=content)
    assert (status, body["errcode"]) == (400, errcode)
    assert world[1].users.asked == []


async def test_a_directory_asked_without_a_signature_says_nothing(world: World) -> None:
    peer, us = world
    status, body = await peer.ask("GET", us.base_url, f"{V1}/publicRooms", us.server_name, signed=False)
    assert (status, body["errcode"]) == (401, "M_UNAUTHORIZED")


# -- OpenID ------------------------------------------------------------------------------------------------


async def test_an_openid_token_names_its_user(world: World) -> None:
    peer, us = world
    us.users.openid_tokens["right"] = us.user("alice")

    async def ask(query: str) -> tuple[int, Any]:
        return await peer.ask("GET", us.base_url, f"{V1}/openid/userinfo{query}", None, signed=False)

    assert await ask("?access_token=right") == (200, {"sub": us.user("alice")})
    for query in ("?access_token=wrong", f"?access_token={'x' * 600}"):
        status, body = await ask(query)
        assert (status, body["errcode"]) == (401, "M_UNKNOWN_TOKEN")
    status, body = await ask("")
    assert (status, body["errcode"]) == (401, "M_MISSING_TOKEN")


# -- third-party invites -----------------------------------------------------------------------------------


def signed_for(user_id: str, token: str = "abc") -> dict[str, Any]:
    return sign_json({"mxid": user_id, "token": token}, "identity.example", IDENTITY)


def room_with_invite(creator: str, us: FederationAlone) -> Room:
    """A room whose creator invited somebody by a third-party id, under the token `abc`."""
    room = Room("10", creator=creator)
    content = {
        "display_name": "b...@e...",
        "public_key": IDENTITY.verify_key.base64,
        "key_validity_url": "https://identity.example/valid",
    }
    room.send(creator, "m.room.third_party_invite", content, state_key="abc")
    us.rooms.of[room.create.room_id] = room
    return room


async def exchange(world: World, room: Room, user_id: str, **changes: Any) -> tuple[int, Any]:
    peer, us = world
    room_id = room.create.room_id
    invite = {"display_name": "evil name", "signed": signed_for(user_id)}
    body = {
        "type": "m.room.member",
        "room_id": room_id,
        "sender": room.creator,
        "state_key": user_id,
        "content": {"membership": "invite", "third_party_invite": invite},
        **changes,
    }
    path = f"{V1}/exchange_third_party_invite/{room_id}"
    return await peer.ask("PUT", us.base_url, path, us.server_name, body)


async def test_an_exchange_becomes_an_invite_with_the_name_that_the_room_has(world: World) -> None:
    peer, us = world
    room = room_with_invite(us.user("owner"), us)
    bob = f"@bob:{peer.server_name}"
    assert await exchange(world, room, bob) == (200, {})
    invite = {"display_name": "b...@e...", "signed": signed_for(bob)}
    assert us.users.redeemed == [(room.create.room_id, us.user("owner"), bob, invite)]


@pytest.mark.parametrize(
    ("changes", "status", "errcode"),
    [
        ({"room_id": "!other:a.example"}, 400, "M_INVALID_PARAM"),
        ({"type": "m.room.power_levels"}, 400, "M_INVALID_PARAM"),
        ({"content": []}, 400, "M_BAD_JSON"),
        ({"content": {"membership": "join"}}, 400, "M_INVALID_PARAM"),
        ({"content": {"membership": "invite"}}, 400, "M_INVALID_PARAM"),
        ({"content": {"membership": "invite", "third_party_invite": {}}}, 400, "M_INVALID_PARAM"),
        ({"sender": "@boss:elsewhere.example"}, 400, "M_INVALID_PARAM"),
        ({"sender": 7}, 400, "M_INVALID_PARAM"),
        ({"state_key": "@bob:elsewhere.example"}, 400, "M_INVALID_PARAM"),
    ],
)
async def test_what_is_no_exchange_is_refused(world: World, changes: Any, status: int, errcode: str) -> None:
    peer, us = world
    room = room_with_invite(us.user("owner"), us)
    answer = await exchange(world, room, f"@bob:{peer.server_name}", **changes)
    assert (answer[0], answer[1]["errcode"]) == (status, errcode)
    assert us.users.redeemed == []


async def test_an_exchange_without_such_an_invite_in_the_room_is_forbidden(world: World) -> None:
    peer, us = world
    bob = f"@bob:{peer.server_name}"
    room = room_with_invite(us.user("owner"), us)
    other = us.user("other")
    room.member(other, "join")
    wrong = {"display_name": "x", "signed": signed_for(bob, token="other")}
    content = {"membership": "invite", "third_party_invite": wrong}
    for changes in ({"sender": other}, {"content": content}):
        status, body = await exchange(world, room, bob, **changes)
        assert (status, body["errcode"]) == (403, "M_FORBIDDEN")
    room.send(room.creator, "m.room.server_acl", {"allow": ["*"], "deny": ["localhost"]}, state_key="")
    status, body = await exchange(world, room, bob)
    assert (status, body["errcode"]) == (403, "M_FORBIDDEN")
    unknown = Room("12", creator=us.user("owner"))
    status, body = await exchange(world, unknown, bob)
    assert (status, body["errcode"]) == (404, "M_NOT_FOUND")
    assert us.users.redeemed == []


def binding(user_id: str, *invites: Any) -> dict[str, Any]:
    return {"medium": "email", "address": "b@e.example", "mxid": user_id, "invites": list(invites)}


def pending(user_id: str, room_id: str, sender: str, **changes: Any) -> dict[str, Any]:
    return {
        "medium": "email",
        "address": "b@e.example",
        "mxid": user_id,
        "room_id": room_id,
        "sender": sender,
        "signed": signed_for(user_id),
        **changes,
    }


async def on_bind(world: World, body: Any, method: str = "PUT") -> tuple[int, Any]:
    peer, us = world
    return await peer.ask(method, us.base_url, f"{V1}/3pid/onbind", None, body, signed=False)


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_a_binding_is_taken_to_the_inviters_server(world: World, method: str) -> None:
    peer, us = world
    alice, boss = us.user("alice"), f"@boss:{peer.server_name}"
    peer.answer("exchange_third_party_invite", lambda _: {})
    body = binding(alice, pending(alice, "!far:elsewhere.example", boss))
    assert await on_bind(world, body, method) == (200, {})
    [asked] = peer.asked("exchange_third_party_invite")
    assert asked.path.endswith("/%21far%3Aelsewhere.example")
    assert (asked.content["sender"], asked.content["state_key"]) == (boss, alice)
    assert asked.content["content"]["third_party_invite"]["signed"] == signed_for(alice)


async def test_a_binding_to_an_invite_of_our_own_user_is_redeemed_here(world: World) -> None:
    _, us = world
    alice = us.user("alice")
    room = room_with_invite(us.user("owner"), us)
    body = binding(alice, pending(alice, room.create.room_id, us.user("owner")))
    assert await on_bind(world, body) == (200, {})
    assert [item[:3] for item in us.users.redeemed] == [(room.create.room_id, us.user("owner"), alice)]


async def test_an_inviter_out_of_reach_has_the_identity_server_ask_again(world: World) -> None:
    peer, us = world
    alice, boss = us.user("alice"), f"@boss:{peer.server_name}"
    body = binding(alice, pending(alice, "!far:elsewhere.example", boss))
    peer.answer("exchange_third_party_invite", lambda _: Answer(503))
    assert (await on_bind(world, body))[0] == 502
    # Refused for good is settled.
    refusal = Answer(403, b'{"errcode":"M_FORBIDDEN","error":"no"}')
    peer.answer("exchange_third_party_invite", lambda _: refusal)
    assert await on_bind(world, body) == (200, {})


async def test_malformed_bindings_ask_nobody(world: World) -> None:
    peer, us = world
    alice, boss, room_id = us.user("alice"), f"@boss:{peer.server_name}", "!far:elsewhere.example"
    bad = [
        7,
        pending(alice, room_id, "boss"),
        pending(alice, "far", boss),
        pending(alice, room_id, boss, mxid="@x:y.example"),
        pending(alice, room_id, boss, signed=signed_for("@x:y.example")),
        pending(alice, room_id, boss, signed={"mxid": alice, "token": 7, "signatures": {}}),
        pending(alice, room_id, boss, signed={"mxid": alice, "token": "t"}),
    ]
    assert await on_bind(world, binding(alice, *bad)) == (200, {})
    for body, errcode in (
        ({"mxid": alice}, "M_MISSING_PARAM"),
        ({**binding(alice), "invites": {}}, "M_BAD_JSON"),
        (binding("@x:elsewhere.example"), "M_INVALID_PARAM"),
        (binding(alice, *[7] * 51), "M_INVALID_PARAM"),
    ):
        status, answer = await on_bind(world, body)
        assert (status, answer["errcode"]) == (400, errcode)
    assert (await on_bind(world, binding(f"@nobody:{us.server_name}")))[0] == 404
    assert peer.asked("exchange_third_party_invite") == []

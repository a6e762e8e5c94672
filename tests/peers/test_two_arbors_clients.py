"""People of two Arbors share rooms by their client APIs alone."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from matrixlib.signing import sign_json
from tests.support.arbor_server import ArborServer
from tests.support.federation import federated_arbor, until
from tests.support.matrix_client import ClientError, MatrixClient, http_session
from tests.support.rooms import key_of
from tests.support.tls_ca import TestCa

pytestmark = pytest.mark.timeout(180)


@dataclass(frozen=True, slots=True)
class Two:
    """Two servers, and somebody at each."""

    one: ArborServer
    other: ArborServer
    alice: MatrixClient
    bob: MatrixClient


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Two]:
    ca = TestCa(tmp_path / "ca")
    one, other = federated_arbor(tmp_path / "one", ca), federated_arbor(tmp_path / "other", ca)
    try:
        await asyncio.gather(one.start(), other.start())
        async with http_session() as session:
            yield Two(one, other, await one.register(session, "alice"), await other.register(session, "bob"))
    finally:
        await asyncio.gather(one.stop(), other.stop())


async def sees(client: MatrixClient, room_id: str, event_id: str) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        events = (await client.messages(room_id, limit=50))["chunk"]
        return next((event for event in events if event["event_id"] == event_id), None)

    return await until(look, f"{client.user_id} sees {event_id}")


async def invite_of(client: MatrixClient, room_id: str, kind: str = "invite") -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        found: dict[str, Any] | None = (await client.sync())["rooms"].get(kind, {}).get(room_id)
        return found

    return await until(look, f"{client.user_id} has the room under {kind}")


async def membership(client: MatrixClient, room_id: str, user_id: str, wanted: str) -> None:
    async def look() -> bool:
        state = await client.state(room_id)
        return any(
            event["type"] == "m.room.member"
            and event["state_key"] == user_id
            and event["content"]["membership"] == wanted
            for event in state
        )

    await until(look, f"{user_id} is at {wanted}")


async def test_join_by_alias_and_scroll_back_before_the_join(two: Two) -> None:
    alice, bob = two.alice, two.bob
    room_id = await alice.create_room(preset="public_chat", room_alias_name="tea")
    said = [await alice.send(room_id, f"before {number}") for number in range(12)]
    alias = f"%23tea:{two.one.server_name}"
    found = await bob.get(f"/directory/room/{alias}")
    assert found == {"room_id": room_id, "servers": [two.one.server_name]}
    assert await bob.post(f"/join/{alias}") == {"room_id": room_id}
    await sees(alice, room_id, await bob.send(room_id, "hello"))
    await sees(bob, room_id, await alice.send(room_id, "welcome"))
    for event_id in said:
        await sees(bob, room_id, event_id)
    # Away and back, nobody naming a server.
    await bob.post(f"/rooms/{room_id}/leave")
    await membership(alice, room_id, bob.user_id, "leave")
    await alice.send(room_id, "bob is away")
    await bob.post(f"/rooms/{room_id}/join")
    await membership(alice, room_id, bob.user_id, "join")
    await sees(alice, room_id, await bob.send(room_id, "back"))


async def test_presence_and_typing_of_the_other_servers_users(two: Two) -> None:
    alice, bob = two.alice, two.bob
    room_id = await alice.create_room(preset="public_chat")
    await bob.post(f"/join/{room_id}?via={two.one.server_name}")
    await membership(alice, room_id, bob.user_id, "join")
    status = f"/presence/{bob.user_id}/status"
    await bob.put(status, {"presence": "online", "status_msg": "here"})

    async def look() -> dict[str, Any] | None:
        events = (await alice.sync()).get("presence", {}).get("events", [])
        return next((event["content"] for event in events if event["sender"] == bob.user_id), None)

    assert (await until(look, "bob is present"))["status_msg"] == "here"
    assert (await alice.get(status))["presence"] == "online"
    await bob.put(f"/rooms/{room_id}/typing/{bob.user_id}", {"typing": True, "timeout": 30_000})

    async def typing() -> bool:
        room = (await alice.sync())["rooms"]["join"][room_id]
        return any(
            bob.user_id in event["content"].get("user_ids", ()) for event in room["ephemeral"]["events"]
        )

    await until(typing, "bob types")


async def test_who_joins_after_an_erasure_gets_redacted_copies(two: Two) -> None:
    """Erasure: whoever comes later is served without the content, here and on other servers."""
    alice, bob = two.alice, two.bob
    host = await two.one.register(alice.session, "host")
    room_id = await host.create_room(preset="public_chat")
    await alice.join(room_id)
    said = await alice.send(room_id, "forget me")
    kept = await host.send(room_id, "remember me")
    with pytest.raises(ClientError) as challenge:
        await alice.post("/account/deactivate", {"erase": True})
    auth = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": alice.user_id},
        "password": "correct horse",
        "session": challenge.value.body["session"],
    }
    await alice.post("/account/deactivate", {"erase": True, "auth": auth})
    await membership(host, room_id, alice.user_id, "leave")
    later = await two.one.register(alice.session, "later")
    await later.join(room_id)
    await bob.post(f"/join/{room_id}?via={two.one.server_name}")
    assert (await sees(host, room_id, said))["content"]["body"] == "forget me"
    for newcomer in (later, bob):
        assert (await sees(newcomer, room_id, kept))["content"]["body"] == "remember me"
        assert (await sees(newcomer, room_id, said))["content"] == {}


async def test_invites_across_are_taken_refused_and_withdrawn(two: Two) -> None:
    alice, bob = two.alice, two.bob
    room_id = await alice.create_room(preset="private_chat", name="secret")
    await alice.invite(room_id, bob.user_id)
    invite = await invite_of(bob, room_id)
    names = [e["content"]["name"] for e in invite["invite_state"]["events"] if e["type"] == "m.room.name"]
    assert names == ["secret"]
    await bob.post(f"/rooms/{room_id}/join")
    await sees(alice, room_id, await bob.send(room_id, "here"))

    # Invited as the room is made; refused.
    direct = await alice.create_room(preset="trusted_private_chat", is_direct=True, invite=[bob.user_id])
    await invite_of(bob, direct)
    await bob.post(f"/rooms/{direct}/leave")
    await membership(alice, direct, bob.user_id, "leave")
    assert direct not in (await bob.sync())["rooms"].get("invite", {})

    # Invited again, and nobody is there to hear the refusal: it stands here.
    await alice.invite(direct, bob.user_id)
    await invite_of(bob, direct)
    await two.one.stop()
    await bob.post(f"/rooms/{direct}/leave")
    assert direct not in (await bob.sync())["rooms"].get("invite", {})


async def test_knock_and_restricted_rooms(two: Two) -> None:
    alice, bob = two.alice, two.bob
    knock = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    room_id = await alice.create_room(initial_state=[knock])
    await bob.post(f"/knock/{room_id}?via={two.one.server_name}", {"reason": "tea?"})
    await membership(alice, room_id, bob.user_id, "knock")
    await invite_of(bob, room_id, "knock")
    await alice.invite(room_id, bob.user_id)
    await invite_of(bob, room_id)
    await bob.post(f"/join/{room_id}")
    await membership(alice, room_id, bob.user_id, "join")

    # Bob's friend is in the room that opens the other, which has nobody at Bob's who may let her in.
    async with http_session() as session:
        carol = await two.other.register(session, "carol")
        allow = [{"type": "m.room_membership", "room_id": room_id}]
        restricted = {
            "type": "m.room.join_rules",
            "state_key": "",
            "content": {"join_rule": "restricted", "allow": allow},
        }
        closed = await alice.create_room(
            initial_state=[restricted], power_level_content_override={"invite": 50}
        )
        await bob.post(f"/join/{closed}?via={two.one.server_name}")
        await bob.invite(room_id, carol.user_id)
        await carol.post(f"/join/{room_id}")
        await membership(alice, room_id, carol.user_id, "join")
        await carol.post(f"/join/{closed}?via={two.one.server_name}")
        await membership(alice, closed, carol.user_id, "join")


async def test_what_other_servers_know_and_what_they_refuse(two: Two) -> None:
    alice, bob = two.alice, two.bob
    await alice.put(f"/profile/{alice.user_id}/displayname", {"displayname": "Alice"})
    assert (await bob.get(f"/profile/{alice.user_id}"))["displayname"] == "Alice"
    assert await bob.get(f"/profile/{alice.user_id}/displayname") == {"displayname": "Alice"}
    closed = await alice.create_room(preset="private_chat")
    for method, path, status, errcode in (
        ("GET", f"/profile/@nobody:{two.one.server_name}", 404, "M_NOT_FOUND"),
        ("GET", f"/directory/room/%23none:{two.one.server_name}", 404, "M_NOT_FOUND"),
        ("GET", "/profile/@x:localhost:1", 502, "M_UNKNOWN"),
        ("GET", "/directory/room/%23x:localhost:1", 502, "M_UNKNOWN"),
        ("GET", "/publicRooms?server=localhost:1", 502, "M_UNKNOWN"),
        ("POST", "/join/!x:localhost:1", 502, "M_UNKNOWN"),
        ("POST", "/rooms/!x:localhost:1/leave", 404, "M_NOT_FOUND"),
        ("POST", f"/join/{closed}?server_name={two.one.server_name}", 403, "M_FORBIDDEN"),
        ("POST", f"/knock/{closed}?server_name={two.one.server_name}", 403, "M_FORBIDDEN"),
    ):
        with pytest.raises(ClientError) as caught:
            await bob.request(method, "/_matrix/client/v3" + path, {} if method == "POST" else None)
        error = caught.value
        assert (error.status, error.body["errcode"]) == (status, errcode), (method, path, error.body)


async def test_the_directory_of_the_other_server(two: Two) -> None:
    alice, bob = two.alice, two.bob
    rooms = []
    for name in ("tea", "coffee", "water"):
        body = {"preset": "public_chat", "name": name, "visibility": "public"}
        rooms.append((await alice.post("/createRoom", body))["room_id"])
    seen, since = [], ""
    while True:
        query = {"server": two.one.server_name, "limit": "2"} | ({"since": since} if since else {})
        page = await bob.get("/publicRooms", **query)
        seen += [room["room_id"] for room in page["chunk"]]
        assert page["total_room_count_estimate"] == 3
        since = page.get("next_batch", "")
        if not since:
            break
    assert sorted(seen) == sorted(rooms)
    found = await bob.post(
        f"/publicRooms?server={two.one.server_name}", {"filter": {"generic_search_term": "COFF"}}
    )
    assert [room["name"] for room in found["chunk"]] == ["coffee"]
    assert (await bob.get("/publicRooms"))["chunk"] == []


async def test_openid_tokens_and_third_party_invites_of_the_other_server(two: Two) -> None:
    alice, bob = two.alice, two.bob
    ssl_off = aiohttp.TCPConnector(ssl=False)
    async with aiohttp.ClientSession(connector=ssl_off) as session:
        token = (await bob.post(f"/user/{bob.user_id}/openid/request_token"))["access_token"]
        path = f"https://{two.other.server_name}/_matrix/federation/v1"
        async with session.get(f"{path}/openid/userinfo", params={"access_token": token}) as answer:
            assert await answer.json() == {"sub": bob.user_id}

        identity = key_of("identity.example")
        room_id = await alice.create_room(preset="private_chat", name="by mail")
        content = {
            "display_name": "b...@e...",
            "key_validity_url": "https://identity.example/valid",
            "public_key": identity.verify_key.base64,
        }
        await alice.put(f"/rooms/{room_id}/state/m.room.third_party_invite/abc", content)
        # Bob's identity server tells of the binding; nobody at Bob's is in the room yet.
        invite = {
            "medium": "email",
            "address": "bob@e.example",
            "mxid": bob.user_id,
            "room_id": room_id,
            "sender": alice.user_id,
            "signed": sign_json({"mxid": bob.user_id, "token": "abc"}, "identity.example", identity),
        }
        body = {"medium": "email", "address": "bob@e.example", "mxid": bob.user_id, "invites": [invite]}
        async with session.post(f"{path}/3pid/onbind", json=body) as answer:
            assert (answer.status, await answer.json()) == (200, {})
    await invite_of(bob, room_id)
    await bob.post(f"/join/{room_id}")
    await membership(alice, room_id, bob.user_id, "join")
    member = await alice.get(f"/rooms/{room_id}/state/m.room.member/{bob.user_id}")
    assert member["membership"] == "join"
    await sees(alice, room_id, await bob.send(room_id, "found you"))


async def test_spaces_and_times_across(two: Two) -> None:
    alice, bob = two.alice, two.bob
    space = await alice.create_room(preset="public_chat", creation_content={"type": "m.space"}, name="all")
    inner = await alice.create_room(preset="public_chat", creation_content={"type": "m.space"}, name="inner")
    leaf = await alice.create_room(preset="public_chat", name="leaf")
    closed = await alice.create_room(preset="private_chat", name="closed")
    via = [two.one.server_name]
    for parent, child in ((space, inner), (inner, leaf), (space, closed)):
        await alice.set_state(parent, "m.space.child", {"via": via}, child)
    ours = await bob.create_room(preset="public_chat", creation_content={"type": "m.space"}, name="ours")
    await bob.set_state(ours, "m.space.child", {"via": via, "suggested": True}, space)

    async def names(room_id: str, **query: str) -> list[str]:
        path = f"/_matrix/client/v1/rooms/{room_id}/hierarchy"
        answer = await bob.request("GET", path, query=query)
        return [room["name"] for room in answer["rooms"]]

    # Bob is in none of Alice's rooms; what is closed to him is not told.
    assert await names(ours) == ["ours", "all", "inner", "leaf"]
    assert await names(ours, suggested_only="true") == ["ours", "all"]
    assert await names(ours, max_depth="1") == ["ours", "all"]
    path = f"/_matrix/client/v1/rooms/{ours}/hierarchy"
    page = await bob.request("GET", path, query={"limit": "1"})
    assert await names(ours, limit="2", **{"from": page["next_batch"]}) == ["all", "inner"]
    for other in ({"max_depth": "1"}, {"suggested_only": "true"}):
        with pytest.raises(ClientError) as caught:
            await names(ours, limit="1", **{"from": page["next_batch"]}, **other)
        assert (caught.value.status, caught.value.errcode) == (400, "M_INVALID_PARAM")

    async def summary(room: str, **query: str) -> Any:
        return await bob.request("GET", f"/_matrix/client/v1/room_summary/{quote(room)}", query=query)

    alias = f"#leaf:{via[0]}"
    await alice.put(f"/directory/room/{quote(alias)}", {"room_id": leaf})
    for found in (await summary(leaf, via=via[0]), await summary(alias)):
        assert (found["room_id"], found["name"], found["membership"]) == (leaf, "leaf", "leave")
        assert "children_state" not in found
    for room in (closed, "#nothing:" + via[0], "!nothing:" + via[0]):
        with pytest.raises(ClientError) as caught:
            await summary(room, via=via[0])
        assert (caught.value.status, caught.value.errcode) == (404, "M_NOT_FOUND")

    first = await alice.send(leaf, "the first")
    at = (await alice.get(f"/rooms/{leaf}/event/{first}"))["origin_server_ts"]
    await alice.send(leaf, "the second")
    await bob.post(f"/join/{leaf}?via={via[0]}")
    path = f"/_matrix/client/v1/rooms/{leaf}/timestamp_to_event"
    found = await bob.request("GET", path, query={"ts": str(at), "dir": "f"})
    assert found == {"event_id": first, "origin_server_ts": at}

"""The Synapse-compatible admin API about rooms, accounts and reports, over a running system."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.arbor_server import ArborServer
from tests.support.homeserver import Homeserver
from tests.support.matrix_client import ClientError, MatrixClient, segment

ADMIN = "/_synapse/admin"
Person = Callable[[str], Awaitable[MatrixClient]]


@pytest.fixture
def person(homeserver: Homeserver, session: aiohttp.ClientSession, unique: Callable[[str], str]) -> Person:
    """`await person("alice")`: a new user of that name or so."""

    async def make(name: str) -> MatrixClient:
        return await homeserver.register(session, unique(name))

    return make


@pytest.fixture
async def root(
    homeserver: Homeserver, session: aiohttp.ClientSession, unique: Callable[[str], str]
) -> MatrixClient:
    """An administrator."""
    return await homeserver.register(session, unique("root"), admin=True)


async def refusal(request: Awaitable[Any]) -> tuple[int, str | None]:
    """Status and errcode of a request that must be refused."""
    with pytest.raises(ClientError) as caught:
        await request
    return caught.value.status, caught.value.errcode


async def ask(client: MatrixClient, path: str, **query: str) -> Any:
    return await client.request("GET", ADMIN + path, query=query or None)


async def ended(root: MatrixClient, path: str) -> dict[str, Any]:
    """Wait until what was begun in the background has ended."""
    async with asyncio.timeout(60):
        while True:
            answer: dict[str, Any] = await ask(root, path)
            if answer["status"] not in ("active", "shutting_down", "purging"):
                return answer
            await asyncio.sleep(0.05)


# -- rooms --


async def test_rooms_are_listed_and_looked_into(
    root: MatrixClient, person: Person, unique: Callable[[str], str]
) -> None:
    alice, bob = await person("alice"), await person("bob")
    word, alias = unique("Teatime"), unique("tea")
    small = await alice.create_room(name=f"{word} small", topic="T", room_version="11")
    large = await alice.create_room(name=f"{word} large", preset="public_chat", room_alias_name=alias)
    await bob.join(large)

    async def listed(**query: str) -> list[str]:
        answer = await ask(root, "/v1/rooms", search_term=word.upper(), **query)
        assert answer["total_rooms"] == 2
        return [room["room_id"] for room in answer["rooms"]]

    assert await listed() == [large, small]
    assert await listed(dir="b") == [small, large]
    assert await listed(order_by="joined_members") == [large, small]
    assert await listed(order_by="size", dir="b") == [small, large]
    assert await listed(order_by="version", dir="b") == [small, large]
    assert await listed(limit="1") == [large]
    assert await listed(**{"from": "1"}) == [small]
    first = await ask(root, "/v1/rooms", search_term=word, limit="1")
    assert first["next_batch"] == 1
    second = await ask(root, "/v1/rooms", search_term=word, limit="1", **{"from": "1"})
    assert (second["offset"], second["prev_batch"], "next_batch" in second) == (1, 0, False)
    assert len((await ask(root, "/v1/rooms", order_by="joined_members", limit="2"))["rooms"]) == 2
    for query in ({"order_by": "x"}, {"dir": "x"}, {"from": "-1"}, {"limit": "x"}, {"search_term": ""}):
        assert await refusal(ask(root, "/v1/rooms", **query)) == (400, "M_INVALID_PARAM")

    room = await ask(root, f"/v1/rooms/{segment(large)}")
    assert room == {
        "room_id": large,
        "name": f"{word} large",
        "topic": None,
        "avatar": None,
        "canonical_alias": f"#{alias}:{alice.user_id.partition(':')[2]}",
        "joined_members": 2,
        "joined_local_members": 2,
        "joined_local_devices": 2,
        "version": "12",
        "creator": alice.user_id,
        "encryption": None,
        "federatable": True,
        "public": False,
        "join_rules": "public",
        "guest_access": "forbidden",
        "history_visibility": "shared",
        "room_type": None,
        "state_events": room["state_events"],
        "forgotten": False,
        "tombstoned": False,
        "replacement_room": None,
    }
    members = await ask(root, f"/v1/rooms/{segment(large)}/members")
    assert members == {"members": sorted([alice.user_id, bob.user_id]), "total": 2}
    state = (await ask(root, f"/v1/rooms/{segment(small)}/state"))["state"]
    assert len(state) == (await ask(root, f"/v1/rooms/{segment(small)}"))["state_events"]
    event_id = await bob.send(large, "hello")
    event = (await ask(root, f"/v1/fetch_event/{segment(event_id)}"))["event"]
    assert (event["event_id"], event["content"]["body"]) == (event_id, "hello")
    for path in ("", "/members", "/state"):
        assert await refusal(ask(root, f"/v1/rooms/!nowhere:x{path}")) == (404, "M_NOT_FOUND")


async def test_a_blocked_room_takes_nobody(root: MatrixClient, person: Person) -> None:
    alice, bob = await person("alice"), await person("bob")
    room_id = await alice.create_room(preset="public_chat")
    path = f"{ADMIN}/v1/rooms/{segment(room_id)}/block"
    assert await root.request("GET", path) == {"block": False}
    await root.request("PUT", path, {"block": True})
    assert await root.request("GET", path) == {"block": True, "user_id": root.user_id}
    assert await refusal(bob.join(room_id)) == (403, "M_FORBIDDEN")
    await root.request("PUT", path, {"block": False})
    await bob.join(room_id)


async def test_administrators_bring_people_in_and_give_power(root: MatrixClient, person: Person) -> None:
    alice, bob = await person("alice"), await person("bob")
    for version in ("10", "12"):
        room_id = await alice.create_room(room_version=version)
        join = f"{ADMIN}/v1/join/{segment(room_id)}"
        assert await refusal(root.request("POST", join, {"user_id": bob.user_id})) == (403, "M_FORBIDDEN")
        # Who cannot invite cannot bring in: an administrator of the server first gets power in the room.
        power = f"{ADMIN}/v1/rooms/{segment(room_id)}/make_room_admin"
        await root.request("POST", power, {})
        await root.join(room_id)
        assert await root.request("POST", join, {"user_id": bob.user_id}) == {"room_id": room_id}
        await root.request("POST", power, {"user_id": bob.user_id})
        levels = await bob.get(f"/rooms/{segment(room_id)}/state/m.room.power_levels")
        assert levels["users"][bob.user_id] == levels["users"][root.user_id] == 100
        await bob.set_state(room_id, "m.room.name", {"name": "mine"})
    assert await refusal(root.request("POST", join, {"user_id": "@nobody:x"})) == (400, "M_INVALID_PARAM")
    nobody = f"@nobody:{alice.user_id.partition(':')[2]}"
    assert await refusal(root.request("POST", join, {"user_id": nobody})) == (404, "M_NOT_FOUND")


async def test_history_is_purged(root: MatrixClient, person: Person) -> None:
    alice = await person("alice")
    room_id = await alice.create_room()
    events = [await alice.send(room_id, f"message {number}") for number in range(4)]
    path = f"{ADMIN}/v1/purge_history/{segment(room_id)}"
    assert await refusal(root.request("POST", path, {})) == (400, "M_BAD_JSON")
    assert await refusal(root.request("POST", f"{path}/$nothing", {})) == (404, "M_NOT_FOUND")
    assert await refusal(root.request("POST", path, {"purge_up_to_ts": 1})) == (404, "M_NOT_FOUND")
    # Local events are kept unless it is said otherwise.
    begun = await root.request("POST", path, {"purge_up_to_event_id": events[2]})
    assert await ended(root, f"/v1/purge_history_status/{begun['purge_id']}") == {"status": "complete"}
    bodies = [event["content"].get("body") for event in await alice.all_messages(room_id)]
    assert [body for body in bodies if body] == [f"message {number}" for number in range(4)]
    begun = await root.request("POST", f"{path}/{segment(events[2])}", {"delete_local_events": True})
    assert await ended(root, f"/v1/purge_history_status/{begun['purge_id']}") == {"status": "complete"}
    async with asyncio.timeout(30):
        while True:
            bodies = [event["content"].get("body") for event in await alice.all_messages(room_id)]
            if [body for body in bodies if body] == ["message 2", "message 3"]:
                break
            await asyncio.sleep(0.05)
    assert await refusal(ask(root, "/v1/purge_history_status/none")) == (404, "M_NOT_FOUND")


async def test_a_room_is_deleted_and_its_people_find_themselves_in_another(
    root: MatrixClient, person: Person, unique: Callable[[str], str]
) -> None:
    alice, bob, carol = await person("alice"), await person("bob"), await person("carol")
    alias = unique("bad")
    room_id = await alice.create_room(preset="public_chat", room_alias_name=alias, visibility="public")
    await bob.join(room_id)
    await alice.invite(room_id, carol.user_id)
    path = f"{ADMIN}/v1/rooms/{segment(room_id)}"
    body = {"new_room_user_id": root.user_id, "room_name": "Gone", "message": "It is gone", "block": True}
    answer = await root.request("DELETE", path, body)
    new = answer.pop("new_room_id")
    assert answer == {
        "kicked_users": answer["kicked_users"],
        "failed_to_kick_users": [],
        "local_aliases": [f"#{alias}:{alice.user_id.partition(':')[2]}"],
    }
    assert sorted(answer["kicked_users"]) == sorted([alice.user_id, bob.user_id, carol.user_id])
    for client in (alice, bob):
        assert (await client.get("/joined_rooms"))["joined_rooms"] == [new]
        bodies = [event["content"].get("body") for event in await client.all_messages(new)]
        assert "It is gone" in bodies
        # People of it read.
        assert await refusal(client.send(new, "x")) == (403, "M_FORBIDDEN")
    resolved = await alice.get(f"/directory/room/{segment(f'#{alias}:' + alice.user_id.partition(':')[2])}")
    assert resolved["room_id"] == new
    assert await refusal(ask(root, f"/v1/rooms/{segment(room_id)}")) == (404, "M_NOT_FOUND")
    assert await refusal(alice.messages(room_id)) == (403, "M_FORBIDDEN")
    assert (await refusal(bob.join(room_id)))[0] in (403, 404)
    assert await refusal(root.request("DELETE", path, {})) == (404, "M_NOT_FOUND")
    known = (await ask(root, f"/v2/rooms/{segment(room_id)}/delete_status"))["results"]
    assert [result["status"] for result in known] == ["complete"]


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_a_wrong_deletion_deletes_nothing(version: str, root: MatrixClient, person: Person) -> None:
    alice = await person("alice")
    room_id = await alice.create_room()
    path = f"{ADMIN}/{version}/rooms/{segment(room_id)}"
    for key, value, errcode in (
        ("new_room_user_id", 7, "M_BAD_JSON"),
        ("new_room_user_id", "x", "M_INVALID_PARAM"),
        ("new_room_user_id", "@x:elsewhere", "M_INVALID_PARAM"),
        ("room_name", [], "M_BAD_JSON"),
        ("room_name", "x" * 256, "M_INVALID_PARAM"),
        ("message", {}, "M_BAD_JSON"),
        ("block", "yes", "M_BAD_JSON"),
        ("purge", 1, "M_BAD_JSON"),
        ("force_purge", "no", "M_BAD_JSON"),
    ):
        assert await refusal(root.request("DELETE", path, {key: value})) == (400, errcode)
    assert await refusal(alice.request("DELETE", path, {})) == (403, "M_FORBIDDEN")
    await alice.send(room_id, "still here")


async def test_a_deletion_outlives_a_crash(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    server = ArborServer(tmp_path)
    await server.start()
    try:
        root = await server.register(session, "root", admin=True)
        alice = await server.register(session, "alice")
        room_id = await alice.create_room()
        path = f"{ADMIN}/v2/rooms/{segment(room_id)}"
        begun = await root.request("DELETE", path, {})
        old = server.kill("edge")
        await server.wait_for_restart("edge", old)
        status = f"/v2/rooms/delete_status/{begun['delete_id']}"
        async with asyncio.timeout(150):
            while True:
                try:
                    answer = await ended(root, status)
                    break
                except (aiohttp.ClientError, ClientError):
                    await asyncio.sleep(0.1)
        assert answer["status"] == "complete"
        assert answer["shutdown_room"]["kicked_users"] in ([alice.user_id], [])
        assert await refusal(ask(root, f"/v1/rooms/{segment(room_id)}")) == (404, "M_NOT_FOUND")
    finally:
        await server.stop()


# -- accounts --


async def test_an_account_is_looked_into(root: MatrixClient, person: Person) -> None:
    alice = await person("alice")
    room_id = await alice.create_room()
    left = await alice.create_room()
    await alice.leave(left)
    user = segment(alice.user_id)
    assert await ask(root, f"/v1/users/{user}/joined_rooms") == {"joined_rooms": [room_id], "total": 1}
    assert await ask(root, f"/v1/users/{user}/memberships") == {
        "memberships": {room_id: "join", left: "leave"}
    }
    assert await ask(root, f"/v1/users/{user}/pushers") == {"pushers": [], "total": 0}
    await alice.put(f"/user/{user}/account_data/org.example", {"a": 1})
    await alice.put(f"/user/{user}/rooms/{segment(room_id)}/account_data/org.example", {"b": 2})
    assert await ask(root, f"/v1/users/{user}/accountdata") == {
        "account_data": {
            "global": {"org.example": {"a": 1}},
            "rooms": {room_id: {"org.example": {"b": 2}}},
        }
    }
    devices = f"{ADMIN}/v2/users/{user}/devices"
    assert [d["device_id"] for d in (await root.request("GET", devices))["devices"]] == [alice.device_id]
    await root.request("POST", devices, {"device_id": "NEW", "display_name": "n"})
    await root.request("PUT", f"{devices}/NEW", {"display_name": "renamed"})
    assert (await root.request("GET", f"{devices}/NEW"))["display_name"] == "renamed"
    await root.request("DELETE", f"{devices}/NEW")
    assert await refusal(root.request("GET", f"{devices}/NEW")) == (404, "M_NOT_FOUND")
    await root.request("POST", f"{ADMIN}/v2/users/{user}/delete_devices", {"devices": [alice.device_id]})
    assert await refusal(alice.get("/account/whoami")) == (401, "M_UNKNOWN_TOKEN")


async def test_flags(root: MatrixClient, person: Person) -> None:
    alice = await person("alice")
    user = segment(alice.user_id)
    path = f"{ADMIN}/v1/users/{user}/admin"
    assert await refusal(ask(alice, "/v1/rooms")) == (403, "M_FORBIDDEN")
    await root.request("PUT", path, {"admin": True})
    assert await root.request("GET", path) == {"admin": True}
    await ask(alice, "/v1/rooms")
    await root.request("PUT", path, {"admin": False})
    assert await refusal(ask(alice, "/v1/rooms")) == (403, "M_FORBIDDEN")
    own = f"{ADMIN}/v1/users/{segment(root.user_id)}/admin"
    assert await refusal(root.request("PUT", own, {"admin": False})) == (400, "M_INVALID_PARAM")
    suspend = f"{ADMIN}/v1/suspend/{user}"
    assert await root.request("PUT", suspend, {"suspend": True}) == {f"user_{alice.user_id}_suspended": True}
    assert await refusal(alice.create_room()) == (403, "M_USER_SUSPENDED")
    await root.request("PUT", suspend, {"suspend": False})
    await alice.create_room()


# -- reports --


async def test_reports_are_read_and_deleted(root: MatrixClient, person: Person) -> None:
    alice, bob = await person("alice"), await person("bob")
    room_id = await alice.create_room(preset="public_chat", name="Den")
    await bob.join(room_id)
    event_id = await alice.send(room_id, "bad words")
    room = f"/rooms/{segment(room_id)}/report"
    await bob.post(f"{room}/{segment(event_id)}", {"reason": "words", "score": -100})
    await bob.post(f"{room}/$unknown", {"reason": "what"})
    await bob.post(room, {"reason": "room"})
    await bob.post(f"/users/{segment(alice.user_id)}/report", {"reason": "user"})

    mine = {"user_id": bob.user_id}
    events = await ask(root, "/v1/event_reports", **mine)
    assert events["total"] == 2
    unknown, known = events["event_reports"]
    assert (unknown["event_id"], unknown["sender"], unknown["name"]) == ("$unknown", None, "Den")
    assert known | {"id": "", "received_ts": 0} == {
        "id": "",
        "received_ts": 0,
        "user_id": bob.user_id,
        "reason": "words",
        "score": -100,
        "room_id": room_id,
        "event_id": event_id,
        "sender": alice.user_id,
        "name": "Den",
        "canonical_alias": None,
    }
    assert (await ask(root, "/v1/event_reports", dir="f", limit="1", **mine))["next_token"] == 1
    assert (await ask(root, "/v1/event_reports", room_id="!other", **mine))["total"] == 0
    whole = await ask(root, f"/v1/event_reports/{known['id']}")
    assert whole["event_json"]["content"]["body"] == "bad words"
    users = await ask(root, "/v1/user_reports", **mine)
    assert [report["target_user_id"] for report in users["user_reports"]] == [alice.user_id]
    rooms = await ask(root, "/v1/room_reports", **mine)
    assert [report["reason"] for report in rooms["room_reports"]] == ["room"]
    path = f"{ADMIN}/v1/event_reports/{known['id']}"
    await root.request("DELETE", path)
    for method in ("GET", "DELETE"):
        assert await refusal(root.request(method, path)) == (404, "M_NOT_FOUND")
    assert await refusal(ask(bob, "/v1/event_reports")) == (403, "M_FORBIDDEN")

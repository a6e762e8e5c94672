"""Profiles, filters, account data, tags, push rules, pushers, what the server says of itself."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from servicekit.config import ConfigError, load_config
from tests.support.clientapi_alone import World, lone_clientapi


async def test_a_changed_profile_reaches_the_rooms(world: World) -> None:
    alice, bob = await world.user("alice"), await world.user("bob")
    room_id = (await alice.ok("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
    await bob.ok("POST", f"/join/{room_id}")
    path = f"/profile/{bob.user_id}"
    await bob.ok("PUT", f"{path}/displayname", {"displayname": "Bob"})
    await bob.ok("PUT", f"{path}/avatar_url", {"avatar_url": "mxc://here.example/a"})
    await bob.ok("PUT", f"{path}/m.tz", {"m.tz": "Europe/Berlin"})
    whole = {"displayname": "Bob", "avatar_url": "mxc://here.example/a", "m.tz": "Europe/Berlin"}
    assert await world.client().ok("GET", path) == whole
    assert await world.client().ok("GET", f"{path}/m.tz") == {"m.tz": "Europe/Berlin"}
    member = world.roomserver.rooms[room_id].state
    async with asyncio.timeout(5):
        while member[("m.room.member", bob.user_id)].content.get("avatar_url") is None:
            await asyncio.sleep(0.01)
            member = world.roomserver.rooms[room_id].state
    assert member[("m.room.member", bob.user_id)].content == {
        "membership": "join",
        "displayname": "Bob",
        "avatar_url": "mxc://here.example/a",
    }
    await bob.ok("DELETE", f"{path}/displayname")
    async with asyncio.timeout(5):
        while "displayname" in world.roomserver.rooms[room_id].state[("m.room.member", bob.user_id)].content:
            await asyncio.sleep(0.01)
    assert await alice.fails("PUT", f"{path}/displayname", {"displayname": "x"}) == (403, "M_FORBIDDEN")


async def test_a_profile_change_survives_a_roomserver_that_is_away(world: World) -> None:
    alice = await world.user("alice")
    room_id = (await alice.ok("POST", "/createRoom", {}))["room_id"]
    world.roomserver.away = True
    await alice.ok("PUT", f"/profile/{alice.user_id}/displayname", {"displayname": "A"})
    await asyncio.sleep(0.05)
    world.roomserver.come_back()
    world.clock.now_ms += 3_600_000
    world.service._rooms.profile_updates.wake()
    member = ("m.room.member", alice.user_id)
    async with asyncio.timeout(5):
        while world.roomserver.rooms[room_id].state[member].content.get("displayname") != "A":
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("name", "body", "error"),
    [
        ("displayname", {}, (400, "M_MISSING_PARAM")),
        ("displayname", {"displayname": 7}, (400, "M_BAD_JSON")),
        ("displayname", {"displayname": "x" * 300}, (400, "M_INVALID_PARAM")),
        ("avatar_url", {"avatar_url": []}, (400, "M_BAD_JSON")),
        ("Bad Name", {"Bad Name": 1}, (400, "M_INVALID_PARAM")),
        ("a" * 256, {"a" * 256: 1}, (400, "M_KEY_TOO_LARGE")),
        ("org.example.pi", {"org.example.pi": 3.1}, (400, "M_BAD_JSON")),
        ("org.example.big", {"org.example.big": "x" * 66_000}, (400, "M_PROFILE_TOO_LARGE")),
    ],
)
async def test_bad_profiles(world: World, name: str, body: Any, error: tuple[int, str]) -> None:
    alice = await world.user("alice")
    path = f"/profile/{alice.user_id}/{name.replace(' ', '%20')}"
    assert await alice.fails("PUT", path, body) == error
    assert await alice.fails("GET", "/profile/@nobody:here.example") == (404, "M_NOT_FOUND")
    assert await alice.fails("GET", "/profile/nobody") == (400, "M_INVALID_PARAM")


async def test_filters(world: World) -> None:
    alice, bob = await world.user(), await world.user()
    path = f"/user/{alice.user_id}/filter"
    wanted = {"room": {"timeline": {"limit": 10}, "state": {"lazy_load_members": True}}}
    first = await alice.ok("POST", path, wanted)
    assert await alice.ok("POST", path, wanted) == first
    assert not first["filter_id"].startswith("{")
    assert await alice.ok("GET", f"{path}/{first['filter_id']}") == wanted
    assert await alice.fails("GET", f"{path}/none") == (404, "M_NOT_FOUND")
    assert await bob.fails("POST", path, {}) == (403, "M_FORBIDDEN")
    for bad in (
        {"room": []},
        {"room": {"timeline": {"limit": "10"}}},
        {"room": {"timeline": {"limit": -1}}},
        {"room": {"rooms": ["x"]}},
        {"presence": {"senders": "all"}},
        {"room": {"timeline": {"related_by_senders": ["x"]}}},
        {"room": {"timeline": {"related_by_rel_types": "m.thread"}}},
        {"event_format": "wide"},
        {"room": {"state": {"lazy_load_members": "yes"}}},
    ):
        assert await alice.fails("POST", path, bad) == (400, "M_BAD_JSON"), bad


async def test_account_data_and_tags(world: World) -> None:
    alice, bob = await world.user(), await world.user()
    base = f"/user/{alice.user_id}"
    room = f"{base}/rooms/!r:here.example"
    assert await alice.fails("GET", f"{base}/account_data/a.b") == (404, "M_NOT_FOUND")
    await alice.ok("PUT", f"{base}/account_data/a.b", {"x": 1.5})
    assert await alice.ok("GET", f"{base}/account_data/a.b") == {"x": 1.5}
    await alice.ok("PUT", f"{room}/account_data/a.b", {"y": 1})
    assert await alice.ok("GET", f"{room}/account_data/a.b") == {"y": 1}
    assert await bob.fails("GET", f"{base}/account_data/a.b") == (403, "M_FORBIDDEN")
    big = {"x": "x" * 70_000}
    assert await alice.fails("PUT", f"{base}/account_data/a.b", big) == (413, "M_TOO_LARGE")
    assert (await alice("PUT", f"{base}/account_data/m.push_rules", {}))[0] == 405
    assert await alice.ok("GET", f"{room}/tags") == {"tags": {}}
    await alice.ok("PUT", f"{room}/tags/m.favourite", {"order": 0.5})
    await alice.ok("PUT", f"{room}/tags/u.work", {})
    assert await alice.ok("GET", f"{room}/tags") == {"tags": {"m.favourite": {"order": 0.5}, "u.work": {}}}
    await alice.ok("DELETE", f"{room}/tags/m.favourite")
    assert await alice.ok("GET", f"{room}/account_data/m.tag") == {"tags": {"u.work": {}}}
    assert await alice.fails("PUT", f"{room}/tags/a", {"order": "x"}) == (400, "M_BAD_JSON")


async def test_push_rules(world: World) -> None:
    alice = await world.user()
    for path in ("/pushrules/", "/pushrules"):
        rules = (await alice.ok("GET", path))["global"]
        assert {"override", "content", "room", "sender", "underride"} <= set(rules)
        assert rules["override"][0]["rule_id"] == ".m.rule.master"
    assert (await alice.ok("GET", "/pushrules/global/")).keys() == rules.keys()
    one = "/pushrules/global/content/tea"
    body = {"pattern": "tea", "actions": ["notify", {"set_tweak": "highlight"}]}
    await alice.ok("PUT", one, body)
    await alice.ok("PUT", "/pushrules/global/content/cake", body)
    await alice.ok("PUT", "/pushrules/global/content/jam", body, after="cake")
    ids = [rule["rule_id"] for rule in await alice.ok("GET", "/pushrules/global/content/")]
    assert ids[:3] == ["cake", "jam", "tea"]
    assert (await alice.ok("GET", one))["enabled"] is True
    await alice.ok("PUT", f"{one}/enabled", {"enabled": False})
    assert await alice.ok("GET", f"{one}/enabled") == {"enabled": False}
    await alice.ok("PUT", f"{one}/actions", {"actions": []})
    assert await alice.ok("GET", f"{one}/actions") == {"actions": []}
    await alice.ok("DELETE", one)
    assert await alice.fails("GET", one) == (404, "M_NOT_FOUND")
    master = "/pushrules/global/override/.m.rule.master"
    await alice.ok("PUT", f"{master}/enabled", {"enabled": True})
    assert (await alice.ok("GET", master))["enabled"] is True
    stored = await alice.ok("GET", f"/user/{alice.user_id}/account_data/m.push_rules")
    assert stored["global"]["override"][0]["enabled"] is True
    for method, path, bad, error in (
        ("DELETE", master, None, (400, "M_INVALID_PARAM")),
        ("PUT", "/pushrules/global/content/.x", body, (400, "M_INVALID_PARAM")),
        ("PUT", one, {"actions": []}, (400, "M_MISSING_PARAM")),
        ("PUT", one, {"pattern": "x"}, (400, "M_MISSING_PARAM")),
        ("PUT", one, {"pattern": "x", "actions": ["explode"]}, (400, "M_INVALID_PARAM")),
        ("PUT", "/pushrules/global/hats/x", body, (400, "M_INVALID_PARAM")),
        ("PUT", "/pushrules/global/override/x", {"actions": [], "conditions": [7]}, (400, "M_BAD_JSON")),
        ("PUT", "/pushrules/global/content/" + "x" * 400, body, (400, "M_INVALID_PARAM")),
        ("GET", "/pushrules/global/override/none", None, (404, "M_NOT_FOUND")),
        ("PUT", "/pushrules/global/override/none/enabled", {"enabled": True}, (404, "M_NOT_FOUND")),
        ("PUT", f"{master}/enabled", {}, (400, "M_MISSING_PARAM")),
    ):
        assert await alice.fails(method, path, bad) == error, (method, path)


async def test_pushers(world: World) -> None:
    alice, bob = await world.user(), await world.user()
    pusher = {
        "app_id": "app",
        "pushkey": "key",
        "kind": "http",
        "app_display_name": "App",
        "device_display_name": "Phone",
        "lang": "en",
        "data": {"url": "https://push.example/_matrix/push/v1/notify"},
    }
    await alice.ok("POST", "/pushers/set", pusher)
    assert (await alice.ok("GET", "/pushers"))["pushers"] == [pusher]
    await bob.ok("POST", "/pushers/set", pusher)
    assert (await alice.ok("GET", "/pushers"))["pushers"] == []
    await alice.ok("POST", "/pushers/set", {**pusher, "append": True})
    assert len((await bob.ok("GET", "/pushers"))["pushers"]) == 1
    await alice.ok("POST", "/pushers/set", {"app_id": "app", "pushkey": "key", "kind": None})
    assert (await alice.ok("GET", "/pushers"))["pushers"] == []
    assert await alice.fails("POST", "/pushers/set", {**pusher, "data": {}}) == (400, "M_MISSING_PARAM")
    assert await alice.fails("POST", "/pushers/set", {**pusher, "kind": "fax"}) == (400, "M_INVALID_PARAM")
    assert await alice.fails("POST", "/pushers/set", {}) == (400, "M_MISSING_PARAM")


async def test_what_the_server_says_of_itself(world: World) -> None:
    alice, anyone = await world.user(), world.client()
    versions = await anyone.ok("GET", "/_matrix/client/versions")
    assert {"r0.6.1", *(f"v1.{minor}" for minor in range(1, 20))} <= set(versions["versions"])
    features = versions["unstable_features"]
    assert features["org.matrix.msc3827.stable"], "the directory's search by type of room"
    # What is not served is not claimed either.
    assert "org.matrix.simplified_msc3575" not in features
    assert "org.matrix.e2e_cross_signing" not in features
    assert versions["unstable_features"]["org.matrix.msc4222"] is True
    capabilities = (await alice.ok("GET", "/capabilities"))["capabilities"]
    assert capabilities["m.room_versions"]["default"] == "12"
    assert set(capabilities["m.room_versions"]["available"]) == {str(number) for number in range(1, 13)}
    assert await alice.ok("GET", "/voip/turnServer") == {}
    assert await alice.ok("GET", "/thirdparty/protocols") == {}
    assert await alice.fails("GET", "/room_keys/version") == (404, "M_NOT_FOUND")
    transports = "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports"
    assert await alice.fails("GET", transports) == (404, "M_UNRECOGNIZED")
    assert await anyone.fails("GET", "/.well-known/matrix/client") == (404, "M_NOT_FOUND")
    assert await anyone.fails("GET", "/_matrix/client/v3/nonsense") == (404, "M_UNRECOGNIZED")
    assert await anyone.fails("PATCH", "/login") == (405, "M_UNRECOGNIZED")
    assert (await anyone("GET", "/_matrix/client/r0/login"))[0] == 200


async def test_typing_and_receipts(world: World) -> None:
    alice, bob = await world.user(), await world.user()
    room_id = (await alice.ok("POST", "/createRoom", {}))["room_id"]
    event_id = world.roomserver.rooms[room_id].order[-1]
    typing = f"/rooms/{room_id}/typing/{alice.user_id}"
    await alice.ok("PUT", typing, {"typing": True, "timeout": 5000})
    assert world.log.published[-1][0].startswith("live.typing.")
    assert await alice.fails("PUT", typing, {}) == (400, "M_MISSING_PARAM")
    assert await bob.fails("PUT", typing, {"typing": True}) == (403, "M_FORBIDDEN")
    own = f"/rooms/{room_id}/typing/{bob.user_id}"
    assert await bob.fails("PUT", own, {"typing": True}) == (403, "M_FORBIDDEN")
    await alice.ok("POST", f"/rooms/{room_id}/receipt/m.read/{event_id}", {})
    await alice.ok("POST", f"/rooms/{room_id}/receipt/m.read.private/{event_id}", {"thread_id": "main"})
    await alice.ok("POST", f"/rooms/{room_id}/read_markers", {"m.fully_read": event_id, "m.read": event_id})
    marker = f"/user/{alice.user_id}/rooms/{room_id}/account_data/m.fully_read"
    assert await alice.ok("GET", marker) == {"event_id": event_id}
    assert await alice.fails("POST", f"/rooms/{room_id}/receipt/m.x/{event_id}") == (400, "M_INVALID_PARAM")
    assert await bob.fails("POST", f"/rooms/{room_id}/receipt/m.read/{event_id}") == (403, "M_FORBIDDEN")


async def test_whom_to_ask_for_help(world: World, tmp_path: Path) -> None:
    path = "/.well-known/matrix/support"
    assert await world.client().fails("GET", path) == (404, "M_NOT_FOUND")
    support = {
        "contacts": [
            {"matrix_id": "@root:here.example"},
            {"email_address": "safe@here.example", "role": "m.role.security"},
        ],
        "support_page": "https://here.example/help",
    }
    async with lone_clientapi(tmp_path / "other", support=support) as other:
        assert await other.client().ok("GET", path) == {
            "contacts": [
                {"role": "m.role.admin", "matrix_id": "@root:here.example"},
                {"role": "m.role.security", "email_address": "safe@here.example"},
            ],
            "support_page": "https://here.example/help",
        }
    with pytest.raises(ConfigError, match=r"support\.contacts\[0\]"):
        load_config(None, env={}, overrides={"server_name": "a.org", "support": {"contacts": [{}]}})


async def test_push_rules_are_account_data_that_is_there_from_the_beginning(world: World) -> None:
    alice = await world.user()
    path = f"/user/{alice.user_id}/account_data/m.push_rules"
    assert await alice.ok("GET", path) == await alice.ok("GET", "/pushrules/")
    await alice.ok("PUT", "/pushrules/global/content/word", {"pattern": "word", "actions": ["notify"]})
    assert await alice.ok("GET", path) == await alice.ok("GET", "/pushrules/")
    in_room = f"/user/{alice.user_id}/rooms/!a:here.example/account_data/m.push_rules"
    assert await alice.fails("GET", in_room) == (404, "M_NOT_FOUND")


async def test_a_room_that_is_not_there_is_a_room_one_is_not_in(world: World) -> None:
    alice = await world.user()
    room = "/rooms/!nowhere:here.example"
    for method, path, body in (
        ("PUT", f"{room}/typing/{alice.user_id}", {"typing": True}),
        ("POST", f"{room}/receipt/m.read/$event", {}),
        ("POST", f"{room}/read_markers", {"m.fully_read": "$event"}),
    ):
        assert await alice.fails(method, path, body) == (403, "M_FORBIDDEN"), path


async def test_a_threaded_receipt_belongs_to_its_thread(world: World) -> None:
    alice = await world.user()
    room_id = (await alice.ok("POST", "/createRoom", {}))["room_id"]
    numbers = iter(range(100))

    async def say(**relation: str) -> str:
        content: dict[str, Any] = {"body": "x"}
        if relation:
            content["m.relates_to"] = relation
        path = f"/rooms/{room_id}/send/m.room.message/{next(numbers)}"
        event_id: str = (await alice.ok("PUT", path, content))["event_id"]
        return event_id

    root, other = await say(), await say()
    reply = await say(rel_type="m.thread", event_id=root)
    reaction = await say(rel_type="m.annotation", event_id=reply)
    elsewhere = await say(rel_type="m.thread", event_id=other)

    async def receipt(event_id: str, thread_id: Any, kind: str = "m.read") -> tuple[int, Any]:
        return await alice("POST", f"/rooms/{room_id}/receipt/{kind}/{event_id}", {"thread_id": thread_id})

    for event_id in (root, reply, reaction, "$notyet"):
        assert (await receipt(event_id, root))[0] == 200
    assert (await receipt(other, "main"))[0] == 200
    assert (await receipt(other, None))[0] == 200
    for event_id, thread_id, kind in (
        (other, root, "m.read"),
        (elsewhere, root, "m.read"),
        (reply, other, "m.read.private"),
        (reply, "", "m.read"),
        (reply, 7, "m.read"),
        (reply, "nonsense", "m.read"),
        (reply, root, "m.fully_read"),
    ):
        status, answer = await receipt(event_id, thread_id, kind)
        assert (status, answer["errcode"]) == (400, "M_INVALID_PARAM"), (event_id, thread_id)

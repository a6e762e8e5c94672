"""The admin API, registration tokens, locking and suspending."""

from typing import Any

import pytest
from sqlalchemy import update

from arbor.accounts.v1 import accounts_pb2
from clientapi.storage.tables import users
from tests.support.clientapi_alone import PASSWORD, Client, World

ADMIN = "/_synapse/admin"
LOCK = "/_matrix/client/v1/admin/lock/"
SUSPEND = "/_matrix/client/v1/admin/suspend/"


async def administrator(world: World, name: str = "root") -> Client:
    client = await world.user(name)
    await world.service._db.write(
        lambda conn: conn.execute(update(users).where(users.c.user_id == client.user_id).values(admin=True))
    )
    world.service._sessions.forget_user(client.user_id)
    return client


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", f"{ADMIN}/v1/server_version", None),
        ("GET", f"{ADMIN}/v1/registration_tokens", None),
        ("POST", f"{ADMIN}/v1/registration_tokens/new", {}),
        ("GET", f"{ADMIN}/v1/registration_tokens/x", None),
        ("PUT", f"{ADMIN}/v1/registration_tokens/x", {}),
        ("DELETE", f"{ADMIN}/v1/registration_tokens/x", None),
        ("GET", f"{ADMIN}/v1/username_available?username=x", None),
        ("GET", f"{ADMIN}/v2/users", None),
        ("GET", f"{ADMIN}/v3/users", None),
        ("GET", f"{ADMIN}/v2/users/@root:here.example", None),
        ("PUT", f"{ADMIN}/v2/users/@new:here.example", {"password": PASSWORD}),
        ("POST", f"{ADMIN}/v1/deactivate/@root:here.example", {}),
        ("POST", f"{ADMIN}/v1/reset_password/@root:here.example", {"new_password": PASSWORD}),
        ("GET", f"{ADMIN}/v1/whois/@root:here.example", None),
        ("GET", "/_matrix/client/v3/admin/whois/@root:here.example", None),
        ("GET", LOCK + "@root:here.example", None),
        ("PUT", LOCK + "@root:here.example", {"locked": True}),
        ("GET", SUSPEND + "@root:here.example", None),
        ("PUT", SUSPEND + "@root:here.example", {"suspended": True}),
    ],
)
async def test_only_administrators_and_the_answer_tells_nobody_who_exists(
    world: World, method: str, path: str, body: Any
) -> None:
    await administrator(world)
    alice = await world.user("alice")
    status, answer = await alice(method, path, body)
    assert (status, answer["errcode"]) == (403, "M_FORBIDDEN")
    other = path.replace("@root:", "@nobody:").replace("@new:", "@root:")
    assert await alice(method, other, body) == (status, answer)
    assert await world.client().fails(method, path, body) == (401, "M_MISSING_TOKEN")


async def test_registration_tokens(world: World) -> None:
    root = await administrator(world)
    tokens = f"{ADMIN}/v1/registration_tokens"
    made = await root.ok("POST", f"{tokens}/new", {"token": "tea", "uses_allowed": 2})
    assert made == {"token": "tea", "uses_allowed": 2, "pending": 0, "completed": 0, "expiry_time": None}
    random = await root.ok("POST", f"{tokens}/new", {"length": 5})
    assert len(random["token"]) == 5
    assert await root.fails("POST", f"{tokens}/new", {"token": "tea"}) == (400, "M_INVALID_PARAM")
    for bad in ({"token": "t/a"}, {"token": ""}, {"length": 65}, {"uses_allowed": -1}, {"expiry_time": 1}):
        assert await root.fails("POST", f"{tokens}/new", bad) == (400, "M_INVALID_PARAM"), bad
    assert await root.fails("POST", f"{tokens}/new", {"uses_allowed": True}) == (400, "M_BAD_JSON")
    expiry = world.clock() + 60_000
    assert (await root.ok("PUT", f"{tokens}/tea", {"expiry_time": expiry}))["expiry_time"] == expiry
    assert (await root.ok("GET", f"{tokens}/tea"))["uses_allowed"] == 2
    world.clock.now_ms += 100_000
    names = {token["token"] for token in (await root.ok("GET", tokens, valid="true"))["registration_tokens"]}
    assert names == {random["token"]}
    names = {token["token"] for token in (await root.ok("GET", tokens, valid="false"))["registration_tokens"]}
    assert names == {"tea"}
    await root.ok("DELETE", f"{tokens}/tea")
    assert await root.fails("DELETE", f"{tokens}/tea") == (404, "M_NOT_FOUND")
    assert await root.fails("PUT", f"{tokens}/tea", {"uses_allowed": 3}) == (404, "M_NOT_FOUND")


async def test_accounts_are_listed_made_and_changed(world: World) -> None:
    root = await administrator(world)
    alice = await world.user("alice")
    path = f"{ADMIN}/v2/users/@carol:here.example"
    status, carol = await root(
        "PUT", path, {"password": PASSWORD, "displayname": "Carol 100%", "admin": False}
    )
    assert (status, carol["name"], carol["displayname"]) == (201, "@carol:here.example", "Carol 100%")
    listed = await root.ok("GET", f"{ADMIN}/v2/users", limit="2")
    assert [user["name"] for user in listed["users"]] == ["@alice:here.example", "@carol:here.example"]
    assert (listed["total"], listed["next_token"]) == (3, "2")
    rest = await root.ok("GET", f"{ADMIN}/v3/users", **{"from": listed["next_token"]})
    assert [user["name"] for user in rest["users"]] == ["@root:here.example"]
    assert rest["users"][0]["admin"] is True
    for name, found in (("rol 100%", 1), ("ALI", 1), ("here", 0), ("_", 0)):
        assert (await root.ok("GET", f"{ADMIN}/v2/users", name=name))["total"] == found, name
    assert await root.fails("GET", f"{ADMIN}/v2/users", order_by="x") == (400, "M_INVALID_PARAM")
    assert await root.fails("GET", f"{ADMIN}/v2/users", **{"from": "-1"}) == (400, "M_INVALID_PARAM")

    # A new password ends sessions, and lets in.
    path = f"{ADMIN}/v2/users/{alice.user_id}"
    await root.ok("PUT", path, {"password": "another horse", "avatar_url": "mxc://here.example/a"})
    assert await alice.fails("GET", "/account/whoami") == (401, "M_UNKNOWN_TOKEN")
    login = {"type": "m.login.password", "user": "alice", "password": "another horse"}
    alice.token = (await alice.ok("POST", "/login", login))["access_token"]
    assert (await alice.ok("GET", f"/profile/{alice.user_id}"))["avatar_url"] == "mxc://here.example/a"
    # An administrator from now on, with the session there is.
    await root.ok("PUT", path, {"admin": True})
    await alice.ok("GET", f"{ADMIN}/v2/users")
    await root.ok("PUT", path, {"deactivated": True})
    assert await alice.fails("GET", "/account/whoami") == (401, "M_UNKNOWN_TOKEN")
    assert await root.fails("PUT", path, {"deactivated": False}) == (400, "M_INVALID_PARAM")
    assert (await root.ok("GET", path))["deactivated"] is True
    assert (await root.ok("GET", f"{ADMIN}/v2/users"))["total"] == 2
    assert (await root.ok("GET", f"{ADMIN}/v2/users", deactivated="true"))["total"] == 3
    assert (await root.ok("GET", f"{ADMIN}/v3/users", deactivated="true"))["total"] == 1

    own = f"{ADMIN}/v2/users/{root.user_id}"
    assert await root.fails("PUT", own, {"admin": False}) == (400, "M_INVALID_PARAM")
    other = f"{ADMIN}/v2/users/@a:elsewhere.example"
    assert await root.fails("PUT", other, {"password": PASSWORD}) == (400, "M_INVALID_PARAM")
    assert await root.fails("GET", f"{ADMIN}/v2/users/@nobody:here.example") == (404, "M_NOT_FOUND")
    # No second account whose id differs in capitals only.
    assert await root.fails("PUT", f"{ADMIN}/v2/users/@Carol:here.example", {}) == (400, "M_INVALID_PARAM")
    assert await root.ok("GET", f"{ADMIN}/v1/username_available", username="dora") == {"available": True}
    assert await root.fails("GET", f"{ADMIN}/v1/username_available", username="carol") == (
        400,
        "M_USER_IN_USE",
    )


async def test_deactivation_and_reset_of_passwords(world: World) -> None:
    root, alice = await administrator(world), await world.user("alice")
    reset = f"{ADMIN}/v1/reset_password/{alice.user_id}"
    await root.ok("POST", reset, {"new_password": "another horse", "logout_devices": False})
    await alice.ok("GET", "/account/whoami")
    await root.ok("POST", f"{ADMIN}/v1/deactivate/{alice.user_id}", {})
    account = f"{ADMIN}/v2/users/{alice.user_id}"
    assert (await root.ok("GET", account))["erased"] is False
    await root.ok("POST", f"{ADMIN}/v1/deactivate/{alice.user_id}", {"erase": True})
    assert (await root.ok("GET", account))["erased"] is True
    login = {"type": "m.login.password", "user": "alice", "password": "another horse"}
    assert (await world.client().fails("POST", "/login", login))[0] == 403
    assert await root.fails("POST", reset, {"new_password": PASSWORD}) == (403, "M_FORBIDDEN")


async def test_a_locked_account_may_only_log_out(world: World) -> None:
    root, alice = await administrator(world), await world.user("alice")
    assert await root.ok("GET", LOCK + alice.user_id) == {"locked": False}
    await alice.ok("GET", "/account/whoami")
    assert await root.ok("PUT", LOCK + alice.user_id, {"locked": True}) == {"locked": True}
    status, answer = await alice("GET", "/account/whoami")
    assert (status, answer["errcode"], answer["soft_logout"]) == (401, "M_USER_LOCKED", True)
    login = {"type": "m.login.password", "user": "alice", "password": PASSWORD}
    assert await world.client().fails("POST", "/login", login) == (401, "M_USER_LOCKED")
    assert (await root.ok("GET", f"{ADMIN}/v2/users", locked="false"))["total"] == 1
    await root.ok("PUT", LOCK + alice.user_id, {"locked": False})
    await alice.ok("GET", "/account/whoami")
    await root.ok("PUT", LOCK + alice.user_id, {"locked": True})
    await alice.ok("POST", "/logout")
    assert await alice.fails("GET", "/account/whoami") == (401, "M_UNKNOWN_TOKEN")


async def test_a_suspended_account_reads_and_leaves(world: World) -> None:
    root, alice = await administrator(world), await world.user("alice")
    room_id = (await alice.ok("POST", "/createRoom", {}))["room_id"]
    assert await root.ok("PUT", SUSPEND + alice.user_id, {"suspended": True}) == {"suspended": True}
    assert await root.ok("GET", SUSPEND + alice.user_id) == {"suspended": True}
    for method, path, body in (
        ("PUT", f"/rooms/{room_id}/send/m.room.message/t", {"body": "b"}),
        ("PUT", f"/rooms/{room_id}/state/m.room.topic", {"topic": "t"}),
        ("POST", "/createRoom", {}),
        ("POST", f"/rooms/{room_id}/invite", {"user_id": root.user_id}),
        ("PUT", f"/profile/{alice.user_id}/displayname", {"displayname": "A"}),
    ):
        assert await alice.fails(method, path, body) == (403, "M_USER_SUSPENDED"), path
    auth = {"type": "m.login.password", "user": "alice", "password": PASSWORD}
    await alice.ok("POST", "/account/password", {"new_password": "another horse", "auth": auth})
    await alice.ok("POST", f"/rooms/{room_id}/leave")
    await root.ok("PUT", SUSPEND + alice.user_id, {"suspended": False})
    await alice.ok("POST", "/createRoom", {})


@pytest.mark.parametrize(("path", "key"), [(LOCK, "locked"), (SUSPEND, "suspended")])
async def test_whom_nobody_locks_or_suspends(world: World, path: str, key: str) -> None:
    root, other = await administrator(world), await administrator(world, "other")
    body = {key: True}
    for user_id, error in (
        (root.user_id, (403, "M_FORBIDDEN")),
        (other.user_id, (403, "M_FORBIDDEN")),
        ("@nobody:here.example", (404, "M_NOT_FOUND")),
        ("@a:elsewhere.example", (400, "M_INVALID_PARAM")),
    ):
        assert await root.fails("PUT", path + user_id, body) == error
    assert await root.fails("PUT", path + other.user_id, {}) == (400, "M_MISSING_PARAM")
    assert await root.fails("PUT", path + other.user_id, {key: 1}) == (400, "M_BAD_JSON")


async def test_whois_and_capabilities(world: World) -> None:
    root, alice = await administrator(world), await world.user("alice")
    own = await alice.ok("GET", f"/admin/whois/{alice.user_id}")
    [session] = own["devices"][alice.device_id]["sessions"]
    assert session["connections"][0]["ip"] == "127.0.0.1"
    seen = await root.ok("GET", f"{ADMIN}/v1/whois/{alice.user_id}")
    assert set(seen["devices"]) == {alice.device_id}
    assert await root.fails("GET", "/admin/whois/@nobody:here.example") == (404, "M_NOT_FOUND")
    capabilities = (await root.ok("GET", "/capabilities"))["capabilities"]
    assert capabilities["m.account_moderation"] == {"lock": True, "suspend": True}
    assert "m.account_moderation" not in (await alice.ok("GET", "/capabilities"))["capabilities"]
    assert (await root.ok("GET", f"{ADMIN}/v1/server_version"))["server_version"].startswith("Arbor")


async def test_a_suspended_account_redacts_its_own_and_leaves_by_state(world: World) -> None:
    admin, alice, bob = await administrator(world), await world.user(), await world.user()
    room_id = (await alice.ok("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
    other = (await alice.ok("POST", "/createRoom", {}))["room_id"]
    await bob.ok("POST", f"/join/{room_id}")
    mine = await alice.ok("PUT", f"/rooms/{room_id}/send/m.room.message/1", {"body": "x"})
    mine_too = await alice.ok("PUT", f"/rooms/{room_id}/send/m.room.message/2", {"body": "x"})
    theirs = await bob.ok("PUT", f"/rooms/{room_id}/send/m.room.message/1", {"body": "x"})
    path = f"/_matrix/client/v1/admin/suspend/{alice.user_id}"
    await admin.ok("PUT", path, {"suspended": True})
    refused = (403, "M_USER_SUSPENDED")
    redact = f"/rooms/{room_id}/redact"
    assert await alice.fails("PUT", f"{redact}/{theirs['event_id']}/1", {}) == refused
    await alice.ok("PUT", f"{redact}/{mine['event_id']}/2", {})
    await alice.ok("PUT", f"/rooms/{room_id}/send/m.room.redaction/3", {"redacts": mine_too["event_id"]})
    assert await alice.fails("PUT", f"/rooms/{room_id}/send/m.room.message/4", {"body": "x"}) == refused
    assert await alice.fails("PUT", f"/rooms/{room_id}/state/m.room.name", {"name": "x"}) == refused
    me = f"/rooms/{other}/state/m.room.member/{alice.user_id}"
    assert await alice.fails("PUT", me, {"membership": "join", "displayname": "x"}) == refused
    await alice.ok("PUT", me, {"membership": "leave"})


async def test_nobody_comes_into_a_blocked_room(world: World) -> None:
    root, alice, bob = await administrator(world), await world.user("alice"), await world.user("bob")
    room_id = (await alice.ok("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
    block = f"{ADMIN}/v1/rooms/{room_id}/block"
    await root.ok("PUT", block, {"block": True})
    refused = (403, "M_FORBIDDEN")
    assert await bob.fails("POST", f"/rooms/{room_id}/join") == refused
    assert await bob.fails("POST", f"/knock/{room_id}") == refused
    invite = f"/rooms/{room_id}/invite"
    assert await alice.fails("POST", invite, {"user_id": bob.user_id}) == refused
    asked = accounts_pb2.QueryBlockedRoomsRequest(room_ids=["!other", room_id])
    told = await world.service._servicer.QueryBlockedRooms(asked, None)  # type: ignore[arg-type]
    assert list(told.room_ids) == [room_id]
    await root.ok("PUT", block, {"block": False})
    await alice.ok("POST", invite, {"user_id": bob.user_id})
    await bob.ok("POST", f"/rooms/{room_id}/join")

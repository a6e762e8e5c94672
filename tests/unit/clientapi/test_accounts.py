"""Registration, login, tokens, devices, passwords, deactivation."""

import asyncio
import hashlib
import hmac
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from arbor.accounts.v1 import accounts_pb2
from arbor.log.v1 import output_pb2
from clientapi.storage import registration_tokens
from clientapi.storage.tables import outbox_tables
from servicekit.log.outbox import Outbox
from tests.support.clientapi_alone import PASSWORD, Client, World, lone_clientapi


def login_body(user: str, password: str = PASSWORD, **more: Any) -> dict[str, Any]:
    identifier = {"type": "m.id.user", "user": user}
    return {"type": "m.login.password", "identifier": identifier, "password": password, **more}


async def login(world: World, user: str, **more: Any) -> Client:
    client = world.client()
    answer = await client.ok("POST", "/login", login_body(user, **more))
    client.token, client.user_id, client.device_id = (
        answer["access_token"],
        answer["user_id"],
        answer["device_id"],
    )
    return client


# -- registration ----------------------------------------------------------------------------------


async def test_registration_asks_for_its_flow_first(world: World) -> None:
    client = world.client()
    status, answer = await client("POST", "/register", {})
    assert status == 401
    assert answer["flows"] == [{"stages": ["m.login.dummy"]}]
    session = answer["session"]
    status, answer = await client(
        "POST",
        "/register",
        {"username": "Carol", "password": PASSWORD, "auth": {"type": "m.login.dummy", "session": session}},
    )
    assert status == 200
    assert answer["user_id"] == "@carol:here.example"
    # The session is used up.
    status, answer = await client(
        "POST",
        "/register",
        {"username": "dave", "password": PASSWORD, "auth": {"type": "m.login.dummy", "session": session}},
    )
    assert status in (400, 401)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"username": "us er"}, (400, "M_INVALID_USERNAME")),
        ({"username": "ü"}, (400, "M_INVALID_USERNAME")),
        ({"username": "@a:here.example"}, (400, "M_INVALID_USERNAME")),
        ({"username": "a" * 256}, (400, "M_INVALID_USERNAME")),
        ({"username": 7}, (400, "M_BAD_JSON")),
        ({"username": "a", "password": 7}, (400, "M_BAD_JSON")),
        ({"username": "a", "password": "short"}, (400, "M_WEAK_PASSWORD")),
        ({"username": "a", "password": "x" * 2000}, (400, "M_INVALID_PARAM")),
        ({"username": "taken", "password": PASSWORD}, (400, "M_USER_IN_USE")),
        ({"username": "a", "auth": {"type": "m.login.dummy"}}, (400, "M_MISSING_PARAM")),
        ({"username": "a", "password": PASSWORD, "auth": []}, (400, "M_BAD_JSON")),
        ({"username": "a", "password": PASSWORD, "auth": {"session": "x"}}, (400, "M_INVALID_PARAM")),
        ({"username": "a", "device_id": "d" * 300}, (400, "M_INVALID_PARAM")),
    ],
)
async def test_bad_registrations(world: World, body: dict[str, Any], error: tuple[int, str]) -> None:
    await world.user("taken")
    assert await world.client().fails("POST", "/register", body) == error


async def test_registration_is_closed_by_default_and_wants_a_token_when_opened(tmp_path: Path) -> None:
    async with lone_clientapi(tmp_path / "closed", registration__enabled=False) as world:
        assert await world.client().fails("POST", "/register", {}) == (403, "M_FORBIDDEN")
    async with lone_clientapi(tmp_path / "open", registration__require_verification=True) as world:
        client = world.client()
        status, answer = await client("POST", "/register", {})
        assert (status, answer["flows"]) == (401, [{"stages": ["m.login.registration_token"]}])
        await world.service._db.write(registration_tokens.store_registration_token, "letmein", 1)
        validity = "/_matrix/client/v1/register/m.login.registration_token/validity"
        assert await client.ok("GET", validity, token="letmein") == {"valid": True}
        assert await client.ok("GET", validity, token="other") == {"valid": False}
        body = {"username": "eve", "password": PASSWORD}
        stage = {"type": "m.login.registration_token", "token": "letmein"}
        status, answer = await client("POST", "/register", {**body, "auth": {**stage, "token": "wrong"}})
        assert (status, answer["errcode"], answer["completed"]) == (401, "M_UNAUTHORIZED", [])
        await client.ok("POST", "/register", {**body, "auth": stage})
        # It was good for one account.
        status, _ = await client("POST", "/register", {**body, "username": "mallory", "auth": stage})
        assert status == 401


async def test_inhibit_login_and_available(world: World) -> None:
    client = await world.user("quiet", inhibit_login=True)
    assert client.token is None
    assert await client.fails("GET", "/register/available", username="quiet") == (400, "M_USER_IN_USE")
    assert await client.ok("GET", "/register/available", username="loud") == {"available": True}
    assert await client.fails("GET", "/register/available") == (400, "M_MISSING_PARAM")


async def test_guests_are_refused_unless_let_in(world: World, tmp_path: Path) -> None:
    assert await world.client().fails("POST", "/register", {}, kind="guest") == (
        403,
        "M_GUEST_ACCESS_FORBIDDEN",
    )
    assert await world.client().fails("POST", "/register", {}, kind="cat") == (400, "M_INVALID_PARAM")


async def test_shared_secret_registration(world: World) -> None:
    client = world.client()
    path = "/_synapse/admin/v1/register"

    async def body(secret: str = "hush", **more: Any) -> dict[str, Any]:
        nonce = (await client.ok("GET", path))["nonce"]
        text = f"{nonce}\0root\0{PASSWORD}\0admin".encode()
        mac = hmac.new(secret.encode(), text, hashlib.sha1).hexdigest()
        return {"nonce": nonce, "username": "root", "password": PASSWORD, "admin": True, "mac": mac, **more}

    assert (await client("POST", path, await body("guess")))[0] == 403
    assert (await client("POST", path, await body(admin=False)))[0] == 403
    good = await body()
    answer = await client.ok("POST", path, good)
    assert answer["user_id"] == "@root:here.example"
    assert answer["access_token"]
    assert (await client("POST", path, good))[0] == 400


# -- login and tokens ------------------------------------------------------------------------------


async def test_login_forms(world: World) -> None:
    await world.user("alice")
    client = world.client()
    assert (await client.ok("GET", "/login"))["flows"] == [
        {"type": "m.login.password"},
        {"type": "m.login.token", "get_login_token": True},
    ]
    for body in (
        login_body("alice"),
        login_body("@alice:here.example"),
        login_body("Alice"),
        {"type": "m.login.password", "user": "alice", "password": PASSWORD},
    ):
        assert (await client.ok("POST", "/login", body))["user_id"] == "@alice:here.example"
    mail = {"type": "m.id.thirdparty", "medium": "email", "address": "a@b.c"}
    for bad, error in (
        (login_body("alice", "wrong"), (403, "M_FORBIDDEN")),
        (login_body("nobody"), (403, "M_FORBIDDEN")),
        (login_body("@alice:elsewhere.example"), (403, "M_FORBIDDEN")),
        ({"type": "m.login.password", "identifier": mail, "password": PASSWORD}, (403, "M_FORBIDDEN")),
        ({"type": "m.login.password", "identifier": 7, "password": PASSWORD}, (400, "M_BAD_JSON")),
        ({"type": "m.login.password", "password": PASSWORD}, (400, "M_MISSING_PARAM")),
        ({"type": "m.login.sso"}, (400, "M_UNKNOWN")),
        ({}, (400, "M_MISSING_PARAM")),
        ({"type": []}, (400, "M_BAD_JSON")),
    ):
        assert await client.fails("POST", "/login", bad) == error, bad


async def test_a_new_login_of_a_device_ends_its_old_token(world: World) -> None:
    alice = await world.user("alice")
    first = await login(world, "alice", device_id="PHONE")
    second = await login(world, "alice", device_id="PHONE")
    assert await first.fails("GET", "/account/whoami") == (401, "M_UNKNOWN_TOKEN")
    answer = await second.ok("GET", "/account/whoami")
    assert answer == {"user_id": alice.user_id, "device_id": "PHONE", "is_guest": False}


async def test_logout_ends_this_session_or_all(world: World) -> None:
    first = await world.user("alice")
    second, third = await login(world, "alice"), await login(world, "alice")
    for client in (first, second, third):
        await client.ok("GET", "/account/whoami")
    await first.ok("POST", "/logout")
    assert await first.fails("GET", "/account/whoami") == (401, "M_UNKNOWN_TOKEN")
    await second.ok("GET", "/account/whoami")
    await second.ok("POST", "/logout/all")
    assert await third.fails("GET", "/account/whoami") == (401, "M_UNKNOWN_TOKEN")
    assert await world.client().fails("GET", "/account/whoami") == (401, "M_MISSING_TOKEN")
    assert await world.client("x").fails("POST", "/logout") == (401, "M_UNKNOWN_TOKEN")


async def test_refresh(world: World) -> None:
    client = world.client()
    await world.user("alice")
    first = await client.ok("POST", "/login", login_body("alice", refresh_token=True))
    assert first["expires_in_ms"] == 3_600_000
    second = await client.ok("POST", "/refresh", {"refresh_token": first["refresh_token"]})
    # Until the new pair is used the old one holds: the answer may have been lost.
    await world.client(first["access_token"]).ok("GET", "/account/whoami")
    again = await client.ok("POST", "/refresh", {"refresh_token": first["refresh_token"]})
    assert await world.client(second["access_token"]).fails("GET", "/account/whoami") == (
        401,
        "M_UNKNOWN_TOKEN",
    )
    await world.client(again["access_token"]).ok("GET", "/account/whoami")
    assert await world.client(first["access_token"]).fails("GET", "/account/whoami") == (
        401,
        "M_UNKNOWN_TOKEN",
    )
    assert await client.fails("POST", "/refresh", {"refresh_token": "arbr_x"}) == (401, "M_UNKNOWN_TOKEN")
    assert await client.fails("POST", "/refresh", {}) == (400, "M_MISSING_PARAM")


async def test_an_expired_access_token_is_a_soft_logout(world: World) -> None:
    await world.user("alice")
    client = world.client()
    answer = await client.ok("POST", "/login", login_body("alice", refresh_token=True))
    client.token = answer["access_token"]
    await client.ok("GET", "/account/whoami")
    world.clock.now_ms += 3_600_001
    status, error = await client("GET", "/account/whoami")
    assert (status, error["errcode"], error["soft_logout"]) == (401, "M_UNKNOWN_TOKEN", True)
    await client.ok("POST", "/refresh", {"refresh_token": answer["refresh_token"]})


# -- devices, password, deactivation ---------------------------------------------------------------


async def prove(
    client: Client, method: str, path: str, body: dict[str, Any], password: str = PASSWORD
) -> Any:
    """Go through the password stage."""
    status, answer = await client(method, path, body)
    assert status == 401, answer
    assert answer["flows"] == [{"stages": ["m.login.password"]}]
    auth = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": client.user_id},
        "password": password,
        "session": answer["session"],
    }
    return await client(method, path, {**body, "auth": auth})


async def test_devices(world: World) -> None:
    alice = await world.user("alice", device_id="A", initial_device_display_name="first")
    other = await login(world, "alice", device_id="B")
    await login(world, "alice", device_id="C")
    devices = (await alice.ok("GET", "/devices"))["devices"]
    assert [device["device_id"] for device in devices] == ["A", "B", "C"]
    assert devices[0]["display_name"] == "first"
    assert devices[0]["last_seen_ip"] == "127.0.0.1"
    await alice.ok("PUT", "/devices/B", {"display_name": "phone"})
    assert (await alice.ok("GET", "/devices/B"))["display_name"] == "phone"
    assert await alice.fails("PUT", "/devices/X", {"display_name": "x"}) == (404, "M_NOT_FOUND")
    assert await alice.fails("GET", "/devices/X") == (404, "M_NOT_FOUND")
    await other.ok("GET", "/account/whoami")
    status, answer = await prove(alice, "DELETE", "/devices/B", {}, "wrong")
    assert (status, answer["errcode"]) == (401, "M_FORBIDDEN")
    await other.ok("GET", "/account/whoami")
    assert (await prove(alice, "DELETE", "/devices/B", {}))[0] == 200
    assert await other.fails("GET", "/account/whoami") == (401, "M_UNKNOWN_TOKEN")
    assert (await prove(alice, "POST", "/delete_devices", {"devices": ["C"]}))[0] == 200
    assert len((await alice.ok("GET", "/devices"))["devices"]) == 1


async def test_password_change_logs_the_others_out_unless_asked_not_to(world: World) -> None:
    alice = await world.user("alice")
    other = await login(world, "alice")
    status, _ = await prove(
        alice, "POST", "/account/password", {"new_password": "new password", "logout_devices": False}
    )
    assert status == 200
    await other.ok("GET", "/account/whoami")
    assert await world.client().fails("POST", "/login", login_body("alice")) == (403, "M_FORBIDDEN")
    status, _ = await prove(
        alice, "POST", "/account/password", {"new_password": "newer password"}, "new password"
    )
    assert status == 200
    assert await other.fails("GET", "/account/whoami") == (401, "M_UNKNOWN_TOKEN")
    await alice.ok("GET", "/account/whoami")
    await login(world, "alice", password="newer password")


async def test_deactivation_ends_everything_and_leaves_rooms(world: World) -> None:
    alice, bob = await world.user("alice"), await world.user("bob")
    room_id = (await alice.ok("POST", "/createRoom", {"invite": [bob.user_id]}))["room_id"]
    await bob.ok("POST", f"/join/{room_id}")
    status, answer = await prove(bob, "POST", "/account/deactivate", {})
    assert (status, answer) == (200, {"id_server_unbind_result": "success"})
    assert await bob.fails("GET", "/account/whoami") == (401, "M_UNKNOWN_TOKEN")
    assert await world.client().fails("POST", "/login", login_body("bob")) == (403, "M_USER_DEACTIVATED")
    assert await world.client().fails("GET", "/register/available", username="bob") == (400, "M_USER_IN_USE")
    member = ("m.room.member", bob.user_id)
    async with asyncio.timeout(5):
        while world.roomserver.rooms[room_id].state[member].membership != "leave":
            await asyncio.sleep(0.01)


async def test_erasure_takes_the_settings_and_tells_the_readers(world: World) -> None:
    bob = await world.user("bob")
    await bob.ok("PUT", f"/user/{bob.user_id}/account_data/org.example", {"secret": True})
    assert (await prove(bob, "POST", "/account/deactivate", {"erase": True}))[0] == 200
    stored = await world.service._db.read(Outbox(outbox_tables).load)
    told = [entry for item in stored for entry in output_pb2.OutputMessage.FromString(item.data).entries]
    (erased_ms,) = [entry.account_changed.erased_ms for entry in told if entry.account_changed.erased_ms]
    assert [
        entry.account_data_changed.content_json
        for entry in told
        if entry.account_data_changed.type == "org.example"
    ][-1] == b""
    exported = [
        entry
        async for part in world.service._servicer.Export(accounts_pb2.ExportRequest(), None)  # type: ignore[arg-type]
        for entry in output_pb2.OutputMessage.FromString(part.message).entries
    ]
    assert erased_ms in [entry.account_changed.erased_ms for entry in exported]
    assert not [entry for entry in exported if entry.HasField("account_data_changed")]


async def test_nothing_secret_is_stored(world: World, tmp_path: Path) -> None:
    alice = await world.user("alice")
    refreshing = await alice.ok("POST", "/login", login_body("alice", refresh_token=True))
    await prove(alice, "POST", "/account/password", {"new_password": "brand new secret"}, "wrong guess")
    with sqlite3.connect(tmp_path / "clientapi.db") as connection:
        dump = "\n".join(connection.iterdump())
    connection.close()
    for secret in (
        PASSWORD,
        alice.token,
        refreshing["access_token"],
        refreshing["refresh_token"],
        "brand new secret",
        "wrong guess",
    ):
        assert secret is not None
        assert secret not in dump
        assert secret.encode().hex() not in dump.lower()

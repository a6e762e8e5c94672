"""Row 33: accounts and sessions cannot be misused.

Every login fails after deactivation, locking ends sessions, a session of user-interactive auth is bound to
its operation and user, an old refresh token that comes back ends its whole family, registration never
touches an account that exists, and whether an account exists shows neither in answers nor in the work that
a login costs.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from clientapi.storage.tables import users
from tests.support.clientapi_alone import PASSWORD, Client, World, lone_clientapi


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with lone_clientapi(tmp_path) as running:
        yield running


def login_body(user: str, password: str = PASSWORD, **more: Any) -> dict[str, Any]:
    identifier = {"type": "m.id.user", "user": user}
    return {"type": "m.login.password", "identifier": identifier, "password": password, **more}


def proof(user: str, session: str | None = None, password: str = PASSWORD) -> dict[str, Any]:
    auth: dict[str, Any] = login_body(user, password)
    return auth if session is None else {**auth, "session": session}


async def challenge(client: Client, method: str, path: str, body: dict[str, Any]) -> str:
    status, answer = await client(method, path, body)
    assert status == 401
    session: str = answer["session"]
    return session


async def test_nothing_works_after_deactivation(world: World) -> None:
    alice = await world.user("alice")
    refresh = await alice.ok("POST", "/login", login_body("alice", refresh_token=True))
    await alice.ok("POST", "/account/deactivate", {"auth": proof("alice")})
    assert await alice.fails("GET", "/account/whoami") == (401, "M_UNKNOWN_TOKEN")
    anyone = world.client()
    assert await anyone.fails("POST", "/login", login_body("alice")) == (403, "M_USER_DEACTIVATED")
    assert await anyone.fails("POST", "/refresh", {"refresh_token": refresh["refresh_token"]}) == (
        401,
        "M_UNKNOWN_TOKEN",
    )
    again = {"username": "alice", "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
    assert await anyone.fails("POST", "/register", again) == (400, "M_USER_IN_USE")
    assert await anyone.fails("GET", f"/profile/{alice.user_id}") == (404, "M_NOT_FOUND")


async def test_a_locked_account_can_neither_log_in_nor_go_on(world: World) -> None:
    alice = await world.user("alice")
    await world.service._db.write(
        lambda conn: conn.execute(update(users).where(users.c.user_id == alice.user_id).values(locked=True))
    )
    world.service._sessions.forget_user(alice.user_id)
    status, answer = await alice("GET", "/account/whoami")
    assert (status, answer["errcode"], answer["soft_logout"]) == (401, "M_USER_LOCKED", True)
    assert await world.client().fails("POST", "/login", login_body("alice")) == (401, "M_USER_LOCKED")


async def test_a_suspended_account_reads_and_leaves_but_does_not_write(world: World) -> None:
    alice, bob = await world.user("alice"), await world.user("bob")
    room_id = (await bob.ok("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
    await alice.ok("POST", f"/join/{room_id}")
    await world.service._db.write(
        lambda conn: conn.execute(
            update(users).where(users.c.user_id == alice.user_id).values(suspended=True)
        )
    )
    world.service._sessions.forget_user(alice.user_id)
    send = f"/rooms/{room_id}/send/m.room.message/t"
    assert await alice.fails("PUT", send, {"body": "x"}) == (403, "M_USER_SUSPENDED")
    await alice.ok("GET", "/account/whoami")
    await alice.ok("POST", f"/rooms/{room_id}/leave")


async def test_a_session_is_bound_to_its_operation(world: World) -> None:
    alice = await world.user("alice", device_id="A")
    await alice.ok("POST", "/login", login_body("alice", device_id="B"))
    session = await challenge(alice, "DELETE", "/devices/B", {})
    # Begun for one device, not to be used for another, nor for the password or the account.
    for method, path, body in (
        ("DELETE", "/devices/A", {}),
        ("POST", "/delete_devices", {"devices": ["A", "B"]}),
        ("POST", "/account/password", {"new_password": "other password"}),
        ("POST", "/account/deactivate", {}),
        ("POST", "/register", {"username": "x", "password": PASSWORD}),
    ):
        status, answer = await alice(method, path, {**body, "auth": proof("alice", session)})
        assert (status, answer.get("errcode")) == (403, "M_FORBIDDEN"), path
    await alice.ok("DELETE", "/devices/B", {"auth": proof("alice", session)})
    # And it is used up.
    assert await alice.fails("DELETE", "/devices/B", {"auth": {"session": session}}) == (
        400,
        "M_INVALID_PARAM",
    )


async def test_a_session_is_bound_to_its_user(world: World) -> None:
    alice, mallory = await world.user("alice", device_id="A"), await world.user("mallory", device_id="A")
    session = await challenge(alice, "DELETE", "/devices/A", {})
    assert await mallory.fails("DELETE", "/devices/A", {"auth": proof("mallory", session)}) == (
        403,
        "M_FORBIDDEN",
    )
    # One's own password does not prove somebody else; somebody else's does not prove oneself.
    status, answer = await alice("DELETE", "/devices/A", {"auth": proof("mallory", session)})
    assert (status, answer["errcode"]) == (403, "M_FORBIDDEN")
    await alice.ok("GET", "/account/whoami")


async def test_reuse_of_a_refresh_token_ends_the_family(world: World) -> None:
    await world.user("alice")
    client = world.client()
    other = await client.ok("POST", "/login", login_body("alice", refresh_token=True))
    first = await client.ok("POST", "/login", login_body("alice", refresh_token=True))
    second = await client.ok("POST", "/refresh", {"refresh_token": first["refresh_token"]})
    third = await client.ok("POST", "/refresh", {"refresh_token": second["refresh_token"]})
    await world.client(third["access_token"]).ok("GET", "/account/whoami")
    # Somebody has the first token still.
    assert await client.fails("POST", "/refresh", {"refresh_token": first["refresh_token"]}) == (
        401,
        "M_UNKNOWN_TOKEN",
    )
    for token in (first["access_token"], second["access_token"], third["access_token"]):
        assert await world.client(token).fails("GET", "/account/whoami") == (401, "M_UNKNOWN_TOKEN")
    assert await client.fails("POST", "/refresh", {"refresh_token": third["refresh_token"]}) == (
        401,
        "M_UNKNOWN_TOKEN",
    )
    # Another login of the same user is another family.
    await world.client(other["access_token"]).ok("GET", "/account/whoami")


async def test_registration_never_touches_an_account_that_exists(world: World) -> None:
    alice = await world.user("alice")
    client = world.client()
    session = await challenge(client, "POST", "/register", {})
    body = {"password": "of an attacker", "auth": {"type": "m.login.dummy", "session": session}}
    for name in ("alice", "ALICE"):
        assert await client.fails("POST", "/register", {**body, "username": name}) == (400, "M_USER_IN_USE")
    assert await client.fails("POST", "/login", login_body("alice", "of an attacker")) == (
        403,
        "M_FORBIDDEN",
    )
    await alice.ok("GET", "/account/whoami")


async def test_an_unknown_user_costs_a_hash_and_gets_the_same_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.user("alice")
    passwords = world.service._passwords
    verified: list[bytes] = []
    real = passwords._hasher.verify

    class Counting:
        def verify(self, stored: str, password: bytes) -> bool:
            verified.append(password)
            result: bool = real(stored, password)
            return result

        def __getattr__(self, name: str) -> Any:
            return getattr(passwords._hasher, name)

    monkeypatch.setattr(passwords, "_hasher", Counting())
    client = world.client()
    known = await client("POST", "/login", login_body("alice", "wrong password"))
    unknown = await client("POST", "/login", login_body("nobody", "wrong password"))
    assert known == unknown
    assert len(verified) == 2


async def test_wrong_passwords_are_counted_per_account(tmp_path: Path) -> None:
    limits = {
        "rate_limits__enabled": True,
        "rate_limits__failed_login": {"per_second": 0.001, "burst": 2},
        "rate_limits__login": {"per_second": 1000, "burst": 1000},
        "rate_limits__registration": {"per_second": 1000, "burst": 1000},
    }
    async with lone_clientapi(tmp_path / "limited", **limits) as world:
        await world.user("alice")
        await world.user("bob")
        client = world.client()
        for _ in range(2):
            assert (await client("POST", "/login", login_body("alice", "wrong")))[0] == 403
        # The right one does not count, and says nothing while the account is guarded.
        status, answer = await client("POST", "/login", login_body("alice"))
        assert (status, answer["errcode"]) == (429, "M_LIMIT_EXCEEDED")
        assert answer["retry_after_ms"] > 0
        await client.ok("POST", "/login", login_body("bob"))


@pytest.mark.parametrize(
    ("state", "refused"),
    [
        ("deactivated", {"M_USER_DEACTIVATED", "M_UNKNOWN_TOKEN", "M_FORBIDDEN"}),
        ("locked", {"M_USER_LOCKED", "M_UNKNOWN_TOKEN"}),
        ("suspended", None),
    ],
)
async def test_every_way_in_by_the_state_of_the_account(
    world: World, state: str, refused: set[str] | None
) -> None:
    """By password in each form, by login token, by refresh token, by the token one has."""
    alice = await world.user("alice")
    nobody = world.client()
    pair = await nobody.ok("POST", "/login", login_body("alice", refresh_token=True))
    path = "/_matrix/client/v1/login/get_token"
    session = await challenge(alice, "POST", path, {})
    by_token = (await alice.ok("POST", path, {"auth": proof("alice", session)}))["login_token"]
    if state == "deactivated":
        await alice.ok("POST", "/account/deactivate", {"auth": proof("alice")})
    else:
        await world.service._db.write(
            lambda conn: conn.execute(
                update(users).where(users.c.user_id == alice.user_id).values({state: True})
            )
        )
        world.service._sessions.forget_user(alice.user_id)
    ways: list[tuple[Client, str, str, Any]] = [
        (nobody, "POST", "/login", login_body("alice")),
        (nobody, "POST", "/login", login_body("ALICE")),
        (nobody, "POST", "/login", login_body(alice.user_id)),
        (nobody, "POST", "/login", {"type": "m.login.password", "user": "alice", "password": PASSWORD}),
        (nobody, "POST", "/login", {"type": "m.login.token", "token": by_token}),
        (nobody, "POST", "/refresh", {"refresh_token": pair["refresh_token"]}),
        (alice, "GET", "/account/whoami", None),
    ]
    for client, method, way, body in ways:
        status, answer = await client(method, way, body)
        if refused is None:
            assert status == 200, (way, body, answer)
        else:
            assert status in (401, 403), (way, body, answer)
            assert answer["errcode"] in refused


async def test_a_session_of_registration_makes_one_account(world: World) -> None:
    client = world.client()
    session = await challenge(client, "POST", "/register", {})
    auth = {"type": "m.login.dummy", "session": session}
    await client.ok("POST", "/register", {"username": "one", "password": PASSWORD, "auth": auth})
    status, _ = await client("POST", "/register", {"username": "two", "password": PASSWORD, "auth": auth})
    assert status in (400, 401)
    assert await client.ok("GET", "/register/available", username="two") == {"available": True}


async def test_rows_of_user_interactive_auth_hold_no_secret(world: World) -> None:
    alice = await world.user("alice")
    secret = "a secret that is new"
    await alice("POST", "/account/password", {"new_password": secret})
    wrong = {"auth": proof("alice", password="a guess"), "new_password": secret}
    await alice("POST", "/account/password", wrong)
    await world.client()("POST", "/register", {"username": "new", "password": secret})
    rows = await world.service._db.read(
        lambda conn: [tuple(row) for row in conn.exec_driver_sql("SELECT * FROM uia_sessions")]
    )
    assert len(rows) >= 3
    for value in (secret, "a guess", PASSWORD, str(alice.token)):
        assert value not in str(rows)

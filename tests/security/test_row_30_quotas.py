"""Row 30: whatever a user can pile up has an end, and whatever costs something can be done only so often.

The limits are made small for the test; that the real ones are there is what the tables at the end say.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from clientapi.accounts import account_data as account_data_limits
from clientapi.accounts import push_rules as push_rule_limits
from clientapi.accounts import sessions as session_limits
from clientapi.http import account_data as tag_limits
from clientapi.http import filters as filter_limits
from clientapi.http import push_rules as pusher_limits
from clientapi.http import reports as report_limits
from clientapi.rooms import aliases as alias_limits
from matrixlib.globs import compile_glob
from servicekit.config import load_config
from tests.support.arbor_server import ArborServer
from tests.support.clientapi_alone import PASSWORD, Client, World, lone_clientapi
from tests.support.matrix_client import ClientError, http_session

TOO_MUCH = (403, "M_RESOURCE_LIMIT_EXCEEDED")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with lone_clientapi(tmp_path) as running:
        yield running


Put = Callable[[Client, int], Awaitable[tuple[int, Any]]]


def one(method: str, path: str, body: Any) -> Put:
    """A request that adds the thing of a number: `{n}` stands for it, `{user}` for who asks."""

    async def put(client: Client, number: int) -> tuple[int, Any]:
        def filled(value: Any) -> Any:
            if isinstance(value, str):
                return value.replace("{n}", str(number)).replace("{user}", client.user_id)
            return {key: filled(item) for key, item in value.items()} if isinstance(value, dict) else value

        return await client(method, filled(path), filled(body))

    return put


PUSHER = {
    "app_id": "a", "pushkey": "{n}", "kind": "http", "app_display_name": "x", "device_display_name": "y",
    "lang": "en", "data": {"url": "https://push.test/_matrix/push/v1/notify"},
}  # fmt: skip

# what -> (where its limit stands, its name, how one more is added, status and errcode beyond)
QUOTAS: dict[str, tuple[Any, str, Put, tuple[int, str]]] = {
    "account data": (
        account_data_limits, "MAX_ENTRIES", one("PUT", "/user/{user}/account_data/t{n}", {}), TOO_MUCH,
    ),
    "account data of rooms": (
        account_data_limits, "MAX_ENTRIES", one("PUT", "/user/{user}/rooms/!r{n}:x/account_data/t", {}), TOO_MUCH,
    ),
    "tags": (tag_limits, "MAX_TAGS", one("PUT", "/user/{user}/rooms/!r:x/tags/t{n}", {}), TOO_MUCH),
    "filters": (
        filter_limits, "MAX_FILTERS", one("POST", "/user/{user}/filter", {"n": "{n}"}), TOO_MUCH,
    ),
    "pushers": (pusher_limits, "MAX_PUSHERS", one("POST", "/pushers/set", PUSHER), TOO_MUCH),
    "reports": (report_limits, "MAX_REPORTS", one("POST", "/rooms/!r{n}:x/report", {"reason": "r"}), TOO_MUCH),
}  # fmt: skip


@pytest.mark.parametrize("what", QUOTAS)
async def test_nobody_piles_up_without_end(world: World, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name, put, beyond = QUOTAS[what]
    assert getattr(module, name) <= 10_000
    monkeypatch.setattr(module, name, 3)
    alice, bob = await world.user(), await world.user()
    for number in range(3):
        assert (await put(alice, number))[0] == 200
    status, answer = await put(alice, 3)
    assert (status, answer["errcode"]) == beyond
    # What is there can be replaced, and others are not concerned.
    if what != "reports":
        assert (await put(alice, 2))[0] == 200
    assert (await put(bob, 3))[0] == 200


async def test_account_data_has_a_size_together(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert account_data_limits.MAX_CONTENT_BYTES <= 65_536
    monkeypatch.setattr(account_data_limits, "MAX_TOTAL_BYTES", 1000)
    alice = await world.user()
    path = f"/user/{alice.user_id}/account_data"
    await alice.ok("PUT", f"{path}/a", {"x": "y" * 600})
    assert await alice.fails("PUT", f"{path}/b", {"x": "y" * 600}) == TOO_MUCH
    await alice.ok("PUT", f"{path}/a", {"x": "y" * 900})
    assert await alice.fails("PUT", f"{path}/a", {"x": "y" * 1100}) == TOO_MUCH
    # Making it smaller always works.
    await alice.ok("PUT", f"{path}/a", {"x": "y" * 10})
    await alice.ok("PUT", f"{path}/b", {"x": "y" * 600})
    assert await alice.fails("PUT", f"{path}/c", {"x": "y" * 70_000}) == (413, "M_TOO_LARGE")


async def test_filters_have_a_size_together(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filter_limits, "MAX_TOTAL_BYTES", 1000)
    alice = await world.user()
    path = f"/user/{alice.user_id}/filter"
    await alice.ok("POST", path, {"x": "y" * 600})
    assert await alice.fails("POST", path, {"x": "z" * 600}) == TOO_MUCH
    await alice.ok("POST", path, {"x": "y" * 600})


async def test_push_rules(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = await world.user()
    path, body = "/pushrules/global/content", {"pattern": "x", "actions": ["notify"]}
    assert await alice.fails("PUT", f"{path}/{'i' * 301}", body) == (400, "M_INVALID_PARAM")
    large = {"pattern": "x" * 5000, "actions": []}
    assert await alice.fails("PUT", f"{path}/large", large) == (413, "M_TOO_LARGE")
    assert await alice.fails("PUT", f"{path}/large", {**body, "actions": ["notify"] * 3000}) == (
        413,
        "M_TOO_LARGE",
    )
    # Many rules of a reasonable size: more than fits into other account data.
    for number in range(40):
        await alice.ok("PUT", f"{path}/{number}", {"pattern": "x" * 2500, "actions": ["notify"]})
    monkeypatch.setattr(account_data_limits, "MAX_RULESET_BYTES", 120_000)
    status = 200
    for number in range(40, 80):
        status, answer = await alice("PUT", f"{path}/{number}", {"pattern": "x" * 2500, "actions": []})
        if status != 200:
            assert (status, answer["errcode"]) == (413, "M_TOO_LARGE")
            break
    assert status == 413
    count = sum(len(rules) for rules in (await alice.ok("GET", "/pushrules/"))["global"].values())
    monkeypatch.setattr(push_rule_limits, "MAX_RULES", count)
    assert await alice.fails("PUT", f"{path}/more", body) == TOO_MUCH
    assert count < push_rule_limits.MAX_RULES + 1 <= 10_000


def test_a_glob_of_push_rules_takes_linear_time() -> None:
    # Stars that a careless matcher would try in every combination.
    assert not compile_glob("*a" * 200 + "b").matches("a" * 20_000)


async def test_profiles_and_rooms_and_names(world: World) -> None:
    alice = await world.user()
    profile = f"/profile/{alice.user_id}"
    await alice.ok("PUT", f"{profile}/org.a", {"org.a": "x" * 40_000})
    assert await alice.fails("PUT", f"{profile}/org.b", {"org.b": "x" * 40_000}) == (
        400,
        "M_PROFILE_TOO_LARGE",
    )
    invitees = [f"@u{number}:here.example" for number in range(1001)]
    assert await alice.fails("POST", "/createRoom", {"invite": invitees}) == (400, "M_INVALID_PARAM")
    status, _ = await alice("PUT", f"/devices/{alice.device_id}", {"display_name": "x" * 256})
    assert status == 400


async def test_devices_unseen_for_longest_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert session_limits.MAX_DEVICES <= 10_000
    monkeypatch.setattr(session_limits, "MAX_DEVICES", 3)
    alice = await world.user("alice", device_id="D0")
    login = {"type": "m.login.password", "user": "alice", "password": PASSWORD}
    for number in (1, 2):
        await world.client().ok("POST", "/login", {**login, "device_id": f"D{number}"})
    # The oldest was seen last.
    await alice.ok("GET", "/devices")
    last = await world.client().ok("POST", "/login", {**login, "device_id": "D3"})
    devices = (await alice.ok("GET", "/devices"))["devices"]
    assert [device["device_id"] for device in devices] == ["D0", "D2", "D3"]
    # A device that logs in again is no new one.
    await world.client().ok("POST", "/login", {**login, "device_id": "D3"})
    assert len((await alice.ok("GET", "/devices"))["devices"]) == 3
    assert last["device_id"] == "D3"


async def test_refresh_tokens_do_not_pile_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_limits, "MAX_KEPT_REFRESH_TOKENS", 5)
    await world.user("alice")
    nobody = world.client()
    login = {"type": "m.login.password", "user": "alice", "password": PASSWORD, "refresh_token": True}
    token = (await nobody.ok("POST", "/login", login))["refresh_token"]
    for _ in range(20):
        token = (await nobody.ok("POST", "/refresh", {"refresh_token": token}))["refresh_token"]
    kept = await world.service._db.read(
        lambda conn: conn.exec_driver_sql("SELECT count(*) FROM refresh_tokens").scalar_one()
    )
    assert kept == 5
    await nobody.ok("POST", "/refresh", {"refresh_token": token})


async def test_aliases(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert alias_limits.MAX_ALIASES_OF_USER <= 1000
    alice, bob = await world.user(), await world.user()
    room_id = (await alice.ok("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
    await bob.ok("POST", f"/join/{room_id}")
    monkeypatch.setattr(alias_limits, "MAX_ALIASES_OF_USER", 2)
    path, body = "/directory/room/%23{}:here.example", {"room_id": room_id}
    for number in range(2):
        await alice.ok("PUT", path.format(number), body)
    assert await alice.fails("PUT", path.format(3), body) == TOO_MUCH
    assert await alice.fails("POST", "/createRoom", {"room_alias_name": "more"}) == TOO_MUCH
    monkeypatch.setattr(alias_limits, "MAX_ALIASES_OF_ROOM", 3)
    await bob.ok("PUT", path.format(4), body)
    assert await bob.fails("PUT", path.format(5), body) == TOO_MUCH


# -- how often --

ROOM = "/rooms/{room}"

# class of `rate_limits` -> requests that it counts: (who asks: None for nobody, method, path, body)
COUNTED: dict[str, list[tuple[str | None, str, str, Any]]] = {
    "message": [
        ("alice", "PUT", ROOM + "/send/m.room.message/{n}", {"body": "x"}),
        ("alice", "PUT", ROOM + "/state/m.room.topic", {"topic": "{n}"}),
        ("alice", "POST", ROOM + "/report", {"reason": "x"}),
        ("alice", "POST", "/user/{alice}/openid/request_token", {}),
    ],
    "redaction": [("alice", "PUT", ROOM + "/redact/$none/{n}", {})],
    "registration": [(None, "POST", "/register", {"username": "new{n}", "password": PASSWORD, "auth": {}})],
    "login": [(None, "POST", "/login", {"type": "m.login.password", "user": "alice", "password": "wrong"})],
    "failed_login": [
        (None, "POST", "/login", {"type": "m.login.password", "user": "alice", "password": "wrong"})
    ],
    "token_check": [
        (None, "GET", "/_matrix/client/v1/register/m.login.registration_token/validity?token=x", None)
    ],
    "asking": [
        (None, "POST", "/register", {}),
        (None, "GET", "/register/available?username=x", None),
        (None, "GET", "/_synapse/admin/v1/register", None),
        ("alice", "POST", "/account/password", {"new_password": "new password"}),
        ("alice", "DELETE", "/devices/X", {}),
    ],
    "settings": [
        ("alice", "PUT", "/user/{alice}/account_data/t", {}),
        ("alice", "PUT", "/user/{alice}/rooms/{room}/account_data/t", {}),
        ("alice", "PUT", "/user/{alice}/rooms/{room}/tags/t", {}),
        ("alice", "DELETE", "/user/{alice}/rooms/{room}/tags/t", None),
        ("alice", "POST", "/user/{alice}/filter", {}),
        ("alice", "PUT", "/pushrules/global/override/.m.rule.master/enabled", {"enabled": False}),
        ("alice", "POST", "/pushers/set", PUSHER),
        ("alice", "PUT", "/devices/none", {"display_name": "x"}),
        ("alice", "PUT", "/directory/room/%23a{n}:here.example", {"room_id": "{room}"}),
        ("alice", "PUT", "/directory/list/room/{room}", {"visibility": "private"}),
    ],
    "ephemeral": [
        ("alice", "PUT", ROOM + "/typing/{alice}", {"typing": True}),
        ("alice", "POST", ROOM + "/receipt/m.read/$e", {}),
        ("alice", "POST", ROOM + "/read_markers", {}),
        ("alice", "PUT", "/presence/{alice}/status", {"presence": "online"}),
    ],
    "room_create": [("alice", "POST", "/createRoom", {})],
    "join": [("alice", "POST", "/join/{room}", {}), ("alice", "POST", ROOM + "/join", {})],
    "invite": [
        ("alice", "POST", ROOM + "/invite", {"user_id": "@u{n}:here.example"}),
        ("alice", "PUT", ROOM + "/state/m.room.member/@v{n}:here.example", {"membership": "invite"}),
    ],
    "profile": [("alice", "PUT", "/profile/{alice}/displayname", {"displayname": "x{n}"})],
    "search": [("alice", "POST", "/user_directory/search", {"search_term": "a"})],
}
# Counted by other services, or with other servers only.
ELSEWHERE = {"join_remote", "media", "federation"}


@pytest.mark.parametrize("name", COUNTED)
async def test_what_costs_something_can_be_done_only_so_often(name: str, tmp_path: Path) -> None:
    for index, (who, method, path, body) in enumerate(COUNTED[name]):
        async with lone_clientapi(tmp_path / str(index)) as world:
            alice = await world.user("alice")
            room_id = (await alice.ok("POST", "/createRoom", {}))["room_id"]
            token = alice.token
        limits = {f"rate_limits__{name}": {"per_second": 0.001, "burst": 2}, "rate_limits__enabled": True}
        async with lone_clientapi(tmp_path / str(index), world.roomserver, **limits) as world:
            client = world.client(token if who == "alice" else None)

            def filled(value: Any, number: int, room_id: str = room_id) -> Any:
                if isinstance(value, str):
                    for key, text in (
                        ("n", str(number)),
                        ("alice", "@alice:here.example"),
                        ("room", room_id),
                    ):
                        value = value.replace(f"{{{key}}}", text)
                    return value
                if isinstance(value, dict):
                    return {key: filled(item, number) for key, item in value.items()}
                return value

            statuses = []
            for number in range(3):
                status, answer = await client(method, filled(path, number), filled(body, number))
                statuses.append(status)
            assert 429 not in statuses[:2], (path, statuses)
            assert statuses[2] == 429, (path, statuses)
            assert answer["errcode"] == "M_LIMIT_EXCEEDED"
            assert 1 <= answer["retry_after_ms"] <= 1_000_000


def test_every_class_is_looked_at(tmp_path: Path) -> None:
    config = load_config(None, {}, {"server_name": "here.example", "data_dir": str(tmp_path)})
    assert config.rate_limits.enabled
    classes = set(type(config.rate_limits).__struct_fields__) - {"enabled"}
    assert classes == set(COUNTED) | ELSEWHERE


async def test_the_answer_says_when_to_come_again(tmp_path: Path) -> None:
    limits = {"rate_limits__login": {"per_second": 0.4, "burst": 1}, "rate_limits__enabled": True}
    async with lone_clientapi(tmp_path, **limits) as world, aiohttp.ClientSession() as session:
        body = {"type": "m.login.password", "user": "x", "password": "y"}
        url = f"{world.client()._base}/_matrix/client/v3/login"
        async with session.post(url, json=body) as response:
            assert response.status == 403
        async with session.post(url, json=body) as response:
            answer = await response.json()
            assert response.status == 429
            seconds = int(response.headers["Retry-After"])
        assert seconds * 1000 >= answer["retry_after_ms"] > (seconds - 1) * 1000


async def test_searching_what_was_said_is_counted(tmp_path: Path) -> None:
    """Which is syncapi's."""
    limits = {"enabled": True, "search": {"per_second": 0.001, "burst": 2}}
    server = ArborServer(tmp_path, config={"rate_limits": limits})
    await server.start()
    try:
        async with http_session() as session:
            alice = await server.register(session, "alice")
            body = {"search_categories": {"room_events": {"search_term": "x"}}}
            for _ in range(2):
                await alice.post("/search", body)
            with pytest.raises(ClientError) as caught:
                await alice.post("/search", body)
            assert (caught.value.status, caught.value.errcode) == (429, "M_LIMIT_EXCEEDED")
    finally:
        await server.stop()


async def test_a_new_room_counts_whom_it_invites(tmp_path: Path) -> None:
    limits = {"rate_limits__invite": {"per_second": 0.001, "burst": 5}, "rate_limits__enabled": True}
    async with lone_clientapi(tmp_path, **limits) as world:
        alice = await world.user()
        some = [f"@u{number}:here.example" for number in range(20)]
        # However many: once there is a whole bucket it goes.
        await alice.ok("POST", "/createRoom", {"invite": some})
        assert await alice.fails("POST", "/createRoom", {"invite": some[:1]}) == (429, "M_LIMIT_EXCEEDED")
        await alice.ok("POST", "/createRoom", {})


async def test_other_users_are_not_held_up(tmp_path: Path) -> None:
    limits = {"rate_limits__message": {"per_second": 0.001, "burst": 2}, "rate_limits__enabled": True}
    async with lone_clientapi(tmp_path, **limits) as world:
        alice, bob = await world.user(), await world.user()
        room_id = (await alice.ok("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
        await bob.ok("POST", f"/join/{room_id}")
        sends = [alice("PUT", f"/rooms/{room_id}/send/m.room.message/{n}", {"body": "x"}) for n in range(20)]
        statuses = sorted(status for status, _ in await asyncio.gather(*sends))
        assert statuses == [200] * 2 + [429] * 18
        await bob.ok("PUT", f"/rooms/{room_id}/send/m.room.message/1", {"body": "x"})

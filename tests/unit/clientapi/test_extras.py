"""Presence, login tokens, OpenID, reports, the user directory, bridged networks."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from arbor.accounts.v1 import accounts_pb2
from arbor.log.v1 import live_pb2
from clientapi.storage import administration
from clientapi.storage.tables import reports
from servicekit.errors import MatrixError
from tests.support.clientapi_alone import PASSWORD, Client, World, lone_clientapi

GET_TOKEN = "/_matrix/client/v1/login/get_token"


def presences(world: World) -> list[live_pb2.Presence]:
    return [
        live_pb2.LiveMessage.FromString(published[1]).presence
        for published in world.log.published
        if published[0].startswith("live.presence.")
    ]


async def test_presence_is_told_once(world: World, tmp_path: Path) -> None:
    alice, bob = await world.user("alice"), await world.user("bob")
    path = f"/presence/{alice.user_id}/status"
    body = {"presence": "online", "status_msg": "here"}
    await alice.ok("PUT", path, body)
    await alice.ok("PUT", path, body)
    [told] = presences(world)
    assert (told.user_id, told.presence, told.status_msg) == (alice.user_id, "online", "here")
    assert told.currently_active
    world.clock.now_ms += 60_000
    await alice.ok("PUT", path, body)
    await alice.ok("PUT", path, {"presence": "unavailable"})
    assert [item.presence for item in presences(world)] == ["online", "online", "unavailable"]
    assert not presences(world)[-1].HasField("status_msg")
    assert await bob.fails("PUT", path, body) == (403, "M_FORBIDDEN")
    for bad in ({"presence": "busy"}, {"presence": 1}, {"presence": "online", "status_msg": 1}):
        assert await alice.fails("PUT", path, bad) == (400, "M_BAD_JSON")
    assert await alice.fails("PUT", path, {}) == (400, "M_MISSING_PARAM")
    long = {"presence": "online", "status_msg": "x" * 501}
    assert await alice.fails("PUT", path, long) == (400, "M_INVALID_PARAM")
    async with lone_clientapi(tmp_path / "off", presence__enabled=False) as other:
        carol = await other.user("carol")
        await carol.ok("PUT", f"/presence/{carol.user_id}/status", body)
        assert presences(other) == []


async def login_token(client: Client, user: str) -> str:
    status, challenge = await client("POST", GET_TOKEN, {})
    assert (status, challenge["flows"]) == (401, [{"stages": ["m.login.password"]}])
    auth = {
        "type": "m.login.password",
        "session": challenge["session"],
        "identifier": {"type": "m.id.user", "user": user},
        "password": PASSWORD,
    }
    answer = await client.ok("POST", GET_TOKEN, {"auth": auth})
    assert answer["expires_in_ms"] == 120_000
    # What was proved once does not do for another token.
    status, _ = await client("POST", GET_TOKEN, {"auth": {"session": challenge["session"]}})
    assert status == 400
    return str(answer["login_token"])


async def test_a_login_token_lets_one_device_in(world: World) -> None:
    alice = await world.user("alice")
    assert {"type": "m.login.token", "get_login_token": True} in (await alice.ok("GET", "/login"))["flows"]
    capabilities = (await alice.ok("GET", "/capabilities"))["capabilities"]
    assert capabilities["m.get_login_token"] == {"enabled": True}
    body = {"type": "m.login.token", "token": await login_token(alice, "alice"), "device_id": "PHONE"}
    phone = world.client()
    answer = await phone.ok("POST", "/login", body)
    assert (answer["user_id"], answer["device_id"]) == (alice.user_id, "PHONE")
    assert await phone.fails("POST", "/login", body) == (403, "M_FORBIDDEN")
    assert await phone.fails("POST", "/login", {"type": "m.login.token"}) == (400, "M_MISSING_PARAM")
    late = await login_token(alice, "alice")
    world.clock.now_ms += 120_001
    body = {"type": "m.login.token", "token": late}
    assert await phone.fails("POST", "/login", body) == (403, "M_FORBIDDEN")


@pytest.mark.parametrize(
    ("flag", "error"), [("locked", (401, "M_USER_LOCKED")), ("deactivated", (403, "M_USER_DEACTIVATED"))]
)
async def test_a_login_token_does_not_outlive_the_account(
    world: World, flag: Any, error: tuple[int, str]
) -> None:
    alice = await world.user("alice")
    token = await login_token(alice, "alice")
    await world.service._db.write(administration.store_flag, alice.user_id, flag, True)
    assert await world.client().fails("POST", "/login", {"type": "m.login.token", "token": token}) == error


async def test_an_openid_token_proves_who_one_is(world: World) -> None:
    alice, bob = await world.user("alice"), await world.user("bob")
    path = f"/user/{alice.user_id}/openid/request_token"
    assert await bob.fails("POST", path, {}) == (403, "M_FORBIDDEN")
    answer = await alice.ok("POST", path, {})
    token = answer.pop("access_token")
    assert answer == {"token_type": "Bearer", "matrix_server_name": "here.example", "expires_in": 3600}
    # It is no access token.
    assert await world.client(token).fails("GET", "/account/whoami") == (401, "M_UNKNOWN_TOKEN")
    accounts = world.service._servicer
    request = accounts_pb2.QueryOpenIdTokenRequest(token=token)
    context: Any = None
    assert (await accounts.QueryOpenIdToken(request, context)).user_id == alice.user_id
    with pytest.raises(MatrixError):
        await accounts.QueryOpenIdToken(
            accounts_pb2.QueryOpenIdTokenRequest(token=alice.token or ""), context
        )
    world.clock.now_ms += 3_600_000
    with pytest.raises(MatrixError):
        await accounts.QueryOpenIdToken(request, context)


async def test_reports_are_kept_and_tell_nothing(world: World) -> None:
    alice, bob = await world.user("alice"), await world.user("bob")
    room_id = (await alice.ok("POST", "/createRoom", {}))["room_id"]
    for room in (room_id, "!nowhere:here.example"):
        assert await bob.ok("POST", f"/rooms/{room}/report", {"reason": "bad"}) == {}
        assert await bob.ok("POST", f"/rooms/{room}/report/$event", {"score": -50}) == {}
    for user_id in (alice.user_id, "@nobody:here.example"):
        assert await bob.ok("POST", f"/users/{user_id}/report", {"reason": "worse"}) == {}
    rows = await world.service._db.read(lambda conn: list(conn.execute(select(reports))))
    assert len(rows) == 6
    assert {(row.reporter, row.reason, row.score) for row in rows if row.event_id} == {(bob.user_id, "", -50)}
    assert {row.user_id for row in rows if row.reason == "worse"} == {alice.user_id, "@nobody:here.example"}
    for path, body, errcode in (
        (f"/rooms/{room_id}/report", {}, "M_MISSING_PARAM"),
        (f"/rooms/{room_id}/report/$event", {"score": 1}, "M_BAD_JSON"),
        (f"/rooms/{room_id}/report", {"reason": "x" * 5001}, "M_INVALID_PARAM"),
        ("/users/alice/report", {"reason": "x"}, "M_INVALID_PARAM"),
    ):
        assert await bob.fails("POST", path, body) == (400, errcode)


async def test_the_directory_shows_those_one_could_meet(world: World, tmp_path: Path) -> None:
    alice, bob = await world.user("alice"), await world.user("bob")
    carol, dora = await world.user("carol"), await world.user("dora")
    for client in (alice, bob, carol, dora):
        name = client.user_id[1:].partition(":")[0]
        await client.ok("PUT", f"/profile/{client.user_id}/displayname", {"displayname": f"{name} 100% Tea"})

    async def found(term: str, **more: Any) -> list[str]:
        answer = await alice.ok("POST", "/user_directory/search", {"search_term": term, **more})
        return [user["user_id"] for user in answer["results"]]

    shared = (await alice.ok("POST", "/createRoom", {"invite": [bob.user_id]}))["room_id"]
    assert await found("tea") == [alice.user_id]
    await bob.ok("POST", f"/join/{shared}")
    assert await found("tea") == [alice.user_id, bob.user_id]
    # Who is in a room that anybody may join, or read, is shown; by its state, not by the directory.
    own = (await dora.ok("POST", "/createRoom", {"visibility": "public", "preset": "private_chat"}))[
        "room_id"
    ]
    assert await found("dora") == []
    history = f"/rooms/{own}/state/m.room.history_visibility"
    await dora.ok("PUT", history, {"history_visibility": "world_readable"})
    assert await found("dora") == [dora.user_id]
    await dora.ok("PUT", history, {"history_visibility": "shared"})
    assert await found("dora") == []
    open_room = (await carol.ok("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
    assert await found("CAR") == [carol.user_id]
    await carol.ok("PUT", f"/rooms/{open_room}/state/m.room.join_rules", {"join_rule": "invite"})
    assert await found("CAR") == []
    assert await found(bob.user_id) == [bob.user_id]
    assert await found("0% T", limit=1) == [alice.user_id]
    assert await found("_") == []
    assert await found("a" * 70_000) == []
    answer = await alice.ok("POST", "/user_directory/search", {"search_term": "bob"})
    assert answer == {
        "results": [{"user_id": bob.user_id, "display_name": "bob 100% Tea"}],
        "limited": False,
    }
    async with lone_clientapi(tmp_path / "open", user_directory__search_all_users=True) as other:
        eve, frank = await other.user("eve"), await other.user("frank")
        answer = await eve.ok("POST", "/user_directory/search", {"search_term": "fra"})
        assert answer["results"] == [{"user_id": frank.user_id}]


async def test_no_network_is_bridged(world: World) -> None:
    alice = await world.user("alice")
    assert await alice.ok("GET", "/thirdparty/protocols") == {}
    assert await alice.ok("GET", "/thirdparty/user", userid=alice.user_id) == []
    assert await alice.ok("GET", "/thirdparty/location", alias="#a:here.example") == []
    for path in ("protocol/irc", "user/irc", "location/irc"):
        assert await alice.fails("GET", f"/thirdparty/{path}") == (404, "M_NOT_FOUND")

"""clientapi on SQLite and PostgreSQL: the same conversation, and the schema that migrations make."""

import asyncio
from pathlib import Path

import grpc.aio
import pytest

from arbor.accounts.v1 import accounts_pb2
from arbor.log.v1 import output_pb2
from clientapi.storage.tables import metadata
from servicekit.database.testing import schema_differences
from servicekit.errors import MatrixError
from tests.support.clientapi_alone import PASSWORD, lone_clientapi


def test_migrations_make_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    assert schema_differences(metadata, "clientapi.storage.migrations", tmp_path) == []


async def test_a_conversation(tmp_path: Path, database_url: str) -> None:
    async with lone_clientapi(tmp_path, database__url=database_url) as world:
        alice, bob = await world.user("alice"), await world.user("bob")
        assert await world.client().fails(
            "POST", "/register", {"username": "bob", "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
        ) == (400, "M_USER_IN_USE")
        login = {"type": "m.login.password", "user": "alice", "password": PASSWORD, "refresh_token": True}
        first = await alice.ok("POST", "/login", login)
        second = await alice.ok("POST", "/refresh", {"refresh_token": first["refresh_token"]})
        again = await alice.ok("POST", "/refresh", {"refresh_token": first["refresh_token"]})
        await world.client(again["access_token"]).ok("GET", "/account/whoami")
        assert (await world.client(second["access_token"])("GET", "/account/whoami"))[0] == 401
        room_id = (await alice.ok("POST", "/createRoom", {"visibility": "public", "room_alias_name": "r"}))[
            "room_id"
        ]
        await bob.ok("POST", "/join/%23r:here.example")
        await bob.ok("PUT", f"/profile/{bob.user_id}/displayname", {"displayname": "Bob"})
        member = ("m.room.member", bob.user_id)
        async with asyncio.timeout(10):
            while world.roomserver.rooms[room_id].state[member].content.get("displayname") != "Bob":
                await asyncio.sleep(0.01)
        user = f"/user/{bob.user_id}"
        await bob.ok("PUT", f"{user}/rooms/{room_id}/tags/m.favourite", {"order": 0.1})
        await bob.ok("PUT", f"{user}/account_data/x", {"a": 1})
        filter_id = (await bob.ok("POST", f"{user}/filter", {"room": {"timeline": {"limit": 1}}}))[
            "filter_id"
        ]
        assert await bob.ok("GET", f"{user}/filter/{filter_id}") == {"room": {"timeline": {"limit": 1}}}
        rule = {"pattern": "x", "actions": []}
        await bob.ok("PUT", "/pushrules/global/content/x", rule)
        assert [room["room_id"] for room in (await bob.ok("GET", "/publicRooms"))["chunk"]] == [room_id]
        await bob.ok("POST", f"/rooms/{room_id}/leave")
        await bob.ok("POST", f"/rooms/{room_id}/forget")
        assert len((await alice.ok("GET", "/devices"))["devices"]) == 2
        await alice.ok("DELETE", "/directory/room/%23r:here.example")
        await alice.ok("POST", "/logout/all")
        assert (await alice("GET", "/account/whoami"))[0] == 401


async def test_what_other_services_ask(tmp_path: Path, database_url: str) -> None:
    async with lone_clientapi(tmp_path, database__url=database_url) as world:
        alice = await world.user("alice", device_id="PHONE", initial_device_display_name="phone")
        servicer = world.service._servicer
        context: grpc.aio.ServicerContext = None  # type: ignore[assignment,type-arg]  # unused
        assert alice.token is not None
        resolved = await servicer.ResolveToken(
            accounts_pb2.ResolveTokenRequest(access_token=alice.token), context
        )
        assert (resolved.user_id, resolved.device_id, resolved.admin) == (alice.user_id, "PHONE", False)
        with pytest.raises(MatrixError, match="M_UNKNOWN_TOKEN"):
            await servicer.ResolveToken(accounts_pb2.ResolveTokenRequest(access_token="x"), context)
        made = await servicer.CreateUser(
            accounts_pb2.CreateUserRequest(username="Root", password=PASSWORD, admin=True), context
        )
        assert made.user_id == "@root:here.example"
        with pytest.raises(MatrixError, match="M_USER_IN_USE"):
            await servicer.CreateUser(accounts_pb2.CreateUserRequest(username="root"), context)
        await alice.ok("PUT", f"/profile/{alice.user_id}/displayname", {"displayname": "A"})
        profiles = await servicer.QueryProfiles(
            accounts_pb2.QueryProfilesRequest(user_ids=[alice.user_id, "@x:y"]), context
        )
        assert [(item.user_id, item.fields_json) for item in profiles.profiles] == [
            (alice.user_id, b'{"displayname":"A"}')
        ]
        devices = await servicer.QueryDevices(
            accounts_pb2.QueryDevicesRequest(user_ids=[alice.user_id]), context
        )
        assert [(item.device_id, item.display_name) for item in devices.devices] == [("PHONE", "phone")]
        await alice.ok("PUT", f"/user/{alice.user_id}/account_data/x", {"a": 1})
        await alice.ok("PUT", f"/user/{alice.user_id}/rooms/!r:x/account_data/y", {"b": 2})
        exported = [item async for item in servicer.Export(accounts_pb2.ExportRequest(), context)]
        messages = [output_pb2.OutputMessage.FromString(item.message) for item in exported[:-1]]
        data = {
            (change.room_id, change.type, change.content_json)
            for message in messages
            for entry in message.entries
            if (change := entry.account_data_changed).type
        }
        assert data == {("", "x", b'{"a":1}'), ("!r:x", "y", b'{"b":2}')}
        assert all(item.subject.startswith("user.") for item in exported[:-1])
        assert exported[-1].message == b""

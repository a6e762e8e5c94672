"""What guests may do, and how they become more (client-server API, "Guest Access")."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.clientapi_alone import PASSWORD, Client, World, lone_clientapi

FORBIDDEN = (403, "M_GUEST_ACCESS_FORBIDDEN")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A clientapi that lets guests in."""
    async with lone_clientapi(tmp_path, registration__allow_guests=True) as running:
        yield running


async def new_guest(world: World) -> Client:
    client = world.client()
    answer = await client.ok("POST", "/register", {}, kind="guest")
    client.token, client.user_id = answer["access_token"], answer["user_id"]
    return client


async def room_for_guests(host: Client) -> str:
    room_id: str = (await host.ok("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
    await host.ok("PUT", f"/rooms/{room_id}/state/m.room.guest_access", {"guest_access": "can_join"})
    return room_id


def membership(world: World, room_id: str, user: Client) -> str | None:
    event = world.roomserver.rooms[room_id].state.get(("m.room.member", user.user_id))
    return None if event is None else event.membership


async def test_guests_talk_where_they_are_let_in(world: World) -> None:
    host, guest = await world.user(), await new_guest(world)
    room_id = await room_for_guests(host)
    await guest.ok("POST", f"/join/{room_id}")
    sent = await guest.ok("PUT", f"/rooms/{room_id}/send/m.room.message/1", {"body": "x"})
    await guest.ok("PUT", f"/rooms/{room_id}/send/org.example.any/2", {})
    await guest.ok("PUT", f"/rooms/{room_id}/redact/{sent['event_id']}/3", {})
    # By the room's rules, as anybody.
    assert await guest.fails("PUT", f"/rooms/{room_id}/state/m.room.name", {"name": "x"}) == (
        403,
        "M_FORBIDDEN",
    )
    levels = {"users": {}, "state_default": 0}
    if world.roomserver.rooms[room_id].version.identifier != "12":
        levels["users"] = {host.user_id: 100}
    await host.ok("PUT", f"/rooms/{room_id}/state/m.room.power_levels", levels)
    await guest.ok("PUT", f"/rooms/{room_id}/state/m.room.name", {"name": "x"})
    await guest.ok("PUT", f"/profile/{guest.user_id}/displayname", {"displayname": "Guest"})
    await guest.ok("DELETE", f"/profile/{guest.user_id}/displayname")
    await guest.ok("PUT", "/devices/guest_device", {"display_name": "x"})
    await guest.ok("POST", f"/rooms/{room_id}/leave")


async def test_what_guests_may_not_do(world: World) -> None:
    host, guest = await world.user(), await new_guest(world)
    room_id = await room_for_guests(host)
    shut = (await host.ok("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
    await guest.ok("POST", f"/join/{room_id}")
    for method, path, body in (
        ("POST", f"/join/{shut}", {}),
        ("POST", f"/knock/{shut}", {}),
        ("POST", "/createRoom", {}),
        ("POST", f"/rooms/{room_id}/invite", {"user_id": host.user_id}),
        ("POST", f"/rooms/{room_id}/kick", {"user_id": host.user_id}),
        ("POST", f"/rooms/{room_id}/ban", {"user_id": host.user_id}),
        ("POST", f"/rooms/{room_id}/unban", {"user_id": host.user_id}),
        ("POST", f"/rooms/{room_id}/upgrade", {"new_version": "11"}),
        ("PUT", "/directory/room/%23a:here.example", {"room_id": room_id}),
        ("PUT", f"/profile/{guest.user_id}/avatar_url", {"avatar_url": "mxc://a/b"}),
        ("POST", "/user_directory/search", {"search_term": "a"}),
        ("POST", "/account/password", {"new_password": PASSWORD}),
    ):
        assert await guest.fails(method, path, body) == FORBIDDEN, path


async def test_guests_leave_when_the_room_lets_them_in_no_longer(world: World) -> None:
    host, guest, member = await world.user(), await new_guest(world), await world.user()
    room_id = await room_for_guests(host)
    for user in (guest, member):
        await user.ok("POST", f"/join/{room_id}")
    await host.ok("PUT", f"/rooms/{room_id}/state/m.room.guest_access", {"guest_access": "forbidden"})
    assert membership(world, room_id, guest) == "leave"
    assert membership(world, room_id, member) == "join"


async def test_a_change_from_elsewhere_shows_the_guest_out_at_the_next_word(world: World) -> None:
    host, guest = await world.user(), await new_guest(world)
    room_id = await room_for_guests(host)
    await guest.ok("POST", f"/join/{room_id}")
    room = world.roomserver.rooms[room_id]
    # As another server's event would: no request of ours made it.
    del room.state["m.room.guest_access", ""]
    world.service._rooms.sender.lane(room_id).forget_view()
    assert await guest.fails("PUT", f"/rooms/{room_id}/send/m.room.message/1", {"body": "x"}) == FORBIDDEN
    assert membership(world, room_id, guest) == "leave"


async def test_a_guest_gets_a_full_account(world: World) -> None:
    guest, other = await new_guest(world), await new_guest(world)
    localpart = guest.user_id[1:].partition(":")[0]
    body = {
        "username": localpart,
        "password": PASSWORD,
        "guest_access_token": guest.token,
        "auth": {"type": "m.login.dummy"},
    }
    nobody = world.client()
    assert await nobody.fails("POST", "/register", {**body, "guest_access_token": other.token}) == (
        403,
        "M_FORBIDDEN",
    )
    assert await nobody.fails("POST", "/register", {**body, "guest_access_token": "x"}) == (
        403,
        "M_FORBIDDEN",
    )
    assert (await nobody.fails("POST", "/register", {**body, "username": None}))[1] == "M_MISSING_PARAM"
    answer = await nobody.ok("POST", "/register", body)
    assert answer["user_id"] == guest.user_id
    full = world.client(answer["access_token"])
    for client in (full, guest):
        assert (await client.ok("GET", "/account/whoami"))["is_guest"] is False
        await client.ok("POST", "/createRoom", {})
    # Once only: it is a guest no longer.
    assert await nobody.fails("POST", "/register", body) == (403, "M_FORBIDDEN")
    async with asyncio.timeout(5):
        login = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": localpart},
            "password": PASSWORD,
        }
        await nobody.ok("POST", "/login", login)

"""Row 17: a server reads rooms that it is in, and there what the history visibility lets it see."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.evil_peer import EvilPeer
from tests.support.federation_alone import FederationAlone
from tests.support.rooms import Room
from tests.support.tls_ca import TestCa

World = tuple[EvilPeer, FederationAlone, Room, Room]
V1 = "/_matrix/federation/v1"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        shared = Room("10", creator=us.user("owner")).with_members(f"@eve:{peer.server_name}")
        secret = Room("12", creator=us.user("owner"))
        for room in (shared, secret):
            us.rooms.of[room.create.room_id] = room
            room.send(room.creator, "m.room.message", {"body": "a secret"})
        yield peer, us, shared, secret


async def test_a_room_one_is_in_can_be_read(world: World) -> None:
    peer, us, shared, _ = world
    room_id, head = shared.create.room_id, shared.heads[0]
    for path, key in (
        (f"/event/{head}", "pdus"),
        (f"/state/{room_id}?event_id={head}", "pdus"),
        (f"/state_ids/{room_id}?event_id={head}", "pdu_ids"),
        (f"/event_auth/{room_id}/{head}", "auth_chain"),
        (f"/backfill/{room_id}?v={head}&limit=5", "pdus"),
    ):
        status, body = await peer.ask("GET", us.base_url, V1 + path, us.server_name)
        assert status == 200, (path, body)
        assert body[key], path
    status, body = await peer.ask(
        "POST",
        us.base_url,
        f"{V1}/get_missing_events/{room_id}",
        us.server_name,
        {"earliest_events": [shared.create.event_id], "latest_events": [head], "limit": 10},
    )
    assert status == 200
    assert body["events"]


async def test_parameters_that_are_missing_or_out_of_range_are_refused(world: World) -> None:
    peer, us, shared, _ = world
    room_id, head = shared.create.room_id, shared.heads[0]
    for path, errcode in (
        (f"/state/{room_id}", "M_MISSING_PARAM"),
        (f"/state_ids/{room_id}", "M_MISSING_PARAM"),
        (f"/backfill/{room_id}?limit=5", "M_MISSING_PARAM"),
        (f"/backfill/{room_id}?v={head}", "M_MISSING_PARAM"),
        (f"/backfill/{room_id}?v={head}&limit=0", "M_INVALID_PARAM"),
        (f"/backfill/{room_id}?v={head}&limit=-1", "M_INVALID_PARAM"),
        (f"/backfill/{room_id}?v={head}&limit=many", "M_INVALID_PARAM"),
        (f"/timestamp_to_event/{room_id}?ts=1", "M_MISSING_PARAM"),
        (f"/timestamp_to_event/{room_id}?dir=f", "M_MISSING_PARAM"),
        (f"/timestamp_to_event/{room_id}?ts=1&dir=x", "M_INVALID_PARAM"),
        (f"/timestamp_to_event/{room_id}?ts=now&dir=f", "M_INVALID_PARAM"),
    ):
        status, body = await peer.ask("GET", us.base_url, V1 + path, us.server_name)
        assert (status, body["errcode"]) == (400, errcode), (path, body)


async def test_what_is_not_judged_yet_is_not_known(world: World) -> None:
    peer, us, shared, _ = world
    room_id, head = shared.create.room_id, shared.heads[0]
    us.rooms.waiting.add(head)
    for path in (
        f"/event/{head}",
        f"/state/{room_id}?event_id={head}",
        f"/state_ids/{room_id}?event_id={head}",
        f"/event_auth/{room_id}/{head}",
    ):
        status, body = await peer.ask("GET", us.base_url, V1 + path, us.server_name)
        assert (status, body["errcode"]) == (404, "M_NOT_FOUND"), (path, body)


async def test_events_of_another_room_are_out_of_reach(world: World) -> None:
    peer, us, shared, secret = world
    room_id, other_id, head = shared.create.room_id, secret.create.room_id, secret.heads[0]
    for path in (
        f"/event/{head}",
        f"/state/{room_id}?event_id={head}",
        f"/state/{other_id}?event_id={head}",
        f"/state_ids/{room_id}?event_id={head}",
        f"/state_ids/{other_id}?event_id={head}",
        f"/event_auth/{room_id}/{head}",
        f"/event_auth/{other_id}/{head}",
        f"/backfill/{other_id}?v={head}&limit=5",
        f"/timestamp_to_event/{other_id}?ts=1&dir=f",
    ):
        status, body = await peer.ask("GET", us.base_url, V1 + path, us.server_name)
        assert status in (403, 404), (path, body)
        assert body["errcode"] in ("M_FORBIDDEN", "M_NOT_FOUND")
    status, body = await peer.ask(
        "GET", us.base_url, f"{V1}/backfill/{room_id}?v={head}&limit=5", us.server_name
    )
    assert (status, body["pdus"]) == (200, [])
    status, body = await peer.ask(
        "POST",
        us.base_url,
        f"{V1}/get_missing_events/{room_id}",
        us.server_name,
        {"earliest_events": [], "latest_events": [head], "limit": 10},
    )
    assert (status, body) == (200, {"events": []})


async def test_what_may_not_be_seen_comes_redacted(world: World) -> None:
    peer, us, shared, _ = world
    head = shared.heads[0]
    us.rooms.hidden_from[peer.server_name] = {head}
    for path in (f"/event/{head}", f"/backfill/{shared.create.room_id}?v={head}&limit=1"):
        _, body = await peer.ask("GET", us.base_url, V1 + path, us.server_name)
        assert body["pdus"][0]["content"] == {}
    _, body = await peer.ask(
        "GET",
        us.base_url,
        f"{V1}/timestamp_to_event/{shared.create.room_id}?ts={2**50}&dir=b",
        us.server_name,
    )
    assert body["errcode"] == "M_NOT_FOUND"


async def test_the_acl_closes_every_endpoint_of_a_room(world: World) -> None:
    peer, us, shared, _ = world
    room_id, head = shared.create.room_id, shared.heads[0]
    shared.send(shared.creator, "m.room.server_acl", {"allow": ["*.example"]}, state_key="")
    eve = f"@eve:{peer.server_name}"
    for path in (
        f"/event/{head}",
        f"/state/{room_id}?event_id={head}",
        f"/state_ids/{room_id}?event_id={head}",
        f"/event_auth/{room_id}/{head}",
        f"/backfill/{room_id}?v={head}&limit=5",
        f"/timestamp_to_event/{room_id}?ts=1&dir=f",
        f"/make_join/{room_id}/{eve}?ver=10",
        f"/make_leave/{room_id}/{eve}",
        f"/make_knock/{room_id}/{eve}?ver=10",
    ):
        status, body = await peer.ask("GET", us.base_url, V1 + path, us.server_name)
        assert (status, body["errcode"]) == (403, "M_FORBIDDEN"), path
    for path in (f"{V1}/send_join", "/_matrix/federation/v2/send_join", "/_matrix/federation/v2/send_leave"):
        status, body = await peer.ask("PUT", us.base_url, f"{path}/{room_id}/$x", us.server_name, {})
        assert (status, body["errcode"]) == (403, "M_FORBIDDEN"), path


async def test_nothing_is_read_without_a_right_signature(world: World) -> None:
    peer, us, shared, _ = world
    path = f"{V1}/event/{shared.heads[0]}"
    for how in (
        {"signed": False},
        {"origin": us.server_name},
        {"origin": "elsewhere.example"},
        {"header": 'X-Matrix origin="x"'},
        {"header": "Bearer abc"},
        {"key": us.key},
    ):
        status, body = await peer.ask("GET", us.base_url, path, us.server_name, **how)  # type: ignore[arg-type]
        assert (status, body["errcode"]) == (401, "M_UNAUTHORIZED"), how
    status, body = await peer.ask("GET", us.base_url, path, "another.example")
    assert (status, body["errcode"]) == (401, "M_UNAUTHORIZED")

"""A server of two names and another server: users of either name speak as what they are, and keys change."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from matrixlib.identifiers import server_name_of
from tests.support.arbor_server import ArborServer
from tests.support.federation import federated_arbor, until
from tests.support.matrix_client import MatrixClient, http_session
from tests.support.ports import free_port
from tests.support.tls_ca import TestCa

pytestmark = pytest.mark.timeout(180)


@dataclass(frozen=True, slots=True)
class World:
    """`ours` has the names of alice and dora, `other` that of bob."""

    ours: ArborServer
    other: ArborServer
    alice: MatrixClient
    dora: MatrixClient
    bob: MatrixClient


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    ca = TestCa(tmp_path / "ca")
    ports = free_port(), free_port()
    names = [f"localhost:{port}" for port in ports]
    ours = federated_arbor(tmp_path / "ours", ca, port=ports[0], more_ports=ports[1:])
    other = federated_arbor(tmp_path / "other", ca)
    try:
        await asyncio.gather(ours.start(), other.start())
        async with http_session() as session:
            alice, bob = await ours.register(session, "alice"), await other.register(session, "bob")
            status, output = await ours.command(
                "user", "create", f"@dora:{names[1]}", "--password", "a long password"
            )
            assert status == 0, output
            dora = await alice.login(f"@dora:{names[1]}", "a long password")
            yield World(ours, other, alice, dora, bob)
    finally:
        await asyncio.gather(ours.stop(), other.stop())


async def sees(client: MatrixClient, room_id: str, event_id: str) -> None:
    async def look() -> bool:
        events = (await client.messages(room_id, limit=50))["chunk"]
        return any(event["event_id"] == event_id for event in events)

    await until(look, f"{client.user_id} sees {event_id}")


async def is_invited(client: MatrixClient, room_id: str) -> None:
    async def look() -> bool:
        return room_id in (await client.sync())["rooms"].get("invite", {})

    await until(look, f"{client.user_id} is invited")


async def test_users_of_two_names_and_of_another_server_in_one_room(world: World) -> None:
    alice, dora, bob = world.alice, world.dora, world.bob
    assert server_name_of(alice.user_id) != server_name_of(dora.user_id)
    # Only dora's name is in the room when bob comes.
    room_id = await dora.create_room(preset="private_chat")
    await dora.invite(room_id, bob.user_id)
    await is_invited(bob, room_id)
    await bob.join(room_id)
    await sees(dora, room_id, await bob.send(room_id, "hello second name"))
    await sees(bob, room_id, await dora.send(room_id, "hello"))
    # Between the two names nothing crosses the network.
    await dora.invite(room_id, alice.user_id)
    await is_invited(alice, room_id)
    await alice.join(room_id)
    for speaker, listeners in ((alice, (dora, bob)), (dora, (alice, bob)), (bob, (alice, dora))):
        event_id = await speaker.send(room_id, f"from {speaker.user_id}")
        for listener in listeners:
            await sees(listener, room_id, event_id)
    # A receipt of each name reaches the other server, which believes a name's own users only.
    last = await bob.send(room_id, "read me")
    for reader in (alice, dora):
        await sees(reader, room_id, last)
        await reader.post(f"/rooms/{room_id}/receipt/m.read/{last}")

    async def both_read() -> bool:
        rooms = (await bob.sync())["rooms"]["join"]
        events = rooms[room_id]["ephemeral"]["events"]
        readers = {
            user
            for event in events
            if event["type"] == "m.receipt"
            for user in event["content"].get(last, {}).get("m.read", {})
        }
        return readers >= {alice.user_id, dora.user_id}

    await until(both_read, "both receipts are there")
    # And the second name joins where the first is not.
    public = await bob.create_room(preset="public_chat")
    await dora.post(f"/join/{public}?via={world.other.server_name}")
    await sees(bob, public, await dora.send(public, "here too"))
    name = await bob.get(f"/profile/{dora.user_id}/displayname")
    assert name == {} or name["displayname"] == "dora"


async def test_keys_change_and_what_was_signed_stays_good(world: World) -> None:
    alice, bob = world.alice, world.bob
    room_id = await alice.create_room(preset="public_chat")
    said = [await alice.send(room_id, f"with the old key {number}") for number in range(3)]
    url = f"https://{world.ours.server_name}/_matrix/key/v2/server"

    async def keys() -> dict[str, Any]:
        connector = aiohttp.TCPConnector(ssl=False)
        async with aiohttp.ClientSession(connector=connector) as session, session.get(url) as answer:
            value: dict[str, Any] = await answer.json()
            return value

    [old] = (await keys())["verify_keys"]
    await world.ours.stop()
    status, output = await world.ours.command("key", "rotate")
    assert status == 0, output
    await world.ours.start()
    told = await keys()
    assert old not in told["verify_keys"]
    assert told["old_verify_keys"][old]["expired_ts"] > 0
    # The other server has never met us: all it gets is checked with the key of its time.
    alice = alice.at(world.ours.base_url)
    await bob.post(f"/join/{room_id}?via={world.ours.server_name}")
    for event_id in said:
        await sees(bob, room_id, event_id)
    await sees(bob, room_id, await alice.send(room_id, "with the new key"))
    await sees(alice, room_id, await bob.send(room_id, "understood"))

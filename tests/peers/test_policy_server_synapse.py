"""A room with a policy server, shared by a real Synapse and an Arbor: who asks, and who believes whose asking."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from matrixlib.room_versions import ROOM_VERSIONS
from tests.support.arbor_server import ArborServer
from tests.support.evil_peer import EvilPeer
from tests.support.federation import FederatedSynapse, federated_arbor, until
from tests.support.matrix_client import ClientError, MatrixClient
from tests.support.policy import POLICY_TYPE, PolicyServerScript, policy_content, refusal
from tests.support.resident import RoomOf, join_through
from tests.support.synapse_server import ensure_installed
from tests.support.tls_ca import TestCa

pytestmark = pytest.mark.timeout(240)
VERSION = ROOM_VERSIONS["10"]


@dataclass(frozen=True, slots=True)
class World:
    """The two servers and the policy server."""

    arbor: ArborServer
    synapse: FederatedSynapse
    script: PolicyServerScript


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    ensure_installed()
    ca = TestCa(tmp_path / "ca")
    arbor, synapse = federated_arbor(tmp_path / "arbor", ca), FederatedSynapse(tmp_path / "synapse", ca)
    async with EvilPeer(ca) as peer:
        peer.answer("send", lambda request: {"pdus": {}})
        try:
            await arbor.start()
            await synapse.start()
            yield World(arbor, synapse, PolicyServerScript(peer, VERSION))
        finally:
            await asyncio.gather(arbor.stop(), synapse.stop())


async def sees(client: MatrixClient, room_id: str, event_id: str) -> None:
    async def look() -> bool:
        events = (await client.messages(room_id, limit=50))["chunk"]
        return any(event["event_id"] == event_id for event in events)

    await until(look, f"{client.user_id} sees {event_id}")


@pytest.mark.parametrize("made_by", ["arbor", "synapse"])
async def test_one_asks_and_the_other_believes(
    world: World, session: aiohttp.ClientSession, made_by: str
) -> None:
    script = world.script
    alice = await world.arbor.register(session, "alice")
    sam = await world.synapse.register(session, "sam")
    owner, other, server = (
        (alice, sam, world.arbor.server_name)
        if made_by == "arbor"
        else (sam, alice, world.synapse.server_name)
    )
    room_id = await owner.create_room(preset="public_chat", room_version="10")
    await owner.set_state(room_id, POLICY_TYPE, policy_content(script.peer.server_name))
    await join_through(server, script.peer, RoomOf(room_id, VERSION), f"@bot:{script.peer.server_name}")
    way = "via" if other is alice else "server_name"
    await other.post(f"/join/{room_id}?{way}={server}")

    def asked(body: str) -> list[dict[str, Any]]:
        return [pdu for pdu in script.asked if pdu["content"].get("body") == body]

    script.decide = lambda pdu: refusal(400, "M_FORBIDDEN", "spam") if asked("spam") else None
    for writer, reader in ((alice, sam), (sam, alice)):
        text = f"by {writer.user_id}"
        await sees(reader, room_id, await writer.send(room_id, text))
        # Asked by whoever made it, and nobody else: the signature came with the event.
        assert len(asked(text)) == 1
    for writer in (alice, sam):
        with pytest.raises(ClientError) as raised:
            await writer.send(room_id, "spam")
        assert (raised.value.status, raised.value.errcode) == (400, "M_FORBIDDEN")
        assert raised.value.body["error"] == "spam"
        script.asked.clear()
    for writer, reader in ((alice, sam), (sam, alice)):
        await sees(reader, room_id, await writer.send(room_id, "and on"))

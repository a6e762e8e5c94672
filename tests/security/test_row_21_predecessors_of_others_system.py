"""Row 21 across servers: a room of another server that claims a room of ours as its predecessor gets nothing of it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.evil_peer import EvilPeer
from tests.support.federation import federated_arbor, until
from tests.support.matrix_client import MatrixClient, joined_timeline, segment
from tests.support.resident import ResidentRoom, join_patiently
from tests.support.tls_ca import TestCa


@dataclass(slots=True)
class World:
    """A running server with a user, and a scripted one."""

    server_name: str
    alice: MatrixClient
    peer: EvilPeer

    async def settings_of(self, room_id: str) -> dict[str, Any]:
        """What Alice has set for a room."""
        alice = self.alice
        tags = await alice.get(f"/user/{alice.user_id}/rooms/{room_id}/tags")
        direct = await alice.get(f"/user/{alice.user_id}/account_data/m.direct")
        rules = (await alice.get("/pushrules/"))["global"]
        return {
            "tags": set(tags["tags"]),
            "direct": {friend for friend, rooms in direct.items() if room_id in rooms},
            "rules": [rule["actions"] for rule in rules["room"] if rule["rule_id"] == room_id],
            "conditions": [
                rule["rule_id"] for rule in rules["override"] if room_id in str(rule.get("conditions"))
            ],
        }

    async def room_of_alias(self) -> str:
        """Where Alice's alias leads."""
        found = await self.alice.get(f"/directory/room/{segment(f'#mine:{self.server_name}')}")
        return str(found["room_id"])

    async def listed(self) -> list[str]:
        """The public directory's rooms."""
        return [entry["room_id"] for entry in (await self.alice.get("/publicRooms"))["chunk"]]


@pytest.fixture
async def world(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[World]:
    ca = TestCa(tmp_path / "ca")
    server = federated_arbor(tmp_path / "arbor", ca)
    async with EvilPeer(ca) as peer:
        await server.start()
        try:
            yield World(server.server_name, await server.register(session, "alice"), peer)
        finally:
            await server.stop()


@pytest.mark.parametrize("claim", ["the room", "the room and an event of it", "a list"])
async def test_a_claimed_predecessor_keeps_everything(world: World, claim: str) -> None:
    alice = world.alice
    room_id = await alice.create_room(
        preset="public_chat", room_alias_name="mine", visibility="public", room_version="10"
    )
    last = await alice.send(room_id, "the last one")
    await alice.put(f"/user/{alice.user_id}/rooms/{room_id}/tags/m.favourite", {"order": 0.5})
    await alice.put(f"/user/{alice.user_id}/account_data/m.direct", {"@friend:x.example": [room_id]})
    await alice.put(f"/pushrules/global/room/{room_id}", {"actions": ["dont_notify"]})
    condition = {"kind": "event_match", "key": "room_id", "pattern": room_id}
    await alice.put("/pushrules/global/override/mine", {"actions": [], "conditions": [condition]})
    before = await world.settings_of(room_id)
    assert before == {
        "tags": {"m.favourite"},
        "direct": {"@friend:x.example"},
        "rules": [["dont_notify"]],
        "conditions": ["mine"],
    }

    claims: dict[str, Any] = {
        "the room": {"room_id": room_id},
        "the room and an event of it": {"room_id": room_id, "event_id": last},
        "a list": [{"room_id": room_id}],
    }
    trap = ResidentRoom(world.peer, 2, creation={"predecessor": claims[claim]})
    await join_patiently(alice, trap.room_id, world.peer.server_name)
    # What is written to the room itself changes nothing either.
    said = await alice.send(trap.room_id, "hello")

    async def shown() -> bool:
        timeline = joined_timeline(await alice.sync(), trap.room_id)
        return said in [event["event_id"] for event in timeline]

    await until(shown, "the room is joined for clients, too")
    # A true successor, later: by the time that it has everything, the trap would have, too.
    upgraded = await alice.post(f"/rooms/{room_id}/upgrade", {"new_version": "11"})
    successor = upgraded["replacement_room"]

    async def moved() -> bool:
        settings = await world.settings_of(successor)
        return settings["tags"] == before["tags"] and settings["rules"] == before["rules"]

    await until(moved, "the settings have followed the upgrade")
    empty = {"tags": set(), "direct": set(), "rules": [], "conditions": []}
    assert await world.settings_of(trap.room_id) == empty
    assert await world.settings_of(room_id) == before
    assert await world.room_of_alias() == successor
    assert await world.listed() == [successor]
    # Nor is the room told that it has another successor.
    tombstone = await alice.get(f"/rooms/{room_id}/state/m.room.tombstone")
    assert tombstone["replacement_room"] == successor

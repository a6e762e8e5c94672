"""An Arbor and a real Synapse that share rooms, and what is seen of these on both sides by the client APIs."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.arbor_server import ArborServer
from tests.support.federation import FederatedSynapse, federated_arbor, until
from tests.support.matrix_client import MatrixClient
from tests.support.synapse_server import ensure_installed
from tests.support.tls_ca import TestCa


@dataclass(frozen=True, slots=True)
class Pair:
    """The two servers."""

    arbor: ArborServer
    synapse: FederatedSynapse

    async def start(self) -> None:
        """Start both."""
        await asyncio.gather(self.arbor.start(), self.synapse.start())

    async def stop(self) -> None:
        """Stop both."""
        await asyncio.gather(self.arbor.stop(), self.synapse.stop())


def make_pair(folder: Path) -> Pair:
    """Make both servers, not started yet."""
    ensure_installed()
    ca = TestCa(folder / "ca")
    return Pair(federated_arbor(folder / "arbor", ca), FederatedSynapse(folder / "synapse", ca))


async def people(
    pair: Pair, session: aiohttp.ClientSession, unique: Any
) -> tuple[MatrixClient, MatrixClient]:
    """Somebody of Arbor's and somebody of Synapse's."""
    return await pair.arbor.register(session, unique("alice")), await pair.synapse.register(
        session, unique("sam")
    )


async def sees(client: MatrixClient, room_id: str, event_id: str) -> dict[str, Any]:
    """Wait until somebody sees an event, and return it."""

    async def look() -> dict[str, Any] | None:
        events = (await client.messages(room_id, limit=50))["chunk"]
        return next((event for event in events if event["event_id"] == event_id), None)

    return await until(look, f"{client.user_id} sees {event_id}")


async def state_of(client: MatrixClient, room_id: str) -> dict[tuple[str, str], tuple[str, str]]:
    """The current state as a client is told it: key -> (event id, content)."""
    return {
        (event["type"], event["state_key"]): (event["event_id"], str(sorted(event["content"].items())))
        for event in await client.state(room_id)
    }


async def agree(
    one: MatrixClient, other: MatrixClient, room_id: str
) -> dict[tuple[str, str], tuple[str, str]]:
    """Wait until two users on two servers are told the same current state, and return it."""

    async def look() -> dict[tuple[str, str], tuple[str, str]] | None:
        state = await state_of(one, room_id)
        return state if state == await state_of(other, room_id) else None

    return await until(look, "one state on both servers")


@dataclass(slots=True)
class Watch:
    """What a user is told of a room that is of the moment, from a sync token on."""

    client: MatrixClient
    room_id: str
    since: str

    async def until(self, wanted: Callable[[str, Any], bool]) -> None:
        """Sync until something wanted comes."""

        async def look() -> bool:
            answer = await self.client.sync(self.since, timeout_ms=1000)
            self.since = answer["next_batch"]
            joined = answer.get("rooms", {}).get("join", {}).get(self.room_id, {})
            events = joined.get("ephemeral", {}).get("events", [])
            return any(wanted(event["type"], event["content"]) for event in events)

        await until(look, f"{self.client.user_id} is told")

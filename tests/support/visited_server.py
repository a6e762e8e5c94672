"""A running Arbor in whose rooms a scripted server has users, and whether those rooms go on.

async with visited_server(folder, session) as world:
    visitor = await world.visited_room()
    await visitor.send([evil])
    await world.goes_on(visitor)
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from matrixlib.events import parse_event
from tests.support.arbor_server import ArborServer
from tests.support.evil_peer import EvilPeer
from tests.support.federation import federated_arbor, until
from tests.support.matrix_client import MatrixClient
from tests.support.tls_ca import TestCa
from tests.support.visitor import V1, Visitor, segment


@dataclass(slots=True)
class VisitedServer:
    """See the module. Alice is a user of the running server."""

    server: ArborServer
    alice: MatrixClient
    peer: EvilPeer
    ca: TestCa

    @property
    def server_name(self) -> str:
        """What the running server is called."""
        return self.server.server_name

    async def visited_room(self, version: str = "10", *, peer: EvilPeer | None = None) -> Visitor:
        """A room of Alice's with a user of the peer's in it."""
        room_id = await self.alice.create_room(preset="public_chat", room_version=version)
        visitor = Visitor(peer or self.peer, self.server_name, room_id, version=version)
        await visitor.join()
        return visitor

    async def state_ids(self, room_id: str) -> set[str]:
        """The events of a room's current state."""
        return {event["event_id"] for event in await self.alice.state(room_id)}

    async def goes_on(self, visitor: Visitor) -> None:
        """Check that a room works in both directions, and that all it holds can be told."""
        (event,) = visitor.messages(1)
        assert await visitor.send([event.pdu]) == {event.event_id: {}}
        answer = await self.alice.get(f"/rooms/{visitor.room_id}/event/{segment(event.event_id)}")
        assert answer["content"] == event.content
        sent = await self.alice.send(visitor.room_id, "to everybody")

        async def arrived() -> dict[str, Any] | None:
            for request in visitor.peer.asked("send"):
                for pdu in request.content["pdus"]:
                    if parse_event(pdu, visitor.version).event_id == sent:
                        return dict(pdu)
            return None

        pdu = await until(arrived, "Alice's message is at the peer")
        assert pdu["content"]["body"] == "to everybody"
        latest = segment(sent)
        for path in (
            f"{V1}/backfill/{visitor.room_id}?limit=100&v={latest}",
            f"{V1}/state/{visitor.room_id}?event_id={latest}",
            f"{V1}/event/{latest}",
        ):
            status, body = await visitor.ask("GET", path)
            assert status == 200, body


@asynccontextmanager
async def visited_server(
    folder: Path, session: aiohttp.ClientSession, config: dict[str, Any] | None = None
) -> AsyncIterator[VisitedServer]:
    """Start an Arbor and a scripted server which takes all that is sent to it."""
    ca = TestCa(folder / "ca")
    server = federated_arbor(folder / "arbor", ca, config=config)
    async with EvilPeer(ca) as peer:
        peer.answer("send", lambda _: {"pdus": {}})
        await server.start()
        try:
            yield VisitedServer(server, await server.register(session, "alice"), peer, ca)
        finally:
            await server.stop()

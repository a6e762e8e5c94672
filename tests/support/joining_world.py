"""What a user needs who joins a room elsewhere: an Arbor, the server that has the room, and a third one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.arbor_server import ArborServer
from tests.support.evil_peer import EvilPeer
from tests.support.federation import federated_arbor
from tests.support.tls_ca import TestCa


@dataclass(frozen=True, slots=True)
class JoiningWorld:
    """A running Arbor, a server that has the room, a third one."""

    server: ArborServer
    peer: EvilPeer
    third: EvilPeer


@asynccontextmanager
async def joining_world(folder: Path) -> AsyncIterator[JoiningWorld]:
    """Run them while the body runs; what they keep is in `folder`."""
    ca = TestCa(folder / "ca")
    server = federated_arbor(folder / "arbor", ca)
    async with EvilPeer(ca) as peer, EvilPeer(ca) as third:
        await server.start()
        try:
            yield JoiningWorld(server, peer, third)
        finally:
            await server.stop()

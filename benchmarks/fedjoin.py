"""Joins of large rooms over federation, as the joining and as the resident server.

A scripted server has the room and lets a user in; then another scripted server joins the room through the server that
is measured. Both run in the load generator, whose time is not counted.
"""

import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks.measure import Measurement, measured
from tests.support.arbor_server import ArborServer
from tests.support.evil_peer import EvilPeer
from tests.support.federation import FederatedSynapse, federated_arbor
from tests.support.homeserver import Homeserver
from tests.support.matrix_client import MatrixClient, http_session
from tests.support.resident import ResidentRoom, join_through
from tests.support.tls_ca import TestCa

# Some servers take minutes for a large room.
TIMEOUT_S = 1800.0


async def joins(server: Homeserver, sizes: tuple[int, ...]) -> AsyncIterator[tuple[str, Measurement]]:
    """Rows for a server of the same kind, made for this alone: it has to trust the scripted ones."""
    with tempfile.TemporaryDirectory(prefix="arbor-fedjoin-") as folder:
        ca = TestCa(Path(folder) / "ca")
        home = Path(folder) / "server"
        home.mkdir()
        measured_one: ArborServer | FederatedSynapse = (
            federated_arbor(home, ca) if isinstance(server, ArborServer) else FederatedSynapse(home, ca)
        )
        await measured_one.start()
        try:
            async with http_session(TIMEOUT_S) as session:
                alice = await measured_one.register(session, "alice")
                # Once round for whatever is made at the first use.
                async for _ in _rows(measured_one, alice, ca, 10):
                    pass
                for size in sizes:
                    async for row in _rows(measured_one, alice, ca, size):
                        yield row
        finally:
            await measured_one.stop()


async def _rows(
    server: ArborServer | FederatedSynapse, alice: MatrixClient, ca: TestCa, size: int
) -> AsyncIterator[tuple[str, Measurement]]:
    async with EvilPeer(ca) as peer, EvilPeer(ca) as other:
        room = ResidentRoom(peer, size)
        async with measured(server) as row:
            started = time.perf_counter()
            await alice.post(f"/join/{room.room_id}?server_name={peer.server_name}&via={peer.server_name}")
            row.latencies_s.append(time.perf_counter() - started)
            # Whoever joins before all members are known has them by this answer.
            found = await alice.get(f"/rooms/{room.room_id}/joined_members")
            row.operations = 1
        if len(found["joined"]) != size + 2:
            raise RuntimeError(f"{len(found['joined'])} members after the join of a room of {size}")
        yield f"join of a room of {size:,} members over federation", row
        for query, name in (("", ""), ("?omit_members=true", ", members left out")):
            async with measured(server) as row:
                started = time.perf_counter()
                await join_through(
                    server.server_name, other, room, f"@eve{len(query)}:{other.server_name}", query
                )
                row.latencies_s.append(time.perf_counter() - started)
                row.operations = 1
            yield f"being joined over federation, {size:,} members{name}", row
        await alice.post(f"/rooms/{room.room_id}/leave")
        yield (
            f"join of a room of {size:,} members over federation, until the first message is sent",
            await _until_talk(server, alice, peer, size),
        )


async def _until_talk(
    server: ArborServer | FederatedSynapse, alice: MatrixClient, peer: EvilPeer, size: int
) -> Measurement:
    """The same where the members may be left out at first: they are not given before the joiner has written."""
    room = ResidentRoom(peer, size + 1, omits=True, gives_state=False)
    async with measured(server) as row:
        started = time.perf_counter()
        await alice.post(f"/join/{room.room_id}?server_name={peer.server_name}&via={peer.server_name}")
        await alice.send(room.room_id, "in")
        row.latencies_s.append(time.perf_counter() - started)
        row.operations = 1
    await alice.post(f"/rooms/{room.room_id}/leave")
    return row

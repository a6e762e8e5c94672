"""`python -m benchmarks.federation_bench [--smoke] [--servers arbor,synapse] [--only receive,one,many]`.

What federation costs: PDUs accepted by `/send`, 50 a transaction and signed by a peer, until a client sees them;
and events sent to one and to many destinations, which are scripted servers that take everything. CPU time is that
of all the processes of the server measured.
"""

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import report
from benchmarks.measure import Measurement, measured
from matrixlib.events import Event
from tests.support.evil_peer import Asked, EvilPeer
from tests.support.federation import FederatedSynapse, federated_arbor
from tests.support.homeserver import Homeserver
from tests.support.matrix_client import MatrixClient, http_session, joined_timeline
from tests.support.synapse_server import ensure_installed
from tests.support.tls_ca import TestCa
from tests.support.visitor import Visitor

BATCH = 50


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything."""

    transactions: int
    events_to_one: int
    destinations: int
    events_to_many: int


FULL = Scale(transactions=40, events_to_one=400, destinations=200, events_to_many=10)
SMOKE = Scale(transactions=3, events_to_one=16, destinations=10, events_to_many=2)


async def _wait_for(client: MatrixClient, room_id: str, since: str, event_id: str) -> str:
    """Sync until an event is there; returns the token after it."""
    async with asyncio.timeout(120):
        while True:
            answer = await client.sync(since, timeout_ms=30_000)
            since = answer["next_batch"]
            if any(event["event_id"] == event_id for event in joined_timeline(answer, room_id)):
                return since


async def receive(server: Homeserver, ca: TestCa, client: MatrixClient, scale: Scale) -> Measurement:
    """PDUs, 50 a transaction, one transaction after the other, until a client sees the last of each."""
    room_id = await client.create_room(preset="public_chat", room_version="10")
    async with EvilPeer(ca) as peer:
        peer.answer("send", lambda _: {"pdus": {}})
        visitor = Visitor(peer, server.server_name, room_id)
        await visitor.join()
        since = (await client.sync())["next_batch"]
        # Signed before the measurement: that is the peer's work.
        batches = [visitor.messages(BATCH) for _ in range(scale.transactions + 1)]

        async def take(batch: list[Event]) -> None:
            nonlocal since
            results = await visitor.send([event.pdu for event in batch])
            if any(results.values()):
                raise RuntimeError(f"refused: {results}")
            since = await _wait_for(client, room_id, since, batch[-1].event_id)

        await take(batches[0])
        async with measured(server) as row:
            for batch in batches[1:]:
                started = time.perf_counter()
                await take(batch)
                row.latencies_s.append(time.perf_counter() - started)
            row.operations = BATCH * scale.transactions
    return row


async def send(
    server: Homeserver, ca: TestCa, client: MatrixClient, destinations: int, events: int, at_once: int = 1
) -> Measurement:
    """Events, `at_once` in flight, until every destination has them. An operation is one event at one of them."""
    room_id = await client.create_room(preset="public_chat", room_version="10")
    missing: set[tuple[str, str]] = set()
    everywhere = asyncio.Event()
    async with AsyncExitStack() as stack:
        peers = []
        for _ in range(destinations):
            peer = await stack.enter_async_context(EvilPeer(ca))

            def take(asked: Asked, name: str = peer.server_name) -> dict[str, Any]:
                for pdu in asked.content["pdus"]:
                    missing.discard((name, pdu["content"].get("body", "")))
                if not missing:
                    everywhere.set()
                return {"pdus": {}}

            peer.answer("send", take)
            await Visitor(peer, server.server_name, room_id).join()
            peers.append(peer)

        async def say(texts: list[str]) -> None:
            everywhere.clear()
            missing.update((peer.server_name, text) for peer in peers for text in texts)
            async with asyncio.timeout(180):
                await asyncio.gather(*(client.send(room_id, text) for text in texts))
                await everywhere.wait()

        await say(["warm"])
        async with measured(server) as row:
            for number in range(events // at_once):
                started = time.perf_counter()
                await say([f"message {number} {index}" for index in range(at_once)])
                row.latencies_s.append(time.perf_counter() - started)
            row.operations = events // at_once * at_once * destinations
    return row


async def _rows(
    server: Homeserver, ca: TestCa, client: MatrixClient, scale: Scale, chosen: list[str]
) -> AsyncIterator[tuple[str, Measurement]]:
    if "receive" in chosen:
        yield "PDUs by /send, 50 a transaction", await receive(server, ca, client, scale)
    if "one" in chosen:
        yield "events to 1 destination", await send(server, ca, client, 1, scale.events_to_one)
        row = await send(server, ca, client, 1, 4 * scale.events_to_one, at_once=16)
        yield "events to 1 destination, 16 in flight", row
    if "many" in chosen:
        row = await send(server, ca, client, scale.destinations, scale.events_to_many)
        yield f"events to {scale.destinations} destinations", row


async def _run(arguments: argparse.Namespace) -> None:
    scale = SMOKE if arguments.smoke else FULL
    chosen = [name for name in arguments.only.split(",") if name] or ["receive", "one", "many"]
    names = arguments.servers.split(",")
    table: report.Table = {}
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="arbor-bench-")))
        ca = TestCa(folder / "ca")
        session = await stack.enter_async_context(http_session())
        for name in names:
            if name == "synapse":
                ensure_installed()
            server: Homeserver = (
                federated_arbor(folder / name, ca) if name == "arbor" else FederatedSynapse(folder / name, ca)
            )
            await server.start()
            try:
                client = await server.register(session, "alice")
                async for row, measurement in _rows(server, ca, client, scale, chosen):
                    table.setdefault(row, {})[name] = measurement
                    print(f"  {name:8} {row}: {measurement.cpu_ms or 0:.2f} ms CPU each", flush=True)
            finally:
                with contextlib.suppress(TimeoutError):
                    await server.stop()
    print()
    print(report.render(table, names))
    print(f"written to {report.save(table, 'federation-smoke' if arguments.smoke else 'federation')}")


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.federation_bench", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small numbers: does it work?")
    parser.add_argument("--only", default="", help="some of: receive,one,many")
    parser.add_argument("--servers", default="arbor,synapse", help="which servers, by comma")
    sys.exit(uvloop.run(_run(parser.parse_args())))


if __name__ == "__main__":
    main()

"""`python -m benchmarks [--smoke] [--only send1,deliver] [--servers arbor,synapse] [--enforce]`."""

import argparse
import asyncio
import resource
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from benchmarks import report
from benchmarks.measure import Measurement
from benchmarks.scenarios import FULL, SCENARIOS, SMOKE, Bench
from tests.support.arbor_server import ArborServer
from tests.support.homeserver import Homeserver
from tests.support.matrix_client import http_session
from tests.support.synapse_server import SynapseServer, ensure_installed

REST_S = 5.0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small numbers: does it work?")
    parser.add_argument("--only", default="", help=f"some of: {','.join(SCENARIOS)}")
    parser.add_argument("--servers", default="arbor,synapse", help="which servers, by comma")
    parser.add_argument(
        "--enforce", action="store_true", help="exit with 1 when a row falls short of the bar"
    )
    return parser.parse_args()


def _make(name: str, folder: Path) -> Homeserver:
    folder.mkdir()
    if name == "arbor":
        return ArborServer(folder)
    ensure_installed()
    return SynapseServer(folder)


async def _run(arguments: argparse.Namespace) -> int:
    scale = SMOKE if arguments.smoke else FULL
    names = arguments.servers.split(",")
    chosen = [name for name in arguments.only.split(",") if name] or list(SCENARIOS)
    table: report.Table = {}

    def record(row: str, server: str, measurement: Measurement) -> None:
        table.setdefault(row, {})[server] = measurement
        figure = measurement.value if measurement.value is not None else measurement.cpu_ms
        shown = figure if figure is not None else measurement.median_ms
        print(f"  {server:8} {row}: {shown:.2f}" if shown is not None else f"  {server:8} {row}", flush=True)

    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="arbor-bench-")))
        session = await stack.enter_async_context(http_session())
        benches: dict[str, Bench] = {}
        for name in names:
            server = _make(name, folder / name)
            await server.start()
            stack.push_async_callback(server.stop)
            record("start with nothing there, s", name, Measurement(value=server.start_seconds))
            await server.stop()
            await server.start()
            record("start again, s", name, Measurement(value=server.start_seconds))
            factor = scale.arbor_factor if name == "arbor" else 1
            benches[name] = Bench(server, session, scale, factor)
        # At rest: nobody has asked for anything, and what starting left to do is done.
        await asyncio.sleep(REST_S)
        for name, bench in benches.items():
            record("memory at rest, MB", name, Measurement(value=bench.server.memory_bytes() / 1e6))
        for scenario in chosen:
            for name, bench in benches.items():
                async for row, measurement in SCENARIOS[scenario](bench):
                    record(row, name, measurement)
    print()
    print(report.render(table, names))
    own = resource.getrusage(resource.RUSAGE_SELF)
    print(f"\nload generator's own CPU: {own.ru_utime + own.ru_stime:.1f} s (not counted above)")
    print(f"written to {report.save(table, 'smoke' if arguments.smoke else 'full')}")
    short = [row for row, servers in table.items() if report.is_short(row, servers)]
    if short and arguments.enforce:
        print(f"short of the bar: {', '.join(short)}")
        return 1
    return 0


def main() -> None:
    """Run the benchmarks."""
    sys.exit(uvloop.run(_run(_arguments())))


if __name__ == "__main__":
    main()

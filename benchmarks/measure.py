"""Counting: operations, their latencies, and what the server's processes spent on them."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.support.homeserver import Homeserver


@dataclass(slots=True)
class Measurement:
    """What one server did in one row of the table."""

    operations: int = 0
    wall_s: float = 0.0
    # CPU time of all the server's processes; None where the row is not about CPU.
    cpu_s: float | None = None
    latencies_s: list[float] = field(default_factory=list)
    # For rows that are one number and no load: its value, in the row's unit.
    value: float | None = None
    note: str = ""

    @property
    def cpu_ms(self) -> float | None:
        """CPU milliseconds an operation."""
        return None if self.cpu_s is None or not self.operations else self.cpu_s / self.operations * 1e3

    @property
    def rate(self) -> float | None:
        """Operations a second."""
        return self.operations / self.wall_s if self.wall_s and self.operations else None

    def latency_ms(self, quantile: float = 0.5) -> float | None:
        """A quantile of the latencies, in milliseconds."""
        if not self.latencies_s:
            return None
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] * 1e3

    @property
    def median_ms(self) -> float | None:
        """The median latency, in milliseconds."""
        return statistics.median(self.latencies_s) * 1e3 if self.latencies_s else None


@asynccontextmanager
async def measured(server: Homeserver) -> AsyncIterator[Measurement]:
    """Measure wall time and the server's CPU time from entry to exit; the body fills in the operations."""
    result = Measurement()
    cpu, started = server.cpu_seconds(), time.perf_counter()
    yield result
    result.wall_s = time.perf_counter() - started
    result.cpu_s = server.cpu_seconds() - cpu


async def in_flight(
    jobs: Iterable[Callable[[], Awaitable[object]]], limit: int, latencies_s: list[float] | None = None
) -> int:
    """Run all jobs, `limit` of them at a time; returns how many there were. The first failure ends it."""
    remaining: Iterator[Callable[[], Awaitable[object]]] = iter(jobs)
    count = 0

    async def work() -> None:
        nonlocal count
        for job in remaining:
            started = time.perf_counter()
            await job()
            count += 1
            if latencies_s is not None:
                latencies_s.append(time.perf_counter() - started)

    async with asyncio.TaskGroup() as group:
        for _ in range(limit):
            group.create_task(work())
    return count

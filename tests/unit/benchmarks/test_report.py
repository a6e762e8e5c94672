"""The table of ratios says what was measured, and which row falls short."""

import asyncio

import pytest

from benchmarks import report
from benchmarks.measure import Measurement, in_flight


def row(ours: float, peer: float) -> dict[str, Measurement]:
    """CPU seconds for a hundred operations each."""
    return {"arbor": Measurement(100, 1.0, ours), "synapse": Measurement(100, 1.0, peer)}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("send, 1 room, 1 in flight", 8),
        ("send, 1 room, 16 in flight", 10),
        ("send, 50 rooms, 64 in flight", 10),
        ("delivery to 100 syncing clients", 15),
        ("initial sync, 50 rooms", 10),
    ],
)
def test_a_row_falls_short_just_below_its_bar(name: str, wanted: int) -> None:
    assert report.bar(name) == wanted
    assert report.is_short(name, row(0.1, 0.1 * wanted - 0.01))
    assert not report.is_short(name, row(0.1, 0.1 * wanted + 0.01))


def test_operations_count_not_totals() -> None:
    pair = {"arbor": Measurement(500, 1.0, 0.5), "synapse": Measurement(100, 1.0, 2.0)}
    assert report.ratio(pair) == pytest.approx(20)


def test_a_row_without_cpu_time_or_without_a_peer_is_not_judged() -> None:
    assert not report.is_short(
        "start, s", {"arbor": Measurement(value=9.0), "synapse": Measurement(value=1.0)}
    )
    assert not report.is_short("send, 1 room, 16 in flight", {"arbor": Measurement(100, 1.0, 9.0)})


def test_the_table_names_what_is_short() -> None:
    table = {"send, 1 room, 16 in flight": row(1.0, 2.0), "createRoom, 16 in flight": row(0.1, 2.0)}
    lines = report.render(table, ["arbor", "synapse"]).splitlines()
    assert "10x SHORT" in lines[1]
    assert "2.0x" in lines[1]
    assert "10x met" in lines[2]


async def test_no_more_than_the_limit_are_in_flight() -> None:
    now = most = 0

    async def job() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1

    latencies: list[float] = []
    assert await in_flight([job] * 20, 3, latencies) == 20
    assert most == 3
    assert len(latencies) == 20

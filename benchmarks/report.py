"""The table of ratios, and which row meets the bar."""

import json
import platform
import time
from pathlib import Path

from benchmarks.measure import Measurement

RESULTS = Path(__file__).resolve().parent / "results"

Table = dict[str, dict[str, Measurement]]


def bar(row: str) -> int:
    """How many times less CPU than the peer we want to spend in this row."""
    if row.startswith("delivery"):
        return 15
    return 8 if row.endswith(", 1 in flight") else 10


def ratio(row: dict[str, Measurement]) -> float | None:
    """The peer's cost over Arbor's, in CPU time where that was measured."""
    ours, peer = row.get("arbor"), row.get("synapse")
    if ours is None or peer is None:
        return None
    pairs = ((peer.cpu_ms, ours.cpu_ms), (peer.value, ours.value), (peer.median_ms, ours.median_ms))
    for theirs, mine in pairs:
        if theirs is not None and mine is not None:
            return theirs / mine if mine else None
    return None


def is_judged(row: dict[str, Measurement]) -> bool:
    """Whether the bar applies: both servers ran, and CPU time was measured."""
    return len(row) == 2 and all(one.cpu_s is not None for one in row.values())


def is_short(name: str, row: dict[str, Measurement]) -> bool:
    """Whether the row falls short of the bar."""
    factor = ratio(row)
    return is_judged(row) and factor is not None and factor < bar(name)


def _number(value: float | None, digits: int = 2) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.{digits}f}"


def render(table: Table, servers: list[str]) -> str:
    """The table as text; for each server CPU ms an operation, operations a second, two latencies."""
    heads = ["", *(f"{server}: CPU ms/op | op/s | p50 ms | p99 ms" for server in servers), "ratio", "bar"]
    lines = [heads]
    for name, row in table.items():
        cells = [name]
        for server in servers:
            one = row.get(server)
            if one is None:
                cells.append("-")
            elif one.value is not None:
                cells.append(_number(one.value) + (f"  ({one.note})" if one.note else ""))
            else:
                parts = (one.cpu_ms, one.rate, one.median_ms, one.latency_ms(0.99))
                cells.append(" | ".join(f"{_number(part):>8}" for part in parts))
        factor = ratio(row)
        cells.append("-" if factor is None else f"{factor:.1f}x")
        cells.append(f"{bar(name)}x {'SHORT' if is_short(name, row) else 'met'}" if is_judged(row) else "")
        lines.append(cells)
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def save(table: Table, label: str) -> Path:
    """Write the figures as JSON under benchmarks/results/ (not committed)."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}-{label}.json"
    rows = {
        name: {
            server: {
                "operations": one.operations,
                "wall_s": one.wall_s,
                "cpu_ms": one.cpu_ms,
                "rate": one.rate,
                "median_ms": one.median_ms,
                "p99_ms": one.latency_ms(0.99),
                "value": one.value,
                "note": one.note,
            }
            for server, one in row.items()
        }
        | {"ratio": ratio(row)}
        for name, row in table.items()
    }
    document = {"python": platform.python_version(), "machine": platform.machine(), "rows": rows}
    path.write_text(json.dumps(document, indent=1))
    return path

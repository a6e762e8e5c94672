"""Prometheus metrics: one registry a process, names that begin with `arbor_`.

Looking up a child by its labels costs more than counting: take the child once (`metric.labels(…)`) and keep
it where it is used. Labels have few values: never an id of a user, a room or an event.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics import MetricWrapperBase

disable_created_metrics()  # type: ignore[no-untyped-call]  # twice the series, nobody asks for them
registry = CollectorRegistry(auto_describe=True)

# Seconds. From a memory look-up to a request that somebody gave up on.
LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# Numbers of things: batch sizes, rows.
SIZE_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_metrics: dict[str, MetricWrapperBase] = {}
_M = TypeVar("_M", bound=MetricWrapperBase)


def _once(kind: type[_M], name: str, text: str, labels: Sequence[str], **options: Any) -> _M:
    full_name = name if name.startswith("arbor_") else f"arbor_{name}"
    known = _metrics.get(full_name)
    if known is None:
        made = kind(full_name, text, tuple(labels), registry=registry, **options)
        _metrics[full_name] = made
        return made
    if not isinstance(known, kind) or known._labelnames != tuple(labels):
        raise ValueError(f"the metric {full_name} exists already with another type or other labels")
    return known


def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
    """Return the counter of that name, made at the first call."""
    return _once(Counter, name, text, labels)


def gauge(name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
    """Return the gauge of that name, made at the first call."""
    return _once(Gauge, name, text, labels)


def histogram(
    name: str, text: str, labels: Sequence[str] = (), buckets: Sequence[float] = LATENCY_BUCKETS
) -> Histogram:
    """Return the histogram of that name, made at the first call; seconds by default."""
    return _once(Histogram, name, text, labels, buckets=tuple(buckets))


def exposition() -> bytes:
    """Return all metrics of this process in Prometheus's text form."""
    return generate_latest(registry)

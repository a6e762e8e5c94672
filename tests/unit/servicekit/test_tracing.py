"""Spans: nothing when off; carried through headers when on."""

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from servicekit import tracing
from servicekit.config.schema import Tracing


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.setup_tracing(Tracing(enabled=True), "test", exporter)
    yield exporter
    tracing.shutdown_tracing()


def test_off_it_does_nothing() -> None:
    tracing.setup_tracing(Tracing(enabled=False), "test")
    headers: dict[str, str] = {}
    with tracing.span("work"):
        tracing.inject(headers)
        assert tracing.current_trace_id() is None
    assert headers == {}
    assert tracing.span("a") is tracing.span("b"), "off, a span is one shared object"


def test_a_trace_goes_on_from_headers(spans: InMemorySpanExporter) -> None:
    headers: dict[str, str] = {}
    with tracing.span("asks", attributes={"n": 1}):
        tracing.inject(headers)
        trace_id = tracing.current_trace_id()
    with tracing.span("tells", parent=headers):
        assert tracing.current_trace_id() == trace_id
    asks, tells = spans.get_finished_spans()
    assert headers["traceparent"].split("-")[1] == trace_id
    assert tells.parent is not None
    assert asks.context is not None
    assert tells.parent.span_id == asks.context.span_id


def test_headers_of_strangers_do_no_harm(spans: InMemorySpanExporter) -> None:
    for value in ("", "junk", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"):
        with tracing.span("work", parent={"traceparent": value}):
            assert tracing.current_trace_id() is not None
    assert len(spans.get_finished_spans()) == 3

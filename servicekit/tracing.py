"""OpenTelemetry spans, off by default and then next to free.

`setup_tracing` turns them on. `span("name")` times a piece of work; `inject` writes the W3C `traceparent` of
the span in progress into headers (HTTP, gRPC metadata, NATS), `span(name, parent=headers)` goes on from such
headers. The OpenTelemetry packages are imported only when tracing is on.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

    from servicekit.config.schema import Tracing

_tracer: "Tracer | None" = None
_provider: "TracerProvider | None" = None
_NO_SPAN: AbstractContextManager[None] = nullcontext()


def setup_tracing(config: "Tracing", service: str, exporter: "SpanExporter | None" = None) -> None:
    """Turn tracing on for this process where the configuration says so.

    Args:
        config: the section `tracing`.
        service: name that the spans carry.
        exporter: where spans go instead of `config.endpoint`; for tests.
    """
    global _tracer, _provider
    if not config.enabled:
        return
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    _provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(config.sample_ratio)),
        resource=Resource.create({"service.name": f"arbor-{service}"}),
    )
    if exporter is None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=config.endpoint)))
    else:
        _provider.add_span_processor(SimpleSpanProcessor(exporter))
    _tracer = _provider.get_tracer("arbor")


def shutdown_tracing() -> None:
    """Send what is left and turn tracing off."""
    global _tracer, _provider
    if _provider is not None:
        _provider.shutdown()
    _tracer = _provider = None


def enabled() -> bool:
    """Say whether spans are made."""
    return _tracer is not None


def span(
    name: str, *, parent: Mapping[str, str] | None = None, attributes: Mapping[str, Any] | None = None
) -> AbstractContextManager[Any]:
    """Return the context in which a piece of work is a span.

    Args:
        name: of the kind of work, without ids; ids are attributes, secrets and contents neither.
        parent: headers that carry the `traceparent` to go on from; None: below the span in progress.
        attributes: name -> text, number or truth value.
    """
    if _tracer is None:
        return _NO_SPAN
    context = None
    if parent is not None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = TraceContextTextMapPropagator().extract(parent)
    return _recording(_tracer, name, context, attributes)


@contextmanager
def _recording(
    tracer: "Tracer", name: str, context: "Context | None", attributes: Mapping[str, Any] | None
) -> Iterator["Span"]:
    # An exception's text may hold what a client sent: of it a span keeps the type alone.
    with tracer.start_as_current_span(
        name, context=context, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as made:
        try:
            yield made
        except Exception as error:
            from opentelemetry.trace import StatusCode

            made.set_attribute("error.type", type(error).__qualname__)
            made.set_status(StatusCode.ERROR)
            raise


def inject(headers: MutableMapping[str, str]) -> None:
    """Write the `traceparent` of the span in progress into headers; nothing where there is none."""
    if _tracer is None:
        return
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    TraceContextTextMapPropagator().inject(headers)


def current_trace_id() -> str | None:
    """Return the trace id in progress as 32 hexadecimal digits, None where there is none."""
    if _tracer is None:
        return None
    from opentelemetry.trace import get_current_span

    context = get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else None

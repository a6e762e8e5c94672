"""Row 40, logs and metrics: a token, password or body that goes through the listener shows up in neither."""

import io
import logging
from collections.abc import Iterator

import pytest

from servicekit import metrics, tracing
from servicekit.config.schema import Tracing
from servicekit.http import Request, Response, Router, json_response
from servicekit.logging import JsonFormatter, get_logger
from tests.support.http_listener import listening, raw_request

SECRET = "s3cret-value"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """Everything that is logged, at the most talkative level."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter("edge"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


async def test_nothing_secret_of_a_request_is_written(written: io.StringIO) -> None:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    log = get_logger("handler")

    async def login(request: Request) -> Response:
        body = await request.json()
        log.info("login", user=body["user"], password=body["password"], headers=dict(request.headers))
        log.info(f"asked with {request.raw_target}")
        return json_response({"access_token": body["password"]})

    async def crash(request: Request) -> Response:
        raise RuntimeError(f"cannot handle {await request.json()} of Bearer {request.access_token}")

    router = Router()
    router.add("POST", "/_matrix/client/v3/login", login)
    router.add("POST", "/_matrix/client/v3/crash", crash)
    body = b'{"user": "alice", "password": "%s"}' % SECRET.encode()
    spans = InMemorySpanExporter()
    tracing.setup_tracing(Tracing(enabled=True), "test", spans)
    try:
        async with listening(router) as port:
            for path in ("login", "crash", "unknown", "login/x"):
                for headers in ({"Authorization": f"Bearer {SECRET}"}, {}):
                    target = f"/_matrix/client/v3/{path}?access_token={SECRET}&x=1"
                    await raw_request(port, "POST", target, body, headers)
                    await raw_request(port, "POST", target, body + b"}", headers)
    finally:
        tracing.shutdown_tracing()
    text = written.getvalue()
    assert "alice" in text, "lines were written"
    assert "RuntimeError" in text
    assert SECRET not in text
    assert SECRET.encode() not in metrics.exposition()
    finished = spans.get_finished_spans()
    assert finished
    assert not [
        span for span in finished if SECRET in span.name or SECRET in str(dict(span.attributes or {}))
    ]
    assert not [
        event for span in finished for event in span.events if SECRET in str(dict(event.attributes or {}))
    ]


async def test_metrics_have_patterns_not_paths(written: io.StringIO) -> None:
    async def answer(_request: Request) -> Response:
        return json_response({})

    router = Router()
    router.add("GET", "/_matrix/client/v3/rooms/{room_id}/members", answer)
    async with listening(router) as port:
        await raw_request(port, "GET", "/_matrix/client/v3/rooms/!unlikely:room/members")
        await raw_request(port, "GET", "/unlikely/path")
    text = metrics.exposition().decode()
    assert 'route="/_matrix/client/v3/rooms/{room_id}/members"' in text
    assert "unlikely" not in text

"""What every method does around its own work, whichever way the call came.

`Collector` stands in for a server at the generated `add_…Servicer_to_server` and keeps the methods. `wrap`
puts around each: request id and trace of the caller, a deadline where there is none, errors as statuses,
metrics.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NoReturn

import grpc
import grpc.aio
from prometheus_client import Counter

from servicekit import metrics, tracing
from servicekit.errors import MatrixError
from servicekit.grpc.errors import abort_with, matrix_error_from
from servicekit.grpc.in_process import Aborted
from servicekit.logging import get_logger, request_id

log = get_logger("grpc")

REQUEST_ID = "x-request-id"

_calls = metrics.counter("grpc_server_calls_total", "Calls answered", ["method", "code"])
_seconds = metrics.histogram("grpc_server_call_seconds", "Time of a call at the server", ["method"])

AddServicer = Callable[[Any, Any], None]


class Collector:
    """What looks like a server to the generated functions, and keeps what they register."""

    def __init__(self) -> None:
        self.services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Take nothing: the same methods come through `add_registered_method_handlers`."""

    def add_registered_method_handlers(
        self, service_name: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Keep a service's methods, wrapped."""
        self.services[service_name] = {
            name: wrap(f"/{service_name}/{name}", handler) for name, handler in handlers.items()
        }


class _Outcomes:
    """The counters of a method, by status code."""

    __slots__ = ("_counters", "_path", "ok", "seconds")

    def __init__(self, path: str) -> None:
        self._path = path
        self._counters: dict[str, Counter] = {}
        self.ok = self.count_of("OK")
        self.seconds = _seconds.labels(path)

    def count_of(self, code: str) -> Counter:
        counter = self._counters.get(code)
        if counter is None:
            counter = self._counters[code] = _calls.labels(self._path, code)
        return counter


def wrap(path: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
    """Return the handler with what every method does around it."""
    outcomes = _Outcomes(path)
    make: Any
    if handler.response_streaming:
        behavior = handler.stream_stream if handler.request_streaming else handler.unary_stream
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        wrapped: Any = _wrap_streaming(path, behavior, outcomes)
    else:
        behavior = handler.stream_unary if handler.request_streaming else handler.unary_unary
        make = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        wrapped = _wrap_single(path, behavior, outcomes)
    made: grpc.RpcMethodHandler[Any, Any] = make(
        wrapped, handler.request_deserializer, handler.response_serializer
    )
    return made


def _wrap_single(path: str, behavior: Any, outcomes: _Outcomes) -> Any:
    async def answer(request: Any, context: Any) -> Any:
        started = time.perf_counter()
        headers = _adopt_request_id(context)
        try:
            if tracing.enabled():
                with tracing.span(path, parent=headers):
                    response = await behavior(request, context)
            else:
                response = await behavior(request, context)
        except Exception as error:
            await _fail(path, error, context, outcomes)
        outcomes.ok.inc()
        outcomes.seconds.observe(time.perf_counter() - started)
        return response

    return answer


def _wrap_streaming(path: str, behavior: Any, outcomes: _Outcomes) -> Any:
    async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
        started = time.perf_counter()
        headers = _adopt_request_id(context)
        try:
            with tracing.span(path, parent=headers):
                async for response in behavior(request, context):
                    yield response
        except Exception as error:
            await _fail(path, error, context, outcomes)
        outcomes.ok.inc()
        outcomes.seconds.observe(time.perf_counter() - started)

    return answer


def _adopt_request_id(context: Any) -> dict[str, str] | None:
    """Take the caller's request id over, and return the metadata as headers where tracing wants them."""
    if getattr(context, "in_process", False):
        return None  # same task, same context variables
    headers = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    request_id.set(headers.get(REQUEST_ID))
    return headers


async def _fail(path: str, error: Exception, context: Any, outcomes: _Outcomes) -> NoReturn:
    """Raise what ends the call in place of a method's exception."""
    if isinstance(error, MatrixError):
        outcomes.count_of(error.errcode).inc()
        await abort_with(context, error)
    if isinstance(error, grpc.aio.AbortError | Aborted):
        outcomes.count_of("ABORTED").inc()
        raise error
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        outcomes.count_of("DEADLINE_EXCEEDED").inc()
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed")
    if isinstance(error, grpc.aio.AioRpcError):
        # A call this method made failed; what it means to our caller is the same.
        outcomes.count_of("UPSTREAM").inc()
        await abort_with(context, matrix_error_from(error))
    outcomes.count_of("INTERNAL").inc()
    log.error("call_failed", exc_info=error, method=path)
    await context.abort(grpc.StatusCode.INTERNAL, "internal error")
    raise error  # not reached: abort raises

"""A listener: from a connection's request to a route's handler and back.

Everything that all responses have in common happens here: request id, CORS, 404 and 405, the error form,
limits of body and time, metrics, tracing, log lines. Handlers see none of it.
"""

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from logging import DEBUG
from typing import Any

import orjson
from aiohttp import web
from prometheus_client import Counter, Histogram

from servicekit import metrics, tracing
from servicekit.config.schema import Http
from servicekit.errors import MatrixError, unavailable
from servicekit.http.answer import Answer
from servicekit.http.messages import JSON_TYPE, Request, Response
from servicekit.http.routing import Route, Router
from servicekit.logging import get_logger, request_id

log = get_logger("http")

# Specification v1.19, Client-Server API "Web Browser Clients".
CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "X-Requested-With, Content-Type, Authorization",
    "Server": "Arbor",
}
_OPTIONS_HEADERS = {**CORS_HEADERS, "Access-Control-Max-Age": "86400"}

_requests = metrics.counter("http_requests_total", "Requests answered", ["method", "route", "status"])
_seconds = metrics.histogram("http_request_seconds", "Time from request to response", ["method", "route"])
_in_flight = metrics.gauge("http_requests_in_flight", "Requests being answered")
_connections = metrics.gauge("http_connections", "Open connections")

_answering = 0  # counted without the gauge's lock
_in_flight.set_function(lambda: _answering)
_request_numbers = count()
_request_prefix = os.urandom(4).hex()


class _RouteMetrics:
    """A route's metrics with their labels looked up."""

    __slots__ = ("_labels", "_statuses", "seconds")

    def __init__(self, method: str, pattern: str) -> None:
        self._labels = (method, pattern)
        self._statuses: dict[int, Counter] = {}
        self.seconds: Histogram = _seconds.labels(method, pattern)

    def count(self, status: int) -> None:
        counter = self._statuses.get(status)
        if counter is None:
            counter = self._statuses[status] = _requests.labels(*self._labels, str(status))
        counter.inc()


_unrouted = _RouteMetrics("", "none")


class _Server(web.Server):
    """aiohttp's server with a bound on connections, and word of lost ones for handlers that want it."""

    def __init__(
        self, handler: Callable[[web.BaseRequest], Any], max_connections: int, **options: Any
    ) -> None:
        super().__init__(handler, **options)
        self._max_connections = max_connections

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        if len(self._connections) >= self._max_connections:
            transport.abort()
            return
        _connections.inc()
        super().connection_made(handler, transport)

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        if handler in self._connections:
            _connections.dec()
        current = handler._current_request
        if current is not None and _TASK in current:
            current[_TASK].cancel()
        super().connection_lost(handler, exc)


# Key in aiohttp's request: the task that the loss of the connection cancels.
_TASK = web.RequestKey("arbor_task", asyncio.Task[Any])


class HttpListener:
    """One listening socket and the routes served on it.

    Args:
        router: the routes; restrict it to the listener's resources before.
        limits: the section `http`.
        trust_forwarded: take the client's address from X-Forwarded-For.
        ready: asked before a request goes to a handler: waits for what the route needs, False after too long.
            None: everything is ready; see `set_ready`.
    """

    def __init__(
        self,
        router: Router,
        limits: Http | None = None,
        *,
        trust_forwarded: bool = False,
        ready: Callable[[Route], Awaitable[bool]] | None = None,
    ) -> None:
        self.router = router
        self._limits = limits or Http()
        self._trust_forwarded = trust_forwarded
        self._ready = ready
        self._metrics = {route: _RouteMetrics(route.method, route.pattern) for route in router.routes}
        self._server: web.Server | None = None
        self._listening: list[asyncio.Server] = []

    async def start(self, sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Begin to answer on a socket that is bound, and listening or not."""
        loop = asyncio.get_running_loop()
        self._server = _Server(
            self._answer,
            self._limits.max_connections,
            access_log=None,
            keepalive_timeout=75.0,
            tcp_keepalive=True,
            # A body that nobody read is not read to its end for the connection's sake.
            lingering_time=1.0,
            auto_decompress=False,
            max_line_size=16384,
            max_field_size=16384,
        )
        listening: asyncio.Server
        if sock.family == socket.AF_UNIX:
            listening = await loop.create_unix_server(self._server, sock=sock, ssl=tls, backlog=1024)
        else:
            listening = await loop.create_server(self._server, sock=sock, ssl=tls, backlog=1024)
        self._listening.append(listening)

    def set_ready(self) -> None:
        """Ask no more whether routes are ready."""
        self._ready = None

    def stop_listening(self) -> None:
        """Take no new connections."""
        for listening in self._listening:
            listening.close()
        if self._server is not None:
            # Idle connections would otherwise be kept for requests that are not to come.
            self._server.pre_shutdown()

    async def stop(self, grace_s: float = 5.0) -> None:
        """Take no new connections, let the requests in progress finish for a while, then cut them off."""
        self.stop_listening()
        if self._server is not None:
            await self._server.shutdown(grace_s)
        self._listening.clear()

    async def _answer(self, base: web.BaseRequest) -> Any:
        global _answering
        started = time.perf_counter()
        identity = f"{_request_prefix}-{next(_request_numbers):x}"
        request_id.set(identity)  # aiohttp runs each request in a task, and context, of its own
        target = base.raw_path
        if not target.startswith("/"):
            # The absolute form of a request target, as proxies send it: http://host/path
            _, _, rest = target.partition("://")
            target = "/" + rest.partition("/")[2] if rest else target
        path, _, raw_query = target.partition("?")
        measured = _unrouted
        _answering += 1
        try:
            if base.method == "OPTIONS":
                response: Answer | web.StreamResponse = Answer(204, _OPTIONS_HEADERS)
            else:
                route, params, allowed = self.router.match(base.method, path)
                if route is None:
                    response = _unrecognized(allowed)
                else:
                    measured = self._metrics[route]
                    request = Request(
                        base,
                        route,
                        path,
                        raw_query,
                        params,
                        self._remote(base),
                        identity,
                        route.max_body if route.max_body is not None else self._default_max_body(route),
                        route.body_timeout_s or self._limits.body_timeout,
                    )
                    response = await self._handle(base, request)
        except MatrixError as error:
            response = _error_response(error)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("request_failed", method=base.method, route=measured is not _unrouted, path=path)
            response = _error_response(MatrixError("M_UNKNOWN", 500, "Internal server error"))
        finally:
            _answering -= 1
        if response.status in (408, 413, 415):
            # The rest of the body is not worth reading.
            response.force_close()
        measured.count(response.status)
        elapsed = time.perf_counter() - started
        measured.seconds.observe(elapsed)
        if log.enabled_for(DEBUG):
            log.debug(
                "request", method=base.method, path=path, status=response.status, seconds=round(elapsed, 4)
            )
        return response

    async def _handle(self, base: web.BaseRequest, request: Request) -> Answer | web.StreamResponse:
        if self._ready is not None and not await self._ready(request.route):
            raise unavailable("The server is starting")
        if request.route.cancel_on_disconnect:
            task = asyncio.current_task()
            assert task is not None
            base[_TASK] = task
        if tracing.enabled():
            name = f"{request.method} {request.route.pattern}"
            with tracing.span(name, parent=base.headers, attributes={"http.request_id": request.request_id}):
                answer = await request.route.handler(request)
        else:
            answer = await request.route.handler(request)
        if isinstance(answer.body, bytes):
            headers = {**CORS_HEADERS, "Content-Type": answer.content_type, **(answer.headers or {})}
            return Answer(answer.status, headers, answer.body)
        return await _stream(base, answer)

    def _default_max_body(self, route: Route) -> int:
        if route.resources is not None and "federation" in route.resources:
            return self._limits.max_federation_body
        return self._limits.max_body

    def _remote(self, base: web.BaseRequest) -> str:
        if self._trust_forwarded:
            # The last entry is the one that the proxy in front of us wrote; those before it anybody can
            # write.
            forwarded = base.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip()
            if forwarded:
                return forwarded
        return base.remote or ""


async def _stream(base: web.BaseRequest, answer: Response) -> web.StreamResponse:
    assert not isinstance(answer.body, bytes)
    headers = {**CORS_HEADERS, "Content-Type": answer.content_type, **(answer.headers or {})}
    response = web.StreamResponse(status=answer.status, headers=headers)
    await response.prepare(base)
    async for piece in answer.body:
        await response.write(piece)
    await response.write_eof()
    return response


def _unrecognized(allowed: frozenset[str]) -> Answer:
    if allowed:
        error = MatrixError("M_UNRECOGNIZED", 405, "Unrecognized method")
        return _error_response(error, {"Allow": ", ".join(sorted(allowed | {"OPTIONS"}))})
    return _error_response(MatrixError("M_UNRECOGNIZED", 404, "Unrecognized request"))


def _error_response(error: MatrixError, further: Mapping[str, str] | None = None) -> Answer:
    headers = {**CORS_HEADERS, "Content-Type": JSON_TYPE, **(further or {})}
    if error.retry_after_ms is not None:
        # Whole seconds, rounded up: a client that obeys does not come too early.
        headers["Retry-After"] = str(-(-error.retry_after_ms // 1000))
    return Answer(error.http_status, headers, orjson.dumps(error.body()))

"""The channel between services of one process: generated stubs on one side, servicers on the other, no bytes
between.

A call runs the method in the caller's own task: deadlines, cancellation and context variables go along by
themselves. Messages are handed over as they are, so both sides keep to what serialising would enforce: a
request is not changed by the servicer, a response not by the caller, and neither side changes it after
sending.

A process declares the services it serves before it makes any of them (`registry.declare`), so that
`channel_to` knows; which methods there are is looked up at each call, since services start in any order.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Sequence
from typing import Any, NoReturn

import grpc
import grpc.aio

Metadata = Sequence[tuple[str, str | bytes]]


class Registry:
    """The methods that services of this process serve."""

    def __init__(self) -> None:
        self._declared: set[str] = set()
        self._methods: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}

    def declare(self, services: Iterable[str]) -> None:
        """Say which services this process serves or is going to serve."""
        self._declared.update(services)

    def serves(self, service: str) -> bool:
        """Say whether calls to a service stay in this process."""
        return service in self._declared

    def publish(self, service: str, services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]]) -> None:
        """Make a service's methods callable."""
        self._methods[service] = {
            f"/{name}/{method}": handler
            for name, handlers in services.items()
            for method, handler in handlers.items()
        }

    def withdraw(self, service: str) -> None:
        """Make a service's methods no longer callable."""
        self._methods.pop(service, None)

    def clear(self) -> None:
        """Forget everything; for tests."""
        self._declared.clear()
        self._methods.clear()

    def method(self, service: str, path: str) -> grpc.RpcMethodHandler[Any, Any]:
        """Return a method.

        Raises:
            AioRpcError: the service has not started (UNAVAILABLE) or has no such method (UNIMPLEMENTED).
        """
        methods = self._methods.get(service)
        if methods is None:
            raise _error(grpc.StatusCode.UNAVAILABLE, f"{service} is not ready")
        handler = methods.get(path)
        if handler is None:
            raise _error(grpc.StatusCode.UNIMPLEMENTED, f"{service} has no method {path}")
        return handler


registry = Registry()


class Aborted(grpc.aio.AioRpcError):
    """A servicer ended its own call, as `grpc.aio.AbortError` says over the wire."""


class Context:
    """The servicer's side of an in-process call; what servicers use of `grpc.aio.ServicerContext`."""

    __slots__ = ("_code", "_deadline", "_details", "_metadata", "_trailers", "caller")

    in_process = True

    def __init__(self, caller: str, metadata: Metadata | None, deadline: float | None) -> None:
        self.caller = caller
        self._metadata = metadata
        self._deadline = deadline
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._trailers: Metadata = ()

    def invocation_metadata(self) -> Metadata:
        """Return what the caller sent along."""
        return tuple(self._metadata or ())

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline; None: there is none."""
        if self._deadline is None:
            return None
        return max(0.0, self._deadline - asyncio.get_running_loop().time())

    def peer(self) -> str:
        """Return who calls."""
        return f"in-process:{self.caller}"

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()
    ) -> NoReturn:
        """End the call with a status that is not OK."""
        raise Aborted(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing_metadata), details=details)

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the status the call ends with."""
        self._code = code

    def set_details(self, details: str) -> None:
        """Set the text that goes with the status."""
        self._details = details

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """Set what is sent after the last response."""
        self._trailers = metadata

    async def send_initial_metadata(self, metadata: Metadata) -> None:
        """Send nothing: no caller of ours reads it."""

    def code(self) -> grpc.StatusCode | None:
        """Return the status set so far."""
        return self._code

    def details(self) -> str:
        """Return the text set so far."""
        return self._details

    def trailing_metadata(self) -> Metadata:
        """Return what was set to be sent after the last response."""
        return self._trailers

    def cancelled(self) -> bool:
        """Return False: cancelling cancels the task that runs the method."""
        return False

    def done(self) -> bool:
        """Return False: the method runs."""
        return False

    def check(self) -> None:
        """Raise the status that the method set, where that is not OK."""
        if self._code is not None and self._code is not grpc.StatusCode.OK:
            raise _error(self._code, self._details, self._trailers)


class SingleCall:
    """An awaitable call with one response."""

    __slots__ = ("_context", "_handler", "_request", "_timeout_s")

    def __init__(
        self, handler: Callable[[Any, Any], Any], request: Any, context: Context, timeout_s: float | None
    ) -> None:
        self._handler = handler
        self._request = request
        self._context = context
        self._timeout_s = timeout_s

    def __await__(self) -> Generator[Any, None, Any]:
        return self._run().__await__()

    async def _run(self) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._handler(self._request, self._context)
        except TimeoutError:
            raise _error(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed") from None
        if self._context.code() is not None:
            self._context.check()
        return response


class StreamCall:
    """An async-iterable call with many responses."""

    __slots__ = ("_context", "_handler", "_iterator", "_request", "_timeout_s")

    def __init__(
        self, handler: Callable[[Any, Any], Any], request: Any, context: Context, timeout_s: float | None
    ) -> None:
        self._handler = handler
        self._request = request
        self._context = context
        self._timeout_s = timeout_s
        self._iterator: AsyncIterator[Any] | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._iterator is None:
            self._iterator = self._run()
        return self._iterator

    async def read(self) -> Any:
        """Return the next response, or `grpc.aio.EOF`."""
        return await anext(self.__aiter__(), grpc.aio.EOF)

    def cancel(self) -> bool:
        """Ask nothing more of the method."""
        self._iterator = _nothing()
        return True

    async def _run(self) -> AsyncIterator[Any]:
        loop = asyncio.get_running_loop()
        deadline = None if self._timeout_s is None else loop.time() + self._timeout_s
        responses = self._handler(self._request, self._context)
        try:
            while True:
                # The timeout stands around each step: a generator must not hold one across a yield.
                try:
                    async with asyncio.timeout_at(deadline):
                        response = await anext(responses)
                except StopAsyncIteration:
                    break
                except TimeoutError:
                    raise _error(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed") from None
                yield response
        finally:
            await responses.aclose()
        self._context.check()


class MultiCallable:
    """A method of a stub."""

    __slots__ = ("_caller", "_path", "_service", "_streaming")

    def __init__(self, service: str, caller: str, path: str, streaming: bool) -> None:
        self._service = service
        self._caller = caller
        self._path = path
        self._streaming = streaming

    def __call__(
        self,
        request: Any = None,
        *,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        **_options: Any,
    ) -> Any:
        """Begin a call; see `grpc.aio.UnaryUnaryMultiCallable` and its three siblings."""
        handler = registry.method(self._service, self._path)
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        context = Context(self._caller, metadata, deadline)
        if handler.request_streaming:
            request = _requests(request)
            behavior = handler.stream_stream if self._streaming else handler.stream_unary
        else:
            behavior = handler.unary_stream if self._streaming else handler.unary_unary
        assert behavior is not None, f"{self._path} has another shape than its stub"
        return (StreamCall if self._streaming else SingleCall)(behavior, request, context, timeout)


class InProcessChannel:
    """What the generated stubs use of `grpc.aio.Channel`."""

    def __init__(self, service: str, caller: str) -> None:
        self._service = service
        self._caller = caller

    def unary_unary(self, path: str, *_: Any, **__: Any) -> MultiCallable:
        """Return the method at `path`; the serialisers are not needed."""
        return MultiCallable(self._service, self._caller, path, streaming=False)

    def stream_unary(self, path: str, *_: Any, **__: Any) -> MultiCallable:
        """Return the method at `path`."""
        return MultiCallable(self._service, self._caller, path, streaming=False)

    def unary_stream(self, path: str, *_: Any, **__: Any) -> MultiCallable:
        """Return the method at `path`."""
        return MultiCallable(self._service, self._caller, path, streaming=True)

    def stream_stream(self, path: str, *_: Any, **__: Any) -> MultiCallable:
        """Return the method at `path`."""
        return MultiCallable(self._service, self._caller, path, streaming=True)

    async def close(self, grace: float | None = None) -> None:
        """Do nothing: there is no connection."""

    async def channel_ready(self) -> None:
        """Return at once."""

    async def __aenter__(self) -> InProcessChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


async def _requests(requests: Any) -> AsyncIterator[Any]:
    """Give a caller's requests, of either kind of iterable, as an async iterator."""
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests or ():
            yield request


async def _nothing() -> AsyncIterator[Any]:
    nothing: tuple[Any, ...] = ()
    for item in nothing:
        yield item


def _error(code: grpc.StatusCode, details: str, trailing_metadata: Metadata = ()) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing_metadata), details=details
    )

"""The channel to another service: in this process, over a unix socket, or over TLS, whichever it is."""

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, cast

import grpc
import grpc.aio

from servicekit import tracing
from servicekit.config.schema import Config
from servicekit.grpc.credentials import AUTHORIZATION, load_token
from servicekit.grpc.in_process import InProcessChannel, registry
from servicekit.grpc.methods import REQUEST_ID
from servicekit.logging import request_id

# Which service the code that runs belongs to; `servicekit.service` sets it around each service's tasks.
current_service: ContextVar[str] = ContextVar("current_service", default="cli")

# An entry of a log is at most 1 MiB; a batch of them, or of state, a few.
MAX_MESSAGE_BYTES = 32 * 1024 * 1024
OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A service that restarts is found again soon.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
)


def channel_to(
    config: Config, service: str, *, address: str | None = None, caller: str | None = None
) -> grpc.aio.Channel:
    """Return the channel to a service. Keep it; it connects by itself, again and again.

    Args:
        config: the deployment's.
        service: such as `roomserver`.
        address: of one of several owners (`MatrixError.owner_address`); None: the service's own, in process
            if it runs
            in this one.
        caller: who calls; None: the service whose code this runs in.
    """
    own_name = caller or current_service.get()
    if address is None and registry.serves(service):
        return cast("grpc.aio.Channel", InProcessChannel(service, own_name))
    target = address or config.grpc_address(service)
    if target.startswith("unix:") or config.grpc.tls is None:
        # A unix socket has no name that fits an authority; one that every server takes stands in.
        options = [*OPTIONS, ("grpc.default_authority", "localhost")]
        inner = grpc.aio.insecure_channel(target, options=options)
    else:
        tls = config.grpc.tls
        credentials = grpc.ssl_channel_credentials(
            tls.ca_path.read_bytes(), tls.private_key_path.read_bytes(), tls.certificate_path.read_bytes()
        )
        inner = grpc.aio.secure_channel(target, credentials, options=list(OPTIONS))
    return cast("grpc.aio.Channel", _Channel(inner, load_token(config, own_name), config.grpc.deadline))


class _MultiCallable:
    """A stub's method that adds credentials, request id, trace and a deadline to each call."""

    __slots__ = ("_authorization", "_deadline", "_inner")

    def __init__(self, inner: Any, token: str, deadline: float | None) -> None:
        self._inner = inner
        self._authorization = (AUTHORIZATION, f"Bearer {token}")
        self._deadline = deadline

    def __call__(
        self,
        request: Any = None,
        *,
        timeout: float | None = None,
        metadata: Sequence[tuple[str, str | bytes]] | None = None,
        wait_for_ready: bool | None = None,
        **options: Any,
    ) -> Any:
        """Begin a call."""
        sent: list[tuple[str, str | bytes]] = [self._authorization]
        current = request_id.get()
        if current is not None:
            sent.append((REQUEST_ID, current))
        if tracing.enabled():
            headers: dict[str, str] = {}
            tracing.inject(headers)
            sent.extend(headers.items())
        if metadata:
            sent.extend(metadata)
        return self._inner(
            request,
            timeout=timeout if timeout is not None else self._deadline,
            metadata=tuple(sent),
            # A service that is being started again is waited for, within the deadline.
            wait_for_ready=wait_for_ready if wait_for_ready is not None else self._deadline is not None,
            **options,
        )


class _Channel:
    """A channel whose stubs' methods are `_MultiCallable`s; grpc's own interceptors cost a task a call."""

    def __init__(self, inner: grpc.aio.Channel, token: str, deadline: float) -> None:
        self._inner = inner
        self._token = token
        self._deadline = deadline

    def unary_unary(self, *args: Any, **kwargs: Any) -> _MultiCallable:
        return _MultiCallable(self._inner.unary_unary(*args, **kwargs), self._token, self._deadline)

    def stream_unary(self, *args: Any, **kwargs: Any) -> _MultiCallable:
        return _MultiCallable(self._inner.stream_unary(*args, **kwargs), self._token, None)

    def unary_stream(self, *args: Any, **kwargs: Any) -> _MultiCallable:
        return _MultiCallable(self._inner.unary_stream(*args, **kwargs), self._token, None)

    def stream_stream(self, *args: Any, **kwargs: Any) -> _MultiCallable:
        return _MultiCallable(self._inner.stream_stream(*args, **kwargs), self._token, None)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    async def __aenter__(self) -> "_Channel":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

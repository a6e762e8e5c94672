"""A service's connection to the log.

    connection = await LogConnection.connect(config, "clientapi")     # waits for NATS as long as it takes
    await connection.ensure_streams(first_output_sequence)            # RoomServer only
    await connection.wait_for_streams()                               # everybody else
    sequence = await connection.publish(subject, data, timeout_s=5)
    await connection.close()

How one publishes is in `publishing`. After a lost connection every publish without ack ends as `PublishTimeout`
(it may be stored or not), and the client redials for ever, waiting a little longer each time, up to
`RECONNECT_MAX_S`, with jitter.
"""

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Self

import orjson
from nats import errors as nats_errors

from servicekit.config import Config
from servicekit.log.client import LogClient
from servicekit.log.errors import LogError, LogUnavailable, NatsTooOld, PublishTimeout
from servicekit.log.publishing import Publisher
from servicekit.log.settings import LogSettings
from servicekit.log.streams import StreamInfo, check_stream, ensure_stream, load_stream
from servicekit.log.subjects import INPUT, LIVE, OUTPUT
from servicekit.logging import get_logger
from servicekit.nats_server import NatsServerError, check_nats_version

log = get_logger("servicekit.log")

CONNECT_TIMEOUT_S = 2
RECONNECT_MAX_S = 1.0
REQUEST_TIMEOUT_S = 5.0
PING_INTERVAL_S = 10


class LogConnection(Publisher):
    """See the module. Made by `connect`; belongs to the event loop it was made on."""

    def __init__(self, settings: LogSettings, service: str) -> None:
        super().__init__(LogClient(), service)
        self.settings = settings
        self._epochs: dict[str, str] = {}
        self._makes_streams = False
        self._attempt = 0
        self._last_complaint_s = 0.0
        self._on_connection_change: list[Callable[[bool], None]] = []

    # -- connecting

    @classmethod
    async def connect(cls, config: Config | LogSettings, service: str) -> Self:
        """Connect as `service`, waiting for NATS as long as it takes.

        Raises:
            NatsTooOld: the server is older than 2.12.
        """
        settings = config if isinstance(config, LogSettings) else LogSettings.from_config(config, service)
        self = cls(settings, service)
        tls = ssl.create_default_context(cafile=settings.tls_ca_path) if settings.tls_ca_path else None
        await self.nc.connect(
            list(settings.urls),
            name=f"arbor-{service}",
            user=settings.user,
            password=settings.password,
            token=settings.token,
            user_credentials=str(settings.credentials_path) if settings.credentials_path else None,
            tls=tls,
            inbox_prefix=f"_INBOX.{service}".encode(),
            connect_timeout=CONNECT_TIMEOUT_S,
            reconnect_time_wait=1,
            max_reconnect_attempts=-1,
            ping_interval=PING_INTERVAL_S,
            max_outstanding_pings=2,
            pending_size=16 * 1024 * 1024,
            skip_subject_validation=True,
            reconnect_to_server_handler=self._choose_server,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
        )
        self.nc.on_trouble = self._complain
        try:
            check_nats_version(self.nc._server_info.get("version", ""))
        except NatsServerError as error:
            await self.nc.close()
            raise NatsTooOld(str(error)) from error
        await self.nc.subscribe_raw(self._ack_prefix.decode() + "*", self._on_ack)
        self._set_connected(True)
        return self

    @property
    def partitions(self) -> int:
        """The deployment's partition count."""
        return self.settings.partitions

    def on_connection_change(self, callback: Callable[[bool], None]) -> Callable[[], None]:
        """Have `callback(connected)` called at each change; returns a function that ends this."""
        self._on_connection_change.append(callback)
        return partial(self._on_connection_change.remove, callback)

    async def flush(self) -> None:
        """Wait until the server has what was published without ack."""
        with _cancellable():
            await self.nc.flush(timeout=5)

    async def close(self) -> None:
        """Close for good. What is not acked yet ends as `PublishTimeout`."""
        if self._closed:
            return
        self._closed = True
        await self.nc.close()
        self._set_connected(False)
        self._wake.set()
        self._fail_all(PublishTimeout("the connection was closed before the ack"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _choose_server(self, servers: list[Any], info: dict[str, Any]) -> tuple[Any, float]:
        self._attempt += 1
        longest = min(RECONNECT_MAX_S, 0.05 * 2 ** min(self._attempt, 10))
        delay = random.uniform(longest / 2, longest)  # noqa: S311 - jitter
        return servers[self._attempt % len(servers)], delay

    async def _on_error(self, error: Exception) -> None:
        self._complain(error)

    def _complain(self, error: BaseException) -> None:
        # One line a second at most: a server that is down is refused many times.
        now = time.monotonic()
        if now - self._last_complaint_s >= 1 or "permissions" in str(error):
            self._last_complaint_s = now
            log.warning("nats_trouble", service=self.service, error=f"{type(error).__name__}: {error}")

    async def _on_disconnected(self) -> None:
        self.nc.drop_unsent()
        self._set_connected(False)
        self._fail_all(PublishTimeout("the connection was lost before the ack"))

    async def _on_reconnected(self) -> None:
        self._attempt = 0
        self._set_connected(True)
        log.info("nats_reconnected", service=self.service)
        # LIVE is in memory: a restarted server has none. INPUT may have been lost. OUTPUT is never made here,
        # where the first sequence that it would need is not known. Losing the connection again cancels this.
        while self._makes_streams and self.connected:
            try:
                live, _ = await ensure_stream(self.request_api, LIVE, self.settings, 1)
                await ensure_stream(self.request_api, INPUT, self.settings, 1)
            except LogError as error:
                self._complain(error)
                await asyncio.sleep(0.2)
            else:
                self._epochs[LIVE] = live.epoch
                return

    def _set_connected(self, connected: bool) -> None:
        if connected == self._connected:
            return
        self._connected = connected
        if connected or self._closed:
            self._wake.set()
        else:
            self._wake.clear()
        for callback in list(self._on_connection_change):
            callback(connected)

    # -- streams

    async def ensure_streams(self, first_output_sequence: int = 1) -> None:
        """Make what is missing of the three streams and check the rest. The RoomServer does this at its
        start.

        `first_output_sequence`: where OUTPUT begins if it has to be made, above every position handed out so
        far.

        Raises:
            StreamMismatch: a stream cannot be used with this configuration. Nothing was changed.
        """
        self._makes_streams = True
        for name, first in ((INPUT, 1), (OUTPUT, first_output_sequence), (LIVE, 1)):
            info, warnings = await ensure_stream(self.request_api, name, self.settings, first)
            self._epochs[name] = info.epoch
            for warning in warnings:
                log.warning("stream_limit_not_lowered", limit=warning)

    async def wait_for_streams(self, streams: Iterable[str] = (INPUT, OUTPUT, LIVE)) -> None:
        """Return when the streams are there and fit the configuration.

        Raises:
            StreamMismatch: one is there and does not fit.
        """
        delay_s = 0.05
        for name in streams:
            while True:
                try:
                    info = await self.load_stream(name)
                except LogUnavailable:
                    info = None
                if info is not None:
                    check_stream(info, self.settings)
                    break
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, 1.0)

    async def load_stream(self, name: str) -> StreamInfo | None:
        """Return a stream as it is now, or None where there is none; its epoch is remembered."""
        info = await load_stream(self.request_api, name)
        if info is not None:
            self._epochs[name] = info.epoch
        return info

    def epoch(self, stream: str) -> str:
        """Return the epoch of a stream as last seen.

        Raises KeyError before `ensure_streams`/`wait_for_streams`.
        """
        return self._epochs[stream]

    async def request_api(
        self, subject: str, body: dict[str, Any], timeout_s: float = REQUEST_TIMEOUT_S
    ) -> dict[str, Any]:
        """Send a request to the JetStream API and return its answer.

        Raises:
            LogUnavailable: no answer.
        """
        try:
            with _cancellable():
                async with asyncio.timeout(timeout_s):
                    message = await self.nc.request(
                        f"$JS.API.{subject}", orjson.dumps(body), timeout=timeout_s
                    )
        except (TimeoutError, nats_errors.Error) as error:
            raise LogUnavailable(f"{subject}: {error or 'no answer'}") from error
        answer: dict[str, Any] = orjson.loads(message.data)
        return answer

    async def load_last(self, stream: str, subject_filter: str) -> dict[str, Any] | None:
        """Return the last stored message under a filter, from the stream's leader; None: there is none.

        As JetStream gives it: `seq`, `subject`, `data` and `hdrs` in Base64, `time`.
        """
        return await self._load_message(stream, {"last_by_subj": subject_filter})

    async def load_next(self, stream: str, subject_filter: str, sequence: int) -> dict[str, Any] | None:
        """Return the first stored message under a filter at or after a sequence, as `load_last`."""
        return await self._load_message(stream, {"seq": sequence, "next_by_subj": subject_filter})

    async def _load_message(self, stream: str, body: dict[str, Any]) -> dict[str, Any] | None:
        answer = await self.request_api(f"STREAM.MSG.GET.{stream}", body)
        error = answer.get("error")
        if error is None:
            message: dict[str, Any] = answer["message"]
            return message
        if error.get("err_code") == 10037:
            return None
        if error.get("err_code") == 10059:
            raise LogUnavailable(f"there is no stream {stream}")
        raise LogUnavailable(f"stream {stream}: {error.get('description')}")


@contextlib.contextmanager
def _cancellable() -> Iterator[None]:
    """Be cancelled after all: before Python 3.12 `asyncio.wait_for`, by which the client waits, forgets a
    cancellation that comes together with what it waits for, and whoever stops a task waits for ever.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    yield
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError

"""A service's connection to the log.

    connection = await LogConnection.connect(config, "clientapi")     # waits for NATS as long as it takes
    await connection.ensure_streams(first_output_sequence)            # RoomServer only
    await connection.wait_for_streams()                               # everybody else
    sequence = await connection.publish(subject, data, timeout_s=5)
    await connection.close()

Publishing is pipelined: `publish_nowait` returns a future, `publish_callback` is the cheapest form. One
subscription takes all acks. After a lost connection every publish without ack ends as `PublishTimeout` (it
may be stored or not), and the client redials for ever, waiting a little longer each time, up to
`RECONNECT_MAX_S`, with jitter.
"""

import asyncio
import contextlib
import random
import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Self

import msgspec
import orjson
from nats import errors as nats_errors
from nats.nuid import NUID

from servicekit.config import Config
from servicekit.log.client import LogClient, encode_headers, status_of
from servicekit.log.errors import (
    LogError,
    LogFull,
    LogUnavailable,
    MessageTooLarge,
    NatsTooOld,
    PublishRefused,
    PublishTimeout,
)
from servicekit.log.settings import LogSettings
from servicekit.log.streams import StreamInfo, check_stream, ensure_stream, load_stream
from servicekit.log.subjects import INPUT, LIVE, OUTPUT
from servicekit.logging import get_logger
from servicekit.nats_server import NatsServerError, check_nats_version

log = get_logger("servicekit.log")

CONNECT_TIMEOUT_S = 2
RECONNECT_MAX_S = 1.0
REQUEST_TIMEOUT_S = 5.0
PUBLISH_TIMEOUT_S = 5.0
PING_INTERVAL_S = 10
BATCH_MAX_MESSAGES = 500

WRONG_LAST_SEQUENCE = (10071, 10164)
LOG_FULL = (10047, 10077, 10122)
TOO_LARGE = (10054, 10097)

OnPublished = Callable[[int, LogError | None], None]
"""Called once with (stream sequence, None) or (0, error)."""
BatchMessage = tuple[str, bytes, Mapping[str, str] | None]
"""(subject, data, headers)."""


class _AckError(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    seq: int = 0
    error: _AckError | None = None


class LogConnection:
    """See the module. Made by `connect`; belongs to the event loop it was made on."""

    def __init__(self, settings: LogSettings, service: str) -> None:
        self.settings = settings
        self.service = service
        self.instance = NUID().next().decode()
        self.nc = LogClient()
        self._epochs: dict[str, str] = {}
        self._makes_streams = False
        self._connected = False
        self._wake = asyncio.Event()  # set while connected, and when closed for good
        self._closed = False
        self._attempt = 0
        self._last_complaint_s = 0.0
        self._on_connection_change: list[Callable[[bool], None]] = []
        self._acks: dict[bytes, tuple[OnPublished, asyncio.TimerHandle]] = {}
        self._ack_no = 0
        self._ack_prefix = f"_INBOX.{service}.{self.instance}.a.".encode()
        self._decode_ack = msgspec.json.Decoder(_Ack).decode

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
    def connected(self) -> bool:
        """Whether NATS can be reached just now."""
        return self._connected

    @property
    def partitions(self) -> int:
        """The deployment's partition count."""
        return self.settings.partitions

    async def wait_connected(self) -> None:
        """Return when there is a connection.

        Raises:
            LogUnavailable: this connection was closed for good.
        """
        while not self._connected:
            if self._closed:
                raise LogUnavailable("the connection to the log is closed")
            await self._wake.wait()

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

    # -- publishing

    def publish_core(self, subject: str, data: bytes) -> bool:
        """Publish without ack to whoever listens now (verdicts).

        Returns False, sending nothing, while disconnected.
        """
        if not self._connected:
            return False
        self.nc.send(b"PUB %s %d\r\n%s\r\n" % (subject.encode(), len(data), data))
        return True

    def publish_callback(
        self,
        subject: str,
        data: bytes,
        on_done: OnPublished,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = PUBLISH_TIMEOUT_S,
    ) -> None:
        """Publish; `on_done(sequence, error)` is called once, later or (while disconnected) at once."""
        if not self._connected:
            on_done(0, LogUnavailable("there is no connection to the log"))
            return
        if len(data) > self.nc.max_payload:
            on_done(0, MessageTooLarge(f"{len(data)} bytes are more than a message may have"))
            return
        ack_id = self._expect_ack(on_done, timeout_s)
        self.nc.send(_publish_command(subject, self._ack_prefix + ack_id, data, headers))

    def publish_batch(
        self,
        messages: list[BatchMessage],
        on_done: OnPublished,
        *,
        timeout_s: float = PUBLISH_TIMEOUT_S,
    ) -> None:
        """Publish 1 to 500 messages as one atomic batch: all are stored, one after the other, or none.

        `on_done` gets the last message's sequence. An expected last sequence belongs on the first message.
        """
        if not 0 < len(messages) <= BATCH_MAX_MESSAGES:
            raise ValueError(f"a batch has 1 to {BATCH_MAX_MESSAGES} messages, not {len(messages)}")
        if not self._connected:
            on_done(0, LogUnavailable("there is no connection to the log"))
            return
        ack_id = self._expect_ack(on_done, timeout_s)
        reply = self._ack_prefix + ack_id
        batch_id = f"{self.instance}{ack_id.decode()}"
        last = len(messages)
        for number, (subject, data, headers) in enumerate(messages, 1):
            batch = {**(headers or {}), "Nats-Batch-Id": batch_id, "Nats-Batch-Sequence": str(number)}
            if number == last:
                batch["Nats-Batch-Commit"] = "1"
            # Only the first and the last are answered; an error of the first ends the batch at once.
            self.nc.send(_publish_command(subject, reply if number in (1, last) else b"", data, batch))

    def publish_nowait(
        self,
        subject: str,
        data: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float = PUBLISH_TIMEOUT_S,
    ) -> "asyncio.Future[int]":
        """Publish; the future gets the stream sequence or a LogError.

        Await it, or its error is reported as unseen.
        """
        future = asyncio.get_running_loop().create_future()
        self.publish_callback(subject, data, partial(_resolve, future), headers=headers, timeout_s=timeout_s)
        return future

    async def publish(
        self,
        subject: str,
        data: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float = PUBLISH_TIMEOUT_S,
    ) -> int:
        """Publish and return the stream sequence once it is stored.

        Raises:
            LogUnavailable: no connection within `timeout_s`, or no stream; nothing was stored.
            PublishTimeout: no ack within `timeout_s`, or the connection broke; it may be stored.
            PublishRefused: the stream refused it (`LogFull`, `MessageTooLarge`, a fence); nothing was stored.
        """
        if not self._connected:
            started = time.monotonic()
            try:
                async with asyncio.timeout(timeout_s):
                    await self.wait_connected()
            except TimeoutError as error:
                raise LogUnavailable("there is no connection to the log") from error
            timeout_s = max(timeout_s - (time.monotonic() - started), 0.01)
        return await self.publish_nowait(subject, data, headers, timeout_s=timeout_s)

    def _expect_ack(self, on_done: OnPublished, timeout_s: float) -> bytes:
        self._ack_no += 1
        ack_id = b"%d" % self._ack_no
        timer = asyncio.get_running_loop().call_later(timeout_s, self._on_timeout, ack_id)
        self._acks[ack_id] = (on_done, timer)
        return ack_id

    def _on_ack(self, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        ack_id = subject[len(self._ack_prefix) :]
        if not data:
            # Empty: "no responders", or the receipt of a batch's first message, which is not yet stored.
            code, text = status_of(headers)
            if code and (waiting := self._acks.pop(ack_id, None)):
                waiting[1].cancel()
                waiting[0](0, LogUnavailable(f"no stream takes it ({code} {text})".rstrip()))
            return
        waiting = self._acks.pop(ack_id, None)
        if waiting is None:
            return  # too late: its sender was told that nobody knows
        on_done, timer = waiting
        timer.cancel()
        ack = self._decode_ack(data)
        if ack.error is None:
            on_done(ack.seq, None)
        else:
            on_done(0, _refusal(ack.error))

    def _on_timeout(self, ack_id: bytes) -> None:
        waiting = self._acks.pop(ack_id, None)
        if waiting is not None:
            waiting[0](0, PublishTimeout("no ack in time"))

    def _fail_all(self, error: LogError) -> None:
        waiting, self._acks = self._acks, {}
        for on_done, timer in waiting.values():
            timer.cancel()
            on_done(0, error)


def _publish_command(subject: str, reply: bytes, data: bytes, headers: Mapping[str, str] | None) -> bytes:
    if not headers:
        return b"PUB %s %s %d\r\n%s\r\n" % (subject.encode(), reply, len(data), data)
    block = encode_headers(headers)
    size = len(block)
    return b"HPUB %s %s %d %d\r\n%s%s\r\n" % (subject.encode(), reply, size, size + len(data), block, data)


def _refusal(error: _AckError) -> LogError:
    text = f"{error.description} ({error.err_code})"
    if error.err_code in WRONG_LAST_SEQUENCE:
        found = re.search(r"(\d+)$", error.description)
        return PublishRefused(text, fence=True, actual=int(found[1]) if found else None, code=error.err_code)
    if error.err_code in LOG_FULL:
        return LogFull(text, code=error.err_code)
    if error.err_code in TOO_LARGE:
        return MessageTooLarge(text, code=error.err_code)
    if error.code >= 500:
        return LogUnavailable(text)
    return PublishRefused(text, code=error.err_code)


def _resolve(future: "asyncio.Future[int]", sequence: int, error: LogError | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(sequence)
    else:
        future.set_exception(error)


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

"""Publishing with acks, pipelined: one subscription takes them all.

    publisher.publish_callback(subject, data, on_done)     # the cheapest form
    sequence = await publisher.publish(subject, data)      # waits for a connection, too

`LogConnection` is one; it says when there is a connection, and ends what has no ack when it is lost.
"""

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from functools import partial

import msgspec
from nats.nuid import NUID

from servicekit.log.client import LogClient, encode_headers, status_of
from servicekit.log.errors import (
    LogError,
    LogFull,
    LogUnavailable,
    MessageTooLarge,
    PublishRefused,
    PublishTimeout,
)

PUBLISH_TIMEOUT_S = 5.0
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


class Publisher:
    """See the module.

    Args:
        nc: the client; connected by whoever makes this a connection.
        service: whose inbox the acks come to.
    """

    def __init__(self, nc: LogClient, service: str) -> None:
        self.nc = nc
        self.service = service
        self.instance = NUID().next().decode()
        self._connected = False
        self._wake = asyncio.Event()  # set while connected, and when closed for good
        self._closed = False
        self._acks: dict[bytes, tuple[OnPublished, asyncio.TimerHandle]] = {}
        self._ack_no = 0
        self._ack_prefix = f"_INBOX.{service}.{self.instance}.a.".encode()
        self._decode_ack = msgspec.json.Decoder(_Ack).decode

    @property
    def connected(self) -> bool:
        """Whether NATS can be reached just now."""
        return self._connected

    async def wait_connected(self) -> None:
        """Return when there is a connection.

        Raises:
            LogUnavailable: this connection was closed for good.
        """
        while not self._connected:
            if self._closed:
                raise LogUnavailable("the connection to the log is closed")
            await self._wake.wait()

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

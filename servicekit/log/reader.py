"""Reading a stream from a position on, in batches, through whatever happens to NATS.

    reader = LogReader(connection, "OUTPUT", ["room.output.>"], after=position)
    async for batch in reader.batches(max_messages=300):
        ...                                   # all that was there; idle, one message as soon as it comes

    position ──► consumer opened at position + 1 ──► pull requests kept outstanding ──► buffer ──► batches
                        ▲                                                                  │
                        └─ opened anew: reconnect, missed heartbeat, consumer gone, gap ◄──┘

A reader with filters reads along with one of the same process that reads everything, if there is one
(`reading_along`); it has a consumer of its own until it has caught up, and again while the other is in trouble.

The consumer is ephemeral and without acks: the position is the caller's, stored with what it did. Memory is
bounded: nothing more is asked for while the caller does not take what is there.

A position moves over sequences that the filter skips (`through`), every `SKIP_CHECK_S` while nothing comes.
What cannot be gone on from raises `PositionTooOld`, `PositionAhead` or `EpochChanged`. A stream made anew
begins above every earlier position (`first_seq`); a reader that stands exactly before its first sequence has
missed nothing and goes on. LIVE is read with `after=None`: from what is there now, without position; a batch
without messages and with another epoch says that it was made anew.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

import orjson

from servicekit.log.client import decode_headers, status_of
from servicekit.log.connection import LogConnection
from servicekit.log.errors import EpochChanged, LogUnavailable, PositionAhead, PositionLost, PositionTooOld
from servicekit.log.reading_along import Lead, leads
from servicekit.log.streams import StreamInfo, check_stream
from servicekit.log.subjects import STREAM_SUBJECTS
from servicekit.logging import get_logger

log = get_logger("servicekit.log")

PULL_MESSAGES = 256
PULL_MAX_BYTES = 4 * 1024 * 1024
PULL_EXPIRES_S = 30
PULLS_OUTSTANDING = 2
ALONG_MESSAGES = 4 * PULL_MESSAGES
ALONG_MAX_BYTES = 4 * PULL_MAX_BYTES
IDLE_HEARTBEAT_S = 2.0
MISSED_HEARTBEAT_S = 2.5 * IDLE_HEARTBEAT_S
INACTIVE_THRESHOLD_S = 60
SKIP_CHECK_S = 20.0
RETRY_MAX_S = 1.0


class LogMessage:
    """One message of a stream. `headers` and `time_ms` are decoded when they are asked for."""

    __slots__ = ("_block", "_headers", "_time_ns", "data", "sequence", "subject")

    def __init__(self, sequence: int, subject: str, data: bytes, block: bytes | None, time_ns: bytes) -> None:
        self.sequence = sequence
        self.subject = subject
        self.data = data
        self._block = block
        self._time_ns = time_ns
        self._headers: dict[str, str] | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The message's headers; empty where it has none."""
        if self._headers is None:
            self._headers = decode_headers(self._block)
        return self._headers

    @property
    def time_ms(self) -> int:
        """When the stream stored it, in milliseconds since 1970."""
        return int(self._time_ns) // 1_000_000

    def __repr__(self) -> str:
        return f"<LogMessage {self.sequence} {self.subject} {len(self.data)} bytes>"


class Batch(NamedTuple):
    """Messages in stream order (maybe none), and the sequence up to which everything was seen or skipped."""

    messages: list[LogMessage]
    through: int
    epoch: str


class LogReader:
    """See the module.

    Args:
        connection: of a service that may read the stream.
        stream: `INPUT`, `OUTPUT` or `LIVE`.
        subjects: filters, such as `room.output.>`; empty: everything in the stream.
        after: the last sequence that the caller has applied; 0: none yet. None: no position (LIVE).
        epoch: the stream's epoch in which `after` was stored; None: never stored.
    """

    def __init__(
        self,
        connection: LogConnection,
        stream: str,
        subjects: Sequence[str] = (),
        *,
        after: int | None = 0,
        epoch: str | None = None,
    ) -> None:
        self.stream = stream
        self.position = after or 0
        """The last sequence given out, or skipped."""
        self.epoch = epoch
        self.last_sequence = 0
        """The stream's last sequence as far as is known: what lag is counted from."""
        self.reopened = 0
        """How often the consumer was opened again."""
        self._connection = connection
        self._subjects = list(subjects)
        self._filtered = bool(subjects) and set(subjects) != set(STREAM_SUBJECTS.get(stream, ()))
        self._tracked = after is not None
        # What subjects that are read begin with; empty: that cannot be said.
        self._prefixes = tuple(subject[:-1] for subject in self._subjects if subject.endswith(".>"))
        if not self._tracked or len(self._prefixes) < len(self._subjects):
            self._prefixes = ()
        # What this reader tells others, and with which other it reads along.
        self._lead: Lead | None = None
        self._along: Lead | None = None
        self._buffer: deque[LogMessage] = deque()
        self._buffered_bytes = 0
        self._fetched = self.position  # the last sequence put into the buffer or skipped
        self._wake = asyncio.Event()
        self._sid: int | None = None
        self._consumer = ""
        self._inbox = ""
        self._consumer_sequence = 0
        self._pulls: deque[list[int]] = deque()  # [request number, messages it may still bring]
        self._pull_no = 0
        self._broken: str | None = None
        self._nudged = False
        self._heard_s = 0.0
        self._skip_checked_s = 0.0

    async def batches(self, max_messages: int = 300) -> AsyncGenerator[Batch, None]:
        """Yield what is there, up to `max_messages` at a time, for ever.

        Raises:
            PositionTooOld, PositionAhead, EpochChanged: going on would leave a hole.
            StreamMismatch: the stream does not fit the configuration.
        """
        stop_listening = self._connection.on_connection_change(self._on_connection_change)
        delay_s = 0.02
        try:
            while True:
                if self._buffer:
                    batch = self._take(max_messages)
                    self._pull()
                    yield batch
                    continue
                if (self._sid is None and self._along is None) or self._broken is not None:
                    moved = self.position
                    try:
                        await self._open()
                    except LogUnavailable as error:
                        log.warning("log_reader_waits", stream=self.stream, error=str(error))
                        await asyncio.sleep(delay_s)
                        delay_s = min(delay_s * 2, RETRY_MAX_S)
                        continue
                    delay_s = 0.02
                    if self.position != moved and not self._buffer:
                        yield Batch([], self.position, self.epoch or "")
                    continue
                await self._wait()
                if self._buffer or self._broken is not None:
                    continue
                if await self._skip() or self._nudged:
                    self._nudged = False
                    yield Batch([], self.position, self.epoch or "")
        finally:
            stop_listening()
            self._close()

    def nudge(self) -> None:
        """Yield a batch soon, an empty one if nothing comes."""
        self._nudged = True
        self._wake.set()

    # -- taking

    def _take(self, max_messages: int) -> Batch:
        self._nudged = False
        buffer = self._buffer
        if len(buffer) <= max_messages:
            messages = list(buffer)
            buffer.clear()
            self.position = self._fetched
            self._buffered_bytes = 0
        else:
            messages = [buffer.popleft() for _ in range(max_messages)]
            self.position = messages[-1].sequence
            self._buffered_bytes -= sum(len(message.data) for message in messages)
        return Batch(messages, self.position, self.epoch or "")

    async def _wait(self) -> None:
        """Return when there is something to take, or the consumer is broken, or it is time to look around."""
        self._wake.clear()
        if self._buffer or self._broken is not None or self._nudged:
            return
        if self._along is None and self._filtered and self._prefixes and self._read_along():
            return
        heard_s = self._heard_s if self._along is None else self._along.heard_s
        patience_s = heard_s + MISSED_HEARTBEAT_S - time.monotonic()
        if patience_s <= 0:
            self._break("missed heartbeats")
            return
        # A bare timer is a fourth of the price of `asyncio.timeout`, and this is the idle path of every
        # message.
        timer = asyncio.get_running_loop().call_later(patience_s, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    async def _skip(self) -> bool:
        """Now and then, while nothing comes through a filter: move over what it skips.

        True if the position moved.
        """
        now = time.monotonic()
        if not (self._filtered and self._tracked) or now - self._skip_checked_s < SKIP_CHECK_S:
            return False
        self._skip_checked_s = now
        if self._along is not None:
            moved = not self._buffer and self._fetched > self.position
            if moved:
                self.position = self._fetched
            return moved
        try:
            # In this order: what the stream had before the consumer said "nothing pending" is surely skipped.
            info = await self._connection.load_stream(self.stream)
            answer = await self._connection.request_api(f"CONSUMER.INFO.{self.stream}.{self._consumer}", {})
        except LogUnavailable:
            return False
        if info is None or "error" in answer or self._buffer or self._broken is not None:
            return False
        all_here = answer["delivered"]["consumer_seq"] == self._consumer_sequence
        if answer["num_pending"] or not all_here or info.last_sequence <= self.position:
            return False
        self.last_sequence = self.position = self._fetched = info.last_sequence
        return True

    # -- the consumer

    async def _open(self) -> None:
        reason, self._broken = self._broken, None
        if self._sid is not None or self._along is not None:
            self.reopened += 1
            log.info("log_reader_reopens", stream=self.stream, after=self.position, reason=reason)
        self._close()
        await self._connection.wait_connected()
        info = await self._connection.load_stream(self.stream)
        if info is None:
            raise LogUnavailable(f"there is no stream {self.stream}")
        check_stream(info, self._connection.settings)
        if self._tracked:
            self._check_position(info)
        elif info.epoch != self.epoch:
            self.position = self._fetched = 0
        self.epoch = info.epoch
        self.last_sequence = max(info.last_sequence, self.position)
        # An empty stretch before the first sequence (the stream was made to begin there) is skipped at once.
        self.position = max(self.position, info.created_first_sequence - 1)
        self._fetched = self.position
        self._consumer_sequence = 0
        self._pulls.clear()
        self._pull_no += 1
        number = f"{self._connection.instance}{id(self) & 0xFFFFFF:x}{self._pull_no}"
        self._consumer = f"{self._connection.service}-{number}"
        self._inbox = f"_INBOX.{self._connection.service}.{number}"
        self._sid = await self._connection.nc.subscribe_raw(f"{self._inbox}.*", self._on_message)
        config = {
            "name": self._consumer,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self.position + 1,
            "ack_policy": "none",
            "replay_policy": "instant",
            "inactive_threshold": INACTIVE_THRESHOLD_S * 10**9,
            "mem_storage": True,
            "num_replicas": 1,
            "filter_subjects": self._subjects,
        }
        answer = await self._connection.request_api(
            f"CONSUMER.CREATE.{self.stream}.{self._consumer}", {"stream_name": self.stream, "config": config}
        )
        if "error" in answer:
            raise LogUnavailable(f"no consumer on {self.stream}: {answer['error'].get('description')}")
        if answer["num_pending"] == 0 and self._tracked and info.last_sequence > self.position:
            self.position = self._fetched = info.last_sequence  # all of it is skipped by the filter
        self._heard_s = self._skip_checked_s = time.monotonic()
        self._pull()

    def _check_position(self, info: StreamInfo) -> None:
        """Refuse to go on from a position that would leave a hole."""
        after, first = self.position, info.first_sequence
        if self.epoch is not None and self.epoch != info.epoch:
            if after != info.created_first_sequence - 1:
                raise self._lost(
                    EpochChanged,
                    info,
                    f"was made anew (epoch {info.epoch}, begins at {info.created_first_sequence}); what stood"
                    f" after {after} in epoch {self.epoch} may not have been read",
                )
        elif after > max(info.last_sequence, info.created_first_sequence - 1):
            raise self._lost(PositionAhead, info, f"ends at {info.last_sequence}, before position {after}")
        # What the stream never had (before the sequence it was made to begin with) is not missed.
        if first > max(after + 1, info.created_first_sequence):
            raise self._lost(PositionTooOld, info, f"begins at {first}: entries after {after} are gone")

    def _lost(self, kind: type[PositionLost], info: StreamInfo, text: str) -> PositionLost:
        return kind(
            f"{self.stream} {text}",
            stream=self.stream,
            after=self.position,
            first_sequence=info.first_sequence,
            epoch=info.epoch,
        )

    def _close(self) -> None:
        """End the consumer, or the reading along. What is in the buffer is good, but the next one begins after
        what was given out, so it is dropped.
        """
        self._end_lead()
        if self._along is not None:
            self._along.leave(self)
            self._along = None
        self._drop_consumer()
        self._buffer.clear()
        self._buffered_bytes = 0
        self._fetched = self.position

    def _drop_consumer(self) -> None:
        if self._sid is None:
            return
        self._connection.nc.unsubscribe_raw(self._sid)
        self._sid = None
        self._pulls.clear()
        self._connection.publish_core(f"$JS.API.CONSUMER.DELETE.{self.stream}.{self._consumer}", b"")

    def _pull(self) -> None:
        """Keep pull requests outstanding while the buffer has room."""
        if self._along is not None or self._broken is not None or not self._connection.connected:
            return
        if not self._pulls:
            self._heard_s = time.monotonic()  # nothing was asked for, so nothing could be heard
        while len(self._pulls) < PULLS_OUTSTANDING and (
            len(self._buffer) < PULL_MESSAGES and self._buffered_bytes < PULL_MAX_BYTES
        ):
            self._pull_no += 1
            self._pulls.append([self._pull_no, PULL_MESSAGES])
            body = orjson.dumps(
                {
                    "batch": PULL_MESSAGES,
                    "max_bytes": PULL_MAX_BYTES,
                    "expires": PULL_EXPIRES_S * 10**9,
                    "idle_heartbeat": int(IDLE_HEARTBEAT_S * 1e9),
                }
            )
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{self._consumer}"
            self._connection.nc.send(
                b"PUB %s %s.%d %d\r\n%s\r\n"
                % (subject.encode(), self._inbox.encode(), self._pull_no, len(body), body)
            )
        if not self._pulls:
            self._end_lead()  # those who read along must not wait until this one has taken what is there
        elif self._lead is None and self._tracked and not self._filtered:
            self._lead = leads[self.stream, self.epoch or ""] = Lead(self._fetched)
            self._lead.heard_s = self._heard_s

    # -- reading along

    def _end_lead(self) -> None:
        lead, self._lead = self._lead, None
        if lead is not None:
            if leads.get((self.stream, self.epoch or "")) is lead:
                del leads[self.stream, self.epoch or ""]
            lead.end()

    def _read_along(self) -> bool:
        """Give the consumer up for what another reader of this process is told, if that has no gap."""
        lead = leads.get((self.stream, self.epoch or ""))
        if lead is None or not lead.join(self, self._fetched):
            return False
        self._along = lead
        self._drop_consumer()
        return True

    def on_told(self, message: LogMessage) -> None:
        """See `reading_along.Along`."""
        if message.sequence <= self._fetched or self._broken is not None:
            return
        self._fetched = message.sequence
        if not message.subject.startswith(self._prefixes):
            return
        self.last_sequence = max(self.last_sequence, message.sequence)
        self._buffer.append(message)
        self._buffered_bytes += len(message.data)
        self._wake.set()
        if len(self._buffer) > ALONG_MESSAGES or self._buffered_bytes > ALONG_MAX_BYTES:
            self._break("it is far behind the reader that it reads along with")

    def on_lead_ended(self) -> None:
        """See `reading_along.Along`."""
        self._break("the reader that it read along with has ended, or is in trouble")

    def _break(self, reason: str) -> None:
        if self._broken is None:
            self._broken = reason
        self._end_lead()
        self._wake.set()

    def _on_connection_change(self, connected: bool) -> None:
        if self._sid is not None:
            self._break("the connection was lost")

    def _on_message(self, subject: bytes, reply: bytes, data: bytes, block: bytes | None) -> None:
        self._heard_s = time.monotonic()
        if self._broken is not None:
            return
        if self._lead is not None:
            self._lead.heard_s = self._heard_s
        if not reply.startswith(b"$JS.ACK."):
            self._on_status(subject, block)
            return
        # $JS.ACK.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<time>.<pending>, since 2.?
        # also with two tokens more in front (domain, account) and a random one behind.
        tokens = reply.split(b".")
        base = 2 if len(tokens) == 9 else 4
        sequence = int(tokens[base + 3])
        consumer_sequence = int(tokens[base + 4])
        if consumer_sequence != self._consumer_sequence + 1 or sequence <= self._fetched:
            self._break(f"a gap: consumer sequence {consumer_sequence} after {self._consumer_sequence}")
            return
        self._consumer_sequence = consumer_sequence
        self._fetched = sequence
        if sequence > self.last_sequence:
            self.last_sequence = sequence
        message = LogMessage(sequence, subject.decode(), data, block, tokens[base + 5])
        self._buffer.append(message)
        self._buffered_bytes += len(data)
        if self._pulls:
            pull = self._pulls[0]
            pull[1] -= 1
            if pull[1] <= 0:
                self._pulls.popleft()
                self._pull()
        self._wake.set()
        if self._lead is not None:
            self._lead.tell(message)

    def _on_status(self, subject: bytes, block: bytes | None) -> None:
        code, text = status_of(block)
        if code == 100:
            delivered = decode_headers(block).get("Nats-Last-Consumer")
            if delivered is not None and int(delivered) > self._consumer_sequence:
                self._break(f"a gap: {delivered} were sent, {self._consumer_sequence} came")
            return
        lowered = text.lower()
        if code in (404, 408) or (code == 409 and ("batch completed" in lowered or "maxbytes" in lowered)):
            number = int(subject.rpartition(b".")[2])
            for pull in self._pulls:
                if pull[0] == number:
                    self._pulls.remove(pull)
                    break
            self._pull()
            return
        # 409 consumer deleted, leadership change, server shutdown; 503 no responders; what else there may be.
        self._break(f"{code} {text}")

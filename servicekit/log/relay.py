"""Publishing the outbox: in order within a partition, partitions side by side, each message once.

    relay = OutboxRelay(connection, "roomserver", kind="room.output")
    group.create_task(relay.run())
    await relay.adopt(partition, epoch, progress, entries)       # after taking the lease
    published = await relay.publish(entries)                     # after a commit
    relay.deletable()  ->  Outbox.delete_through in the next transaction  ->  relay.deleted(...)

A lane per partition:

    queue ──► in flight: one message, or (if many wait) all lanes in one atomic batch ──► published
                 │ timeout, refused fence, no connection, start, handover
                 ▼
              in doubt ──► read the partition's last entry from the stream's leader ──► drop what is there, go
              on

Fenced (`kind` given): each publish expects the partition's last sequence, so no second owner and no late
repeat of our own can come in between; whoever finds a later owner's entry has lost the partition
(`OwnershipLost`). Unfenced, for services of which several processes write under the same subjects: in doubt
the message is published again, and readers drop the second by its number.
"""

import asyncio
from base64 import b64decode
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

from servicekit import metrics
from servicekit.log.applying import EPOCH_HEADER, OUTPUT_NO_HEADER, WRITER_HEADER
from servicekit.log.client import decode_headers
from servicekit.log.connection import LogConnection
from servicekit.log.errors import LogError, LogUnavailable, OwnershipLost, PublishRefused
from servicekit.log.faultpoints import fault_point
from servicekit.log.outbox import OutboxEntry, Published
from servicekit.log.publishing import BATCH_MAX_MESSAGES, BatchMessage
from servicekit.log.subjects import OUTPUT, partition_filter
from servicekit.logging import get_logger

log = get_logger("servicekit.log")

# An atomic batch waits 5 ms and costs the server 2.5 ms of CPU whatever its size; a message on its own costs
# it 0.2 ms, and in one lane they go one after the other. So a batch is better from about here:
BATCH_FROM = 16
BATCH_FROM_IN_LANE = 9
BATCH_MAX_BYTES = 8 * 1024 * 1024
RETRY_MIN_S = 0.02
RETRY_MAX_S = 2.0
WALK_LIMIT = 5000

_doubts = metrics.counter("log_relay_doubts", "Times the relay had to ask what is stored", ["service"])
_queued = metrics.gauge("log_relay_queued", "Messages committed and not yet published", ["service"])

LoadMissing = Callable[[int, int, int], Awaitable[list[OutboxEntry]]]
"""(partition, after, before) -> the stored entries numbered in between."""


class _Ticket:
    """One call of `publish`: done when all its entries are."""

    __slots__ = ("future", "left", "published")

    def __init__(self, count: int) -> None:
        self.left = count
        self.published: list[Published] = []
        self.future: asyncio.Future[list[Published]] = asyncio.get_running_loop().create_future()

    def add(self, published: Published) -> None:
        self.published.append(published)
        self.left -= 1
        if self.left == 0 and not self.future.done():
            self.future.set_result(self.published)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # seen: not everybody who publishes waits


class _Lane:
    """One partition."""

    __slots__ = (
        "doubt",
        "epoch",
        "in_flight",
        "partition",
        "published",
        "queue",
        "retry_s",
        "round",
        "tail_no",
    )

    def __init__(self, partition: int, epoch: int, published: Published) -> None:
        self.partition = partition
        self.epoch = epoch
        self.published = published  # the last one; its sequence is what the fence expects
        self.tail_no = published.output_no  # the last number queued
        self.queue: deque[tuple[OutboxEntry, _Ticket]] = deque()
        self.in_flight = 0
        self.doubt = True
        self.retry_s = RETRY_MIN_S


class OutboxRelay:
    """See the module.

    Args:
        connection: of the writing service.
        writer: the name it numbers under (header `Arbor-Writer`).
        kind: fence over `<kind>.<partition>.>`; None: unfenced.
        load_missing: for unfenced writers with several processes on one database: entries that another
        process
            committed before ours are published first, for readers drop what comes after a higher number.
    """

    def __init__(
        self,
        connection: LogConnection,
        writer: str,
        *,
        kind: str | None = None,
        load_missing: LoadMissing | None = None,
        stream: str = OUTPUT,
    ) -> None:
        self._connection = connection
        self._writer = writer
        self._kind = kind
        self._load_missing = load_missing
        self._stream = stream
        self._lanes: dict[int, _Lane] = {}
        self._doubtful: asyncio.Event = asyncio.Event()
        self._deletable: dict[int, Published] = {}
        self._doubts = _doubts.labels(connection.service)
        _queued.labels(connection.service).set_function(lambda: self.queued)

    @property
    def queued(self) -> int:
        """Messages committed and not yet known as published."""
        return sum(len(lane.queue) for lane in self._lanes.values())

    async def run(self) -> None:
        """Clear up doubts, for ever. Belongs into the service's TaskGroup."""
        while True:
            await self._doubtful.wait()
            self._doubtful.clear()
            for lane in list(self._lanes.values()):
                if lane.doubt and not lane.in_flight and self._lanes.get(lane.partition) is lane:
                    await self._settle(lane)

    def adopt(
        self, partition: int, epoch: int, progress: Published | None, entries: Sequence[OutboxEntry] = ()
    ) -> "asyncio.Future[list[Published]]":
        """Begin with a partition: its lease is ours, `entries` are all that its outbox holds, by number.

        `progress` is the last one known as published. Awaiting the result waits until all `entries` are; the
        first thing that happens is to look what the stream has.
        """
        self.release(partition)
        lane = _Lane(partition, epoch, progress or Published(partition, 0, 0))
        self._lanes[partition] = lane
        ticket = _Ticket(len(entries))
        if entries:
            lane.queue.extend((entry, ticket) for entry in entries)
            lane.tail_no = entries[-1].output_no
        else:
            ticket.future.set_result([])
        self._doubtful.set()
        return ticket.future

    def release(self, partition: int) -> None:
        """End with a partition: what is queued fails with `OwnershipLost`."""
        lane = self._lanes.pop(partition, None)
        if lane is not None:
            self._deletable.pop(partition, None)
            self._fail(lane, OwnershipLost(partition, "released"))

    def publish(self, entries: Iterable[OutboxEntry]) -> "asyncio.Future[list[Published]]":
        """Publish committed entries, each partition's by number; await it for where they stand, in order of
        ack.

        The wait lasts as long as NATS is away.

        Raises:
            OwnershipLost: (when awaited) an entry's partition is not ours, or another owner published in it.
        """
        entries = list(entries)
        ticket = _Ticket(len(entries))
        if not entries:
            ticket.future.set_result([])
        touched: dict[int, _Lane] = {}
        for entry in entries:
            lane = touched.get(entry.partition) or self._lanes.get(entry.partition)
            if lane is None:
                if self._kind is not None:
                    ticket.fail(OwnershipLost(entry.partition, "not adopted"))
                    continue
                lane = _Lane(entry.partition, entry.epoch, Published(entry.partition, 0, 0))
                lane.doubt = self._load_missing is not None
                self._lanes[entry.partition] = lane
            elif entry.output_no != lane.tail_no + 1 and self._load_missing is not None:
                lane.doubt = True
            lane.tail_no = entry.output_no
            lane.queue.append((entry, ticket))
            touched[entry.partition] = lane
        self._pump(touched.values())
        return ticket.future

    def deletable(self) -> list[Published]:
        """Return per partition the last entry published whose rows were not reported as `deleted`."""
        return list(self._deletable.values())

    def deleted(self, published: Iterable[Published]) -> None:
        """Take note that a transaction which deleted these has committed."""
        for item in published:
            if self._deletable.get(item.partition) == item:
                del self._deletable[item.partition]

    # -- publishing

    def _pump(self, lanes: Iterable[_Lane]) -> None:
        """Publish from those of the lanes that have something and wait for nothing."""
        ready = []
        for lane in lanes:
            if lane.queue and not lane.in_flight:
                if lane.doubt:
                    self._doubtful.set()
                else:
                    ready.append(lane)
        total = sum(len(lane.queue) for lane in ready)
        if total >= BATCH_FROM or any(len(lane.queue) >= BATCH_FROM_IN_LANE for lane in ready):
            self._publish_batch(ready)
            return
        for lane in ready:
            entry = lane.queue[0][0]
            lane.in_flight = 1
            fault_point("relay.before_publish")
            self._connection.publish_callback(
                entry.subject,
                entry.data,
                partial(self._on_done, [(lane, 1)]),
                headers=self._headers(lane, entry, first=True),
            )

    def _publish_batch(self, lanes: list[_Lane]) -> None:
        """Publish the beginnings of several lanes as one atomic batch, each lane's first message fenced."""
        messages: list[BatchMessage] = []
        taken: list[tuple[_Lane, int]] = []
        size = 0
        for lane in lanes:
            count = 0
            for entry, _ in lane.queue:
                size += len(entry.data)
                if messages and (len(messages) == BATCH_MAX_MESSAGES or size > BATCH_MAX_BYTES):
                    break
                messages.append((entry.subject, entry.data, self._headers(lane, entry, first=count == 0)))
                count += 1
            lane.in_flight = count
            if count:
                taken.append((lane, count))
        fault_point("relay.before_publish")
        self._connection.publish_batch(messages, partial(self._on_done, taken))
        # What did not fit goes on its own (lanes of which nothing was taken).
        rest = [lane for lane in lanes if lane.queue and not lane.in_flight]
        if rest:
            self._pump(rest)

    def _headers(self, lane: _Lane, entry: OutboxEntry, *, first: bool) -> dict[str, str]:
        headers = entry.wire_headers(self._writer)
        if self._kind is not None and first:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(lane.published.sequence)
            headers["Nats-Expected-Last-Subject-Sequence-Subject"] = partition_filter(
                self._kind, lane.partition
            )
        return headers

    def _on_done(self, taken: list[tuple[_Lane, int]], sequence: int, error: LogError | None) -> None:
        """Take the answer to a publish of the first messages of lanes; `sequence` is the last one's."""
        if error is None:
            fault_point("relay.after_publish")
        sequence -= sum(count for _, count in taken)
        mine = []
        for lane, count in taken:
            lane.in_flight = 0
            if self._lanes.get(lane.partition) is lane:
                mine.append(lane)
                if error is None:
                    lane.retry_s = RETRY_MIN_S
                    for number in range(1, count + 1):
                        self._finish_first(lane, sequence + number)
                else:
                    lane.doubt = True
            sequence += count
        if isinstance(error, PublishRefused) and not error.fence:
            log.error("log_publish_refused", service=self._connection.service, error=str(error))
        elif error is not None:
            log.info("log_relay_doubt", lanes=len(mine), error=f"{type(error).__name__}: {error}")
        self._pump(mine)

    def _finish_first(self, lane: _Lane, sequence: int) -> None:
        entry, ticket = lane.queue.popleft()
        published = Published(lane.partition, entry.output_no, sequence)
        # The fence needs a sequence that exists; what is gone from the log leaves it as it was.
        lane.published = published if sequence else lane.published._replace(output_no=entry.output_no)
        self._deletable[lane.partition] = lane.published
        ticket.add(published)

    def _fail(self, lane: _Lane, error: OwnershipLost) -> None:
        while lane.queue:
            lane.queue.popleft()[1].fail(error)

    # -- doubt

    async def _settle(self, lane: _Lane) -> None:
        """Find out what of a lane is stored, and let it go on."""
        self._doubts.inc()
        try:
            await self._connection.wait_connected()
            if self._kind is None:
                await self._settle_unfenced(lane)
            else:
                await self._settle_fenced(lane)
        except OwnershipLost as error:
            log.warning("log_ownership_lost", partition=lane.partition, error=str(error))
            if self._lanes.get(lane.partition) is lane:
                del self._lanes[lane.partition]
                self._deletable.pop(lane.partition, None)
            self._fail(lane, error)
            return
        except LogUnavailable as error:
            log.info("log_relay_waits", partition=lane.partition, error=str(error))
            self._later(lane)
            return
        lane.doubt = False
        if lane.retry_s > RETRY_MIN_S * 8:
            # Refused again and again though nothing is in doubt (a full log): not in a busy loop.
            await asyncio.sleep(lane.retry_s)
        lane.retry_s = min(lane.retry_s * 2, RETRY_MAX_S)
        if self._lanes.get(lane.partition) is lane:
            self._pump([lane])

    def _later(self, lane: _Lane) -> None:
        asyncio.get_running_loop().call_later(lane.retry_s, self._doubtful.set)
        lane.retry_s = min(lane.retry_s * 2, RETRY_MAX_S)

    async def _settle_unfenced(self, lane: _Lane) -> None:
        if self._load_missing is None or not lane.queue:
            return
        first = lane.queue[0][0].output_no
        ticket = _Ticket(-1)  # nobody waits for these
        missing = await self._load_missing(lane.partition, lane.published.output_no, lane.tail_no + 1)
        if self._lanes.get(lane.partition) is not lane:
            return
        # What is stored and ours is queued already; in between may stand what other processes committed.
        known = {entry.output_no for entry, _ in lane.queue}
        found = [(entry, ticket) for entry in missing if entry.output_no not in known]
        if found:
            log.info("log_relay_adopts", partition=lane.partition, entries=len(found), before=first)
            lane.queue = deque(sorted([*lane.queue, *found], key=lambda item: item[0].output_no))

    async def _settle_fenced(self, lane: _Lane) -> None:
        assert self._kind is not None, "only fenced lanes"
        subject_filter = partition_filter(self._kind, lane.partition)
        last = await self._connection.load_last(self._stream, subject_filter)
        if self._lanes.get(lane.partition) is not lane:
            return
        if last is None:
            # Nothing stored under the filter (any more): the fence expects 0.
            lane.published = lane.published._replace(sequence=0)
            return
        number, epoch = self._stamp_of(last)
        if epoch > lane.epoch:
            raise OwnershipLost(lane.partition, f"epoch {epoch} has published, ours is {lane.epoch}")
        if number > lane.tail_no:
            raise OwnershipLost(lane.partition, f"number {number} is published, ours end at {lane.tail_no}")
        sequences = {number: last["seq"]}
        expected = [entry.output_no for entry, _ in lane.queue if entry.output_no <= number]
        if (expected and (len(expected) > 1 or number != expected[0])) or number == 0:
            # Several may be stored: walk over them to learn where each stands.
            sequences |= await self._walk(lane, subject_filter, last["seq"])
            if (
                number == 0
            ):  # the last one is not ours at all: somebody broke the rule, and readers will say so
                log.error("log_foreign_entry", partition=lane.partition, sequence=last["seq"])
                number = max(sequences, default=0)
        if self._lanes.get(lane.partition) is not lane:
            return
        while lane.queue and lane.queue[0][0].output_no <= number:
            self._finish_first(lane, sequences.get(lane.queue[0][0].output_no, 0))
        lane.published = Published(lane.partition, max(number, lane.published.output_no), last["seq"])
        if lane.published.output_no:
            self._deletable[lane.partition] = lane.published

    async def _walk(self, lane: _Lane, subject_filter: str, last_sequence: int) -> dict[int, int]:
        sequences: dict[int, int] = {}
        cursor = lane.published.sequence + 1
        for _ in range(WALK_LIMIT):
            if cursor > last_sequence:
                break
            message = await self._connection.load_next(self._stream, subject_filter, cursor)
            if message is None:
                break
            number, _ = self._stamp_of(message)
            if number:
                sequences[number] = message["seq"]
            cursor = message["seq"] + 1
        return sequences

    def _stamp_of(self, message: dict[str, Any]) -> tuple[int, int]:
        """Return (number, epoch) of a stored message; (0, 0) where it is not of our writer."""
        headers = decode_headers(b64decode(message.get("hdrs", "")))
        if headers.get(WRITER_HEADER) != self._writer:
            return 0, 0
        return int(headers.get(OUTPUT_NO_HEADER, 0)), int(headers.get(EPOCH_HEADER, 0))

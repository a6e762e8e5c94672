"""Writing to INPUT, and bringing back what became of each entry, whatever happens in between.

    publish ──► ack ──► verdict ──────────────────────────► settled: the verdict
       │         │         └ none in time ──► QueryOutcome ─► settled: the verdict, or NOT_STORED
       │         └ none in time, or the connection broke ──┘    │ nobody answers until the deadline
       └ refused, no connection ──► settled: NOT_STORED         └──► settled: LOST

Whether a message without an ack was stored, nobody can say; it is published again as it was until there is an
ack. If it is there twice, the second is judged DUPLICATE.

Callbacks, not tasks: nothing here waits on the way of a message that meets no trouble.
"""

import asyncio
import itertools
import random
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial

from arbor.log.v1 import common_pb2, input_pb2
from clientapi.rooms.queries import RoomQueries
from clientapi.rooms.requests import TransactionKey
from matrixlib.events import Event
from servicekit import metrics
from servicekit.errors import MatrixError
from servicekit.log.connection import LogConnection
from servicekit.log.errors import LogError, PublishTimeout
from servicekit.log.faultpoints import fault_point
from servicekit.log.subjects import room_input_subject
from servicekit.log.verdicts import VerdictInbox
from servicekit.logging import get_logger

log = get_logger("clientapi.rooms")

VERDICT_TIMEOUT_S = 3.0
OUTCOME_TIMEOUT_S = 3.0
RETRY_MIN_S = 0.05
RETRY_MAX_S = 1.0

_lost_verdicts = metrics.counter("clientapi_lost_verdicts_total", "Entries whose outcome had to be asked for")
_unsettled = metrics.gauge("clientapi_entries_in_flight", "Entries written to INPUT and not yet settled")


class Unsettled(Enum):
    """How an entry can end without a verdict."""

    NOT_STORED = "nothing was stored: write it again"
    LOST = "nobody knows until the deadline: the same transaction key may be tried again later"


Outcome = input_pb2.Verdict | Unsettled


class PendingEntry:
    """One entry of a message: events that stand or fall together, and whom to tell."""

    __slots__ = ("events", "key", "message", "request_id", "settle", "settled")

    def __init__(
        self,
        events: list[Event],
        key: TransactionKey | None,
        settle: "Callable[[PendingEntry, Outcome], None]",
    ) -> None:
        self.events = events
        self.key = key
        self.settle = settle
        self.settled = False
        self.request_id = ""
        self.message: PendingMessage | None = None

    @property
    def event_id(self) -> str:
        """The id of its last event."""
        return self.events[-1].event_id


class PendingMessage:
    """One INPUT message under way."""

    __slots__ = (
        "data",
        "deadline_s",
        "entries",
        "input_sequence",
        "left",
        "on_settled",
        "publishing",
        "room_id",
        "timer",
    )

    def __init__(
        self,
        room_id: str,
        entries: list[PendingEntry],
        deadline_s: float,
        on_settled: "Callable[[PendingMessage], None]",
    ) -> None:
        self.room_id = room_id
        self.entries = entries
        self.deadline_s = deadline_s
        self.on_settled = on_settled
        self.left = len(entries)
        self.input_sequence = 0
        self.data = b""
        # Its ack, or the news that there is none, is still to come.
        self.publishing = False
        self.timer: asyncio.TimerHandle | None = None


class InputWriter:
    """See the module.

    Args:
        queries: to ask for outcomes.
        spawn: starts a task in the service's task group.
    """

    connection: LogConnection

    def __init__(
        self,
        queries: RoomQueries,
        spawn: "Callable[..., object]",
    ) -> None:
        self._queries = queries
        self._spawn = spawn
        self._pending: dict[str, PendingEntry] = {}
        self._numbers = itertools.count(1)
        self._inbox: VerdictInbox[None] | None = None
        _unsettled.set_function(lambda: len(self._pending))

    async def open(self, connection: LogConnection) -> None:
        """Take the service's connection and subscribe to verdicts. Call before the first `publish`."""
        self.connection = connection
        # The inbox's futures cost more than the whole rest: the decoder hands verdicts on by itself.
        self._inbox = await VerdictInbox.open(self.connection, self._on_verdicts)

    def close(self) -> None:
        """Unsubscribe."""
        if self._inbox is not None:
            self._inbox.close()

    def publish(
        self,
        message: PendingMessage,
        now_ms: int,
        built_on: tuple[str, ...],
        *,
        may_fork: bool = False,
    ) -> None:
        """Write a message to INPUT; each entry is settled once, later or (with no connection) at once.

        Args:
            message: its entries are chained: each is built on the one before.
            now_ms: the time, for the entries' creation.
            built_on: the heads that the first event was built on.
            may_fork: accept the entries even if these are not the heads any more.
        """
        assert self._inbox is not None
        reply_to = self._inbox.subject
        proto = input_pb2.InputMessage(room_id=message.room_id)
        for entry in message.entries:
            entry.message = message
            entry.request_id = f"{next(self._numbers):x}"
            self._pending[entry.request_id] = entry
            proto.entries.append(_entry_proto(entry, reply_to, now_ms, built_on, may_fork))
            built_on = (entry.event_id,)
        loop = asyncio.get_running_loop()
        message.timer = loop.call_later(VERDICT_TIMEOUT_S, self._on_timeout, message)
        message.data = proto.SerializeToString()
        self._publish(message)

    def _publish(self, message: PendingMessage) -> None:
        message.publishing = True
        subject = room_input_subject(message.room_id, self.connection.partitions)
        self.connection.publish_callback(subject, message.data, partial(self._on_ack, message))

    def _on_ack(self, message: PendingMessage, sequence: int, error: LogError | None) -> None:
        message.publishing = False
        if error is None:
            message.input_sequence = sequence
            fault_point("input.after_ack")
        elif message.left == 0:
            return  # the verdicts were quicker than the news that the ack is lost
        elif isinstance(error, PublishTimeout) or message.timer is None:
            # The second case: an earlier try may be stored, though this one is not.
            self._start_recovery(message)
        else:
            log.warning("input_refused", room_id=message.room_id, error=str(error))
            self._settle_rest(message, Unsettled.NOT_STORED)

    def _on_verdicts(self, data: bytes) -> Iterator[tuple[str, None]]:
        for verdict in input_pb2.Verdicts.FromString(data).verdicts:
            entry = self._pending.get(verdict.request_id)
            if entry is not None:
                self._settle(entry, verdict)
        return iter(())

    def _on_timeout(self, message: PendingMessage) -> None:
        self._start_recovery(message)

    def _settle(self, entry: PendingEntry, outcome: Outcome) -> None:
        if entry.settled:
            return
        entry.settled = True
        del self._pending[entry.request_id]
        message = entry.message
        assert message is not None
        message.left -= 1
        if message.left == 0 and message.timer is not None:
            message.timer.cancel()
            message.timer = None
        try:
            entry.settle(entry, outcome)
        except Exception:
            log.exception("settling_failed", room_id=message.room_id)
        if message.left == 0:
            message.on_settled(message)

    def _settle_rest(self, message: PendingMessage, outcome: Outcome) -> None:
        for entry in message.entries:
            self._settle(entry, outcome)

    def _start_recovery(self, message: PendingMessage) -> None:
        if message.timer is not None:
            message.timer.cancel()
            message.timer = None
            if message.left:
                self._spawn(self._recover(message))

    async def _recover(self, message: PendingMessage) -> None:
        """Ask for the outcome of what has no verdict, until the deadline. Late verdicts count, too."""
        loop = asyncio.get_running_loop()
        _lost_verdicts.inc(message.left)
        pause_s = RETRY_MIN_S
        for entry in message.entries:
            while not entry.settled:
                left_s = message.deadline_s - loop.time()
                if left_s <= 0:
                    self._settle(entry, Unsettled.LOST)
                    break
                try:
                    verdict = await self._queries.outcome(
                        message.room_id,
                        entry.key,
                        entry.event_id,
                        message.input_sequence,
                        min(OUTCOME_TIMEOUT_S, left_s),
                    )
                except MatrixError:
                    verdict = None
                else:
                    if verdict is not None:
                        self._settle(entry, verdict)
                        break
                    if message.input_sequence:
                        # It was judged and nothing was kept: stale, or refused.
                        self._settle(entry, Unsettled.NOT_STORED)
                        break
                    if not message.publishing and self.connection.connected:
                        self._publish(message)
                await asyncio.sleep(min(pause_s * random.uniform(0.5, 1.5), max(left_s, 0.0)))  # noqa: S311
                pause_s = min(pause_s * 2, RETRY_MAX_S)

    async def write_alone(
        self,
        room_id: str,
        events: list[Event],
        now_ms: int,
        timeout_s: float,
        built_on: tuple[str, ...] = (),
    ) -> Outcome:
        """Write one entry and return what became of it.

        Args:
            built_on: the heads it was built on, which it may fork; none: a new room.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()

        def settle(_entry: PendingEntry, outcome: Outcome) -> None:
            future.set_result(outcome)

        entry = PendingEntry(events, None, settle)
        message = PendingMessage(room_id, [entry], loop.time() + timeout_s, lambda _message: None)
        self.publish(message, now_ms, built_on, may_fork=bool(built_on))
        return await asyncio.shield(future)


def _entry_proto(
    entry: PendingEntry, reply_to: str, now_ms: int, built_on: tuple[str, ...], may_fork: bool
) -> input_pb2.InputEntry:
    key = entry.key
    return input_pb2.InputEntry(
        request_id=entry.request_id,
        reply_to=reply_to,
        created_ms=now_ms,
        transaction_key=None
        if key is None
        else common_pb2.TransactionKey(
            user_id=key.user_id,
            device_id=key.device_id,
            endpoint=key.endpoint,
            room_id=key.room_id,
            txn_id=key.txn_id,
        ),
        submit_events=input_pb2.SubmitEvents(
            origin=input_pb2.EVENT_ORIGIN_LOCAL,
            room_version=entry.events[0].room_version.identifier,
            events=[
                common_pb2.Event(event_id=event.event_id, pdu_json=event.pdu_json) for event in entry.events
            ],
            built_on=built_on,
            may_fork=may_fork,
        ),
    )

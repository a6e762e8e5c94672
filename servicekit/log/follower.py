"""Following a stream: reader, database and position together.

    follower = Follower(connection, OUTPUT, ["room.output.>"], database, tables, handler)
    group.create_task(follower.run())                # ends only by an error: stop the process
    await follower.wait_for(sequence, timeout_s=5)   # reads follow writes

Each batch is one unit of work on the database's writer thread: the handler's effect and the position commit
together. Three outcomes: applied; not now (the database is locked, full or away: the same batch again, later
and later); never (one entry's own fault: dead letter, the others go on; an entry that must not be skipped:
`run` raises `StopFollowing`).

A handler with a `skim` is asked first whether a batch concerns its database at all. If not, only the position
in memory moves; it is stored with the next batch, or a second later. A crash before that reads the same
messages once more, to the same effect. A handler may skim what does concern its database, too, and keep in
memory what there is to write (`Delaying`): it is written with the position. Whoever reads the database asks
for that first (`flush`).
"""

import asyncio
import heapq
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar, cast

from sqlalchemy import Connection

from servicekit import metrics
from servicekit.log.applying import (
    Applied,
    Applier,
    Delaying,
    Handler,
    PositionRow,
    Skimmer,
    Stamp,
    StoredPosition,
    is_transient,
)
from servicekit.log.connection import LogConnection
from servicekit.log.errors import PositionTaken, StopFollowing
from servicekit.log.faultpoints import fault_point
from servicekit.log.reader import Batch, LogMessage, LogReader
from servicekit.log.tables import LogTables
from servicekit.logging import get_logger

log = get_logger("servicekit.log")

R = TypeVar("R")

RETRY_MIN_S = 0.05
RETRY_MAX_S = 5.0
TAKEN_LIMIT = 5
STORE_AFTER_S = 1.0
"""So long after a batch that was skimmed its position is stored, if nothing else comes that is applied."""

_labels = ["service", "stream"]
_lag = metrics.gauge("log_lag", "Messages between the follower's position and the stream's end", _labels)
_position = metrics.gauge("log_position", "The last sequence applied", _labels)
_batch_size = metrics.histogram(
    "log_batch_messages", "Messages in one unit of work", _labels, buckets=metrics.SIZE_BUCKETS
)
_apply_seconds = metrics.histogram(
    "log_apply_seconds", "Time of one unit of work, thread hops included", _labels
)
_dead_letters = metrics.counter("log_dead_letters", "Messages that could not be applied", _labels)
_duplicates = metrics.counter("log_duplicates", "Messages dropped because they were applied before", _labels)
_retries = metrics.counter("log_apply_retries", "Batches tried again because the database failed", _labels)


class _SkimmedUnwritable(Exception):
    """What was skimmed cannot be written: its messages are to be applied one by one."""


class WriteDatabase(Protocol):
    """What is needed of `servicekit.database.Database`."""

    async def write(self, work: Callable[..., Any], /, *args: Any) -> Any:
        """Run `work(conn, *args)` in one transaction on the writer thread."""
        ...


class Follower(Generic[R]):
    """See the module.

    Args:
        connection: of this service.
        stream: `INPUT` or `OUTPUT`.
        subjects: filters; empty: everything.
        database: of this service.
        tables: from `add_log_tables`.
        handler: `apply_batch(conn, messages)`, on the writer thread.
        on_committed: called on the loop with each result of the handler, in order, after its commit.
        on_loaded: called on the loop with the stored position when following begins, and again if it had to
            begin anew: drop what memory holds of the stream, results may have been missed.
        on_dead: called in the transaction that stores a dead letter.
        name: of the position's row; by default the stream's.
        position: where the position is kept instead of `log_position`.
        drop_duplicates: drop numbered messages that were applied before (OUTPUT).
        max_messages: of one unit of work.
    """

    def __init__(
        self,
        connection: LogConnection,
        stream: str,
        subjects: Sequence[str],
        database: WriteDatabase,
        tables: LogTables,
        handler: Handler[R],
        *,
        on_committed: Callable[[R], None] | None = None,
        on_loaded: Callable[[int], None] | None = None,
        on_dead: Callable[[Connection, LogMessage, Exception], None] | None = None,
        name: str | None = None,
        position: StoredPosition | None = None,
        drop_duplicates: bool = True,
        max_messages: int = 300,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.stream = stream
        self.position = 0
        """The last sequence whose effect is committed, or kept by the handler to be written later."""
        self.epoch: str | None = None
        self.running = False
        """Whether the stored position was read and the stream is being followed."""
        self._connection = connection
        self._subjects = list(subjects)
        self._database = database
        self._on_committed = on_committed
        self._on_loaded = on_loaded
        self._max_messages = max_messages
        self._stamps: dict[Stamp, int] = {}
        self._waiting: list[tuple[int, int, asyncio.Future[bool]]] = []
        self._wait_no = 0
        self._given_up = 0
        self._reader: LogReader | None = None
        self._skimmer: Skimmer[R] | None = cast("Skimmer[R]", handler) if hasattr(handler, "skim") else None
        self._delaying: Delaying[R] | None = (
            cast("Delaying[R]", handler) if hasattr(handler, "write_skimmed") else None
        )
        # Nothing is skimmed up to there: what was could not be written.
        self._skim_after = 0
        self._stored = 0
        self._store_now = False
        self._store_timer: asyncio.TimerHandle | None = None
        # While somebody waits for the next unit of work.
        self._storing: asyncio.Future[None] | None = None
        self._applier = Applier(
            handler,
            position or PositionRow(tables.position, name or stream),
            tables,
            stream,
            drop_duplicates=drop_duplicates,
            now_ms=now_ms,
            on_dead=on_dead,
            write_skimmed=None if self._delaying is None else self._delaying.write_skimmed,
        )
        labels = (connection.service, name or stream)
        self._lag = _lag.labels(*labels)
        self._lag.set_function(lambda: self.lag)
        _position.labels(*labels).set_function(lambda: self.position)
        self._batch_size = _batch_size.labels(*labels)
        self._apply_seconds = _apply_seconds.labels(*labels)
        self._dead_letters = _dead_letters.labels(*labels)
        self._duplicates = _duplicates.labels(*labels)
        self._retries = _retries.labels(*labels)

    @property
    def lag(self) -> int:
        """Sequences between our position and the stream's end as far as we know it."""
        return max(self._reader.last_sequence - self.position, 0) if self._reader is not None else 0

    async def run(self) -> None:
        """Follow for ever.

        Raises:
            StopFollowing: an entry must not be skipped and cannot be applied.
            PositionLost: going on would leave a hole; export first.
            PositionTaken: another process keeps moving our position.
        """
        taken = 0
        while True:
            self.epoch, self.position, self._stamps = await self._database.write(self._applier.load)
            self._stored = self.position
            self._applier.unstored = {}
            if self._on_loaded is not None:
                self._on_loaded(self.position)
            self._settle()
            self._reader = LogReader(
                self._connection, self.stream, self._subjects, after=self.position, epoch=self.epoch
            )
            batches = self._reader.batches(self._max_messages)
            self.running = True
            try:
                async for batch in batches:
                    if self._skimmer is None or not self._skim(self._skimmer, batch):
                        await self._apply(batch)
                    taken = 0
            except PositionTaken as error:
                taken += 1
                log.warning("log_position_taken", stream=self.stream, error=str(error))
                if taken >= TAKEN_LIMIT:
                    raise
                await asyncio.sleep(RETRY_MIN_S * 2**taken)
            except _SkimmedUnwritable as error:
                self._skim_after = self.position
                log.warning("log_skimmed_unwritable", stream=self.stream, error=repr(error.__cause__))
            finally:
                self.running = False
                if self._store_timer is not None:
                    self._store_timer.cancel()
                    self._store_timer = None
                self._note_stored()
                await batches.aclose()

    async def flush(self, timeout_s: float) -> bool:
        """Wait until the database holds everything up to `position`; False: not within `timeout_s`."""
        if self._stored >= self.position:
            return True
        wanted = self.position
        try:
            async with asyncio.timeout(timeout_s):
                while self._stored < wanted:
                    if self.running and self._reader is not None and self.position >= wanted:
                        self._store_now = True
                        self._reader.nudge()
                    if self._storing is None:
                        self._storing = asyncio.get_running_loop().create_future()
                    await asyncio.shield(self._storing)
        except TimeoutError:
            pass
        return self._stored >= wanted

    async def store_rest(self) -> None:
        """After `run` was cancelled: write what was skimmed. What cannot be written now is read again."""
        if self.position != self._stored and not self.running and self.epoch is not None:
            try:
                await self._apply(Batch([], self.position, self.epoch))
            except PositionTaken:
                log.info("log_stopped_while_storing", stream=self.stream)

    async def wait_for(self, position: int, timeout_s: float) -> bool:
        """Wait until the effect of stream sequence `position` is there (see `position`); False: not within
        `timeout_s`.

        The position must be of a message that this follower reads (a filter's skipped ones are passed late).
        """
        if self.position >= position:
            return True
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._wait_no += 1
        heapq.heappush(self._waiting, (position, self._wait_no, future))
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            self._given_up += 1
            if self._given_up > 256 and 2 * self._given_up > len(self._waiting):
                # While nothing comes, those who gave up would only pile up.
                self._waiting = [item for item in self._waiting if not item[2].done()]
                heapq.heapify(self._waiting)
                self._given_up = 0
            return False

    def _skim(self, skimmer: Skimmer[R], batch: Batch) -> bool:
        """Pass over a batch that asks nothing of the database. False: it does."""
        if self._store_now or not batch.messages or batch.epoch != self.epoch:
            return False
        if batch.through <= self._skim_after:
            return False
        messages, numbers = self._applier.fresh(batch.messages, self._stamps)
        # A writer's first number makes a row.
        if not numbers.keys() <= self._stamps.keys():
            return False
        result = skimmer.skim(messages) if messages else None
        if result is None:
            return False
        self.position = batch.through
        self._stamps = {**self._stamps, **numbers}
        self._applier.unstored.update(numbers)
        if self._store_timer is None and self._reader is not None:
            loop = asyncio.get_running_loop()
            self._store_timer = loop.call_later(STORE_AFTER_S, self._store_soon, self._reader)
        if self._on_committed is not None:
            self._on_committed(result)
        fault_point("follower.after_skim")
        self._settle()
        return True

    def _store_soon(self, reader: LogReader) -> None:
        self._store_timer = None
        if self.position != self._stored:
            self._store_now = True
            reader.nudge()

    async def _apply(self, batch: Batch) -> None:
        started = time.perf_counter()
        applied = await self._commit(batch)
        fault_point("follower.after_commit")
        self.position, self.epoch, self._stamps = applied.position, applied.epoch, applied.stamps
        self._stored = applied.position
        self._store_now = False
        self._applier.unstored = {}
        if self._delaying is not None:
            self._delaying.skimmed_written()
        self._note_stored()
        if batch.messages:
            self._batch_size.observe(len(batch.messages))
            self._apply_seconds.observe(time.perf_counter() - started)
        if applied.duplicates:
            self._duplicates.inc(applied.duplicates)
        for message, cause in applied.dead:
            self._dead_letters.inc()
            log.error(
                "log_dead_letter",
                stream=self.stream,
                sequence=message.sequence,
                subject=message.subject,
                error=f"{type(cause).__name__}: {cause}",
            )
        if self._on_committed is not None:
            for result in applied.results:
                self._on_committed(result)
        self._settle()

    async def _commit(self, batch: Batch) -> Applied[R]:
        """Apply a batch, as often as it takes; singly after one failed that was not the database's fault."""
        delay_s = RETRY_MIN_S
        apply: Callable[..., Applied[R]] = self._applier.apply
        while True:
            try:
                applied: Applied[R] = await self._database.write(apply, batch, self._stored, self._stamps)
            except (StopFollowing, PositionTaken):
                raise
            except Exception as error:
                if is_transient(error):
                    # The commit may have happened all the same: then the next try finds the position moved.
                    self._retries.inc()
                    log.warning("log_batch_waits", stream=self.stream, error=str(error))
                    await asyncio.sleep(delay_s)
                    delay_s = min(delay_s * 2, RETRY_MAX_S)
                elif self._delaying is not None and self.position != self._stored:
                    raise _SkimmedUnwritable from error
                elif apply == self._applier.apply:
                    log.warning(
                        "log_batch_failed",
                        stream=self.stream,
                        messages=len(batch.messages),
                        error=repr(error),
                    )
                    apply = self._applier.apply_singly
                else:
                    raise
            else:
                return applied

    def _note_stored(self) -> None:
        """Let those look who wait for the database."""
        if self._storing is not None:
            self._storing.set_result(None)
            self._storing = None

    def _settle(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.position:
            future = heapq.heappop(self._waiting)[2]
            if not future.done():
                future.set_result(True)

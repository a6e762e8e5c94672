"""From INPUT to OUTPUT: one reader over all partitions of ours, one transaction a batch, relay, verdicts.

    LogReader ─► judge (one transaction, `committing`) ─► relay to OUTPUT ─► verdicts
                   ▲ batch N + 1 is judged while batch N is relayed │
                   └── where messages stand on OUTPUT (`places`) ◄──┘   stored with the next batch, or when idle

Partitions come and go (`ownership`); whenever the set changes the reader is opened anew.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from roomserver import metrics
from roomserver.committing import Committed, Committer
from roomserver.erasure import Eraser
from roomserver.input.judge import BatchToSplit, Judge
from roomserver.input.work import Work
from roomserver.leases import Leases
from roomserver.ownership import Ownership
from roomserver.places import Places
from roomserver.storage import garbage
from roomserver.verdicts import VerdictSender
from servicekit.database import Database
from servicekit.log.applying import is_transient
from servicekit.log.connection import LogConnection
from servicekit.log.errors import OwnershipLost, PositionLost
from servicekit.log.outbox import Published
from servicekit.log.reader import Batch, LogReader
from servicekit.log.relay import OutboxRelay
from servicekit.log.subjects import INPUT, partition_filter
from servicekit.logging import get_logger

log = get_logger("roomserver")

LINGER_S = 0.003
MAX_BATCH = 300
PIPELINE = 4
IDLE_S = 0.5
COLLECT_FIRST_S = 60.0
COLLECT_EVERY_S = 3600.0
ADVANCE_ALL_EVERY = 64


class Processor:
    """See the module. Belongs to the event loop it runs on."""

    def __init__(
        self,
        connection: LogConnection,
        database: Database,
        judge: Judge,
        leases: Leases,
        now_ms: Callable[[], int],
    ) -> None:
        self._connection = connection
        self._database = database
        self._leases = leases
        self._relay = OutboxRelay(connection, "roomserver", kind="room.output")
        self.places = Places()
        self.committer = Committer(database, judge, leases, self._relay, self.places, now_ms)
        self.ownership = Ownership(
            connection,
            database,
            judge,
            leases,
            self._relay,
            self.places,
            self.committer,
            on_change=self._reopen,
            flush=self.flush,
        )
        self._eraser = Eraser(connection, database, leases.partition_count, self._owned, self._store_places)
        self._verdicts = VerdictSender(connection)
        # What is committed, in order, until its messages are published and its verdicts sent.
        self._sent: deque[Committed] = deque()
        self._idle = asyncio.Event()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed = asyncio.Event()
        self._reader: LogReader | None = None
        self._input_position = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._batches = 0
        metrics.lag.set_function(lambda: self.lag)
        metrics.outbox.set_function(lambda: self._relay.queued)
        metrics.partitions_owned.set_function(lambda: len(self.committer.held))

    # -- what others ask

    @property
    def lag(self) -> int:
        """INPUT messages not judged yet, as far as is known."""
        return max(self._reader.last_sequence - self._input_position, 0) if self._reader is not None else 0

    def owns(self, partition: int) -> bool:
        """Whether a partition is ours."""
        return partition in self.committer.held

    def _owned(self) -> list[int]:
        return list(self.committer.held)

    async def wait_judged(self, input_sequence: int, timeout_s: float) -> bool:
        """Wait until an INPUT sequence has been judged; False: not within the time."""
        if self._input_position >= input_sequence:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((input_sequence, future))
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            return False
        return True

    async def replay(self, room_ids: list[str]) -> tuple[int, int]:
        """Judge rooms' dead letters and waiting events once more; returns how many were applied and how
        many failed.

        Raises:
            MatrixError: another process owns one of the rooms.
        """
        committed, applied, failed = await self.committer.replay(room_ids)
        self._send(committed)
        return applied, failed

    async def flush(self, timeout_s: float = 0.5) -> None:
        """Store where messages stand on OUTPUT; wait a little for those on their way."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._published()
        await self.committer.store_places()

    async def settle(self, timeout_s: float = 3.0) -> None:
        """Before the stop: relay and answer what is committed, as far as time allows."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._published()
                await self.committer.store_places()
        except OwnershipLost:
            log.info("stopped_without_partitions")
        except TimeoutError:
            log.warning("stopped_with_outbox", queued=self._relay.queued)

    async def _published(self) -> None:
        while self._relay.queued or self._sent:  # noqa: ASYNC110 - rare, short
            await asyncio.sleep(0.002)

    # -- life

    async def run(self) -> None:
        """Work until cancelled.

        Raises:
            StopFollowing: an entry of INPUT must not be skipped and cannot be understood.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._relay.run())
                group.create_task(self.ownership.keep())
                group.create_task(self._store_when_idle())
                group.create_task(self._collect_now_and_then())
                group.create_task(self._eraser.run())
                group.create_task(self._read())
                await self._broken
        finally:
            for _, future in self._waiting:
                future.cancel()
            self._waiting = []

    def _reopen(self) -> None:
        """The partitions have changed: the reader is opened anew, and what it had taken is read again."""
        self._eraser.wake()
        self._changed.set()
        if self._reader is not None:
            self._reader.nudge()

    # -- reading

    async def _read(self) -> None:
        while True:
            self._changed.clear()
            held = self.committer.held
            if not held:
                await self._changed.wait()
                continue
            epoch = self._connection.epoch(INPUT)
            after = min(mine.position for mine in held.values())
            if len(held) == self._leases.partition_count:
                subjects = ["room.input.>"]
            else:
                subjects = [partition_filter("room.input", number) for number in sorted(held)]
            reader = LogReader(self._connection, INPUT, subjects, after=after, epoch=epoch)
            self._reader = reader
            batches = reader.batches(MAX_BATCH)
            try:
                async for batch in batches:
                    await self._process(batch)
                    if self._changed.is_set():
                        break
                    if len(batch.messages) > 1:
                        # Many ask at once: a moment's patience makes fewer and larger batches, each of which
                        # costs a commit. Whoever asks alone does not wait.
                        await asyncio.sleep(LINGER_S)
            except OwnershipLost as error:
                log.warning("ownership_lost", error=str(error))
                await self.committer.reload()
            except PositionLost as error:
                await self.committer.recover(error)
                await self._connection.load_stream(INPUT)
            finally:
                await batches.aclose()

    async def _process(self, batch: Batch) -> None:
        self._batches += 1
        everything = not batch.messages or self._batches % ADVANCE_ALL_EVERY == 0
        work = Work(batch.messages, batch.through, batch.epoch, advance_all=everything)
        try:
            # The reader knows nothing of partitions that come while others are committing.
            committed = await self.committer.commit(work, unless=self._changed.is_set)
        except BatchToSplit as split:
            for messages in split.parts:
                is_last = messages is split.parts[-1]
                through = batch.through if is_last else messages[-1].sequence
                await self._process(Batch(messages, through, batch.epoch))
            return
        if committed is None:
            return
        self._input_position = batch.through
        self._wake()
        if committed.outcome.answers or committed.outcome.entries:
            self._send(committed)
            while len(self._sent) > PIPELINE:
                await asyncio.wait([self._sent[0].published])

    def _wake(self) -> None:
        if not self._waiting:
            return
        left = []
        for sequence, future in self._waiting:
            if sequence <= self._input_position:
                if not future.done():
                    future.set_result(None)
            elif not future.done():
                left.append((sequence, future))
        self._waiting = left

    # -- after the commit

    def _send(self, committed: Committed) -> None:
        """Answer once the messages are published, and those of all commits before."""
        self._sent.append(committed)
        committed.published.add_done_callback(self._on_published)

    def _on_published(self, _future: "asyncio.Future[list[Published]]") -> None:
        try:
            while self._sent and self._sent[0].published.done():
                self._finish(self._sent.popleft())
        except Exception as error:
            # Out of a callback it would end nothing, and whoever waits for an answer would wait for ever.
            if not self._broken.done():
                self._broken.set_exception(error)

    def _finish(self, committed: Committed) -> None:
        published, outcome = committed.published, committed.outcome
        if published.cancelled() or published.exception() is not None:
            # Committed, so it holds; whoever owns the partition now publishes it. Writers ask for the outcome.
            return
        self.places.note(published.result())
        self.places.note_rooms(outcome.rooms)
        self._idle.set()
        self._verdicts.send(outcome, self.places.sequences)
        if outcome.erases:
            self._eraser.wake()

    # -- now and then

    async def _store_when_idle(self) -> None:
        while True:
            await self._idle.wait()
            self._idle.clear()
            await asyncio.sleep(IDLE_S)
            if self._idle.is_set():
                continue
            try:
                await self.committer.store_places()
            except OwnershipLost:
                self._reopen()

    async def _store_places(self) -> None:
        """The eraser finds messages by where they stand, so that has to be stored."""
        with contextlib.suppress(OwnershipLost):
            await self.committer.store_places()

    async def _collect_now_and_then(self) -> None:
        pause_s = COLLECT_FIRST_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = COLLECT_EVERY_S
            if 0 not in self.committer.held:
                continue  # one process does it for all
            try:
                collected = await self.committer.collect_garbage(dry_run=False, deep=False)
                metrics.note_sizes(*await self._database.read(garbage.measure))
            except Exception as error:
                if not is_transient(error):
                    raise
                log.warning("collection_waits", error=str(error))
            else:
                log.info("garbage_collected", rows=sum(collected.values()))

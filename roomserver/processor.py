"""From INPUT to OUTPUT: one reader over all partitions of ours, one transaction a batch, relay, verdicts.

    LogReader ─► judge (writer thread, one transaction) ─► relay to OUTPUT ─► verdicts
                   ▲ batch N + 1 is judged while batch N is relayed │
                   └── where messages stand on OUTPUT ◄─────────────┘   stored with the next batch, or when
                   idle

Partitions come and go (`leases`); whenever the set changes the reader is opened anew.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy import Connection

from roomserver import metrics
from roomserver.erasure import Eraser
from roomserver.input.import_pages import Import, Page
from roomserver.input.judge import BatchToSplit, Judge
from roomserver.input.work import Held, Outcome, Work
from roomserver.leases import Leases
from roomserver.storage import garbage, partitions
from roomserver.storage.staging import ImportJob
from roomserver.verdicts import VerdictSender
from servicekit.database import Database
from servicekit.errors import MatrixError, unavailable
from servicekit.grpc.errors import NOT_OWNER
from servicekit.log.applying import is_transient
from servicekit.log.connection import LogConnection
from servicekit.log.errors import (
    LogError,
    LogUnavailable,
    OwnershipLost,
    PositionLost,
    PositionTooOld,
    StopFollowing,
)
from servicekit.log.faultpoints import fault_point
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
HAND_OVER_S = 1.0
PLACED_MIN = 8
"""So many messages are published before a batch stores where they stand: fewer wait for more, or for quiet. What
a crash leaves unstored the relay finds in the stream."""
COLLECT_FIRST_S = 60.0
COLLECT_EVERY_S = 3600.0
RETRY_MIN_S = 0.02
RETRY_MAX_S = 1.0
MAX_POSITIONS = 100_000
ADVANCE_ALL_EVERY = 64


class _Sent(NamedTuple):
    outcome: Outcome
    published: "asyncio.Future[list[Published]]"


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
        self._judge = judge
        self._leases = leases
        self._now_ms = now_ms
        self._held: dict[int, Held] = {}
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._sent: asyncio.Queue[_Sent] = asyncio.Queue(PIPELINE)
        self._relay = OutboxRelay(connection, "roomserver", kind="room.output")
        self._eraser = Eraser(connection, database, leases.partition_count, self._owned, self._store_places)
        self._placed: list[tuple[int, int, int]] = []
        self._noted: dict[int, Published] = {}
        self._positions: OrderedDict[str, int] = OrderedDict()
        self._verdicts = VerdictSender(connection)
        self._sequences: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._reader: LogReader | None = None
        self._input_position = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._writing = asyncio.Lock()
        self._importing = asyncio.Lock()
        self._batches = 0
        self._giving_up = False
        self.output_last = 0
        metrics.lag.set_function(lambda: self.lag)
        metrics.outbox.set_function(lambda: self._relay.queued)
        metrics.partitions_owned.set_function(lambda: len(self._held))

    # -- what others ask

    @property
    def lag(self) -> int:
        """INPUT messages not judged yet, as far as is known."""
        return max(self._reader.last_sequence - self._input_position, 0) if self._reader is not None else 0

    def owns(self, partition: int) -> bool:
        """Whether a partition is ours."""
        return partition in self._held

    def _owned(self) -> list[int]:
        return list(self._held)

    def position_of(self, room_id: str) -> int | None:
        """The OUTPUT sequence of a room's last message, if it is remembered."""
        return self._positions.get(room_id)

    def sequence_of(self, partition: int, output_no: int) -> int | None:
        """The OUTPUT sequence of a message, if it is remembered."""
        return self._sequences.get((partition, output_no))

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

    async def flush(self, timeout_s: float = 0.5) -> None:
        """Store where messages stand on OUTPUT; wait a little for those on their way."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._relay.queued or not self._sent.empty():  # noqa: ASYNC110 - rare, short
                    await asyncio.sleep(0.002)
        if self._placed or self._relay.deletable():
            await self._commit(Work([], 0, ""))

    def _reopen(self) -> None:
        """The partitions have changed: the reader is opened anew, and what it had taken is read again."""
        self._changed.set()
        if self._reader is not None:
            self._reader.nudge()

    # -- life

    async def run(self) -> None:
        """Work until cancelled.

        Raises:
            StopFollowing: an entry of INPUT must not be skipped and cannot be understood.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._relay.run())
                group.create_task(self._finish_sent())
                group.create_task(self._keep_leases())
                group.create_task(self._store_when_idle())
                group.create_task(self._collect_now_and_then())
                group.create_task(self._eraser.run())
                group.create_task(self._read())
        finally:
            self._fail_waiting()

    async def take_partitions(self) -> None:
        """Take what is free; done once before `run`, then by it."""
        async with self._writing:
            await self._take_partitions()

    async def _take_partitions(self) -> None:
        taken = await self._database.write(self._leases.take, set(self._held))
        if not taken:
            return
        self._judge.forget_numbers()
        info = await self._connection.load_stream(INPUT)
        epoch = info.epoch if info is not None else ""
        anew = [item.row for item in taken if item.row.input_epoch != epoch]
        if anew:
            await self._database.write(
                partitions.reset_positions, [(row.id, row.epoch) for row in anew], epoch, 0
            )
            for row in anew:
                row.input_position, row.input_epoch = 0, epoch
        for item in taken:
            row = item.row
            self._held[row.id] = Held(row.epoch, row.input_position, row.output_no)
            future = self._relay.adopt(row.id, row.epoch, item.progress, item.entries)
            future.add_done_callback(self._on_adopted)
        self._eraser.wake()
        log.info("partitions_taken", count=len(taken), held=len(self._held))
        self._reopen()

    async def give_up(self) -> None:
        """Hand everything over: the process is about to stop."""
        self._giving_up = True
        held = {number: mine.epoch for number, mine in self._held.items()}
        self._held = {}
        self._reopen()
        for number in held:
            self._relay.release(number)
        await self._database.write(self._leases.depart, held)

    async def _hand_over(self) -> None:
        """Give up what is more than our share: others have come."""
        share = await self._database.write(self._leases.share)
        if len(self._held) <= share:
            return
        await self.flush()
        async with self._writing:
            # Nothing is committed meanwhile, so what is queued gets less: nothing of it is left to others.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HAND_OVER_S):
                    while self._relay.queued:  # noqa: ASYNC110 - rare, short
                        await asyncio.sleep(0.002)
            given = {number: self._held[number].epoch for number in sorted(self._held)[share:]}
            for number in given:
                del self._held[number]
                self._relay.release(number)
            # Whatever is remembered of their rooms will be old when they come back.
            self._judge.failed()
            self._positions.clear()
            await self._database.write(self._leases.give_up, given)
        log.info("partitions_handed_over", count=len(given), held=len(self._held))
        self._reopen()

    async def replay(self, room_ids: list[str]) -> tuple[int, int]:
        """Judge rooms' dead letters and waiting events once more; returns how many were applied and how
        many failed.

        Raises:
            MatrixError: another process owns one of the rooms.
        """
        async with self._writing:
            try:
                outcome, applied, failed = await self._database.write(
                    self._judge.replay, room_ids, self._held
                )
            except OwnershipLost as error:
                self._judge.failed()
                raise MatrixError(NOT_OWNER, 503, str(error), 200) from error
            except BaseException:
                self._judge.failed()
                raise
            self._judge.committed()
            self._held = {number: mine for number, mine in outcome.held.items() if number in self._held}
            # Under the lock, so that no later batch's messages are queued before these.
            published = self._relay.publish(outcome.entries)
        await self._sent.put(_Sent(outcome, published))
        return applied, failed

    async def import_page(self, page: Page) -> ImportJob:
        """Store a page of an import, between two batches.

        Raises:
            MatrixError: another process owns the room, the database is away, or the page cannot be taken.
        """
        return await self._import(self._judge.import_page, page)

    async def import_aside(self, of: Import, event_ids: list[str]) -> ImportJob:
        """As `import_page`, with events of an import that were set aside."""
        return await self._import(self._judge.import_aside, of, event_ids)

    async def _import(self, work: Callable[..., ImportJob], *args: object) -> ImportJob:
        # One import at a time: a batch waits for one page at most.
        async with self._importing, self._writing:
            try:
                job = await self._database.write(work, self._held, *args)
            except MatrixError:
                raise
            except OwnershipLost as error:
                self._judge.failed()
                raise MatrixError(NOT_OWNER, 503, str(error), 200) from error
            except BaseException as error:
                self._judge.failed()
                if is_transient(error):
                    raise unavailable("The database does not answer") from error
                raise
            self._judge.committed()
            return job

    async def collect_garbage(self, dry_run: bool, *, deep: bool = True) -> dict[str, int]:
        """Collect what nothing refers to; the memory forgets snapshots that may be gone."""

        def collect(conn: Connection) -> dict[str, int]:
            held = {number: mine.epoch for number, mine in self._held.items()}
            if deep and not dry_run and self._leases.renew(conn, held, 0):  # which locks the rows, too
                raise MatrixError(NOT_OWNER, 503, "A partition has another owner; try again", 200)
            return garbage.collect(conn, self._now_ms(), held, dry_run=dry_run, deep=deep)

        before_ms = self._now_ms() - garbage.STAGING_MS
        if dry_run:
            counted = await self._database.read(collect)
            return counted | await self._database.read(garbage.count_imports, before_ms)
        async with self._writing:
            try:
                collected = await self._database.write(collect)
            finally:
                if deep:
                    self._judge.failed()
        more = True
        while more:
            # An import may be large, and the rooms' batches go on between its pages.
            async with self._writing:
                more, page = await self._database.write(garbage.collect_import_page, before_ms)
            for table, rows in page.items():
                collected[table] = collected.get(table, 0) + rows
        return collected

    async def settle(self, timeout_s: float = 3.0) -> None:
        """Before the stop: relay and answer what is committed, as far as time allows."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._relay.queued or not self._sent.empty():  # noqa: ASYNC110 - at the end only
                    await asyncio.sleep(0.005)
                if self._placed or self._relay.deletable():
                    await self._commit(Work([], 0, ""))
        except OwnershipLost:
            log.info("stopped_without_partitions")
        except TimeoutError:
            log.warning("stopped_with_outbox", queued=self._relay.queued)

    def _on_adopted(self, future: "asyncio.Future[list[Published]]") -> None:
        if not future.cancelled() and future.exception() is None:
            self._note_published(future.result())

    # -- reading

    async def _read(self) -> None:
        while True:
            self._changed.clear()
            if not self._held:
                await self._changed.wait()
                continue
            epoch = self._connection.epoch(INPUT)
            after = min(mine.position for mine in self._held.values())
            if len(self._held) == self._leases.partition_count:
                subjects = ["room.input.>"]
            else:
                subjects = [partition_filter("room.input", number) for number in sorted(self._held)]
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
                await self._reload()
            except PositionLost as error:
                await self._recover(error)
            finally:
                await batches.aclose()

    async def _process(self, batch: Batch) -> None:
        self._batches += 1
        everything = not batch.messages or self._batches % ADVANCE_ALL_EVERY == 0
        work = Work(batch.messages, batch.through, batch.epoch, advance_all=everything)
        try:
            committed = await self._commit(work, of_reader=True)
        except BatchToSplit as split:
            for messages in split.parts:
                is_last = messages is split.parts[-1]
                through = batch.through if is_last else messages[-1].sequence
                await self._process(Batch(messages, through, batch.epoch))
            return
        if committed is None:
            return
        outcome, published = committed
        self._input_position = batch.through
        self._wake()
        if outcome.answers or outcome.entries:
            await self._sent.put(_Sent(outcome, published))

    async def _commit(
        self, work: Work, *, of_reader: bool = False
    ) -> "tuple[Outcome, asyncio.Future[list[Published]]] | None":
        """Commit; None: not done, for the reader knew nothing of partitions that have come since."""
        async with self._writing:
            if of_reader and self._changed.is_set():
                return None
            deletable: list[Published] = []
            if not work.messages or len(self._placed) >= PLACED_MIN:
                work.published, self._placed = self._placed, []
                deletable = self._deletable()
            work.done = [(item.partition, item.output_no, item.sequence) for item in deletable]
            try:
                outcome = await self._write(work)
            except BaseException:
                self._placed[:0] = work.published
                raise
            self._judge.committed()
            fault_point("roomserver.after_commit")
            self._held = {number: mine for number, mine in outcome.held.items() if number in self._held}
            self._relay.deleted(deletable)
            # Under the lock, so that no other commit's messages are queued before these.
            return outcome, self._relay.publish(outcome.entries)

    def _deletable(self) -> list[Published]:
        """How far the outbox may be deleted: only what stands on OUTPUT at a place that is stored, too."""
        return [
            min(item, self._noted[item.partition], key=lambda published: published.output_no)
            for item in self._relay.deletable()
            if item.partition in self._held and item.partition in self._noted
        ]

    async def _write(self, work: Work) -> Outcome:
        """Commit a batch, as often as it takes; singly after one failed that was not the database's fault."""
        delay_s = RETRY_MIN_S
        apply = self._judge.apply
        while True:
            try:
                write = self._database.write
                if self._judge.is_small(work, self._held):
                    write = self._database.write_here
                return await write(apply, work, self._held)
            except BatchToSplit:
                raise
            except (OwnershipLost, StopFollowing):
                self._judge.failed()
                raise
            except Exception as error:
                self._judge.failed()
                if is_transient(error):
                    # The commit may have happened all the same: then the fence finds the position moved.
                    log.warning("batch_waits", error=str(error))
                    await asyncio.sleep(delay_s)
                    delay_s = min(delay_s * 2, RETRY_MAX_S)
                elif apply == self._judge.apply:
                    log.warning("batch_failed", messages=len(work.messages), error=repr(error))
                    apply = self._judge.apply_singly
                else:
                    raise

    async def _reload(self) -> None:
        """After the fence: see what is still ours, with the positions that hold."""
        async with self._writing:
            self._judge.failed()
            rows = {row.id: row for row in await self._database.read(partitions.load_partitions)}
            for number, mine in list(self._held.items()):
                row = rows[number]
                if row.epoch != mine.epoch:
                    del self._held[number]
                    self._relay.release(number)
                else:
                    self._held[number] = Held(row.epoch, row.input_position, row.output_no)

    async def _recover(self, error: PositionLost) -> None:
        """INPUT was made anew or lost entries: go on from where it begins now."""
        position = error.first_sequence - 1 if isinstance(error, PositionTooOld) else 0
        log.error("input_position_lost", error=str(error), goes_on_after=position)
        # In the same stream nothing that was judged is judged again: what was refused stays refused.
        only_behind = isinstance(error, PositionTooOld)
        async with self._writing:
            behind = {
                number: mine
                for number, mine in self._held.items()
                if not only_behind or mine.position < position
            }
            held = [(number, mine.epoch) for number, mine in behind.items()]
            await self._database.write(partitions.reset_positions, held, error.epoch, position)
            for number, mine in behind.items():
                self._held[number] = Held(mine.epoch, position, mine.output_no)
        await self._connection.load_stream(INPUT)

    # -- after the commit

    async def _finish_sent(self) -> None:
        while True:
            sent = await self._sent.get()
            try:
                published = await sent.published
            except OwnershipLost:
                # Committed, so it holds; whoever owns the partition now publishes it. Writers ask for the
                # outcome.
                continue
            self._note_published(published)
            outcome = sent.outcome
            for room_id, place in outcome.rooms.items():
                sequence = self._sequences.get(place)
                if sequence:
                    self._positions[room_id] = sequence
                    self._positions.move_to_end(room_id)
            while len(self._positions) > MAX_POSITIONS:
                self._positions.popitem(last=False)
            self._verdicts.send(outcome, self._sequences)
            self._idle.set()
            if outcome.erases:
                self._eraser.wake()

    async def _store_places(self) -> None:
        """The eraser finds messages by where they stand, so that has to be stored."""
        if self._placed:
            with contextlib.suppress(OwnershipLost):
                await self._commit(Work([], 0, ""))

    def _note_published(self, published: list[Published]) -> None:
        for item in published:
            partition, output_no, sequence = item
            before = self._noted.get(partition, item)
            # What is gone from the log leaves the relay where it was.
            self._noted[partition] = item if sequence else before._replace(output_no=output_no)
            if sequence:
                self._placed.append((sequence, partition, output_no))
                self._sequences[partition, output_no] = sequence
                self.output_last = max(self.output_last, sequence)
        while len(self._sequences) > MAX_POSITIONS:
            self._sequences.popitem(last=False)

    # -- now and then

    async def _store_when_idle(self) -> None:
        while True:
            await self._idle.wait()
            self._idle.clear()
            await asyncio.sleep(IDLE_S)
            if self._idle.is_set() or not (self._placed or self._relay.deletable()):
                continue
            try:
                await self._commit(Work([], 0, ""))
            except OwnershipLost:
                self._reopen()

    async def _collect_now_and_then(self) -> None:
        pause_s = COLLECT_FIRST_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = COLLECT_EVERY_S
            if 0 not in self._held:
                continue  # one process does it for all
            try:
                collected = await self.collect_garbage(dry_run=False, deep=False)
                metrics.note_sizes(*await self._database.read(garbage.measure))
            except Exception as error:
                if not is_transient(error):
                    raise
                log.warning("collection_waits", error=str(error))
            else:
                log.info("garbage_collected", rows=sum(collected.values()))

    async def _keep_leases(self) -> None:
        interval_s = self._leases.lease_ms / 3000
        while True:
            await asyncio.sleep(interval_s)
            started = time.monotonic()
            held = {number: mine.epoch for number, mine in self._held.items()}
            try:
                lost = await self._database.write(self._leases.renew, held, self.output_last)
                if lost:
                    log.warning("leases_lost", partitions=len(lost))
                    await self._reload()
                    self._reopen()
                if self._leases.shared and not self._giving_up:
                    await self._hand_over()
                if len(self._held) < self._leases.partition_count and not self._giving_up:
                    await self.take_partitions()
            except (LogUnavailable, LogError) as error:
                log.warning("leases_wait", error=str(error))
            except Exception as error:
                if not is_transient(error):
                    raise
                log.warning("leases_wait", error=str(error), after_s=round(time.monotonic() - started, 1))

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

    def _fail_waiting(self) -> None:
        for _, future in self._waiting:
            future.cancel()
        self._waiting = []

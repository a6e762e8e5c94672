"""What changes the database, one transaction after the other: batches, replays, imports, places, collections.

After a commit the memory is what the batch made of it, and its messages are with the relay; on any failure the
memory is forgotten.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy import Connection

from roomserver.input.import_pages import Import, Page
from roomserver.input.judge import BatchToSplit, Judge
from roomserver.input.work import Held, Outcome, Work
from roomserver.leases import Leases
from roomserver.places import Places
from roomserver.storage import garbage, partitions
from roomserver.storage.staging import ImportJob
from servicekit.database import Database
from servicekit.errors import MatrixError, unavailable
from servicekit.grpc.errors import NOT_OWNER
from servicekit.log.applying import is_transient
from servicekit.log.errors import OwnershipLost, PositionLost, PositionTooOld, StopFollowing
from servicekit.log.faultpoints import fault_point
from servicekit.log.outbox import Published
from servicekit.log.relay import OutboxRelay
from servicekit.logging import get_logger

log = get_logger("roomserver")

PLACED_MIN = 8
"""So many messages are published before a batch stores where they stand: fewer wait for more, or for quiet."""
RETRY_MIN_S = 0.02
RETRY_MAX_S = 1.0


class Committed(NamedTuple):
    """What came of a transaction, and its messages on their way to OUTPUT."""

    outcome: Outcome
    published: "asyncio.Future[list[Published]]"


class Committer:
    """See the module. Belongs to the event loop it is used on."""

    def __init__(
        self,
        database: Database,
        judge: Judge,
        leases: Leases,
        relay: OutboxRelay,
        places: Places,
        now_ms: Callable[[], int],
    ) -> None:
        self.held: dict[int, Held] = {}
        """The partitions that are ours."""
        self.writing = asyncio.Lock()
        """Whoever holds it is alone with the memory and with what is held."""
        self._database = database
        self._judge = judge
        self._leases = leases
        self._relay = relay
        self._places = places
        self._now_ms = now_ms
        self._importing = asyncio.Lock()

    async def commit(self, work: Work, unless: Callable[[], bool] | None = None) -> Committed | None:
        """Commit a batch; None: not done, for `unless` became true while others were committing.

        Raises:
            OwnershipLost: another owner has a partition.
            StopFollowing: an entry of INPUT must not be skipped and cannot be understood.
            BatchToSplit: nothing is done; its parts are to be committed one after the other.
        """
        async with self.writing:
            if unless is not None and unless():
                return None
            deletable: list[Published] = []
            if not work.messages or len(self._places.unstored) >= PLACED_MIN:
                work.published = self._places.take_unstored()
                deletable = self._places.deletable(self._relay.deletable(), self.held)
            work.done = [(item.partition, item.output_no, item.sequence) for item in deletable]
            try:
                outcome = await self._write(work)
            except BaseException:
                self._places.give_back(work.published)
                raise
            self._judge.committed()
            fault_point("roomserver.after_commit")
            self._relay.deleted(deletable)
            return self._take_over(outcome)

    def _take_over(self, outcome: Outcome) -> Committed:
        """Take over what holds since the commit. Under the lock, so that no other commit's messages are queued
        before these.
        """
        self.held = {number: mine for number, mine in outcome.held.items() if number in self.held}
        return Committed(outcome, self._relay.publish(outcome.entries))

    async def _write(self, work: Work) -> Outcome:
        """Commit a batch, as often as it takes; singly after one failed that was not the database's fault."""
        delay_s = RETRY_MIN_S
        apply = self._judge.apply
        while True:
            try:
                write = self._database.write
                if self._judge.is_small(work, self.held):
                    write = self._database.write_here
                return await write(apply, work, self.held)
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

    async def store_places(self) -> None:
        """Store where messages stand on OUTPUT, and empty the outbox of them.

        Raises:
            OwnershipLost: another owner has a partition.
        """
        if self._places.unstored or self._relay.deletable():
            await self.commit(Work([], 0, ""))

    async def replay(self, room_ids: list[str]) -> tuple[Committed, int, int]:
        """Judge rooms' dead letters and waiting events once more; returns what came of it, how many were applied
        and how many failed.

        Raises:
            MatrixError: another process owns one of the rooms.
        """
        async with self.writing:
            try:
                outcome, applied, failed = await self._database.write(self._judge.replay, room_ids, self.held)
            except OwnershipLost as error:
                self._judge.failed()
                raise MatrixError(NOT_OWNER, 503, str(error), 200) from error
            except BaseException:
                self._judge.failed()
                raise
            self._judge.committed()
            return self._take_over(outcome), applied, failed

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
        async with self._importing, self.writing:
            try:
                job = await self._database.write(work, self.held, *args)
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
            held = {number: mine.epoch for number, mine in self.held.items()}
            if deep and not dry_run and self._leases.renew(conn, held, 0):  # which locks the rows, too
                raise MatrixError(NOT_OWNER, 503, "A partition has another owner; try again", 200)
            return garbage.collect(conn, self._now_ms(), held, dry_run=dry_run, deep=deep)

        before_ms = self._now_ms() - garbage.STAGING_MS
        if dry_run:
            counted = await self._database.read(collect)
            return counted | await self._database.read(garbage.count_imports, before_ms)
        async with self.writing:
            try:
                collected = await self._database.write(collect)
            finally:
                if deep:
                    self._judge.failed()
        more = True
        while more:
            # An import may be large, and the rooms' batches go on between its pages.
            async with self.writing:
                more, page = await self._database.write(garbage.collect_import_page, before_ms)
            for table, rows in page.items():
                collected[table] = collected.get(table, 0) + rows
        return collected

    # -- when something is not as it was

    async def reload(self) -> None:
        """After the fence: see what is still ours, with the positions that hold."""
        async with self.writing:
            self._judge.failed()
            rows = {row.id: row for row in await self._database.read(partitions.load_partitions)}
            for number, mine in list(self.held.items()):
                row = rows[number]
                if row.epoch != mine.epoch:
                    del self.held[number]
                    self._relay.release(number)
                else:
                    self.held[number] = Held(row.epoch, row.input_position, row.output_no)

    async def recover(self, error: PositionLost) -> None:
        """INPUT was made anew or lost entries: go on from where it begins now."""
        position = error.first_sequence - 1 if isinstance(error, PositionTooOld) else 0
        log.error("input_position_lost", error=str(error), goes_on_after=position)
        # In the same stream nothing that was judged is judged again: what was refused stays refused.
        only_behind = isinstance(error, PositionTooOld)
        async with self.writing:
            behind = {
                number: mine
                for number, mine in self.held.items()
                if not only_behind or mine.position < position
            }
            held = [(number, mine.epoch) for number, mine in behind.items()]
            await self._database.write(partitions.reset_positions, held, error.epoch, position)
            for number, mine in behind.items():
                self.held[number] = Held(mine.epoch, position, mine.output_no)

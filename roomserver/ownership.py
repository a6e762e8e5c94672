"""Which partitions are ours: taking what is free, keeping it, handing over what is more than our share."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from roomserver.committing import Committer
from roomserver.input.judge import Judge
from roomserver.input.work import Held
from roomserver.leases import Leases
from roomserver.places import Places
from roomserver.storage import partitions
from servicekit.database import Database
from servicekit.log.applying import is_transient
from servicekit.log.connection import LogConnection
from servicekit.log.errors import LogError
from servicekit.log.outbox import Published
from servicekit.log.relay import OutboxRelay
from servicekit.log.subjects import INPUT
from servicekit.logging import get_logger

log = get_logger("roomserver")

HAND_OVER_S = 1.0


class Ownership:
    """See the module.

    Args:
        on_change: called when other partitions are ours than before.
        flush: stores where messages stand on OUTPUT, those on their way included.
    """

    def __init__(
        self,
        connection: LogConnection,
        database: Database,
        judge: Judge,
        leases: Leases,
        relay: OutboxRelay,
        places: Places,
        committer: Committer,
        *,
        on_change: Callable[[], None],
        flush: Callable[[], Awaitable[None]],
    ) -> None:
        self._connection = connection
        self._database = database
        self._judge = judge
        self._leases = leases
        self._relay = relay
        self._places = places
        self._committer = committer
        self._on_change = on_change
        self._flush = flush
        self._giving_up = False

    async def take(self) -> None:
        """Take what is free."""
        async with self._committer.writing:
            await self._take()

    async def _take(self) -> None:
        taken = await self._database.write(self._leases.take, set(self._committer.held))
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
            self._committer.held[row.id] = Held(row.epoch, row.input_position, row.output_no)
            future = self._relay.adopt(row.id, row.epoch, item.progress, item.entries)
            future.add_done_callback(self._on_adopted)
        log.info("partitions_taken", count=len(taken), held=len(self._committer.held))
        self._on_change()

    def _on_adopted(self, future: "asyncio.Future[list[Published]]") -> None:
        if not future.cancelled() and future.exception() is None:
            self._places.note(future.result())

    async def give_up(self) -> None:
        """Hand everything over: the process is about to stop."""
        self._giving_up = True
        held = {number: mine.epoch for number, mine in self._committer.held.items()}
        self._committer.held = {}
        self._on_change()
        for number in held:
            self._relay.release(number)
        await self._database.write(self._leases.depart, held)

    async def _hand_over(self) -> None:
        """Give up what is more than our share: others have come."""
        share = await self._database.write(self._leases.share)
        if len(self._committer.held) <= share:
            return
        await self._flush()
        async with self._committer.writing:
            # Nothing is committed meanwhile, so what is queued gets less: nothing of it is left to others.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HAND_OVER_S):
                    while self._relay.queued:  # noqa: ASYNC110 - rare, short
                        await asyncio.sleep(0.002)
            held = self._committer.held
            given = {number: held[number].epoch for number in sorted(held)[share:]}
            for number in given:
                del held[number]
                self._relay.release(number)
            # Whatever is remembered of their rooms will be old when they come back.
            self._judge.failed()
            self._places.forget_rooms()
            await self._database.write(self._leases.give_up, given)
        log.info("partitions_handed_over", count=len(given), held=len(self._committer.held))
        self._on_change()

    async def keep(self) -> None:
        """Prolong what is ours and share it with whoever comes, for ever."""
        interval_s = self._leases.lease_ms / 3000
        while True:
            await asyncio.sleep(interval_s)
            started = time.monotonic()
            try:
                await self._keep_once()
            except LogError as error:
                log.warning("leases_wait", error=str(error))
            except Exception as error:
                if not is_transient(error):
                    raise
                log.warning("leases_wait", error=str(error), after_s=round(time.monotonic() - started, 1))

    async def _keep_once(self) -> None:
        held = {number: mine.epoch for number, mine in self._committer.held.items()}
        lost = await self._database.write(self._leases.renew, held, self._places.output_last)
        if lost:
            log.warning("leases_lost", partitions=len(lost))
            await self._committer.reload()
            self._on_change()
        if self._leases.shared and not self._giving_up:
            await self._hand_over()
        if len(self._committer.held) < self._leases.partition_count and not self._giving_up:
            await self.take()

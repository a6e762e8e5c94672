"""How each destination stands: failures, backoff, how far it has been told. In memory, written in batches.

What is lost by a crash is the last second of it: a destination is tried once more, or told once more what it
has. Both do no harm.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from federation.clock import NowMs
from federation.outbound.backoff import Backoff
from federation.storage.destinations import DestinationRow, load_destinations, store_destinations
from servicekit.database import Database
from servicekit.logging import get_logger

log = get_logger("federation.destinations")

FLUSH_S = 1.0
MAX_ERROR = 300


class Destinations:
    """Every destination that we ever spoke to. Loaded by `load`, written by `run`."""

    def __init__(self, database: Database, now_ms: NowMs, jitter: Callable[[], float]) -> None:
        self._database = database
        self._now_ms = now_ms
        self._jitter = jitter
        self._rows: dict[str, DestinationRow] = {}
        self._dirty: set[str] = set()
        self._wake: list[Callable[[str], None]] = []

    async def load(self) -> None:
        """Read them all."""
        rows = await self._database.read(load_destinations)
        self._rows = {row.server_name: row for row in rows}

    def on_wake(self, callback: Callable[[str], None]) -> None:
        """Have `callback(server_name)` called when a destination that failed may be tried at once."""
        self._wake.append(callback)

    def get(self, server_name: str) -> DestinationRow:
        """How a destination stands; one never seen stands well."""
        return self._rows.get(server_name) or DestinationRow(server_name)

    def all(self) -> list[DestinationRow]:
        """Every destination, by name."""
        return [self._rows[name] for name in sorted(self._rows)]

    # -- what happens to them ------------------------------------------------------------------------------

    def next_try_ms(self, server_name: str) -> int:
        """When it may be asked again, in milliseconds since 1970; 0: now."""
        due = self.get(server_name).next_try_ms
        return due if due > self._now_ms() else 0

    def note_success(self, server_name: str) -> None:
        """It answered."""
        row = self.get(server_name)
        now = self._now_ms()
        # A success every second or so is enough to know.
        if row.failures or now - row.last_success_ms > 60_000:
            had_failed = row.failures > 0
            self._put(replace(row, failures=0, next_try_ms=0, last_error="", last_success_ms=now))
            if had_failed:
                self._call(server_name)

    def note_failure(self, server_name: str, reason: str, at_least_ms: int = 0) -> None:
        """It could not be reached, or would not take what we sent."""
        row = self.get(server_name)
        now = self._now_ms()
        if row.next_try_ms > now:
            return  # several requests failed together: that is one failure
        backoff = Backoff(row.failures, row.next_try_ms).failed(now, self._jitter(), at_least_ms)
        log.info(
            "destination_failed",
            server=server_name,
            failures=backoff.failures,
            wait_s=(backoff.next_try_ms - now) // 1000,
            reason=reason,
        )
        self._put(
            replace(
                row,
                failures=backoff.failures,
                next_try_ms=backoff.next_try_ms,
                last_error=reason[:MAX_ERROR],
            )
        )

    def note_contact(self, server_name: str) -> None:
        """It spoke to us: whatever failed before, it is worth a try now."""
        row = self._rows.get(server_name)
        if row is not None and row.next_try_ms:
            self._put(replace(row, failures=0, next_try_ms=0))
            self._call(server_name)

    def reset(self, server_name: str) -> bool:
        """Forget a destination's failures; False: there is no such destination."""
        if server_name not in self._rows:
            return False
        self._put(replace(self._rows[server_name], failures=0, next_try_ms=0))
        self._call(server_name)
        return True

    def note_sent(self, server_name: str, position: int) -> None:
        """It has been told everything up to a position on OUTPUT."""
        row = self.get(server_name)
        if position > row.sent_position:
            self._put(replace(row, sent_position=position))

    def _call(self, server_name: str) -> None:
        for callback in self._wake:
            callback(server_name)

    def _put(self, row: DestinationRow) -> None:
        self._rows[row.server_name] = row
        self._dirty.add(row.server_name)

    # -- writing -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write what changed, every second, until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_S)
            await self.flush()

    async def flush(self) -> None:
        """Write what changed."""
        if not self._dirty:
            return
        dirty, self._dirty = self._dirty, set()
        rows = [self._rows[name] for name in sorted(dirty)]
        try:
            await self._database.write(store_destinations, rows)
        except BaseException:
            self._dirty |= dirty
            raise

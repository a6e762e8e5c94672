"""Which partitions are ours: rows with an owner, an epoch and a time until which they are held.

The owner is known by its gRPC address, so a process that starts again takes back at once what it held. A
lease says who may try; what keeps two owners apart is the epoch, which every commit demands (architecture,
rule 7). Processes that share a database announce themselves, and each holds at most its share of the
partitions: one that has more hands some over, one that joins takes them.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection

from roomserver.storage import outputs, partitions
from roomserver.storage.partitions import PartitionRow
from roomserver.storage.tables import outbox_tables
from servicekit.log.outbox import Outbox, OutboxEntry, Published
from servicekit.logging import get_logger

log = get_logger("roomserver.leases")

_outbox = Outbox(outbox_tables)


@dataclass(frozen=True, slots=True)
class Taken:
    """A partition that has just become ours, and what its outbox holds."""

    row: PartitionRow
    progress: Published | None
    entries: list[OutboxEntry]


class Leases:
    """Functions for the writer thread; `address` is where we are reached, and who we are."""

    def __init__(
        self,
        address: str,
        partition_count: int,
        lease_ms: int,
        now_ms: Callable[[], int],
        *,
        shared: bool = False,
    ) -> None:
        self.shared = shared
        self._process = hashlib.blake2b(address.encode(), digest_size=8).hexdigest()
        self.address = address
        self.partition_count = partition_count
        self.lease_ms = lease_ms
        self._now_ms = now_ms

    def prepare(self, conn: Connection) -> int:
        """Make missing rows; returns the greatest OUTPUT sequence known, 0 where nobody ever wrote any."""
        partitions.ensure_partitions(conn, self.partition_count)
        seen = int(partitions.load_meta(conn, "output_last") or 0)
        known = max(outputs.load_last_sequence(conn), seen)
        if not known and any(row.output_no for row in partitions.load_partitions(conn)):
            return 1  # something was told, and where it stood was never stored
        return known

    def take(self, conn: Connection, held: set[int]) -> list[Taken]:
        """Take what is free, expired, or ours from before this process began."""
        now_ms = self._now_ms()
        taken: list[PartitionRow] = []
        share = self.share(conn)
        for row in partitions.load_partitions(conn):
            if row.id in held or (row.lease_until >= now_ms and row.owner != self.address):
                continue
            if len(held) + len(taken) >= share:
                break
            if not partitions.claim(conn, row, self.address, self.address, now_ms, now_ms + self.lease_ms):
                continue
            row.epoch += 1
            taken.append(row)
        if not taken:
            return []
        progress = _outbox.load_progress(conn)
        return [Taken(row, progress.get(row.id), _outbox.load(conn, partition=row.id)) for row in taken]

    def share(self, conn: Connection) -> int:
        """Announce ourselves; returns how many partitions are our share."""
        if not self.shared:
            return self.partition_count
        now_ms = self._now_ms()
        processes = partitions.announce(conn, self._process, now_ms, now_ms + self.lease_ms)
        return -(-self.partition_count // processes)

    def renew(self, conn: Connection, held: dict[int, int], output_last: int) -> list[int]:
        """Prolong what we hold, partition -> epoch; returns what is lost. Remembers how far OUTPUT has
        come.
        """
        lost = partitions.renew(conn, self.address, held.items(), self._now_ms() + self.lease_ms)
        if output_last and 0 in held:
            partitions.store_meta(conn, "output_last", str(output_last))
        return lost

    def give_up(self, conn: Connection, held: dict[int, int]) -> None:
        """Hand over some of what we hold."""
        partitions.give_up(conn, self.address, held.items())

    def depart(self, conn: Connection, held: dict[int, int]) -> None:
        """Hand over what we hold, and take no part any longer."""
        partitions.give_up(conn, self.address, held.items())
        partitions.depart(conn, self._process)

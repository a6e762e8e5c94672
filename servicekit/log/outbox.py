"""The outbox: what a transaction wants told on OUTPUT, stored by that transaction, numbered per partition.

    outbox = Outbox(tables)
    with engine.begin() as conn:                       # the owner's unit of work
        outbox.delete_through(conn, done)              # what the relay published since the last one: no
        commit of its own first = outbox.allot(conn, partition, count)   # or numbers of the owner's own
        partition row outbox.append(conn, entries)
    published = await relay.publish(entries)           # servicekit.log.relay

Rows of a partition are numbered from 1 without gaps, in commit order: whoever takes numbers holds the
partition's row until its commit. Readers drop a number that they have, so a row may be published twice and is
never applied twice.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson
from sqlalchemy import Connection, bindparam, delete, insert, select, update

from servicekit.log.applying import EPOCH_HEADER, OUTPUT_NO_HEADER, PARTITION_HEADER, WRITER_HEADER
from servicekit.log.tables import OutboxTables

MAX_DATA_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """One message to publish.

    `data` carries the same number and epoch (`OutputStamp`) as the headers will.
    """

    partition: int
    output_no: int
    epoch: int
    subject: str
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def wire_headers(self, writer: str) -> dict[str, str]:
        """Return the headers that go with it on the log."""
        return {
            **self.headers,
            WRITER_HEADER: writer,
            PARTITION_HEADER: str(self.partition),
            EPOCH_HEADER: str(self.epoch),
            OUTPUT_NO_HEADER: str(self.output_no),
        }


class Published(NamedTuple):
    """Where a message stands in the stream.

    `sequence` 0: it was published, and is gone from the log by now.
    """

    partition: int
    output_no: int
    sequence: int


class Outbox:
    """Storage of the outbox; synchronous, never commits."""

    def __init__(self, tables: OutboxTables) -> None:
        self._outbox = tables.outbox
        self._progress = tables.progress
        outbox, progress = tables.outbox, tables.progress
        self._delete = delete(outbox).where(
            outbox.c.partition == bindparam("of_partition"), outbox.c.output_no <= bindparam("through")
        )
        self._allot = (
            update(progress)
            .where(progress.c.partition == bindparam("of_partition"))
            .values(last_no=progress.c.last_no + bindparam("count"))
            .returning(progress.c.last_no)
        )
        self._note = (
            update(progress)
            .where(
                progress.c.partition == bindparam("of_partition"),
                progress.c.published_no < bindparam("through"),
            )
            .values(published_no=bindparam("through"), sequence=bindparam("at_sequence"))
        )

    def allot(self, conn: Connection, partition: int, count: int) -> int:
        """Take `count` numbers and return the first. Holds the partition's row until the commit."""
        parameters = {"of_partition": partition, "count": count}
        last_no = conn.execute(self._allot, parameters).scalar_one_or_none()
        if last_no is None:
            self.ensure_partitions(conn, [partition])
            last_no = conn.execute(self._allot, parameters).scalar_one()
        return int(last_no) - count + 1

    def ensure_partitions(self, conn: Connection, partitions: Iterable[int]) -> None:
        """Make the progress rows that are missing."""
        table = self._progress
        known = set(conn.execute(select(table.c.partition)).scalars())
        rows = [
            {"partition": partition, "last_no": 0, "published_no": 0, "sequence": 0}
            for partition in sorted(set(partitions) - known)
        ]
        if rows:
            conn.execute(insert(table), rows)

    def append(self, conn: Connection, entries: Iterable[OutboxEntry]) -> None:
        """Store entries, to be published after the commit.

        Raises:
            ValueError: one is larger than a message may be; it could never be published.
        """
        rows = []
        for entry in entries:
            if len(entry.data) > MAX_DATA_BYTES:
                raise ValueError(f"a message of {len(entry.data)} bytes is more than {MAX_DATA_BYTES}")
            rows.append(
                {
                    "partition": entry.partition,
                    "output_no": entry.output_no,
                    "epoch": entry.epoch,
                    "subject": entry.subject,
                    "data": entry.data,
                    "headers": orjson.dumps(dict(entry.headers)).decode() if entry.headers else "",
                }
            )
        if rows:
            conn.execute(insert(self._outbox), rows)

    def load(
        self,
        conn: Connection,
        *,
        partition: int | None = None,
        after: int = 0,
        before: int | None = None,
        limit: int | None = None,
    ) -> list[OutboxEntry]:
        """Return stored entries by partition and number, those between `after` and `before`."""
        table = self._outbox
        query = select(table).where(table.c.output_no > after).order_by(table.c.partition, table.c.output_no)
        if partition is not None:
            query = query.where(table.c.partition == partition)
        if before is not None:
            query = query.where(table.c.output_no < before)
        if limit is not None:
            query = query.limit(limit)
        return [
            OutboxEntry(
                partition=row.partition,
                output_no=row.output_no,
                epoch=row.epoch,
                subject=row.subject,
                data=bytes(row.data),
                headers=orjson.loads(row.headers) if row.headers else {},
            )
            for row in conn.execute(query)
        ]

    def load_progress(self, conn: Connection) -> dict[int, Published]:
        """Return for each partition the last entry known as published (number and sequence 0: none)."""
        table = self._progress
        rows = conn.execute(select(table.c.partition, table.c.published_no, table.c.sequence))
        return {row.partition: Published(row.partition, row.published_no, row.sequence) for row in rows}

    def delete_through(self, conn: Connection, published: Iterable[Published]) -> None:
        """Delete each partition's entries up to the published one given, and note how far it got."""
        parameters = [
            {"of_partition": item.partition, "through": item.output_no, "at_sequence": item.sequence}
            for item in published
        ]
        if not parameters:
            return
        conn.execute(
            self._delete, [{"of_partition": p["of_partition"], "through": p["through"]} for p in parameters]
        )
        conn.execute(self._note, parameters)

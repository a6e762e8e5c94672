"""One batch and the position it leads to, in one transaction. Synchronous: runs on the database's writer
thread.

    Applier.apply      the whole batch in one go; any exception rolls all of it back
    Applier.apply_singly   after that: each message in a savepoint, the offender into `dead_letter`
    store_dead_letter  for handlers that find one bad entry among the many of a message

The position is a row of the same database, moved by an UPDATE that is conditional on where we left it: if no
row changed, the batch is applied already, or somebody else follows with this database; either way nothing is
done here. A message that its writer numbered (headers `Arbor-Writer`, `Arbor-Partition`, `Arbor-Output-No`)
and that was applied before is dropped.
"""

import sqlite3
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import orjson
from sqlalchemy import Connection, Table, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from servicekit.database.raw import Sql
from servicekit.log.errors import PositionTaken, StopFollowing
from servicekit.log.faultpoints import fault_point
from servicekit.log.reader import Batch, LogMessage
from servicekit.log.subjects import parse_subject
from servicekit.log.tables import LogTables

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

WRITER_HEADER = "Arbor-Writer"
PARTITION_HEADER = "Arbor-Partition"
OUTPUT_NO_HEADER = "Arbor-Output-No"
EPOCH_HEADER = "Arbor-Epoch"

Stamp = tuple[str, int]
"""(writer, partition)."""

_TRANSIENT_SQLITE = ("BUSY", "LOCKED", "FULL", "IOERR", "CANTOPEN", "READONLY", "CORRUPT", "NOTADB", "NOMEM")
# Connection lost, serialization failure and deadlock, out of resources, shutting down, system error.
_TRANSIENT_SQLSTATES = ("08", "25006", "40", "53", "57", "58")


class Handler(Protocol[R_co]):
    """What a service does with messages.

    `apply_batch` runs on the writer thread and must not touch the network.
    """

    def apply_batch(self, conn: Connection, messages: Sequence[LogMessage]) -> R_co:
        """Apply messages in order.

        Raise StopFollowing for what must not be skipped, anything else for a bad entry.
        """
        ...


class Skimmer(Protocol[R_co]):
    """A handler that can say that messages ask nothing of the database."""

    def skim(self, messages: Sequence[LogMessage]) -> R_co | None:
        """Return the result of messages that leave the database as it is; None: they must be applied.

        Runs on the loop, while nothing is being applied. Only memory is asked; whatever is odd is applied.
        """
        ...


class Delaying(Skimmer[R_co], Protocol[R_co]):
    """A skimmer that keeps in memory what messages write, so that one unit of work writes it for many."""

    def write_skimmed(self, conn: Connection) -> None:
        """Write what is kept: the first thing in a unit of work, and again in the next one if that fails.

        Raises:
            PositionTaken: it does not belong to what the tables hold by now.
        """
        ...

    def skimmed_written(self) -> None:
        """Take note, on the loop, that it is committed."""
        ...


class StoredPosition(Protocol):
    """A place where a position is kept other than `log_position` (the RoomServer's partition rows)."""

    def load(self, conn: Connection) -> tuple[str | None, int]:
        """Return (epoch or None, position); position 0 where nothing was applied yet."""
        ...

    def advance(self, conn: Connection, epoch: str, expected: int, position: int) -> bool:
        """Move from `expected` to `position`; False, changing nothing, when it stands elsewhere."""
        ...


class PositionRow:
    """The position as a row of `log_position`."""

    def __init__(self, table: Table, name: str) -> None:
        self._table = table
        self._name = name
        # To the driver directly, as all that each batch needs: SQLAlchemy costs ten times what SQLite does.
        self._advance = Sql(
            f"UPDATE {table.name} SET epoch = ?, position = ? WHERE stream = ? AND position = ?"  # noqa: S608
        )

    def load(self, conn: Connection) -> tuple[str | None, int]:
        """See StoredPosition."""
        table = self._table
        row = conn.execute(
            select(table.c.epoch, table.c.position).where(table.c.stream == self._name)
        ).first()
        return (None, 0) if row is None else (row.epoch, row.position)

    def advance(self, conn: Connection, epoch: str, expected: int, position: int) -> bool:
        """See StoredPosition."""
        table = self._table
        if self._advance.change(conn, epoch, position, self._name, expected) == 1:
            return True
        if self.load(conn)[0] is not None or expected != 0:
            return False
        try:
            with conn.begin_nested():
                conn.execute(insert(table).values(stream=self._name, epoch=epoch, position=position))
        except IntegrityError:
            return False
        return True

    def reset(self, conn: Connection, epoch: str, position: int) -> None:
        """Set the position whatever it was: after an export, in the transaction that stores what was
        exported.
        """
        table = self._table
        values = {"epoch": epoch, "position": position}
        if conn.execute(update(table).where(table.c.stream == self._name).values(values)).rowcount == 0:
            conn.execute(insert(table).values(stream=self._name, **values))


@dataclass(frozen=True, slots=True)
class Applied(Generic[R]):
    """What came of a batch: the handler's results in order (one, or one a message), and what was left out."""

    results: list[R]
    position: int
    epoch: str
    messages: int
    dead: list[tuple[LogMessage, Exception]]
    duplicates: int
    stamps: dict[Stamp, int]


class Applier(Generic[R]):
    """See the module.

    Args:
        handler: the service's.
        position: where the position is kept.
        tables: for the dead letters, and for numbers seen when `drop_duplicates`.
        stream: the stream's name, for dead letters.
        drop_duplicates: keep each writer's last `output_no` and drop what is not higher.
        on_dead: called with (conn, message, error) in the transaction that stores the dead letter:
        quarantine. now_ms: the clock.
        write_skimmed: called first in each unit of work (see `Delaying`).
    """

    def __init__(
        self,
        handler: Handler[R],
        position: StoredPosition,
        tables: LogTables,
        stream: str,
        *,
        drop_duplicates: bool,
        now_ms: Callable[[], int],
        on_dead: Callable[[Connection, LogMessage, Exception], None] | None = None,
        write_skimmed: Callable[[Connection], None] | None = None,
    ) -> None:
        self._handler = handler
        self._write_skimmed = write_skimmed
        self._position = position
        self._tables = tables
        self._stream = stream
        self._drop_duplicates = drop_duplicates
        self._on_dead = on_dead
        self._now_ms = now_ms
        self.unstored: dict[Stamp, int] = {}
        """Numbers of messages that were skimmed, to be stored with the next batch."""
        self._update_number = Sql(
            f"UPDATE {tables.output_no.name} SET output_no = ? WHERE writer = ? AND partition = ?"  # noqa: S608
        )

    def load(self, conn: Connection) -> tuple[str | None, int, dict[Stamp, int]]:
        """Return the stored epoch, position and last numbers."""
        epoch, position = self._position.load(conn)
        stamps: dict[Stamp, int] = {}
        if self._drop_duplicates:
            rows = conn.execute(select(self._tables.output_no))
            stamps = {(row.writer, row.partition): row.output_no for row in rows}
        return epoch, position, stamps

    def apply(self, conn: Connection, batch: Batch, expected: int, stamps: dict[Stamp, int]) -> Applied[R]:
        """Apply a batch in one go.

        Raises:
            PositionTaken: the stored position is not `expected`.
            Exception: whatever the handler raises; the caller's transaction must roll back.
        """
        self._advance(conn, batch, expected)
        if self._write_skimmed is not None:
            self._write_skimmed(conn)
        messages, numbers = self.fresh(batch.messages, stamps)
        results = [self._handler.apply_batch(conn, messages)] if messages else []
        self._store_numbers(conn, {**self.unstored, **numbers}, stamps)
        fault_point("follower.before_commit")
        duplicates = len(batch.messages) - len(messages)
        return Applied(
            results, batch.through, batch.epoch, len(messages), [], duplicates, {**stamps, **numbers}
        )

    def apply_singly(
        self, conn: Connection, batch: Batch, expected: int, stamps: dict[Stamp, int]
    ) -> Applied[R]:
        """Apply a batch message by message, each in a savepoint; who fails becomes a dead letter.

        Only where nothing that was skimmed is left to write: that would belong in no message's savepoint.

        Raises:
            PositionTaken, StopFollowing: as `apply`.
            DBAPIError: the database fails for reasons of its own (see `is_transient`).
        """
        self._advance(conn, batch, expected)
        messages, numbers = self.fresh(batch.messages, stamps)
        results: list[R] = []
        dead: list[tuple[LogMessage, Exception]] = []
        for message in messages:
            try:
                with conn.begin_nested():
                    results.append(self._handler.apply_batch(conn, [message]))
            except StopFollowing:
                raise
            except Exception as error:
                if is_transient(error):
                    raise
                dead.append((message, error))
                store_dead_letter(
                    conn, self._tables, self._stream, batch.epoch, message, error, now_ms=self._now_ms()
                )
                if self._on_dead is not None:
                    self._on_dead(conn, message, error)
        self._store_numbers(conn, {**self.unstored, **numbers}, stamps)
        duplicates = len(batch.messages) - len(messages)
        return Applied(
            results, batch.through, batch.epoch, len(messages), dead, duplicates, {**stamps, **numbers}
        )

    def _advance(self, conn: Connection, batch: Batch, expected: int) -> None:
        if not self._position.advance(conn, batch.epoch, expected, batch.through):
            raise PositionTaken(f"the position in {self._stream} is not {expected} any more")

    def fresh(
        self, messages: list[LogMessage], stamps: dict[Stamp, int]
    ) -> tuple[list[LogMessage], dict[Stamp, int]]:
        """Return the messages whose number is new, and the highest number of each writer among them."""
        if not self._drop_duplicates:
            return messages, {}
        numbers: dict[Stamp, int] = {}
        fresh = []
        for message in messages:
            headers = message.headers
            number = headers.get(OUTPUT_NO_HEADER)
            if number is not None:
                stamp = (headers.get(WRITER_HEADER, ""), int(headers.get(PARTITION_HEADER, 0)))
                if int(number) <= numbers.get(stamp, stamps.get(stamp, 0)):
                    continue
                numbers[stamp] = int(number)
            fresh.append(message)
        return fresh, numbers

    def _store_numbers(self, conn: Connection, numbers: dict[Stamp, int], stamps: dict[Stamp, int]) -> None:
        table = self._tables.output_no
        known = [(number, *stamp) for stamp, number in numbers.items() if stamp in stamps]
        self._update_number.many(conn, known)
        new = [
            {"writer": stamp[0], "partition": stamp[1], "output_no": number}
            for stamp, number in numbers.items()
            if stamp not in stamps
        ]
        if new:
            conn.execute(insert(table), new)


def store_dead_letter(
    conn: Connection,
    tables: LogTables,
    stream: str,
    epoch: str,
    message: LogMessage,
    error: Exception,
    *,
    now_ms: int,
    entry_index: int = -1,
) -> None:
    """Keep a message (or one entry of it) that could not be applied, for people to look at and to replay."""
    try:
        about = parse_subject(message.subject).id
    except ValueError:
        about = ""
    values: dict[str, Any] = {
        "stream": stream,
        "epoch": epoch,
        "sequence": message.sequence,
        "entry_index": entry_index,
        "subject": message.subject,
        "about": about,
        "data": message.data,
        "headers": orjson.dumps(message.headers).decode(),
        "error": f"{type(error).__name__}: {error}"[:4000],
        "traceback": "".join(traceback.format_exception(error))[-20000:],
        "created_ms": now_ms,
    }
    conn.execute(insert(tables.dead_letter).values(values))


def is_transient(error: BaseException) -> bool:
    """Whether the database failed for reasons of its own (lost, locked, full), so that nothing is the entry's
    fault. The driver's own errors count like SQLAlchemy's: hot statements go to the driver directly.
    """
    original: BaseException | None = error
    if isinstance(error, DBAPIError):
        if error.connection_invalidated:
            return True
        original = error.orig
    if isinstance(original, sqlite3.Error):
        name = getattr(original, "sqlite_errorname", "") or ""
        return name.removeprefix("SQLITE_").startswith(_TRANSIENT_SQLITE)
    psycopg = sys.modules.get("psycopg")
    if psycopg is None or not isinstance(original, psycopg.Error):
        return False
    # An operational error without a state is the connection's: the server said nothing any more.
    state = original.sqlstate
    return state.startswith(_TRANSIENT_SQLSTATES) if state else isinstance(original, psycopg.OperationalError)

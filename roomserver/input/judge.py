"""Judging a batch, in one transaction.

    fence       UPDATE of the partition rows: my epoch, my position; no row changed: another owner (OwnershipLost)
    judge       each entry in order; nothing is written yet
    store       events, state, transaction keys, outbox, numbers
    commit      by the database's writer thread
    swap in     the memory becomes what the batch made of it

An exception while judging rolls all of it back; the batch is then applied entry by entry in savepoints, and
whoever raises again goes to `dead_letter`, its room into quarantine (architecture, rule 10).
"""

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import Connection, insert

from arbor.log.v1 import input_pb2
from roomserver import metrics
from roomserver.input import local, outputs
from roomserver.input.auth import Refusal
from roomserver.input.batch import Answer, Batch, Context
from roomserver.input.decode import Request, decode_requests
from roomserver.input.load import load
from roomserver.memory import Memory
from roomserver.rooms import RoomWork
from roomserver.storage import outputs as output_rows
from roomserver.storage import partitions, rooms
from roomserver.storage.tables import log_tables
from servicekit.log.applying import is_transient
from servicekit.log.errors import OwnershipLost, StopFollowing
from servicekit.log.faultpoints import fault_point
from servicekit.log.outbox import OutboxEntry
from servicekit.log.reader import LogMessage
from servicekit.log.subjects import room_output_subject
from servicekit.logging import get_logger

log = get_logger("roomserver.input")

Code = input_pb2.VerdictCode


@dataclass(slots=True)
class Held:
    """A partition that is ours."""

    epoch: int
    position: int
    output_no: int


@dataclass(slots=True)
class Work:
    """What goes into a transaction."""

    messages: list[LogMessage]
    through: int
    input_epoch: str
    published: list[tuple[int, int, int]] = field(default_factory=list)
    """(sequence, partition, output_no) of messages whose place on OUTPUT is known since."""
    done: list[tuple[int, int, int]] = field(default_factory=list)
    """(partition, output_no, sequence): the outbox is published up to there."""
    advance_all: bool = False
    """Move the positions of all partitions, not only of those that have messages here."""


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    entries: list[OutboxEntry]
    answers: list[Answer]
    known_sequences: dict[tuple[int, int], int]
    rooms: dict[str, tuple[int, int]]
    """room id -> (partition, last output_no)."""
    held: dict[int, Held]
    judged: int
    dead: int = 0


class Judge:
    """See the module. Runs on the writer thread; `held` is its own view of the partitions."""

    def __init__(self, context: Context, memory: Memory, now_ms: Callable[[], int]) -> None:
        self.context = context
        self.memory = memory
        self._now_ms = now_ms
        self._pending: list[Batch] = []

    # -- called inside the transaction

    def apply(self, conn: Connection, work: Work, held: dict[int, Held]) -> Outcome:
        """Judge a batch in one go.

        Raises:
            OwnershipLost: another owner has a partition.
            StopFollowing: an envelope that must not be skipped.
            Exception: one of the entries is bad, or the database is.
        """
        self._pending = []
        started = time.perf_counter()
        requests = self._decode(work, held)
        new_held = self._fence(conn, work, held, requests)
        batch = Batch(conn, self.context, self.memory, self._now_ms())
        load(batch, requests)
        for request in requests:
            self._judge(batch, request)
        outcome = self._finish(batch, new_held)
        outcome.judged = len(requests)
        self._pending.append(batch)
        if requests:
            metrics.batch_entries.observe(len(requests))
            metrics.batch_seconds.observe(time.perf_counter() - started)
        fault_point("roomserver.before_commit")
        return outcome

    def apply_singly(self, conn: Connection, work: Work, held: dict[int, Held]) -> Outcome:
        """Judge a batch entry by entry in savepoints, bad ones into `dead_letter`."""
        self._pending = []
        self.memory.clear()
        requests = self._decode(work, held)
        total = Outcome([], [], {}, {}, self._fence(conn, work, held, requests), len(requests))
        for request in requests:
            memory = Memory()
            batch = Batch(conn, self.context, memory, self._now_ms())
            savepoint = conn.begin_nested()
            try:
                load(batch, [request])
                self._judge(batch, request)
                outcome = self._finish(batch, total.held)
            except StopFollowing:
                raise
            except Exception as error:
                if is_transient(error):
                    raise
                savepoint.rollback()
                outcome = self._bury(conn, request, error, total.held, work.input_epoch)
                total.dead += 1
            else:
                savepoint.commit()
            total.entries += outcome.entries
            total.answers += outcome.answers
            total.known_sequences |= outcome.known_sequences
            total.rooms |= outcome.rooms
            total.held = outcome.held
        fault_point("roomserver.before_commit")
        return total

    # -- called after the transaction

    def committed(self) -> None:
        """Make the memory what it is now."""
        for batch in self._pending:
            batch.swap_in()
        self._pending = []
        metrics.hot_rooms.set(len(self.memory.rooms))

    def failed(self) -> None:
        """Forget everything: nothing in memory is certain."""
        self._pending = []
        self.memory.clear()

    # -- steps

    def _decode(self, work: Work, held: dict[int, Held]) -> list[Request]:
        requests = []
        for message in work.messages:
            for request in decode_requests(message):
                mine = held.get(self.context.partition_of(request.room_id))
                if mine is not None and request.sequence > mine.position:
                    requests.append(request)
        return requests

    def _fence(
        self, conn: Connection, work: Work, held: dict[int, Held], requests: list[Request]
    ) -> dict[int, Held]:
        if work.advance_all:
            moving = set(held)
        else:
            moving = {self.context.partition_of(request.room_id) for request in requests}
        moves = [
            (number, held[number].epoch, held[number].position)
            for number in sorted(moving)
            if held[number].position < work.through or work.advance_all
        ]
        if moves:
            lost = partitions.advance(conn, moves, work.input_epoch, work.through)
            if lost:
                metrics.fenced.inc()
                raise OwnershipLost(lost[0], f"partitions {lost} have another owner or position")
        if work.published or work.done:
            output_rows.store_published(conn, work.published, work.done)
        made = dict(held)
        for number, epoch, _ in moves:
            made[number] = Held(epoch, work.through, held[number].output_no)
        return made

    def _judge(self, batch: Batch, request: Request) -> None:
        if request.kind == "submit_events":
            origin = request.entry.submit_events.origin
            if origin == input_pb2.EventOrigin.EVENT_ORIGIN_LOCAL:
                local.judge(batch, request)
                return
        local.refuse(batch, request, Refusal("format", "an entry of unknown origin", "M_UNRECOGNIZED"))

    def _finish(self, batch: Batch, held: dict[int, Held]) -> Outcome:
        """Number the messages, write everything, and say what is to be done after the commit."""
        now_ms = batch.now_ms
        told: list[output_rows.Told] = []
        touched: dict[str, tuple[int, int]] = {}
        numbered: dict[int, int] = {}
        for work in batch.works.values():
            if work.outputs:
                self._number(work, held, numbered, told, now_ms)
                touched[work.room_id] = (work.row.partition, work.row.last_output_no)
            if work.touched:
                work.row.heads = tuple(head.nid for head in work.heads.values())
        held = dict(held)
        for number, output_no in numbered.items():
            held[number] = Held(held[number].epoch, held[number].position, output_no)
        epochs = {number: mine.epoch for number, mine in held.items()}
        batch.store(told, epochs)
        if numbered:
            partitions.store_output_numbers(
                batch.conn, [(number, epochs[number], output_no) for number, output_no in numbered.items()]
            )
        entries = [OutboxEntry(m[0], m[1], epochs[m[0]], m[3], m[4]) for m in told]
        known = self._known_sequences(batch)
        return Outcome(entries, batch.answers, known, touched, held, 0)

    def _number(
        self,
        work: RoomWork,
        held: dict[int, Held],
        numbered: dict[int, int],
        told: list[output_rows.Told],
        now_ms: int,
    ) -> None:
        partition = work.row.partition
        subject = room_output_subject(work.room_id, self.context.partitions)
        for part in outputs.cut(work.outputs):
            output_no = numbered.get(partition, held[partition].output_no) + 1
            numbered[partition] = output_no
            message, skeleton = outputs.make_message(
                work.room_id,
                part,
                partition=partition,
                epoch=held[partition].epoch,
                output_no=output_no,
                created_ms=now_ms,
            )
            told.append((partition, output_no, work.row.nid, subject, message, skeleton))
            work.row.last_output_no = output_no

    def _known_sequences(self, batch: Batch) -> dict[tuple[int, int], int]:
        """OUTPUT sequences of older messages that verdicts refer to."""
        wanted: dict[int, list[int]] = {}
        for answer in batch.answers:
            if answer.row is not None and answer.row.nid not in batch.new_events and answer.row.output_no:
                wanted.setdefault(answer.partition, []).append(answer.row.output_no)
            elif answer.room is not None and not answer.room.outputs and answer.room.row.last_output_no:
                wanted.setdefault(answer.partition, []).append(answer.room.row.last_output_no)
        return {
            (partition, output_no): sequence
            for partition, output_nos in wanted.items()
            for output_no, sequence in output_rows.load_sequences(batch.conn, partition, output_nos).items()
        }

    def _bury(
        self, conn: Connection, request: Request, error: Exception, held: dict[int, Held], epoch: str
    ) -> Outcome:
        """Put a bad entry away and its room into quarantine."""
        metrics.dead_letters.inc()
        log.error("entry_dead", room_id=request.room_id, sequence=request.sequence, exc_info=error)
        single = input_pb2.InputMessage(room_id=request.room_id, entries=[request.entry])
        with conn.begin_nested():
            conn.execute(
                insert(log_tables.dead_letter).values(
                    stream="INPUT",
                    epoch=epoch,
                    sequence=request.sequence,
                    entry_index=request.index,
                    subject=request.message.subject,
                    about=request.room_id,
                    data=single.SerializeToString(),
                    headers=json.dumps(request.message.headers),
                    error=f"{type(error).__name__}: {error}",
                    traceback="".join(traceback.format_exception(error)),
                    created_ms=self._now_ms(),
                )
            )
            rooms.store_quarantine(conn, request.room_id, self._now_ms())
        verdict = input_pb2.Verdict(
            request_id=request.entry.request_id,
            code=Code.VERDICT_CODE_REJECTED,
            rejection=input_pb2.Rejection(rule="internal", reason="the entry could not be applied", errcode="M_UNKNOWN"),
        )
        answer = Answer(request.entry.reply_to, verdict, self.context.partition_of(request.room_id), None, None)
        return Outcome([], [answer], {}, {}, held, 1)

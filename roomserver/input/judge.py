"""Judging a batch, in one transaction.

    fence       UPDATE of the partition rows: my epoch, my position; no row changed: another owner
    (OwnershipLost)
    judge       each entry in order; nothing is written yet
    store       events, state, transaction keys, outbox, numbers
    commit      by the database's writer thread
    swap in     the memory becomes what the batch made of it

An exception while judging rolls all of it back; the batch is then applied entry by entry in savepoints, and
whoever raises again goes to `dead_letter`, its room into quarantine (architecture, rule 10).
"""

import time
from collections.abc import Callable
from itertools import groupby

from sqlalchemy import Connection

from arbor.log.v1 import input_pb2
from roomserver import metrics
from roomserver.input import commit_import, federation, history, import_pages, local, purge
from roomserver.input.auth import Refusal
from roomserver.input.batch import Batch, Context
from roomserver.input.decode import Request, decode_requests
from roomserver.input.finish import bury, finish
from roomserver.input.import_pages import Import, Page
from roomserver.input.load import load
from roomserver.input.work import Held, Outcome, Work
from roomserver.memory import Memory
from roomserver.storage import dead_letters, partitions, rooms
from roomserver.storage import outputs as output_rows
from roomserver.storage.ids import Allocator
from roomserver.storage.staging import ImportJob
from servicekit.log.applying import is_transient
from servicekit.log.errors import OwnershipLost, StopFollowing, UnknownEntryKind
from servicekit.log.faultpoints import fault_point
from servicekit.log.reader import LogMessage
from servicekit.logging import get_logger

log = get_logger("roomserver.input")

Code = input_pb2.VerdictCode
Origin = input_pb2.EventOrigin

_ALONE = frozenset({"commit_import", "purge_room", "replay_room"})
"""Kinds that write as they go, each with nothing of others pending."""


class BatchToSplit(Exception):
    """A batch has messages that are to be judged alone: judge its `parts` one after the other."""

    def __init__(self, parts: list[list[LogMessage]]) -> None:
        super().__init__(f"{len(parts)} parts")
        self.parts = parts


class Judge:
    """See the module. Runs inside units of work, one after the other; `held` is its own view of the partitions."""

    def __init__(self, context: Context, memory: Memory, now_ms: Callable[[], int]) -> None:
        self.context = context
        self.memory = memory
        self._now_ms = now_ms
        self._pending: list[Batch] = []

    # -- called before the transaction

    def is_small(self, work: Work, held: dict[int, Held]) -> bool:
        """Whether this is one event of our own users for a room in memory, with one head: surely quick to judge."""
        if len(work.messages) != 1:
            return False
        work.requests = self._decode(work, held)
        if len(work.requests) != 1:
            return False
        request = work.requests[0]
        submit = request.entry.submit_events
        if submit.origin != Origin.EVENT_ORIGIN_LOCAL or len(submit.events) != 1:
            return False
        room = self.memory.rooms.get(request.room_id)
        return room is not None and len(room.heads) == 1

    # -- called inside the transaction

    def apply(self, conn: Connection, work: Work, held: dict[int, Held]) -> Outcome:
        """Judge a batch in one go.

        Raises:
            OwnershipLost: another owner has a partition.
            StopFollowing: an envelope that must not be skipped.
            BatchToSplit: nothing is done.
            Exception: one of the entries is bad, or the database is.
        """
        self._pending = []
        started = time.perf_counter()
        requests = self._decode(work, held) if work.requests is None else work.requests
        alone = {request.sequence for request in requests if request.kind in _ALONE}
        if alone and len(work.messages) > 1:
            # Nobody else's entries are judged one by one on their account.
            groups = groupby(
                work.messages, lambda message: message.sequence if message.sequence in alone else 0
            )
            raise BatchToSplit([list(group) for _, group in groups])
        if alone:
            return self.apply_singly(conn, work, held)
        new_held = self._fence(conn, work, held, requests)
        batch = Batch(conn, self.context, self.memory, self._now_ms())
        load(batch, requests)
        self._judge_all(batch, requests)
        outcome = finish(batch, new_held)
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
        self.forget_numbers()
        requests = self._decode(work, held)
        for request in requests:
            self.memory.rooms.drop(request.room_id)
        total = Outcome([], [], {}, {}, self._fence(conn, work, held, requests), len(requests))
        for request in requests:
            if request.kind == "replay_room":
                self._replay_room(conn, request.room_id, total)
                batch = Batch(conn, self.context, Memory(), self._now_ms())
                batch.answer(request, input_pb2.Verdict(code=Code.VERDICT_CODE_ACCEPTED))
                total.answers += batch.answers
                continue
            self._add(total, self._apply_one(conn, request, total.held, work.input_epoch))
        fault_point("roomserver.before_commit")
        return total

    def replay(
        self, conn: Connection, room_ids: list[str], held: dict[int, Held]
    ) -> tuple[Outcome, int, int]:
        """Lift quarantines and judge the rooms' dead letters and waiting events once more.

        Returns what came of it, how many were applied, and how many failed again. Raises OwnershipLost.
        """
        self._pending = []
        self.memory.clear()
        total = Outcome([], [], {}, {}, self._fence_again(conn, room_ids, held), 0)
        applied = failed = 0
        for room_id in room_ids:
            done, dead = self._replay_room(conn, room_id, total)
            applied += done
            failed += dead
        return total, applied, failed

    def _replay_room(self, conn: Connection, room_id: str, total: Outcome) -> tuple[int, int]:
        rooms.store_quarantine(conn, room_id, 0)
        letters = dead_letters.take(conn, room_id)
        applied = failed = 0
        for letter in letters:
            message = LogMessage(letter.sequence, letter.subject, letter.data, None, b"0")
            for request in decode_requests(message):
                request.index = letter.entry_index
                outcome = self._apply_one(conn, request, total.held, letter.epoch)
                self._add(total, outcome)
                failed += outcome.dead
                applied += 1 - outcome.dead
        waiting_batch = Batch(conn, self.context, Memory(), self._now_ms())
        room = waiting_batch.work(room_id)
        if room is not None and not room.row.quarantined_ms:
            federation.retry_waiting(waiting_batch, room)
        self._add(total, finish(waiting_batch, total.held))
        return applied, failed

    def _add(self, total: Outcome, outcome: Outcome) -> None:
        total.entries += outcome.entries
        total.answers += outcome.answers
        total.known_sequences |= outcome.known_sequences
        total.rooms |= outcome.rooms
        total.held = outcome.held
        total.dead += outcome.dead
        total.erases |= outcome.erases

    def _apply_one(self, conn: Connection, request: Request, held: dict[int, Held], epoch: str) -> Outcome:
        """Judge one entry in a savepoint of its own, with nothing in memory."""
        savepoint = conn.begin_nested()
        try:
            batch = Batch(conn, self.context, Memory(), self._now_ms())
            load(batch, [request])
            self._judge_all(batch, [request])
            outcome = finish(batch, held)
        except StopFollowing:
            raise
        except commit_import.ImportRefused as refused:
            savepoint.rollback()
            batch = Batch(conn, self.context, Memory(), self._now_ms())
            local.refuse(batch, request, refused.refusal)
            return Outcome([], batch.answers, {}, {}, held, 1)
        except Exception as error:
            if is_transient(error):
                raise
            savepoint.rollback()
            return bury(conn, self.context, request, error, held, epoch, self._now_ms())
        savepoint.commit()
        for nid, _, _ in batch.redactions:
            self.memory.events.pop(nid)
        return outcome

    def import_page(self, conn: Connection, held: dict[int, Held], page: Page) -> ImportJob:
        """Store a page of an import. Raises OwnershipLost, MatrixError."""
        batch = self._import_batch(conn, held, page.of)
        job = import_pages.store(batch, page)
        return self._page_stored(batch, job)

    def import_aside(
        self, conn: Connection, held: dict[int, Held], of: Import, event_ids: list[str]
    ) -> ImportJob:
        """Store events of an import that were set aside. Raises OwnershipLost, MatrixError."""
        batch = self._import_batch(conn, held, of)
        job = import_pages.store_aside(batch, of, event_ids)
        return self._page_stored(batch, job)

    def _import_batch(self, conn: Connection, held: dict[int, Held], of: Import) -> Batch:
        self._pending = []
        self._fence_again(conn, [of.room_id], held)
        return Batch(conn, self.context, self.memory, self._now_ms())

    def _page_stored(self, batch: Batch, job: ImportJob) -> ImportJob:
        # Thousands of members, few of whom are asked for again.
        batch.new_keys.clear()
        self._pending.append(batch)
        fault_point("roomserver.import_page")
        return job

    def forget_numbers(self) -> None:
        """Take new blocks of numbers from here on: others, who hold younger blocks, have numbered events of our rooms.

        An event's auth events must have smaller numbers than the event (`storage.tables`).
        """
        self.memory.ids = Allocator()

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

    def _fence_again(self, conn: Connection, room_ids: list[str], held: dict[int, Held]) -> dict[int, Held]:
        """Demand that partitions are still ours, without moving their positions."""
        numbers = sorted({self.context.partition_of(room_id) for room_id in room_ids})
        missing = [number for number in numbers if number not in held]
        if missing:
            raise OwnershipLost(missing[0], "not ours")
        rows = {row.id: row for row in partitions.load_partitions(conn)}
        for number in numbers:
            mine = held[number]
            moves = [(number, mine.epoch, mine.position)]
            if partitions.advance(conn, moves, rows[number].input_epoch, mine.position):
                raise OwnershipLost(number, "another owner or position")
        return dict(held)

    def _judge_all(self, batch: Batch, requests: list[Request]) -> None:
        index = 0
        while index < len(requests):
            request = requests[index]
            index += 1
            match request.kind:
                case "submit_events":
                    origin = request.entry.submit_events.origin
                    if origin == Origin.EVENT_ORIGIN_LOCAL:
                        local.judge(batch, request)
                    elif origin == Origin.EVENT_ORIGIN_FEDERATION:
                        federation.judge(batch, request)
                    elif origin == Origin.EVENT_ORIGIN_HISTORY:
                        group = [request]
                        while index < len(requests) and _is_history(requests[index], request.room_id):
                            group.append(requests[index])
                            index += 1
                        history.judge_history(batch, group)
                    elif origin == Origin.EVENT_ORIGIN_OUTLIER:
                        history.judge_outliers(batch, request)
                    else:
                        local.refuse(batch, request, Refusal("format", "an unknown origin", "M_UNRECOGNIZED"))
                case "commit_import":
                    commit_import.judge(batch, request)
                case "purge_room":
                    purge.judge(batch, request)
                case _:
                    raise UnknownEntryKind(f"INPUT {request.sequence}: no handler for {request.kind}")


def _is_history(request: Request, room_id: str) -> bool:
    return (
        request.kind == "submit_events"
        and request.room_id == room_id
        and request.entry.submit_events.origin == Origin.EVENT_ORIGIN_HISTORY
    )

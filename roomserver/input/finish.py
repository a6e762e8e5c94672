"""The end of judging: messages are numbered, everything is written, and what is to be done after the commit is said.

An entry that cannot be judged ends in `dead_letter`, its room in quarantine (architecture, rule 10).
"""

import json
import traceback

from sqlalchemy import Connection, insert

from arbor.log.v1 import input_pb2
from roomserver import metrics
from roomserver.input import merge, outputs
from roomserver.input.batch import Answer, Batch, Context
from roomserver.input.decode import Request
from roomserver.input.work import Held, Outcome
from roomserver.rooms import Told
from roomserver.storage import erasures, partitions, rooms
from roomserver.storage import outputs as output_rows
from roomserver.storage.erasures import Erasure
from roomserver.storage.tables import log_tables
from servicekit.log.outbox import OutboxEntry
from servicekit.log.subjects import room_output_subject
from servicekit.logging import get_logger

log = get_logger("roomserver.input")

Code = input_pb2.VerdictCode


def finish(batch: Batch, held: dict[int, Held]) -> Outcome:
    """Number the messages, write everything, and say what is to be done after the commit."""
    told: list[output_rows.Told] = []
    touched: dict[str, tuple[int, int]] = {}
    numbered: dict[int, int] = {}
    for work in list(batch.works.values()):
        if work.touched and len(work.heads) >= merge.MERGE_FROM:
            merge.merge_heads(batch, work)
        if work.outputs:
            place = _number(batch, work.room_id, work.row.nid, work.outputs, held, numbered, told)
            work.row.last_output_no = place[1]
            touched[work.room_id] = place
        if work.touched:
            work.row.heads = tuple(head.nid for head in work.heads.values())
            metrics.heads.labels("joined" if work.row.participating else "left").observe(len(work.heads))
    for room_id, entries_ in batch.strays.items():
        touched[room_id] = _number(batch, room_id, 0, entries_, held, numbered, told)
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
    known = _known_sequences(batch)
    outcome = Outcome(entries, batch.answers, known, touched, held, 0)
    if batch.redactions or batch.trimmed or batch.purged:
        outcome.erases = _remember_erasures(batch, touched, held)
    return outcome


def _remember_erasures(batch: Batch, touched: dict[str, tuple[int, int]], held: dict[int, Held]) -> bool:
    """Store what is to go from the log; returns whether anything is."""
    gone: dict[str, set[str]] = {room_id: set() for room_id in batch.purged}
    if batch.context.secure_erase:
        gone.update((room_id, set()) for room_id in batch.trimmed)
        for nid, _, _ in batch.redactions:
            event = batch.loaded_events[nid]
            gone.setdefault(event.room_id or "", set()).add(event.event_id)
    erasures.store_erasures(
        batch.conn,
        [
            Erasure(
                *touched[room_id],
                room_id,
                frozenset(event_ids),
                room_id in batch.purged,
                held[touched[room_id][0]].position,
            )
            for room_id, event_ids in gone.items()
        ],
    )
    return bool(gone)


def _number(
    batch: Batch,
    room_id: str,
    room_nid: int,
    entries: list[Told],
    held: dict[int, Held],
    numbered: dict[int, int],
    told: list[output_rows.Told],
) -> tuple[int, int]:
    """Make a room's messages; returns the place of the last one."""
    partition = batch.context.partition_of(room_id)
    subject = room_output_subject(room_id, batch.context.partitions)
    output_no = 0
    for part in outputs.cut(entries):
        output_no = numbered.get(partition, held[partition].output_no) + 1
        numbered[partition] = output_no
        message, skeleton = outputs.make_message(
            room_id,
            part,
            partition=partition,
            epoch=held[partition].epoch,
            output_no=output_no,
            created_ms=batch.now_ms,
            stray=room_nid == 0,
        )
        told.append((partition, output_no, room_nid, subject, message, skeleton))
    return partition, output_no


def _known_sequences(batch: Batch) -> dict[tuple[int, int], int]:
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


def bury(
    conn: Connection,
    context: Context,
    request: Request,
    error: Exception,
    held: dict[int, Held],
    epoch: str,
    now_ms: int,
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
                created_ms=now_ms,
            )
        )
        rooms.store_quarantine(conn, request.room_id, now_ms)
    verdict = input_pb2.Verdict(
        request_id=request.entry.request_id,
        code=Code.VERDICT_CODE_REJECTED,
        rejection=input_pb2.Rejection(
            rule="internal", reason="the entry could not be applied", errcode="M_UNKNOWN"
        ),
    )
    partition = context.partition_of(request.room_id)
    answer = Answer(request.entry.reply_to, verdict, partition, None, None, request.room_id)
    return Outcome([], [answer], {}, {}, held, 1)

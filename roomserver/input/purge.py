"""Forgetting a room, or its history before an event."""

from arbor.log.v1 import input_pb2
from arbor.log.v1.output_pb2 import OutputEntry, RoomPurged
from roomserver.input import local, outputs
from roomserver.input.auth import Refusal
from roomserver.input.batch import Batch
from roomserver.input.decode import Request
from roomserver.rooms import RoomWork, Told
from roomserver.storage import purging
from servicekit.logging import get_logger

log = get_logger("roomserver.input")

Code = input_pb2.VerdictCode


def judge(batch: Batch, request: Request) -> None:
    """Purge. The batch holds nothing else."""
    purge = request.entry.purge_room
    work = batch.work(request.room_id)
    if work is None:
        local.refuse(batch, request, local.UNKNOWN_ROOM)
        return
    if purge.before_event_id and work.row.partial_join:
        # The states of what was sent since the join are still to be worked out, each from the one before.
        local.refuse(batch, request, local.PARTIAL)
    elif purge.before_event_id:
        _purge_history(batch, request, work, purge)
    else:
        _purge_room(batch, request, work)


def _purge_room(batch: Batch, request: Request, work: RoomWork) -> None:
    """Nothing remains but the entry that says so."""
    rows = purging.delete_room(batch.conn, work.row.nid, work.room_id)
    del batch.works[work.room_id]
    batch.no_room.add(work.room_id)
    batch.purged.append(work.room_id)
    entry = OutputEntry(room_purged=RoomPurged())
    batch.strays[work.room_id] = [Told(entry, entry, None, 100)]
    log.info("room_purged", room_id=work.room_id, rows=rows)
    batch.answer(request, input_pb2.Verdict(code=Code.VERDICT_CODE_ACCEPTED))


def _purge_history(batch: Batch, request: Request, work: RoomWork, purge: input_pb2.PurgeRoom) -> None:
    """Message events before a point go; state events stay, for states and auth chains refer to them."""
    row = batch.row_of(purge.before_event_id)
    if row is None or row.room_nid != work.row.nid or not row.in_graph:
        local.refuse(batch, request, Refusal("format", "the event is not of the room", "M_NOT_FOUND"))
        return
    heads = {head.nid for head in work.heads.values()}
    count = purging.delete_history(
        batch.conn,
        work.row.nid,
        row.depth,
        keep=heads | {row.nid},
        is_kept=None if purge.delete_local_events else batch.context.is_local,
    )
    entry = OutputEntry(
        room_purged=RoomPurged(
            before_event_id=purge.before_event_id, local_events_kept=not purge.delete_local_events
        )
    )
    outputs.tell(work, entry, 100)
    batch.trimmed.append(work.room_id)
    log.info("history_purged", room_id=work.room_id, events=count)
    batch.answer(request, input_pb2.Verdict(code=Code.VERDICT_CODE_ACCEPTED), room=work)

"""Events of other servers, judged one by one (server-server API, "Checks performed on receipt of a PDU").

    format, id, hash          REJECTED, not stored; a wrong content hash leaves the redacted form
    known                     DUPLICATE, or as it was refused then
    the room is partial       WAITING for the whole state (under the room's id), told nobody
    auth or prev missing      WAITING, stored aside, told as RoomMissing
    auth at its auth events   REJECTED, stored with the rule
    state before              from the prev events, resolved where branches meet; or as the other server
    told it
    auth at the state before  REJECTED, stored with the rule
    auth at the current state SOFT_FAILED, stored, shown to nobody
    policy server             SOFT_FAILED, if the room has one and it has not signed
    apply                     ACCEPTED

A rejected event is part of the graph and never of a state. What waited for an event is judged when that is
here.
"""

from collections import deque
from dataclasses import dataclass, field

from arbor.log.v1 import input_pb2
from arbor.log.v1.output_pb2 import OutputEntry, Placement, RoomMissing
from matrixlib.events import Event, EventFormatError, parse_event, redact_event
from roomserver import metrics
from roomserver.input import (
    apply,
    auth,
    gaps,
    load,
    local,
    merge,
    outputs,
    policy,
    redactions,
    resolution,
    snapshots,
)
from roomserver.input.auth import AuthEvents, Refusal
from roomserver.input.batch import Batch
from roomserver.input.decode import Request
from roomserver.rooms import RoomWork
from roomserver.storage import waiting
from roomserver.storage.events import ACCEPTED, OUTLIER, REJECTED, SOFT_FAILED, EventRow

Code = input_pb2.VerdictCode
NOT_PARTICIPATING = Refusal("not_participating", "nobody of this server is in the room", "M_FORBIDDEN")
_FEDERATION = input_pb2.EventOrigin.EVENT_ORIGIN_FEDERATION
_HISTORY = input_pb2.EventOrigin.EVENT_ORIGIN_HISTORY


@dataclass(slots=True)
class Judged:
    """What came of one event."""

    code: int
    row: EventRow | None = None
    refusal: Refusal | None = None
    missing: list[str] = field(default_factory=list)


_CODES = {
    ACCEPTED: Code.VERDICT_CODE_ACCEPTED,
    SOFT_FAILED: Code.VERDICT_CODE_SOFT_FAILED,
    REJECTED: Code.VERDICT_CODE_REJECTED,
    OUTLIER: Code.VERDICT_CODE_ACCEPTED,
}


def judge(batch: Batch, request: Request) -> None:
    """Judge an entry; its verdict is that of its last event."""
    submit = request.entry.submit_events
    work = batch.work(request.room_id)
    refusal = refuse_room(work, submit)
    if refusal is not None or work is None:
        local.refuse(batch, request, refusal or local.UNKNOWN_ROOM)
        return
    if not submit.events:
        local.refuse(batch, request, Refusal("format", "an entry has events", "M_BAD_JSON"))
        return
    outliers = store_outliers(batch, work, submit)
    judged = Judged(Code.VERDICT_CODE_REJECTED)
    last_index = 0
    for index, message in enumerate(submit.events):
        event = parse(batch, work, message.event_id, message.pdu_json)
        if isinstance(event, Refusal):
            judged = Judged(Code.VERDICT_CODE_REJECTED, None, event)
        else:
            given = list(submit.state_before_event_ids) if index == 0 else []
            heads_before = len(work.heads)
            judged = judge_event(batch, work, event, submit.origin_server, given)
            if judged.row is not None:
                wake_waiters(batch, work, [event.event_id])
                merge.merge_many_heads(batch, work, heads_before)
        last_index = index
    wake_waiters(batch, work, outliers)
    answer(batch, request, work, judged, submit.events[-1].event_id, last_index)


def answer(batch: Batch, request: Request, work: RoomWork, judged: Judged, event_id: str, index: int) -> None:
    """Note the verdict on an entry."""
    if judged.code == Code.VERDICT_CODE_DUPLICATE:
        verdict = local.repeat(event_id, judged.row)
    else:
        verdict = input_pb2.Verdict(code=judged.code, event_id=event_id)  # type: ignore[arg-type]
    if judged.refusal is not None:
        verdict.rejection.CopyFrom(judged.refusal.message(index))
    elif judged.row is not None and judged.row.rejection:
        verdict.rejection.CopyFrom(input_pb2.Rejection.FromString(judged.row.rejection))
    verdict.missing_event_ids.extend(judged.missing)
    metrics.verdicts.labels(Code.Name(judged.code).removeprefix("VERDICT_CODE_").lower()).inc()  # type: ignore[arg-type]
    row = judged.row if judged.row is not None and judged.row.placement else None
    batch.answer(request, verdict, row=row, room=None)


def refuse_room(work: RoomWork | None, submit: input_pb2.SubmitEvents) -> Refusal | None:
    """Why a room takes no events of other servers; None: it does."""
    if work is None:
        return local.UNKNOWN_ROOM
    if work.row.quarantined_ms:
        return local.QUARANTINED
    if submit.room_version not in ("", work.version.identifier):
        return Refusal("format", "the room has another version", "M_UNSUPPORTED_ROOM_VERSION")
    if not work.row.participating:
        return NOT_PARTICIPATING
    return None


def parse(batch: Batch, work: RoomWork, event_id: str, pdu_json: bytes) -> Event | Refusal:
    """Make an event of what was sent: id and content hash are checked here again."""
    try:
        event = parse_event(pdu_json, work.version)
    except EventFormatError as error:
        return auth.format_refusal(error)
    if event.event_id != event_id:
        return Refusal("format", "the event id is not that of the event", "M_BAD_JSON")
    if event.room_id != work.room_id:
        return Refusal("format", "the event is of another room", "M_BAD_JSON")
    if batch.context.raise_on_type and event.type == batch.context.raise_on_type:
        raise RuntimeError(f"asked to raise on {event.type}")
    if not auth.check_hash(event):
        # "... the event's content is redacted before further processing"
        event = redact_event(event)
    return event


def judge_event(
    batch: Batch,
    work: RoomWork,
    event: Event,
    origin_server: str,
    state_before_ids: list[str],
    *,
    placement: int = Placement.PLACEMENT_TIMELINE,
) -> Judged:
    """Judge one event and store what comes of it."""
    batch.load_rows([event.event_id, *event.prev_event_ids, *event.auth_links])
    known = batch.row_of(event.event_id)
    if known is not None and known.room_nid != work.row.nid:
        return Judged(
            Code.VERDICT_CODE_REJECTED,
            None,
            Refusal("format", "the event id stands for an event of another room", "M_BAD_JSON"),
        )
    if known is not None and (known.in_graph or known.status == REJECTED):
        return Judged(Code.VERDICT_CODE_DUPLICATE, known)
    if work.row.partial_join:
        # Who may do what is not known for certain: it is judged, like all that came before it, by the whole state.
        return wait(batch, work, event, origin_server, [work.room_id], tell=False)
    if event.type == "m.room.create":
        return Judged(
            Code.VERDICT_CODE_REJECTED, None, Refusal("format", "the room has a create event", "M_BAD_JSON")
        )
    batch.load_entries(work, auth.keys_needed(event, is_local=True))
    found = auth.find_auth_events(batch, work, event)
    missing = list(found.missing)
    missing_prev = []
    prevs: list[EventRow] = []
    for prev_id in event.prev_event_ids:
        prev = batch.row_of(prev_id)
        if prev is None or prev.room_nid != work.row.nid or not prev.in_graph:
            missing_prev.append(prev_id)
        else:
            prevs.append(prev)
    given: list[EventRow] = []
    if missing_prev or not prevs:
        if state_before_ids:
            batch.load_rows(state_before_ids)
            for event_id in state_before_ids:
                row = batch.row_of(event_id)
                if row is None or row.room_nid != work.row.nid:
                    missing.append(event_id)
                else:
                    given.append(row)
        else:
            missing += missing_prev or ([] if prevs else ["$"])
    if missing == ["$"]:
        return Judged(
            Code.VERDICT_CODE_REJECTED, None, Refusal("format", "the event has no prev events", "M_BAD_JSON")
        )
    if missing:
        return wait(batch, work, event, origin_server, missing)
    end_wait(batch, work, event.event_id)
    if given:
        ids = [_told_state(batch, work, given)] + [prev.snapshot_after for prev in prevs]
    else:
        ids = [prev.snapshot_after for prev in prevs]
    before = resolution.resolve(batch, work, ids, cause=event.event_id)
    state = snapshots.events_at(batch, work, before, auth.keys_needed(event, is_local=True))
    refusal = auth.check_at_auth_events(batch, event, found) or auth.check_at_state(event, state)
    status = ACCEPTED
    if refusal is not None:
        status = REJECTED
        metrics.rejected.inc()
    elif placement == Placement.PLACEMENT_TIMELINE:
        refusal = _check_at_current_state(batch, work, event, before) or policy.check(batch, work, event)
        if refusal is not None:
            status = SOFT_FAILED
            metrics.soft_failed.inc()
    row = _store(batch, work, event, known, status, before, found, prevs, refusal)
    gaps.note_missing(batch, work, row, missing_prev)
    followers = gaps.find_followers(batch, work, event.event_id)
    if status == ACCEPTED:
        apply.apply_event(
            batch,
            work,
            event,
            row,
            state,
            placement=placement,
            missing_prev=missing_prev,
            is_followed=bool(followers),
        )
        redactions.apply_pending(batch, work, row)
    else:
        row.snapshot_after = before
        if status == SOFT_FAILED and event.state_key is not None:
            row.snapshot_after = snapshots.add_child(batch, work.row.nid, before, {row.key_id: row.nid})
    batch.change_row(row)
    if followers:
        gaps.close(batch, work, row, followers)
    return Judged(_CODES[status], row)


def _check_at_current_state(batch: Batch, work: RoomWork, event: Event, before: int) -> Refusal | None:
    if before == work.row.snapshot_id:
        return None  # judged by it already
    keys = auth.keys_needed(event, is_local=True)
    current = {key: entry.event for key, entry in batch.entries(work, keys).items()}
    refusal = auth.check_at_state(event, current)
    return refusal._replace(snapshot_id=work.row.snapshot_id) if refusal is not None else None


def _store(
    batch: Batch,
    work: RoomWork,
    event: Event,
    known: EventRow | None,
    status: int,
    before: int,
    found: AuthEvents,
    prevs: list[EventRow],
    refusal: Refusal | None,
) -> EventRow:
    """Store an event, or give an outlier its place in the graph."""
    if known is None:
        row = apply.make_row(batch, work, event, status=status, before=before, after=0, auth=found.nids)
        batch.add_row(row, event)
    else:
        row = known
        row.status, row.snapshot_before = status, before
    row.prev = tuple(prev.nid for prev in prevs)
    row.rejection = refusal.message().SerializeToString() if refusal is not None else None
    return row


def _told_state(batch: Batch, work: RoomWork, given: list[EventRow]) -> int:
    """The snapshot of a state that another server told; rejected events are never in a state."""
    state = {row.key_id: row.nid for row in given if row.key_id and row.status != REJECTED}
    return snapshots.add_child(batch, work.row.nid, 0, state)


def wait(
    batch: Batch,
    work: RoomWork,
    event: Event,
    origin_server: str,
    missing: list[str],
    *,
    origin: int = _FEDERATION,
    tell: bool = True,
) -> Judged:
    """Keep an event until what it needs is here and, the first time, tell what that is."""
    missing = list(dict.fromkeys(missing))
    before = kept = None
    if load.is_waiting(batch, work.room_id):
        kept = waiting.load_waiting(batch.conn, [event.event_id]).get(event.event_id)
    if kept is not None:
        before = waiting.load_missing(batch.conn, event.event_id)
        if kept.pdu != event.pdu_json and policy.is_wanting(batch, work, kept.pdu, event):
            waiting.replace_pdu(batch.conn, event.event_id, event.pdu_json)
    if before != sorted(missing):
        waiting.store_waiting(
            batch.conn,
            waiting.WaitingEvent(
                event.event_id,
                work.room_id,
                origin,
                origin_server,
                work.version.identifier,
                event.pdu_json,
                batch.now_ms,
            ),
            missing,
        )
        batch.has_waiting[work.room_id] = True
        if tell:
            outputs.tell(
                work,
                OutputEntry(
                    room_missing=RoomMissing(
                        waiting_event_id=event.event_id,
                        missing_event_ids=missing,
                        origin_server=origin_server,
                    )
                ),
                200 + 60 * len(missing),
            )
    return Judged(Code.VERDICT_CODE_WAITING, None, None, missing)


def end_wait(batch: Batch, work: RoomWork, event_id: str) -> None:
    """An event waits no longer."""
    if load.is_waiting(batch, work.room_id):
        waiting.delete_waiting(batch.conn, event_id)


def wake_waiters(batch: Batch, work: RoomWork, event_ids: list[str]) -> None:
    """Judge what waited for events that are here now, and what waited for that."""
    if not event_ids or not load.is_waiting(batch, work.room_id):
        return
    todo = deque(event_ids)
    while todo:
        waiters = waiting.load_waiters(batch.conn, [todo.popleft()])
        for event_id, kept in sorted(waiting.load_waiting(batch.conn, waiters).items()):
            if kept.room_id == work.room_id and _judge_again(batch, work, kept):
                todo.append(event_id)


def retry_waiting(batch: Batch, work: RoomWork) -> None:
    """Judge everything that waits in a room once more."""
    for kept in waiting.load_waiting_of_room(batch.conn, work.room_id):
        if _judge_again(batch, work, kept):
            wake_waiters(batch, work, [kept.event_id])


def _judge_again(batch: Batch, work: RoomWork, kept: waiting.WaitingEvent) -> bool:
    """Judge an event that waits as it was asked for; returns whether it is here now."""
    from roomserver.input import history  # which builds on this module

    event = parse(batch, work, kept.event_id, kept.pdu)
    if isinstance(event, Refusal):
        waiting.delete_waiting(batch.conn, kept.event_id)
        return False
    if kept.origin == _HISTORY:
        judged = history.judge_alone(batch, work, event, kept.origin_server)
    else:
        judged = judge_event(batch, work, event, kept.origin_server, [])
    # What is here already waits no longer; else two of these could wake each other for ever.
    done = judged.row is None or judged.code == Code.VERDICT_CODE_DUPLICATE
    if done and judged.code != Code.VERDICT_CODE_WAITING:
        waiting.delete_waiting(batch.conn, kept.event_id)
    return judged.row is not None


def store_outliers(batch: Batch, work: RoomWork, submit: input_pb2.SubmitEvents) -> list[str]:
    """Store the outliers that come with an entry, oldest first; returns the ids of those that are here now."""
    here = []
    for message in submit.outliers:
        event = parse(batch, work, message.event_id, message.pdu_json)
        if not isinstance(event, Refusal) and store_outlier(batch, work, event).row is not None:
            here.append(event.event_id)
    return here


def store_outlier(batch: Batch, work: RoomWork, event: Event) -> Judged:
    """Store an event outside of the graph, judged by its auth events, all of which must be here."""
    batch.load_rows([event.event_id, *event.auth_links])
    known = batch.row_of(event.event_id)
    if known is not None:
        if known.room_nid != work.row.nid:
            return Judged(
                Code.VERDICT_CODE_REJECTED,
                None,
                Refusal("format", "the event is of another room", "M_BAD_JSON"),
            )
        return Judged(Code.VERDICT_CODE_DUPLICATE, known)
    batch.load_entries(work, auth.keys_needed(event, is_local=True))
    found = auth.find_auth_events(batch, work, event)
    if found.missing:
        return Judged(Code.VERDICT_CODE_WAITING, None, None, found.missing)
    refusal = auth.check_at_auth_events(batch, event, found)
    status = REJECTED if refusal is not None else OUTLIER
    row = _store(batch, work, event, None, status, 0, found, [], refusal)
    work.touched = True
    redactions.apply_pending(batch, work, row)
    return Judged(_CODES[status], row)

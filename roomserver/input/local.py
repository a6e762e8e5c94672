"""Entries of our own users: accepted whole or refused whole, on the heads that the room has now.

transaction key known?      DUPLICATE
events known?               DUPLICATE, or as they were refused then
room, version, format, ids  REJECTED
built on the present heads? STALE, unless it may fork
a partial room's member?    REJECTED (`partial`), but for a user's own who is joined
auth, event by event        REJECTED, the first offender named
policy server, each event   REJECTED, if the room has one and it has not signed
apply                       ACCEPTED
"""

from arbor.log.v1 import input_pb2
from arbor.log.v1.common_pb2 import TransactionKey
from matrixlib.event_auth import state_types_for
from matrixlib.events import Event, EventFormatError, parse_event
from matrixlib.identifiers import server_name_of
from matrixlib.room_versions import get_room_version
from roomserver import metrics
from roomserver.input import apply, auth, heads, policy, resolution, snapshots
from roomserver.input.auth import Refusal
from roomserver.input.batch import Batch
from roomserver.input.decode import Request
from roomserver.memory import Allowed
from roomserver.rooms import Room, RoomWork
from roomserver.storage.events import ACCEPTED, REJECTED, SOFT_FAILED, EventRow
from roomserver.storage.rooms import RoomRow
from roomserver.storage.states import JOIN

Code = input_pb2.VerdictCode
MAX_EVENTS = 500

QUARANTINED = Refusal(
    "quarantined", "the room takes no events since one of them could not be applied", "M_UNKNOWN"
)
PARTIAL = Refusal("partial", "the room's members are not all known yet: try again", "M_UNKNOWN")
UNKNOWN_ROOM = Refusal("unknown_room", "there is no such room here", "M_NOT_FOUND")


def judge(batch: Batch, request: Request) -> None:
    """Judge a local entry."""
    submit = request.entry.submit_events
    if answer_duplicate(batch, request, submit):
        return
    work = batch.work(request.room_id)
    refusal, index, events = _parse(batch, request, submit, work)
    if refusal is not None:
        refuse(batch, request, refusal, index)
        return
    created = work is None
    if work is None:
        work = _create_room(batch, request, events)
    elif not heads.is_current(work, list(submit.built_on)) and not submit.may_fork:
        _answer_stale(batch, request, work, events)
        return
    elif work.row.partial_join and (uncertain := _first_uncertain(batch, work, events)) is not None:
        refuse(batch, request, PARTIAL, uncertain)
        return
    mark = batch.mark(work) if len(events) > 1 or created else None
    row: EventRow | None = None
    for index, event in enumerate(events):
        key = request.entry.transaction_key if request.transaction_hash and index == len(events) - 1 else None
        outcome = _judge_event(batch, work, event, submit, index, key)
        if isinstance(outcome, Refusal):
            if mark is not None:
                batch.rewind(mark)
            refuse(batch, request, outcome, index)
            return
        row = outcome
    assert row is not None, "a local entry has events"
    if request.transaction_hash:
        batch.transactions[request.transaction_hash] = (row.event_id, row)
        batch.new_transactions.append((request.transaction_hash, row.nid, batch.now_ms))
    metrics_accepted()
    batch.answer(
        request,
        input_pb2.Verdict(code=Code.VERDICT_CODE_ACCEPTED, event_id=row.event_id),
        row=row,
    )


def answer_duplicate(batch: Batch, request: Request, submit: input_pb2.SubmitEvents) -> bool:
    """Answer a transaction, or an event, that was seen before."""
    known = batch.transactions.get(request.transaction_hash) if request.transaction_hash else None
    event_id, row = "", None
    if known is not None:
        event_id = known[0]
        row = known[1] if isinstance(known[1], EventRow) else batch.row_of(event_id)
    elif submit.events:
        event_id = submit.events[-1].event_id
        row = batch.row_of(event_id)
        if row is None or not row.in_graph:
            return False
        work = batch.work(request.room_id)
        if work is None or work.row.nid != row.room_nid:
            return False
    else:
        return False
    metrics.verdicts.labels("duplicate").inc()
    batch.answer(request, repeat(event_id, row), row=row)
    return True


def repeat(event_id: str, row: EventRow | None) -> input_pb2.Verdict:
    """Return the verdict on an event that was judged before: what was refused then is refused again."""
    refused = _REFUSED.get(row.status) if row is not None else None
    if row is None or refused is None:
        return input_pb2.Verdict(code=Code.VERDICT_CODE_DUPLICATE, event_id=event_id)
    verdict = input_pb2.Verdict(code=refused, event_id=event_id)
    if row.rejection:
        verdict.rejection.MergeFromString(row.rejection)
    return verdict


_REFUSED = {REJECTED: Code.VERDICT_CODE_REJECTED, SOFT_FAILED: Code.VERDICT_CODE_SOFT_FAILED}


def metrics_accepted() -> None:
    """Count an accepted entry."""
    _accepted.inc()


_accepted = metrics.verdicts.labels("accepted")
_stale = metrics.verdicts.labels("stale")
_rejected = metrics.verdicts.labels("rejected")


def refuse(batch: Batch, request: Request, refusal: Refusal, index: int = 0) -> None:
    """Answer that an entry is refused."""
    _rejected.inc()
    batch.answer(
        request,
        input_pb2.Verdict(code=Code.VERDICT_CODE_REJECTED, rejection=refusal.message(index)),
    )


def _answer_stale(batch: Batch, request: Request, work: RoomWork, events: list[Event]) -> None:
    _stale.inc()
    batch.answer(
        request,
        input_pb2.Verdict(code=Code.VERDICT_CODE_STALE, stale=heads.stale_heads(batch, work, events)),
        room=work,
    )


def _parse(
    batch: Batch, request: Request, submit: input_pb2.SubmitEvents, work: RoomWork | None
) -> tuple[Refusal | None, int, list[Event]]:
    """Check what can be checked without state; returns (refusal or None, index of the offender, events)."""
    if work is not None and work.row.quarantined_ms:
        return QUARANTINED, 0, []
    version = work.version if work is not None else get_room_version(submit.room_version)
    if version is None or (work is not None and submit.room_version not in ("", version.identifier)):
        return (
            Refusal("format", "the room has another version, or none we know", "M_UNSUPPORTED_ROOM_VERSION"),
            0,
            [],
        )
    if not submit.events or len(submit.events) > MAX_EVENTS:
        return Refusal("format", f"an entry has 1 to {MAX_EVENTS} events", "M_BAD_JSON"), 0, []
    events = request.events
    if not events or events[0].room_version is not version:
        events = []
        for index, message in enumerate(submit.events):
            try:
                events.append(parse_event(message.pdu_json, version))
            except EventFormatError as error:
                return auth.format_refusal(error), index, []
    if batch.context.raise_on_type:
        for event in events:
            if event.type == batch.context.raise_on_type:
                raise RuntimeError(f"asked to raise on {event.type}")
    previous: str | None = None
    for index, (event, message) in enumerate(zip(events, submit.events, strict=True)):
        if event.event_id != message.event_id:
            return Refusal("format", "the event id is not that of the event", "M_BAD_JSON"), index, []
        if event.room_id != request.room_id:
            return Refusal("format", "the event is of another room", "M_BAD_JSON"), index, []
        if not batch.context.is_local(server_name_of(event.sender)):
            return Refusal("format", "the sender is not a user of this server", "M_FORBIDDEN"), index, []
        if not auth.check_hash(event):
            return Refusal("format", "the content hash is wrong", "M_BAD_JSON"), index, []
        if previous is not None and event.prev_event_ids != (previous,):
            return Refusal("format", "the event is not built on the one before it", "M_BAD_JSON"), index, []
        previous = event.event_id
    first = events[0]
    if work is None and first.type != "m.room.create":
        return UNKNOWN_ROOM, 0, []
    if work is not None and first.type == "m.room.create":
        return Refusal("format", "the room exists", "M_ROOM_IN_USE"), 0, []
    if set(first.prev_event_ids) != set(submit.built_on):
        return Refusal("format", "prev_events and built_on differ", "M_BAD_JSON"), 0, []
    if work is not None and not work.row.participating and _has_servers(batch, work):
        return (
            Refusal("not_participating", "no local user is in the room: join it first", "M_FORBIDDEN"),
            0,
            [],
        )
    return None, 0, events


def _first_uncertain(batch: Batch, work: RoomWork, events: list[Event]) -> int | None:
    """Of events for a partial room, the first that cannot be judged before its members are known; None: all can.

    What a joined user sends and changes of the room is judged by that user's own membership and by state that is
    no membership: that is here. A membership is somebody else's, or its user comes in: what it was is not known.
    """
    for index, event in enumerate(events):
        if event.type != "m.room.member":
            continue
        key = ("m.room.member", event.sender)
        entry = batch.entries(work, [key]).get(key)
        is_own = event.state_key == event.sender and event.membership in ("join", "leave")
        if not is_own or apply.membership_number(entry) != JOIN:
            return index
    return None


def _has_servers(batch: Batch, work: RoomWork) -> bool:
    return work.row.joined > 0


def _create_room(batch: Batch, request: Request, events: list[Event]) -> RoomWork:
    """Make the room that begins with these events."""
    row = RoomRow(
        nid=batch.take_id("room"),
        room_id=request.room_id,
        version=events[0].room_version.identifier,
        partition=batch.context.partition_of(request.room_id),
        heads=(),
        snapshot_id=0,
        joined=0,
        invited=0,
        local_joined=0,
        state_entries=0,
        participation=0,
        participating=False,
        quarantined_ms=0,
        last_output_no=0,
    )
    work = RoomWork(Room(row, {}), is_new=True)
    batch.add_room(work)
    return work


def _judge_event(
    batch: Batch,
    work: RoomWork,
    event: Event,
    submit: input_pb2.SubmitEvents,
    index: int,
    transaction_key: TransactionKey | None,
) -> Refusal | EventRow:
    """Judge one event and, if it is allowed, apply it."""
    before = _state_before(batch, work, event)
    if isinstance(before, Refusal):
        return before
    known = batch.find_allowed(event, before) if before == work.row.snapshot_id else None
    allowed = known or _check(batch, work, event, before)
    if isinstance(allowed, Refusal):
        return allowed
    refusal = policy.check(batch, work, event)
    if refusal is not None:
        return refusal
    row = apply.make_row(batch, work, event, status=ACCEPTED, before=before, after=0, auth=allowed.auth_nids)
    row.prev = tuple([_nid_of(batch, work, prev_id) for prev_id in event.prev_event_ids])
    batch.add_row(row, event)
    apply.apply_event(batch, work, event, row, allowed.state, transaction_key=transaction_key)
    return row


def _check(batch: Batch, work: RoomWork, event: Event, before: int) -> Refusal | Allowed:
    """Judge an event by its auth events and by the state before it."""
    state = snapshots.events_at(batch, work, before, auth.keys_needed(event, is_local=True))
    found = auth.find_auth_events(batch, work, event)
    if found.missing:
        return Refusal("auth_events", f"the auth event {found.missing[0]} is not known", "M_FORBIDDEN")
    same = auth.is_same_auth(event, state, state_types_for(event))
    if not same:
        refusal = auth.check_at_auth_events(batch, event, found)
        if refusal is not None:
            return refusal
    refusal = auth.check_at_state(event, state)
    if refusal is None and before != work.row.snapshot_id:
        # On a fork: what the room has decided since binds our own users at once.
        keys = state_types_for(event)
        refusal = auth.check_at_state(event, snapshots.events_at(batch, work, work.row.snapshot_id, keys))
    if refusal is not None:
        return refusal
    if same and before == work.row.snapshot_id:
        batch.note_allowed(event, before, found.nids, state)
    return Allowed(found.nids, state)


def _nid_of(batch: Batch, work: RoomWork, event_id: str) -> int:
    """The number of a prev event that is known to be here."""
    head = work.heads.get(event_id)
    if head is not None:
        return head.nid
    row = batch.row_of(event_id)
    assert row is not None, f"{event_id} was here before"
    return row.nid


def _state_before(batch: Batch, work: RoomWork, event: Event) -> int | Refusal:
    """The state before an event whose prev events are the heads, or (where it may fork) known events."""
    prevs = event.prev_event_ids
    if len(prevs) == len(work.heads) and all(prev in work.heads for prev in prevs):
        return work.row.snapshot_id
    ids = []
    for prev_id in prevs:
        prev = batch.row_of(prev_id)
        if prev is None or not prev.in_graph or prev.room_nid != work.row.nid or prev.status == REJECTED:
            return Refusal("format", f"the prev event {prev_id} is not known", "M_BAD_JSON")
        ids.append(prev.snapshot_after)
    return resolution.resolve(batch, work, ids, cause=event.event_id)

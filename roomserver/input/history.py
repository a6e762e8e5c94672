"""Older events (back-fill), outliers, and memberships in rooms that we are not in.

Back-filled events come oldest first. Where the events before them are not here, nobody can say for sure what
the state before was: it is taken from the event that follows, walking backwards. A message leaves the state
as it is; for a state event its auth events may name what stood under its key before.

NOTSPEC: the walk. Servers ask for the state at the edge instead; the walk gives the same for all but entries
that were replaced in the back-filled stretch by events which cite nothing of their own kind.
"""

import orjson

from arbor.log.v1 import common_pb2, input_pb2
from arbor.log.v1.output_pb2 import OutlierMembership, OutputEntry, Placement, RoomEvent
from matrixlib.events import Event, EventFormatError, parse_event
from matrixlib.identifiers import server_name_of
from matrixlib.room_versions import get_room_version
from roomserver.input import (
    apply,
    auth,
    federation,
    gaps,
    load,
    local,
    outputs,
    redactions,
    resolution,
    snapshots,
)
from roomserver.input.auth import Refusal
from roomserver.input.batch import Batch
from roomserver.input.decode import Request
from roomserver.input.federation import Judged
from roomserver.input.visibility import add_local_members, annotate
from roomserver.rooms import RoomWork, Told
from roomserver.storage import outliers, waiting
from roomserver.storage.events import ACCEPTED, OUTLIER, REJECTED, EventRow
from roomserver.storage.states import MEMBERSHIP_NUMBERS

Code = input_pb2.VerdictCode
_HISTORY = input_pb2.EventOrigin.EVENT_ORIGIN_HISTORY


def judge_history(batch: Batch, requests: list[Request]) -> None:
    """Judge back-filled events of one room, in entries that follow each other: they may depend on each other.

    The verdict on an entry is that of its last event.
    """
    events: list[tuple[Event, list[str]]] = []
    judged: dict[str, Judged] = {}
    outliers_here: list[str] = []
    for request in requests:
        submit = request.entry.submit_events
        work = batch.work(request.room_id)
        refusal = federation.refuse_room(work, submit)
        if refusal is None and work is not None and work.row.partial_join:
            refusal = local.PARTIAL  # who was in the room then is not known yet
        if refusal is not None or work is None or not submit.events:
            local.refuse(batch, request, refusal or Refusal("format", "an entry has events", "M_BAD_JSON"))
            continue
        outliers_here += federation.store_outliers(batch, work, submit)
        for index, message in enumerate(submit.events):
            event = federation.parse(batch, work, message.event_id, message.pdu_json)
            if isinstance(event, Refusal):
                judged[message.event_id] = Judged(Code.VERDICT_CODE_REJECTED, None, event)
            else:
                events.append((event, list(submit.state_before_event_ids) if index == 0 else []))
    work = batch.work(requests[0].room_id)
    if work is None:
        return
    origin_server = requests[0].entry.submit_events.origin_server
    left: list[Event] = []
    for event, given in events:
        before = _state_before(batch, work, event, given)
        if before is None:
            left.append(event)
        else:
            judged[event.event_id] = _judge_event(batch, work, event, before, origin_server)
    for event in reversed(left):
        judged[event.event_id] = judge_alone(batch, work, event, origin_server)
    here = [event_id for event_id, item in judged.items() if item.row is not None]
    federation.wake_waiters(batch, work, outliers_here + here)
    for request in requests:
        submit = request.entry.submit_events
        if submit.events and (outcome := judged.get(submit.events[-1].event_id)) is not None:
            last = len(submit.events) - 1
            federation.answer(batch, request, work, outcome, submit.events[-1].event_id, last)


def judge_alone(batch: Batch, work: RoomWork, event: Event, origin_server: str) -> Judged:
    """Judge an event by those before it or, where they are not here, by one that follows it."""
    before = _state_before(batch, work, event, [])
    if before is None:
        before = _state_from_next(batch, work, event)
    if before is None:
        # Nothing is told: its neighbours are on their way, in other entries.
        return federation.wait(
            batch, work, event, origin_server, list(event.prev_event_ids), origin=_HISTORY, tell=False
        )
    return _judge_event(batch, work, event, before, origin_server)


def _state_before(batch: Batch, work: RoomWork, event: Event, given: list[str]) -> int | None:
    """The state before a back-filled event by its prev events, or as told; None: nobody says."""
    batch.load_rows([event.event_id, *event.prev_event_ids])
    if event.type == "m.room.create":
        return 0
    prevs = [batch.row_of(prev_id) for prev_id in event.prev_event_ids]
    if prevs and all(prev is not None and prev.in_graph and prev.room_nid == work.row.nid for prev in prevs):
        return resolution.resolve(
            batch, work, [prev.snapshot_after for prev in prevs if prev is not None], cause=event.event_id
        )
    if given:
        batch.load_rows(given)
        rows = [batch.row_of(event_id) for event_id in given]
        if all(row is not None and row.room_nid == work.row.nid for row in rows):
            state = {row.key_id: row.nid for row in rows if row is not None and row.status != REJECTED}
            state.pop(0, None)
            return snapshots.add_child(batch, work.row.nid, 0, state)
    return None


def _state_from_next(batch: Batch, work: RoomWork, event: Event) -> int | None:
    """The state before an event, from an event that follows it; None: none is known."""
    followers = gaps.find_followers(batch, work, event.event_id)
    after = next((row.snapshot_before for row in followers if row.snapshot_before), None)
    if after is None:
        return None
    if event.state_key is None:
        return after
    key_id = batch.key_id(event.key)
    found = auth.find_auth_events(batch, work, event)
    earlier = [
        nid
        for nid, auth_event in zip(found.nids, found.events, strict=False)
        if auth_event.is_state and auth_event.key == event.key
    ]
    return snapshots.add_child(batch, work.row.nid, after, {key_id: earlier[0] if earlier else 0})


def _judge_event(batch: Batch, work: RoomWork, event: Event, before: int, origin_server: str) -> Judged:
    """Judge a back-filled event whose state before is known, and store it."""
    known = batch.row_of(event.event_id)
    if known is not None and known.room_nid != work.row.nid:
        foreign = Refusal("format", "the event id stands for an event of another room", "M_BAD_JSON")
        return Judged(Code.VERDICT_CODE_REJECTED, None, foreign)
    if known is not None and known.in_graph:
        return Judged(Code.VERDICT_CODE_DUPLICATE, known)
    batch.load_entries(work, auth.keys_needed(event, is_local=True))
    found = auth.find_auth_events(batch, work, event)
    if found.missing:
        return federation.wait(batch, work, event, origin_server, found.missing, origin=_HISTORY, tell=True)
    federation.end_wait(batch, work, event.event_id)
    state = snapshots.events_at(batch, work, before, auth.keys_needed(event, is_local=True))
    refusal = auth.check_at_auth_events(batch, event, found) or auth.check_at_state(event, state)
    status = ACCEPTED if refusal is None else REJECTED
    if known is None:
        row = apply.make_row(batch, work, event, status=status, before=before, after=before, auth=found.nids)
        batch.add_row(row, event)
    else:
        row = known
        row.status, row.snapshot_before, row.snapshot_after = status, before, before
    row.rejection = refusal.message().SerializeToString() if refusal is not None else None
    missing_prev = []
    prevs = []
    for prev_id in event.prev_event_ids:
        prev = batch.row_of(prev_id)
        if prev is not None and prev.in_graph and prev.room_nid == work.row.nid:
            prevs.append(prev.nid)
        else:
            missing_prev.append(prev_id)
    row.prev = tuple(prevs)
    gaps.close(batch, work, row, gaps.find_followers(batch, work, event.event_id))
    gaps.note_missing(batch, work, row, missing_prev)
    if status == ACCEPTED:
        if event.state_key is not None:
            row.snapshot_after = snapshots.add_child(batch, work.row.nid, before, {row.key_id: row.nid})
        row.placement = Placement.PLACEMENT_HISTORY
        entry = OutputEntry(
            room_event=RoomEvent(
                event_id=event.event_id,
                placement=Placement.PLACEMENT_HISTORY,
                participation=work.row.participation,
                forward_extremities=sorted(work.heads),
                missing_prev_event_ids=missing_prev,
            )
        )
        room_event = entry.room_event
        annotate(room_event.visibility, event, state)
        add_local_members(batch, work, before, room_event.visibility)
        if event.state_key is not None and event.key in state:
            room_event.replaces_state = state[event.key].event_id
            room_event.prev_content_json = orjson.dumps(state[event.key].content)
        if event.redacts is not None:
            room_event.redacts = event.redacts
        outputs.tell_event(work, entry, event, row)
        redactions.apply_redaction(batch, work, event, row, state)
        redactions.apply_pending(batch, work, row)
    work.touched = True
    batch.change_row(row)
    if missing_prev and load.is_waiting(batch, work.room_id):
        # What came before it may wait for an event that follows: for this one.
        for event_id, kept in sorted(waiting.load_waiting(batch.conn, missing_prev).items()):
            earlier = federation.parse(batch, work, event_id, kept.pdu)
            if kept.origin == _HISTORY and not isinstance(earlier, Refusal):
                judge_alone(batch, work, earlier, kept.origin_server)
    return Judged(Code.VERDICT_CODE_ACCEPTED if status == ACCEPTED else Code.VERDICT_CODE_REJECTED, row)


def judge_outliers(batch: Batch, request: Request) -> None:
    """Judge events that stay outside of the graph, or a membership in a room that we are not in."""
    submit = request.entry.submit_events
    if submit.outlier_membership_user_id:
        _judge_membership(batch, request, submit)
        return
    work = batch.work(request.room_id)
    if work is None or not submit.events:
        local.refuse(batch, request, local.UNKNOWN_ROOM)
        return
    if work.row.quarantined_ms:
        local.refuse(batch, request, local.QUARANTINED)
        return
    judged = Judged(Code.VERDICT_CODE_REJECTED)
    here = []
    for message in submit.events:
        event = federation.parse(batch, work, message.event_id, message.pdu_json)
        if isinstance(event, Refusal):
            judged = Judged(Code.VERDICT_CODE_REJECTED, None, event)
            continue
        judged = federation.store_outlier(batch, work, event)
        if judged.row is not None and judged.row.status in (OUTLIER, REJECTED):
            here.append(event.event_id)
    federation.wake_waiters(batch, work, here)
    last = len(submit.events) - 1
    federation.answer(batch, request, work, judged, submit.events[-1].event_id, last)


def _judge_membership(batch: Batch, request: Request, submit: input_pb2.SubmitEvents) -> None:
    """An invite, a knock or their end, of a local user in a room whose state we do not know."""
    user_id = submit.outlier_membership_user_id
    version = get_room_version(submit.room_version)
    if version is None or len(submit.events) != 1:
        local.refuse(batch, request, Refusal("format", "one event of a known version", "M_BAD_JSON"))
        return
    message = submit.events[0]
    try:
        event = parse_event(message.pdu_json, version)
    except EventFormatError as error:
        local.refuse(batch, request, auth.format_refusal(error))
        return
    if (
        event.event_id != message.event_id
        or event.room_id != request.room_id
        or event.type != "m.room.member"
        or event.state_key != user_id
        or event.membership not in ("invite", "knock", "leave")
        or not batch.context.is_local(server_name_of(user_id))
    ):
        local.refuse(batch, request, Refusal("format", "not a membership of that user", "M_BAD_JSON"))
        return
    work = batch.work(request.room_id)
    if work is not None and work.row.participating:
        local.refuse(batch, request, Refusal("participating", "this server is in the room", "M_FORBIDDEN"))
        return
    known = outliers.load_outlier(batch.conn, request.room_id, user_id)
    place = EventRow(0, event.event_id, 0, OUTLIER, 0, 0, 0, 0, 0, 0)
    if known is not None and known.event_id == event.event_id:
        batch.answer(request, input_pb2.Verdict(code=Code.VERDICT_CODE_DUPLICATE, event_id=event.event_id))
        return
    stripped = list(submit.stripped_state_json)
    if not stripped and known is not None:
        stripped = known.stripped
    outliers.store_outlier(
        batch.conn,
        outliers.Outlier(
            request.room_id,
            user_id,
            version.identifier,
            MEMBERSHIP_NUMBERS[event.membership],
            event.event_id,
            event.pdu_json,
            stripped,
        ),
    )
    entry = OutputEntry(
        outlier_membership=OutlierMembership(
            user_id=user_id,
            membership=event.membership,
            event=common_pb2.Event(event_id=event.event_id, pdu_json=event.pdu_json),
            stripped_state_json=stripped,
            room_version=version.identifier,
        )
    )
    size = len(event.pdu_json) + sum(map(len, stripped)) + 300
    batch.strays.setdefault(request.room_id, []).append(Told(entry, entry, place, size))
    batch.answer(
        request, input_pb2.Verdict(code=Code.VERDICT_CODE_ACCEPTED, event_id=event.event_id), row=place
    )

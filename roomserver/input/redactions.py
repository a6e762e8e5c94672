"""Redacted forms: at once when a redaction is accepted, and on arrival of an event whose redaction came
first.

In room versions 1 and 2 the auth rules decide whether a redaction may be; later ones accept it and demand,
for
its effect, the redact level or the domain of the target's sender ("Handling redactions").
"""

from arbor.log.v1.common_pb2 import Event as EventMessage
from arbor.log.v1.output_pb2 import EventRedacted, OutputEntry
from matrixlib.events import Event, StateKey, redact_event
from matrixlib.power_levels import may_redact
from roomserver.input import snapshots
from roomserver.input.batch import Batch
from roomserver.rooms import Entry, RoomWork, Told
from roomserver.storage import waiting
from roomserver.storage.events import ACCEPTED, EventRow

LEVEL_KEYS: tuple[StateKey, ...] = (("m.room.create", ""), ("m.room.power_levels", ""))


def apply_redaction(
    batch: Batch, work: RoomWork, event: Event, row: EventRow, state_before: dict[StateKey, Event]
) -> None:
    """Have an accepted redaction take effect, or remember it until its target is here."""
    if event.redacts is None:
        return
    target_row = batch.row_of(event.redacts)
    if target_row is None:
        batch.pending_redactions.append((event.redacts, row.nid, work.row.nid))
        return
    if target_row.room_nid != work.row.nid or target_row.nid == row.nid:
        return
    redact(batch, work, event, row, state_before, target_row)


def apply_pending(batch: Batch, work: RoomWork, row: EventRow) -> None:
    """Redact an event that has just come, if an accepted redaction of it is here already."""
    room_nid = work.row.nid
    pending = waiting.load_pending_redactions(batch.conn, room_nid, row.event_id)
    pending += [
        nid
        for target, nid, of_room in batch.pending_redactions
        if (target, of_room) == (row.event_id, room_nid)
    ]
    if not pending:
        return
    for nid in sorted(set(pending)):
        redaction = batch.events_by_nid([nid], work.version).get(nid)
        redaction_row = batch.row_of(redaction.event_id) if redaction is not None else None
        if redaction is None or redaction_row is None or redaction_row.status != ACCEPTED:
            continue
        state = snapshots.events_at(batch, work, redaction_row.snapshot_before, LEVEL_KEYS)
        redact(batch, work, redaction, redaction_row, state, row)
    waiting.delete_pending_redactions(batch.conn, row.event_id)


def redact(
    batch: Batch,
    work: RoomWork,
    redaction: Event,
    redaction_row: EventRow,
    state_before: dict[StateKey, Event],
    target_row: EventRow,
) -> None:
    """Put the redacted form in the place of an event, if the redaction may."""
    if target_row.redacted_by:
        return
    target = batch.event(target_row.nid, work.version)
    if not work.version.redaction_rule and not may_redact(
        work.version, state_before, redaction.sender, target
    ):
        return
    redacted = redact_event(target)
    target_row.redacted_by = redaction_row.nid
    batch.redactions.append((target_row.nid, redaction_row.nid, redacted.pdu_json))
    if target_row.nid in batch.new_events:
        batch.new_events[target_row.nid] = redacted
        for item in work.outputs:
            if item.row is target_row:  # not told yet: then as it is now
                item.entry.room_event.pdu_json = redacted.pdu_json
    batch.loaded_events[target_row.nid] = redacted
    if target.state_key is not None:
        entry = work.entry(target.key)
        if entry is not None and entry.nid == target_row.nid:
            work.state[target.key] = Entry(entry.nid, redacted)
    told = EventRedacted(
        redacted_event_id=target.event_id,
        redaction=EventMessage(event_id=redaction.event_id, pdu_json=redaction.pdu_json),
        redacted_pdu_json=redacted.pdu_json,
    )
    skeleton = EventRedacted(
        redacted_event_id=target.event_id, redaction=EventMessage(event_id=redaction.event_id)
    )
    size = len(redaction.pdu_json) + len(redacted.pdu_json) + 200
    work.outputs.append(
        Told(OutputEntry(event_redacted=told), OutputEntry(event_redacted=skeleton), None, size)
    )
    work.touched = True

"""What an accepted event changes: heads, current state, members, servers, participation; and what is told
of it.

before ──► after          the state around the event (a message changes nothing: after is before)
heads - prevs + event     the new heads
after, or resolve(heads)  the new current state; its difference to the old one is told
"""

from dataclasses import dataclass, field

import orjson

from arbor.log.v1.common_pb2 import TransactionKey
from arbor.log.v1.output_pb2 import (
    MemberCounts,
    OutputEntry,
    ParticipationEnded,
    Placement,
    StateChange,
    StateRewritten,
)
from matrixlib.events import Event, StateKey
from matrixlib.identifiers import server_name_of
from roomserver import metrics
from roomserver.input import outputs, redactions, resolution, snapshots
from roomserver.input.auth import STRIPPED_KEYS
from roomserver.input.batch import Batch
from roomserver.input.visibility import annotate
from roomserver.rooms import Entry, Head, RoomWork
from roomserver.storage import rooms
from roomserver.storage.events import SOFT_FAILED, EventRow
from roomserver.storage.states import INVITE, JOIN, MEMBERSHIP_NUMBERS
from servicekit.logging import get_logger

log = get_logger("roomserver.input")

_TOLD_TYPES = (Placement.PLACEMENT_TIMELINE, Placement.PLACEMENT_HIDDEN)


@dataclass(slots=True)
class Changes:
    """What changed in the current state."""

    told: list[StateChange] = field(default_factory=list)
    size_bytes: int = 0
    members: bool = False
    servers_joined: list[str] = field(default_factory=list)
    servers_left: list[str] = field(default_factory=list)
    began: bool = False
    ended: bool = False


def make_row(
    batch: Batch, work: RoomWork, event: Event, *, status: int, before: int, after: int, auth: tuple[int, ...]
) -> EventRow:
    """Make an event's row."""
    return EventRow(
        nid=batch.take_id("event"),
        event_id=event.event_id,
        room_nid=work.row.nid,
        status=status,
        placement=0,
        key_id=0 if event.state_key is None else batch.key_id((event.type, event.state_key)),
        depth=min(event.depth, 2**63 - 1),
        origin_server_ts=max(-(2**63), min(event.origin_server_ts, 2**63 - 1)),
        snapshot_before=before,
        snapshot_after=after,
        auth=auth,
    )


def apply_event(
    batch: Batch,
    work: RoomWork,
    event: Event,
    row: EventRow,
    state_before: dict[StateKey, Event],
    *,
    placement: int = Placement.PLACEMENT_TIMELINE,
    transaction_key: TransactionKey | None = None,
    stripped_state_json: list[bytes] | None = None,
    missing_prev: list[str] | None = None,
    is_followed: bool = False,
) -> None:
    """Make an accepted event part of the room and tell it.

    `row` is stored already, with `snapshot_before` set; `state_before` has at least `auth.keys_needed`.
    `is_followed`: events that name it as a prev event were accepted before it came, so it is no head.
    """
    before = row.snapshot_before
    if event.state_key is None:
        row.snapshot_after = before
    else:
        row.snapshot_after = snapshots.add_child(batch, work.row.nid, before, {row.key_id: row.nid})
    changes = Changes()
    if not is_followed:
        changes = _advance(batch, work, event, row)
    if event.type == "m.room.create" and event.state_key == "" and work.row.participation == 0:
        # The room begins here: its creator's join, which follows, belongs to the same participation.
        changes.began = batch.context.is_local(server_name_of(event.sender))
        if changes.began:
            work.row.participation, work.row.participating = 1, True
    row.placement = placement
    tell(batch, work, event, row, state_before, changes, transaction_key, stripped_state_json, missing_prev)
    redactions.apply_redaction(batch, work, event, row, state_before)


def _advance(batch: Batch, work: RoomWork, event: Event, row: EventRow) -> Changes:
    """Make the event a head, and the current state what the heads then give."""
    before = row.snapshot_before
    old_snapshot = work.row.snapshot_id
    advance_heads(batch, work, event, row)
    if len(work.heads) == 1:
        new_snapshot = row.snapshot_after
    else:
        new_snapshot = resolution.resolve(
            batch, work, [head.snapshot_after for head in work.heads.values()], cause=event.event_id
        )
    changes = Changes()
    if old_snapshot == before and new_snapshot == row.snapshot_after:
        if event.state_key is not None:
            changes = change_current(batch, work, {row.key_id: row.nid}, event)
    elif new_snapshot != old_snapshot:
        changes = change_current(batch, work, snapshots.difference(batch, old_snapshot, new_snapshot), event)
    work.row.snapshot_id = new_snapshot
    return changes


def advance_heads(batch: Batch, work: RoomWork, event: Event, row: EventRow) -> None:
    """Make the event a head in the place of its prev events."""
    heads = work.heads
    hidden: list[int] = []
    for prev_id in event.prev_event_ids:
        if heads.pop(prev_id, None) is None and len(heads) > 0:
            prev = batch.row_of(prev_id)
            # What stands before an event that nobody is shown is joined by whoever builds on that.
            if prev is not None and prev.status != 1:
                hidden.extend(prev.prev)
    if hidden:
        _remove_behind(batch, work, hidden)
    heads[event.event_id] = Head(row.nid, row.depth, row.snapshot_after)
    work.touched = True


def _remove_behind(batch: Batch, work: RoomWork, nids: list[int]) -> None:
    from roomserver.storage.events import load_events_by_nid

    by_nid = {head.nid: event_id for event_id, head in work.heads.items()}
    seen: set[int] = set()
    while nids and len(seen) < 1000:
        nid = nids.pop()
        if nid in seen:
            continue
        seen.add(nid)
        event_id = by_nid.get(nid)
        if event_id is not None:
            work.heads.pop(event_id, None)
            continue
        found = next((row for row in batch.rows if row.nid == nid), None)
        if found is None:
            found = load_events_by_nid(batch.conn, [nid]).get(nid)
        if found is not None and found.status in (SOFT_FAILED, 3):
            nids.extend(found.prev)


def change_current(batch: Batch, work: RoomWork, delta: dict[int, int], cause: Event | None) -> Changes:
    """Change the current state; `delta` as of `snapshots.difference`, `cause` the event by which it changed."""
    changes = Changes()
    if not delta:
        return changes
    own_key = cause.key if cause is not None and cause.state_key is not None else None
    keys = batch.keys_of(delta)
    batch.load_entries(work, keys.values())
    loaded = batch.events_by_nid([nid for nid in delta.values() if nid], work.version)
    joined_by_server: dict[str, int] = {}
    removed: list[StateKey] = []
    for key_id, nid in sorted(delta.items()):
        key = keys[key_id]
        old = work.entry(key)
        new = Entry(nid, loaded[nid]) if nid else None
        if old is None and new is None:
            continue
        change = StateChange(type=key[0], state_key=key[1])
        if old is not None:
            change.replaced_event_id = old.event.event_id
        if new is not None:
            change.event_id = new.event.event_id
            if cause is None or new.event is not cause:
                change.pdu_json = new.event.pdu_json
                changes.size_bytes += len(change.pdu_json)
        changes.told.append(change)
        work.state[key] = new
        membership = 0
        if key[0] == "m.room.member":
            membership = membership_number(new)
            _count_member(work, key[1], membership_number(old), membership, joined_by_server, changes)
        work.current[key_id] = (nid, membership)
        work.row.state_entries += (new is not None) - (old is not None)
        if new is None and key != own_key:
            removed.append(key)
    if removed:
        metrics.state_resets.inc(len(removed))
        log.warning(
            "state_removed_by_resolution",
            room_id=work.room_id,
            cause=cause.event_id if cause else "",
            removed=len(removed),
            first=f"{removed[0][0]}|{removed[0][1]}",
        )
    _count_servers(batch, work, joined_by_server, changes)
    return changes


def membership_number(entry: Entry | None) -> int:
    """The number of a member event's membership; 0: none."""
    if entry is None:
        return 0
    return MEMBERSHIP_NUMBERS.get(entry.event.membership or "", 0)


def _count_member(
    work: RoomWork, user_id: str, old: int, new: int, joined_by_server: dict[str, int], changes: Changes
) -> None:
    if old == new:
        return
    changes.members = True
    step = (new == JOIN) - (old == JOIN)
    work.row.joined += step
    work.row.invited += (new == INVITE) - (old == INVITE)
    if step:
        server = server_name_of(user_id)
        joined_by_server[server] = joined_by_server.get(server, 0) + step


def _count_servers(batch: Batch, work: RoomWork, steps: dict[str, int], changes: Changes) -> None:
    was_local = work.row.local_joined
    for server, step in sorted(steps.items()):
        if not step:
            continue
        before = server_count(batch, work, server)
        work.server_counts[server] = before + step
        if before == 0:
            changes.servers_joined.append(server)
        elif before + step == 0:
            changes.servers_left.append(server)
        if batch.context.is_local(server):
            work.row.local_joined += step
    if was_local and not work.row.local_joined:
        changes.ended = True
        work.row.participating = False
        work.row.partial_join = 0  # frozen as it is: nobody completes it any more
    elif work.row.local_joined and not work.row.participating:
        changes.began = True
        work.row.participating = True
        work.row.participation += 1


def server_count(batch: Batch, work: RoomWork, server: str) -> int:
    """How many joined users a server has in a room."""
    known = work.server_counts.get(server)
    if known is None:
        known = work.base.servers.get(server)
    if known is None:
        if work.is_new:
            return 0
        known = rooms.load_server_counts(batch.conn, work.row.nid, [server]).get(server, 0)
        work.base.servers[server] = known
    return known


def tell(
    batch: Batch,
    work: RoomWork,
    event: Event,
    row: EventRow,
    state_before: dict[StateKey, Event],
    changes: Changes,
    transaction_key: TransactionKey | None,
    stripped_state_json: list[bytes] | None,
    missing_prev: list[str] | None,
) -> None:
    """Add the entries about an event."""
    began = changes.began
    by_reference = changes.size_bytes > outputs.MAX_CHANGE_BYTES
    if began and work.row.participation > 1:
        # Readers drop their old view: they get the state before, as a whole, and the event on top of it.
        tell_rewrite(work, row.snapshot_before, event.event_id, work.row.state_entries, began=True)
        began = False
    # Filled in its place: a message given to another's constructor is copied.
    entry = OutputEntry()
    room_event = entry.room_event
    room_event.event_id = event.event_id
    room_event.placement = row.placement  # type: ignore[assignment]
    annotate(room_event.visibility, event, state_before)
    room_event.participation = work.row.participation
    room_event.participation_began = began
    if not by_reference and changes.told:
        room_event.state_changes.extend(changes.told)
    if event.state_key is not None:
        replaced = state_before.get(event.key)
        if replaced is not None:
            room_event.replaces_state = replaced.event_id
            room_event.prev_content_json = orjson.dumps(replaced.content)
        stripped = stripped_state_json or stripped_state(batch, event, state_before)
        if stripped:
            room_event.stripped_state_json.extend(stripped)
    heads = work.heads
    if len(heads) != 1 or event.event_id not in heads:
        room_event.forward_extremities.extend(sorted(heads))
    if transaction_key is not None:
        room_event.transaction_key.CopyFrom(transaction_key)
    if event.redacts is not None:
        room_event.redacts = event.redacts
    if changes.servers_joined:
        room_event.servers_joined.extend(changes.servers_joined)
    if changes.servers_left:
        room_event.servers_left.extend(changes.servers_left)
    if changes.members:
        room_event.member_counts.CopyFrom(MemberCounts(joined=work.row.joined, invited=work.row.invited))
    if missing_prev:
        room_event.missing_prev_event_ids.extend(missing_prev)
    outputs.tell_event(work, entry, event, row)
    if by_reference:
        tell_rewrite(work, work.row.snapshot_id, event.event_id, work.row.state_entries, began=False)
    if changes.ended:
        outputs.tell(
            work,
            OutputEntry(participation_ended=ParticipationEnded(participation=work.row.participation)),
        )


def tell_rewrite(
    work: RoomWork, snapshot_id: int, event_id: str, entries: int, *, began: bool, partial: bool = False
) -> None:
    """Tell that the current state was replaced as a whole; `partial`: members are missing from it."""
    outputs.tell(
        work,
        OutputEntry(
            state_rewritten=StateRewritten(
                snapshot_id=snapshot_id,
                entries=entries,
                event_id=event_id,
                room_version=work.version.identifier,
                participation=work.row.participation,
                participation_began=began,
                partial=partial,
            )
        ),
    )


def stripped_state(batch: Batch, event: Event, state_before: dict[StateKey, Event]) -> list[bytes]:
    """Stripped state for a local user's invite or knock; empty for every other event."""
    if event.type != "m.room.member" or event.membership not in ("invite", "knock"):
        return []
    if not batch.context.is_local(server_name_of(event.state_key or "")):
        return []
    keys = [*STRIPPED_KEYS, ("m.room.member", event.sender)]
    return [strip(state_before[key]) for key in keys if key in state_before]


def strip(event: Event) -> bytes:
    """The stripped form of a state event (client-server API, "Stripped state")."""
    return orjson.dumps(
        {"type": event.type, "state_key": event.state_key, "sender": event.sender, "content": event.content}
    )

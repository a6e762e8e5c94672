"""Rooms joined with partial state: what happens when their members are here.

    partial import ──► join ──► own events ...             the room is partial: `room.partial_join` is the join
    foreign events, history: wait, or are refused
    completing import ──► state before the join, with its members
                     └──► states at the join and at all that follows it, anew ──► StateRewritten
                     └──► what waited is judged, a page at a time

The second import adds members under keys that the first left open, and changes nothing else: the rest of the
state, and what the join was judged by, stand as the resident server told them with the join. So nothing that was
accepted meanwhile can turn out to have been forbidden: it was judged by its sender's own membership and by state
that is no membership (`local`).
"""

from collections.abc import Sequence

from arbor.log.v1 import input_pb2
from matrixlib.events import Event
from matrixlib.identifiers import is_valid_server_name
from matrixlib.room_versions import RoomVersion
from roomserver.input import apply, commit_import, federation, local, merge, resolution, snapshots
from roomserver.input.auth import Refusal
from roomserver.input.batch import Batch
from roomserver.input.decode import Request
from roomserver.rooms import Head, RoomWork
from roomserver.storage import events, outliers, staging, states, waiting
from roomserver.storage import snapshots as snapshot_rows
from roomserver.storage.events import EventRow
from roomserver.storage.staging import StateEntry
from servicekit.database.raw import Sql
from servicekit.log.faultpoints import fault_point
from servicekit.logging import get_logger

log = get_logger("roomserver.input")

Code = input_pb2.VerdictCode
JUDGED_AT_ONCE = 300
"""So many events that waited for the state are judged in one transaction; other rooms' entries go between."""
AGAIN_MS = 10

_SINCE = Sql("SELECT nid FROM event WHERE room_nid = ? AND nid >= ? AND snapshot_before > 0 ORDER BY nid")


def servers_told(batch: Batch, commit: input_pb2.CommitImport) -> list[str]:
    """The other servers that are told to be in a room whose members are not known."""
    return [
        name
        for name in dict.fromkeys(commit.servers_in_room)
        if is_valid_server_name(name) and not batch.context.is_local(name)
    ]


def forget_waiting(batch: Batch, work: RoomWork) -> None:
    """Drop what waited for the state of an earlier, partial stay in a room."""
    if work.is_new:
        return
    while kept := waiting.load_some_waiters(batch.conn, work.room_id, JUDGED_AT_ONCE):
        for event in kept:
            waiting.delete_waiting(batch.conn, event.event_id)


def complete(batch: Batch, request: Request, version: RoomVersion, join: EventRow | None) -> None:
    """Complete a room's state by an import, then judge what waited for it. The batch holds nothing else.

    BUSY says that more waits: the same entry goes on with it.

    Args:
        join: the row of the join that the room became partial by; None: it is not here.
    """
    import_id = request.entry.commit_import.import_id
    work = batch.work(request.room_id)
    if work is None or join is None or join.room_nid != work.row.nid or not work.row.participating:
        local.refuse(batch, request, federation.NOT_PARTICIPATING)
        return
    if work.row.quarantined_ms or work.version is not version:
        local.refuse(batch, request, local.QUARANTINED)
        return
    if work.row.partial_join and work.row.partial_join != join.nid:
        refusal = Refusal("partial", "the room waits for the state before another join", "M_NOT_FOUND")
        local.refuse(batch, request, refusal)
        return
    code = Code.VERDICT_CODE_DUPLICATE
    if work.row.partial_join:
        job = staging.lock_jobs(batch.conn, request.room_id, batch.now_ms).get(import_id)
        if job is None or job.room_nid != work.row.nid:
            local.refuse(batch, request, commit_import.NO_IMPORT)
            return
        _add_members(batch, work, join, import_id)
        code = Code.VERDICT_CODE_ACCEPTED
    staging.delete_import(batch.conn, import_id)
    fault_point("roomserver.import_complete")
    if _judge_waiting(batch, work):
        verdict = input_pb2.Verdict(code=Code.VERDICT_CODE_BUSY, retry_after_ms=AGAIN_MS)
        batch.answer(request, verdict)
        return
    batch.answer(request, input_pb2.Verdict(code=code, event_id=join.event_id), room=work)


def _add_members(batch: Batch, work: RoomWork, join: EventRow, import_id: str) -> None:
    room_nid = work.row.nid
    base = snapshots.load_state(batch, join.snapshot_before)
    added = {
        entry.key_id: entry
        for entry in staging.load_state(batch.conn, import_id).values()
        if entry.membership and entry.key_id not in base and entry.key_id != join.key_id
    }
    state = {**base, **{key_id: entry.nid for key_id, entry in added.items()}}
    before = snapshots.add_child(batch, room_nid, 0, state)
    batch.states[before] = state
    _renew_states(batch, work, join, before)
    current = snapshots.load_state(batch, work.row.snapshot_id)
    memberships = states.load_membership_numbers(batch.conn, room_nid)
    memberships.update((entry.nid, entry.membership) for entry in added.values())
    entries = {key_id: StateEntry(key_id, nid, memberships.get(nid, 0)) for key_id, nid in current.items()}
    commit_import.replace_current(batch, work, entries)
    work.base.state.clear()
    work.state.clear()
    work.row.partial_join = 0
    work.touched = True
    outliers.delete_outliers(batch.conn, work.room_id)
    snapshot_rows.store_told(batch.conn, work.row.snapshot_id, room_nid)
    last = max(work.heads.items(), key=lambda item: item[1].nid)[0]
    apply.tell_rewrite(work, work.row.snapshot_id, last, len(current), began=False)
    log.info("room_completed", room_id=work.room_id, members=len(added), state=len(current))


def _renew_states(batch: Batch, work: RoomWork, join: EventRow, before: int) -> None:
    """Work out anew the states around the join and what was accepted since, and the current state."""
    nids = [row[0] for row in _SINCE.rows(batch.conn, work.row.nid, join.nid)]
    rows = events.load_events_by_nid(batch.conn, nids)
    after: dict[int, int] = {}
    for nid in nids:
        row = rows[nid]
        if nid == join.nid:
            row.snapshot_before = before
        else:
            row.snapshot_before = resolution.resolve(
                batch, work, [after[prev] for prev in row.prev], cause=row.event_id
            )
        row.snapshot_after = row.snapshot_before
        if row.key_id:
            row.snapshot_after = snapshots.add_child(
                batch, work.row.nid, row.snapshot_before, {row.key_id: nid}
            )
        after[nid] = row.snapshot_after
        batch.loaded_rows[row.event_id] = row
        batch.change_row(row)
    work.heads = {
        event_id: Head(head.nid, head.depth, after[head.nid]) for event_id, head in work.heads.items()
    }
    work.row.snapshot_id = resolution.resolve(
        batch, work, [head.snapshot_after for head in work.heads.values()], cause=join.event_id
    )


def _judge_waiting(batch: Batch, work: RoomWork) -> bool:
    """Judge some of what waited for the whole state, each after those it may follow; returns whether more does."""
    kept = waiting.load_some_waiters(batch.conn, work.room_id, JUDGED_AT_ONCE)
    parsed: list[tuple[Event, str]] = []
    for item in kept:
        event = federation.parse(batch, work, item.event_id, item.pdu)
        if isinstance(event, Refusal):
            waiting.delete_waiting(batch.conn, item.event_id)
        else:
            parsed.append((event, item.origin_server))
    for event, origin_server in _by_depth(parsed):
        heads_before = len(work.heads)
        judged = federation.judge_event(batch, work, event, origin_server, [])
        if judged.code != Code.VERDICT_CODE_WAITING:
            waiting.delete_waiting(batch.conn, event.event_id)
        if judged.row is not None:
            federation.wake_waiters(batch, work, [event.event_id])
            merge.merge_many_heads(batch, work, heads_before)
    return len(kept) == JUDGED_AT_ONCE


def _by_depth(waited: Sequence[tuple[Event, str]]) -> list[tuple[Event, str]]:
    return sorted(waited, key=lambda item: (item[0].depth, item[0].event_id))

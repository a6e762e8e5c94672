"""Making an import part of the room: a join's state, and the join on top.

The events are stored already (`import_pages`); here their state becomes the room's, as one snapshot, told by
reference (`StateRewritten`), and the join follows as an event of the timeline. Where members were left out of it,
the room is partial until a second import completes it: see `partial`.
"""

from collections.abc import Iterable

from arbor.log.v1 import input_pb2
from arbor.log.v1.output_pb2 import Placement
from matrixlib.events import Event, EventFormatError, parse_event
from matrixlib.identifiers import server_name_of
from matrixlib.room_versions import RoomVersion, get_room_version
from roomserver.input import apply, auth, federation, gaps, local, partial, policy, snapshots
from roomserver.input.auth import Refusal
from roomserver.input.batch import Batch
from roomserver.input.decode import Request
from roomserver.rooms import Room, RoomWork
from roomserver.storage import outliers, rooms, staging, states
from roomserver.storage import snapshots as snapshot_rows
from roomserver.storage.events import ACCEPTED, EventRow
from roomserver.storage.rooms import RoomRow
from roomserver.storage.staging import ImportJob, StateEntry
from servicekit.database.raw import Sql
from servicekit.log.faultpoints import fault_point
from servicekit.logging import get_logger

log = get_logger("roomserver.input")

Code = input_pb2.VerdictCode
CREATE = ("m.room.create", "")

_DELETE_SERVERS = Sql("DELETE FROM room_server WHERE room_nid = ?")
NO_IMPORT = Refusal("format", "nothing is staged under this import id", "M_NOT_FOUND")
_NO_CREATE = Refusal("format", "the state has no create event", "M_BAD_STATE")


def judge(batch: Batch, request: Request) -> None:
    """Commit an import. The batch holds nothing else."""
    commit = request.entry.commit_import
    version = get_room_version(commit.room_version)
    if version is None:
        local.refuse(
            batch, request, Refusal("format", "not a room version we know", "M_UNSUPPORTED_ROOM_VERSION")
        )
        return
    join: Event | None = None
    if commit.HasField("join_event"):
        try:
            join = parse_event(commit.join_event.pdu_json, version)
        except EventFormatError as error:
            local.refuse(batch, request, auth.format_refusal(error))
            return
        if join.event_id != commit.join_event.event_id or join.room_id != request.room_id:
            local.refuse(batch, request, Refusal("format", "the join is not what it says", "M_BAD_JSON"))
            return
        known = batch.row_of(join.event_id)
        if commit.completes:
            partial.complete(batch, request, version, known)
            return
        if known is not None and known.in_graph:
            staging.delete_import(batch.conn, commit.import_id)
            batch.answer(request, local.repeat(join.event_id, known), row=known)
            return
    if (commit.partial or commit.completes) and join is None:
        local.refuse(batch, request, Refusal("format", "a join with partial state has a join", "M_BAD_JSON"))
        return
    job = staging.lock_jobs(batch.conn, request.room_id, batch.now_ms).get(commit.import_id)
    work = batch.work(request.room_id)
    if job is None or not job.room_nid or (work is not None and work.row.nid != job.room_nid):
        local.refuse(batch, request, NO_IMPORT)
        return
    if work is not None and (work.row.quarantined_ms or work.version is not version):
        local.refuse(batch, request, local.QUARANTINED)
        return
    if work is not None and work.row.participating:
        local.refuse(batch, request, Refusal("participating", "this server is in the room", "M_FORBIDDEN"))
        return
    state = staging.load_state(batch.conn, job.import_id)
    create_key = batch.find_key_ids([CREATE]).get(CREATE)
    if create_key not in state:
        local.refuse(batch, request, _NO_CREATE)
        return
    _commit(batch, request, version, work, join, job, state)


def _commit(
    batch: Batch,
    request: Request,
    version: RoomVersion,
    work: RoomWork | None,
    join: Event | None,
    job: ImportJob,
    state: dict[int, StateEntry],
) -> None:
    commit = request.entry.commit_import
    if work is None:
        work = _make_room(batch, request.room_id, version, job.room_nid)
    nids = {entry.key_id: entry.nid for entry in state.values()}
    snapshot_id = snapshots.add_child(batch, work.row.nid, 0, nids)
    batch.states[snapshot_id] = nids
    replace_current(batch, work, state, partial.servers_told(batch, commit) if commit.partial else ())
    work.row.snapshot_id = snapshot_id
    work.heads = {}
    work.base.state.clear()
    work.state.clear()
    work.row.participation += 1
    work.row.participating = True
    work.touched = True
    partial.forget_waiting(batch, work)
    if commit.partial and join is not None:
        outliers.delete_outlier(batch.conn, request.room_id, join.sender)
        snapshot_rows.store_told(batch.conn, snapshot_id, work.row.nid)
    else:
        outliers.delete_outliers(batch.conn, request.room_id)
    staging.delete_import(batch.conn, job.import_id)
    fault_point("roomserver.import_commit")
    event_id = join.event_id if join is not None else ""
    apply.tell_rewrite(work, snapshot_id, event_id, len(state), began=True, partial=commit.partial)
    if join is None:
        batch.answer(request, input_pb2.Verdict(code=Code.VERDICT_CODE_ACCEPTED), room=work)
        return
    row = _apply_join(batch, work, join, snapshot_id)
    work.row.partial_join = row.nid if commit.partial else 0
    batch.answer(request, input_pb2.Verdict(code=Code.VERDICT_CODE_ACCEPTED, event_id=join.event_id), row=row)
    log.info(
        "room_imported",
        room_id=request.room_id,
        state=len(state),
        events=job.events,
        partial=commit.partial,
    )


class ImportRefused(Exception):
    """An import cannot be taken; what was stored of it is rolled back."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


def _make_room(batch: Batch, room_id: str, version: RoomVersion, nid: int) -> RoomWork:
    row = RoomRow(
        nid=nid,
        room_id=room_id,
        version=version.identifier,
        partition=batch.context.partition_of(room_id),
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


def replace_current(
    batch: Batch, work: RoomWork, state: dict[int, StateEntry], told_servers: Iterable[str] = ()
) -> None:
    """Write the current state anew, with members and servers.

    Args:
        told_servers: servers that count as being in the room though the state has no member of theirs.
    """
    conn = batch.conn
    row = work.row
    states.delete_current(conn, row.nid)
    _DELETE_SERVERS.change(conn, row.nid)
    row.state_entries = len(state)
    servers: dict[str, int] = {}
    states.store_current(conn, [(row.nid, *entry) for _, entry in sorted(state.items())])
    joined = [entry.key_id for entry in state.values() if entry.membership == states.JOIN]
    row.joined = len(joined)
    row.invited = sum(entry.membership == states.INVITE for entry in state.values())
    for _, user_id in states.load_keys(conn, joined).values():
        server = server_name_of(user_id)
        servers[server] = servers.get(server, 0) + 1
    for name in told_servers:
        servers.setdefault(name, 1)
    rooms.store_server_counts(conn, [(row.nid, server, count) for server, count in servers.items()])
    row.local_joined = sum(count for server, count in servers.items() if batch.context.is_local(server))
    work.base.servers = dict(servers)


def _apply_join(batch: Batch, work: RoomWork, join: Event, before: int) -> EventRow:
    """Put the join on top of the imported state."""
    # The room's rows are written already, so the entries can be read though the room may be new.
    is_new, work.is_new = work.is_new, False
    batch.load_entries(work, auth.keys_needed(join, is_local=True))
    state = snapshots.events_at(batch, work, before, auth.keys_needed(join, is_local=True))
    found = auth.find_auth_events(batch, work, join)
    refusal = None
    if not found.missing:
        refusal = auth.check_at_auth_events(batch, join, found)
    refusal = refusal or auth.check_at_state(join, state) or policy.check(batch, work, join)
    if refusal is not None:
        raise ImportRefused(refusal)
    row = batch.row_of(join.event_id)
    if row is None:
        row = apply.make_row(batch, work, join, status=ACCEPTED, before=before, after=0, auth=found.nids)
        batch.add_row(row, join)
    row.status, row.snapshot_before = ACCEPTED, before
    apply.apply_event(
        batch,
        work,
        join,
        row,
        state,
        placement=Placement.PLACEMENT_TIMELINE,
        missing_prev=list(join.prev_event_ids),
    )
    gaps.note_missing(batch, work, row, list(join.prev_event_ids))
    batch.change_row(row)
    work.is_new = is_new
    federation.end_wait(batch, work, join.event_id)
    return row

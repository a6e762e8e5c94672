"""Making a staged import part of the room: a join's state and auth chain, and the join on top.

The staged events are brought into the order of their auth events, so that each is judged by those before it,
and stored page by page: 20,000 of them take no more memory than their ids. The state is one snapshot, told by
reference (`StateRewritten`); the join follows as an event of the timeline.
"""

from collections.abc import Iterable

from arbor.log.v1 import input_pb2
from arbor.log.v1.output_pb2 import Placement
from matrixlib.event_auth import check_auth_events, check_event_auth
from matrixlib.events import Event, EventFormatError, parse_event, redact_event
from matrixlib.identifiers import server_name_of
from matrixlib.room_versions import RoomVersion, get_room_version
from matrixlib.verdicts import Refused
from roomserver.input import apply, auth, federation, gaps, local, snapshots
from roomserver.input.auth import Refusal
from roomserver.input.batch import Batch
from roomserver.input.decode import Request
from roomserver.memory import Lru
from roomserver.rooms import Room, RoomWork
from roomserver.storage import auth_chains, events, outliers, rooms, staging, states
from roomserver.storage.events import ACCEPTED, OUTLIER, REJECTED, EventRow
from roomserver.storage.rooms import RoomRow
from servicekit.database.raw import Sql, chunks
from servicekit.log.faultpoints import fault_point
from servicekit.logging import get_logger

log = get_logger("roomserver.input")

Code = input_pb2.VerdictCode
CACHE = 2000

_DELETE_SERVERS = Sql("DELETE FROM room_server WHERE room_nid = ?")
_NO_IMPORT = Refusal("format", "nothing is staged under this import id", "M_NOT_FOUND")


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
        if known is not None and known.in_graph:
            staging.delete_import(batch.conn, commit.import_id)
            batch.answer(request, local.repeat(join.event_id, known), row=known)
            return
    job = staging.load_job(batch.conn, commit.import_id)
    if job is None or job.room_id != request.room_id:
        local.refuse(batch, request, _NO_IMPORT)
        return
    work = batch.work(request.room_id)
    if work is not None and (work.row.quarantined_ms or work.version is not version):
        local.refuse(batch, request, local.QUARANTINED)
        return
    if work is not None and work.row.participating:
        local.refuse(batch, request, Refusal("participating", "this server is in the room", "M_FORBIDDEN"))
        return
    refusal = _commit(batch, request, version, work, join, commit.import_id)
    if refusal is not None:
        local.refuse(batch, request, refusal)


def _commit(
    batch: Batch,
    request: Request,
    version: RoomVersion,
    work: RoomWork | None,
    join: Event | None,
    import_id: str,
) -> Refusal | None:
    links, is_state = _load_links(batch, version, import_id)
    if work is None:
        work = _make_room(batch, request.room_id, version)
    room_nid = work.row.nid
    order = _auth_first(links)
    state, members, refusal = _store_events(
        batch, room_nid, request.room_id, version, import_id, order, is_state
    )
    if refusal is not None:
        raise ImportRefused(refusal)
    snapshot_id = snapshots.add_child(batch, room_nid, 0, state)
    batch.states[snapshot_id] = state
    _replace_current(batch, work, state, members)
    work.row.snapshot_id = snapshot_id
    work.heads = {}
    work.base.state.clear()
    work.state.clear()
    work.row.participation += 1
    work.row.participating = True
    work.touched = True
    outliers.delete_outliers(batch.conn, request.room_id)
    staging.delete_import(batch.conn, import_id)
    fault_point("roomserver.import_commit")
    event_id = join.event_id if join is not None else ""
    apply.tell_rewrite(work, snapshot_id, event_id, len(state), began=True)
    if join is None:
        batch.answer(request, input_pb2.Verdict(code=Code.VERDICT_CODE_ACCEPTED), room=work)
        return None
    row = _apply_join(batch, work, join, snapshot_id)
    batch.answer(request, input_pb2.Verdict(code=Code.VERDICT_CODE_ACCEPTED, event_id=join.event_id), row=row)
    log.info("room_imported", room_id=request.room_id, state=len(state), events=len(order))
    return None


class ImportRefused(Exception):
    """An import cannot be taken; what was stored of it is rolled back."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


def _make_room(batch: Batch, room_id: str, version: RoomVersion) -> RoomWork:
    row = RoomRow(
        nid=batch.take_id("room"),
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


def _load_links(
    batch: Batch, version: RoomVersion, import_id: str
) -> tuple[dict[str, tuple[str, ...]], set[str]]:
    """event id -> its auth events, of all that is staged; and which of them are the state."""
    links: dict[str, tuple[str, ...]] = {}
    is_state: set[str] = set()
    after = ""
    while page := staging.load_page(batch.conn, import_id, after):
        for event_id, state, pdu in page:
            try:
                # Whether the id is right is looked at when the event is stored.
                event = parse_event(pdu, version, event_id=event_id)
            except EventFormatError:
                continue
            links[event_id] = event.auth_links
            if state:
                is_state.add(event_id)
        after = page[-1][0]
    return links, is_state


def _auth_first(links: dict[str, tuple[str, ...]]) -> list[str]:
    """The events, each after its auth events."""
    order: list[str] = []
    done: set[str] = set()
    for root in links:
        stack = [(root, False)]
        while stack:
            event_id, closing = stack.pop()
            if closing:
                order.append(event_id)
            elif event_id not in done and event_id in links:
                done.add(event_id)
                stack.append((event_id, True))
                stack.extend((link, False) for link in links[event_id] if link not in done)
    return order


def _store_events(
    batch: Batch,
    room_nid: int,
    room_id: str,
    version: RoomVersion,
    import_id: str,
    order: list[str],
    is_state: set[str],
) -> tuple[dict[int, int], dict[int, int], Refusal | None]:
    """Judge and store the events page by page.

    Returns the state, key number -> event number; of its member events, event number -> membership number.
    """
    conn = batch.conn
    cache: Lru[str, tuple[int, int, Event]] = Lru(CACHE)
    state: dict[int, int] = {}
    members: dict[int, int] = {}
    has_create = False
    for part in chunks(order, staging.PAGE):
        bodies = staging.load_some(conn, import_id, list(part))
        parsed = _parse_right(bodies, version)
        known = events.load_events_by_id(conn, part)
        batch.ensure_keys({event.key for event in parsed.values() if event.state_key is not None})
        links = {link for e in parsed.values() for link in e.auth_links} - parsed.keys()
        _load_into(batch, room_nid, cache, version, links)
        rows: list[EventRow] = []
        new_bodies: list[tuple[int, bytes]] = []
        for event_id in part:
            event = parsed.get(event_id)
            if event is None or event.room_id != room_id or event.state_key is None:
                continue
            row = known.get(event_id)
            if row is None:
                if not auth.check_hash(event):
                    event = redact_event(event)
                row = _judge(batch, room_nid, event, cache)
                if row is None:
                    continue
                rows.append(row)
                new_bodies.append((row.nid, event.pdu_json))
            elif row.room_nid != room_nid:
                continue
            cache.put(event_id, (row.nid, row.status, event))
            if event_id in is_state and row.status != REJECTED:
                state[row.key_id] = row.nid
                if event.type == "m.room.member":
                    members[row.nid] = states.MEMBERSHIP_NUMBERS.get(event.membership or "", 0)
                has_create = has_create or event.is_create
        events.store_events(conn, rows, new_bodies)
        auth_chains.extend(conn, [(row.nid, row.auth) for row in rows])
    return (
        state,
        members,
        None if has_create else Refusal("format", "the state has no create event", "M_BAD_STATE"),
    )


def _parse_right(bodies: dict[str, bytes], version: RoomVersion) -> dict[str, Event]:
    """event id -> event, of those that have the id under which they are staged."""
    parsed: dict[str, Event] = {}
    for event_id, pdu in bodies.items():
        try:
            event = parse_event(pdu, version)
        except EventFormatError:
            continue
        if event.event_id == event_id:
            parsed[event_id] = event
    return parsed


def _load_into(
    batch: Batch,
    room_nid: int,
    cache: Lru[str, tuple[int, int, Event]],
    version: RoomVersion,
    event_ids: Iterable[str],
) -> None:
    missing = [event_id for event_id in event_ids if cache.get(event_id) is None]
    for event_id, (row, pdu) in events.load_full_by_id(batch.conn, missing).items():
        if row.room_nid != room_nid:
            continue  # another room's, of another version perhaps: as good as missing
        event = parse_event(pdu, version, event_id=event_id, verify_size=False)
        cache.put(event_id, (row.nid, row.status, event))


def _judge(
    batch: Batch, room_nid: int, event: Event, cache: Lru[str, tuple[int, int, Event]]
) -> EventRow | None:
    """Judge an event by its auth events; None: one of them is missing."""
    named: list[Event] = []
    nids: list[int] = []
    rejected: set[str] = set()
    for event_id in event.auth_links:
        found = cache.get(event_id)
        if found is None:
            return None
        nids.append(found[0])
        if found[1] == REJECTED:
            rejected.add(event_id)
        named.append(found[2])
    cited = [item for item in named if item.event_id in event.auth_event_ids]
    verdict = check_auth_events(event, cited, rejected=rejected)
    if not isinstance(verdict, Refused):
        verdict = check_event_auth(event, {item.key: item for item in named if item.is_state})
    refused = auth.refusal_of(verdict) if isinstance(verdict, Refused) else None
    return EventRow(
        nid=batch.take_id("event"),
        event_id=event.event_id,
        room_nid=room_nid,
        status=OUTLIER if refused is None else REJECTED,
        placement=0,
        key_id=batch.key_id(event.key),
        depth=event.depth,
        origin_server_ts=event.origin_server_ts,
        snapshot_before=0,
        snapshot_after=0,
        auth=tuple(nids),
        rejection=refused.message().SerializeToString() if refused is not None else None,
    )


def _replace_current(batch: Batch, work: RoomWork, state: dict[int, int], members: dict[int, int]) -> None:
    """Write the current state anew, with members and servers."""
    conn = batch.conn
    row = work.row
    states.delete_current(conn, row.nid)
    _DELETE_SERVERS.change(conn, row.nid)
    row.joined = row.invited = row.local_joined = 0
    row.state_entries = len(state)
    servers: dict[str, int] = {}
    for part in chunks(sorted(state.items()), staging.PAGE):
        changes = [(row.nid, key_id, nid, members.get(nid, 0)) for key_id, nid in part]
        joined = [key_id for _, key_id, _, number in changes if number == states.JOIN]
        row.joined += len(joined)
        row.invited += sum(number == states.INVITE for _, _, _, number in changes)
        for _, user_id in batch.keys_of(joined).values():
            server = server_name_of(user_id)
            servers[server] = servers.get(server, 0) + 1
        states.store_current(conn, changes)
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
    refusal = refusal or auth.check_at_state(join, state)
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

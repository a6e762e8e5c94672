"""Reads behind the query service: synchronous functions of a Connection, each in one snapshot."""

from collections.abc import Callable, Iterable

from sqlalchemy import Connection

from arbor.log.v1 import common_pb2, input_pb2
from arbor.roomserver.v1 import query_pb2
from roomserver.input.heads import first_heads
from roomserver.storage import events, outputs, rooms, states, waiting
from roomserver.storage.events import EventRow
from roomserver.storage.rooms import RoomRow
from roomserver.storage.snapshots import load_state
from servicekit.database.raw import Sql
from servicekit.log.subjects import event_position

_CURRENT_EVENTS = Sql(
    "SELECT e.event_id, b.pdu FROM current_state c JOIN event e ON e.nid = c.event_nid"
    " JOIN event_body b ON b.nid = e.nid WHERE c.room_nid = ? AND c.key_id IN ? ORDER BY c.key_id"
)
_CURRENT_ALL = Sql(
    "SELECT e.event_id, b.pdu FROM current_state c JOIN event e ON e.nid = c.event_nid"
    " JOIN event_body b ON b.nid = e.nid WHERE c.room_nid = ? ORDER BY c.key_id"
)
_OUTLIERS = Sql(
    "SELECT room_id, user_id, membership, event_id FROM outlier_membership WHERE user_id IN ? ORDER"
    " BY room_id"
)
_OUTLIERS_OF = Sql(
    "SELECT room_id, user_id, membership, event_id FROM outlier_membership WHERE room_id = ? ORDER BY user_id"
)
_OUTLIER_EVENTS = Sql(
    "SELECT event_id, room_id, room_version, pdu FROM outlier_membership WHERE event_id IN ?"
)
_ROOMS_JOINED = Sql(
    "SELECT DISTINCT c.room_nid FROM current_state c WHERE c.key_id IN ? AND c.membership = 1 ORDER"
    " BY c.room_nid"
)


_CURRENT_OF_ROOMS = Sql(
    "SELECT c.room_nid, e.event_id, b.pdu FROM current_state c JOIN event e ON e.nid = c.event_nid"
    " JOIN event_body b ON b.nid = e.nid WHERE c.room_nid IN ? AND c.key_id IN ?"
    " ORDER BY c.room_nid, c.key_id"
)


def message_of(event_id: str, pdu: bytes) -> common_pb2.Event:
    """An event as the contract has it."""
    return common_pb2.Event(event_id=event_id, pdu_json=pdu)


def read_latest(
    conn: Connection, request: query_pb2.QueryLatestRequest
) -> tuple[query_pb2.QueryLatestResponse, int]:
    """The answer, without its position, and the room's last output_no."""
    row = rooms.load_rooms(conn, [request.room_id]).get(request.room_id)
    if row is None:
        return query_pb2.QueryLatestResponse(), 0
    heads = events.load_events_by_nid(conn, row.heads)
    depths = {head.event_id: head.depth for head in heads.values()}
    response = query_pb2.QueryLatestResponse(
        exists=True,
        room_version=row.version,
        forward_extremities=first_heads(depths),
        depth=min(max(depths.values(), default=0), 2**53 - 1),
        participating=row.participating,
        quarantined=row.quarantined_ms > 0,
        partial=row.partial_join > 0,
    )
    if request.all_state:
        found = _CURRENT_ALL.rows(conn, row.nid)
    elif request.state_keys:
        numbers = states.load_key_ids(conn, [(key.type, key.state_key) for key in request.state_keys])
        found = _CURRENT_EVENTS.rows(conn, row.nid, list(numbers.values())) if numbers else []
    else:
        found = []
    response.state.extend([message_of(event_id, pdu) for event_id, pdu in found])
    return response, row.last_output_no


def read_sequence(conn: Connection, room_id: str) -> int:
    """The OUTPUT sequence of a room's last message, as far as it is stored; 0: not."""
    row = rooms.load_rooms(conn, [room_id]).get(room_id)
    if row is None or not row.last_output_no:
        return 0
    return outputs.load_sequences(conn, row.partition, [row.last_output_no]).get(row.last_output_no, 0)


def read_stored(conn: Connection, event_ids: Iterable[str], room_id: str = "") -> list[query_pb2.StoredEvent]:
    """Events by id in the order asked, waiting ones and outlier memberships too; unknown ones are left
    out.
    """
    wanted = list(dict.fromkeys(event_ids))
    found = events.load_full_by_id(conn, wanted)
    stored = {item.event.event_id: item for item in make_stored(conn, list(found.values()))}
    missing = [event_id for event_id in wanted if event_id not in stored]
    if missing:
        for event_id, pdu_room, version, pdu in _OUTLIER_EVENTS.rows(conn, missing):
            stored[event_id] = query_pb2.StoredEvent(
                event=message_of(event_id, pdu),
                room_id=pdu_room,
                room_version=version,
                status=query_pb2.EventStatus.EVENT_STATUS_OUTLIER,
            )
        for event_id, event in waiting.load_waiting(conn, missing).items():
            stored[event_id] = query_pb2.StoredEvent(
                event=message_of(event_id, event.pdu),
                room_id=event.room_id,
                room_version=event.room_version,
                status=query_pb2.EventStatus.EVENT_STATUS_WAITING,
            )
    in_order = [stored[event_id] for event_id in wanted if event_id in stored]
    return [item for item in in_order if not room_id or item.room_id == room_id]


def make_stored(conn: Connection, found: list[tuple[EventRow, bytes]]) -> list[query_pb2.StoredEvent]:
    """Rows as the contract has them, but for those of rooms that are only being imported."""
    if not found:
        return []
    room_rows = rooms.load_rooms_by_nid(conn, {row.room_nid for row, _ in found})
    sequences = load_positions(conn, [row for row, _ in found], room_rows)
    redactions = events.load_full_by_nid(conn, {row.redacted_by for row, _ in found if row.redacted_by})
    made = []
    for row, pdu in found:
        room = room_rows.get(row.room_nid)
        if room is None:
            continue
        stored = query_pb2.StoredEvent(
            event=message_of(row.event_id, pdu),
            room_id=room.room_id,
            room_version=room.version,
            status=row.status,  # type: ignore[arg-type]
            depth=min(row.depth, 2**53 - 1),
            output_position=sequences.get(row.nid, 0),
        )
        if row.redacted_by in redactions:
            redaction, redaction_pdu = redactions[row.redacted_by]
            stored.redacted_because.CopyFrom(message_of(redaction.event_id, redaction_pdu))
        if row.rejection:
            stored.rejection.CopyFrom(input_pb2.Rejection.FromString(row.rejection))
        made.append(stored)
    return made


def load_positions(
    conn: Connection, rows: Iterable[EventRow], room_rows: dict[int, RoomRow]
) -> dict[int, int]:
    """event number -> position on OUTPUT, of those that have one that is known."""
    by_partition: dict[int, set[int]] = {}
    told = [row for row in rows if row.output_no]
    for row in told:
        by_partition.setdefault(room_rows[row.room_nid].partition, set()).add(row.output_no)
    sequences = {
        partition: outputs.load_sequences(conn, partition, sorted(numbers))
        for partition, numbers in by_partition.items()
    }
    positions = {}
    for row in told:
        sequence = sequences[room_rows[row.room_nid].partition].get(row.output_no)
        if sequence:
            positions[row.nid] = event_position(sequence, row.output_index)
    return positions


def read_memberships(
    conn: Connection, request: query_pb2.QueryMembershipsRequest
) -> query_pb2.QueryMembershipsResponse:
    """Memberships of users in a room, or of users in all rooms; outlier ones where we know no better."""
    wanted = set(request.memberships)
    response = query_pb2.QueryMembershipsResponse()
    known: set[tuple[str, str]] = set()

    def add(room_id: str, user_id: str, membership: str, event_id: str, outlier: bool) -> None:
        if (room_id, user_id) in known:
            return
        known.add((room_id, user_id))
        if not wanted or membership in wanted:
            response.memberships.add(
                room_id=room_id,
                membership=common_pb2.Membership(user_id=user_id, membership=membership, event_id=event_id),
                outlier=outlier,
            )

    users = list(dict.fromkeys(request.user_ids))
    if request.room_id:
        outliers = _OUTLIERS_OF.rows(conn, request.room_id)
    else:
        outliers = _OUTLIERS.rows(conn, users) if users else []
    for room_id, user_id, membership, event_id in outliers:
        if not users or user_id in users:
            add(room_id, user_id, states.MEMBERSHIPS[membership], event_id, True)
    key_ids: list[int] | None = None
    if users:
        key_ids = list(states.load_key_ids(conn, [("m.room.member", user) for user in users]).values())
    if request.room_id:
        row = rooms.load_rooms(conn, [request.room_id]).get(request.room_id)
        if row is not None and key_ids != []:
            for _, _, number, user_id, event_id in states.load_members(conn, row.nid, key_ids):
                add(request.room_id, user_id, states.MEMBERSHIPS[number], event_id, False)
    elif key_ids:
        for room_id, number, user_id, event_id in states.load_rooms_of(conn, key_ids):
            add(room_id, user_id, states.MEMBERSHIPS[number], event_id, False)
    return response


def read_rooms(
    conn: Connection, request: query_pb2.QueryRoomsRequest, is_local_user: Callable[[str], bool]
) -> query_pb2.QueryRoomsResponse:
    """What is known of rooms."""
    if request.joined_user_ids:
        keys = states.load_key_ids(conn, [("m.room.member", user) for user in request.joined_user_ids])
        nids = [row[0] for row in _ROOMS_JOINED.rows(conn, list(keys.values()))] if keys else []
        found = list(rooms.load_rooms_by_nid(conn, nids).values())
        if request.room_ids:
            found = [row for row in found if row.room_id in set(request.room_ids)]
    elif request.room_ids:
        by_id = rooms.load_rooms(conn, request.room_ids)
        found = [by_id[room_id] for room_id in dict.fromkeys(request.room_ids) if room_id in by_id]
    else:
        found = rooms.load_all_rooms(conn)
    nids = [row.nid for row in found]
    servers = rooms.load_servers(conn, nids) if request.with_servers and nids else {}
    users = states.load_joined_users(conn, nids) if request.with_local_users and nids else {}
    state = _state_of_rooms(conn, nids, request.state_keys) if request.state_keys and nids else {}
    response = query_pb2.QueryRoomsResponse()
    for row in found:
        response.rooms.add(
            room_id=row.room_id,
            room_version=row.version,
            participating=row.participating,
            servers=list(servers.get(row.nid, ())),
            local_user_ids=[user for user in users.get(row.nid, ()) if is_local_user(user)],
            counts=query_pb2.Counts(joined=row.joined, invited=row.invited, state=row.state_entries),
            quarantined=row.quarantined_ms > 0,
            forward_extremities=len(row.heads),
            state=state.get(row.nid, ()),
            partial=row.partial_join > 0,
        )
    return response


def _state_of_rooms(
    conn: Connection, nids: list[int], keys: Iterable[common_pb2.StateKey]
) -> dict[int, list[common_pb2.Event]]:
    """room number -> the entries of its current state under these keys."""
    numbers = states.load_key_ids(conn, [(key.type, key.state_key) for key in keys])
    found: dict[int, list[common_pb2.Event]] = {}
    if numbers:
        for room_nid, event_id, pdu in _CURRENT_OF_ROOMS.rows(conn, nids, list(numbers.values())):
            found.setdefault(room_nid, []).append(message_of(event_id, pdu))
    return found


def read_state(
    conn: Connection, room_id: str, event_ids: list[str], after: bool
) -> list[tuple[str, dict[int, int] | None]]:
    """event id -> state before or after it (key number -> event number), None where it is not known."""
    row = rooms.load_rooms(conn, [room_id]).get(room_id)
    found = events.load_events_by_id(conn, event_ids)
    cache: dict[int, dict[int, int]] = {}
    answers: list[tuple[str, dict[int, int] | None]] = []
    for event_id in event_ids:
        event = found.get(event_id)
        if row is None or event is None or event.room_nid != row.nid or not event.in_graph:
            answers.append((event_id, None))
            continue
        snapshot = event.snapshot_after if after else event.snapshot_before
        if snapshot not in cache:
            cache[snapshot] = load_state(conn, snapshot) if snapshot else {}
        answers.append((event_id, cache[snapshot]))
    return answers

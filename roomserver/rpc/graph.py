"""Walks over a room's graph: history, missing events, auth chains, visibility."""

import heapq
from collections.abc import Callable

from sqlalchemy import Connection

from arbor.roomserver.v1 import query_pb2
from matrixlib import visibility
from matrixlib.events import Event, StateKey, parse_event
from matrixlib.identifiers import server_name_of
from matrixlib.room_versions import RoomVersion, get_room_version
from roomserver.rpc import reads
from roomserver.storage import auth_chains, events, rooms, snapshots, states, waiting
from roomserver.storage.events import ACCEPTED, REJECTED, EventRow
from roomserver.storage.rooms import RoomRow
from servicekit.database.raw import Sql

MAX_EVENTS = 1000
MAX_WALK = 20_000

_NEAREST_AFTER = Sql(
    "SELECT nid FROM event WHERE room_nid = ? AND origin_server_ts >= ? AND status = 1 AND placement IN ?"
    " ORDER BY origin_server_ts, nid LIMIT 1"
)
_NEAREST_BEFORE = Sql(
    "SELECT nid FROM event WHERE room_nid = ? AND origin_server_ts <= ? AND status = 1 AND placement IN ?"
    " ORDER BY origin_server_ts DESC, nid DESC LIMIT 1"
)


def read_history(conn: Connection, request: query_pb2.QueryHistoryRequest) -> query_pb2.QueryHistoryResponse:
    """History backwards from events, newest first by depth; or the event nearest to a time."""
    room = rooms.load_rooms(conn, [request.room_id]).get(request.room_id)
    response = query_pb2.QueryHistoryResponse()
    if room is None:
        return response
    if request.nearest_to_ms:
        statement = _NEAREST_BEFORE if request.backwards else _NEAREST_AFTER
        row = statement.row(conn, room.nid, request.nearest_to_ms, [1, 2])
        nids = [row[0]] if row else []
    else:
        nids = _walk_back(conn, room, list(request.from_event_ids), min(request.limit or 100, MAX_EVENTS))
    found = events.load_full_by_nid(conn, nids)
    response.events.extend(reads.make_stored(conn, [found[nid] for nid in nids if nid in found]))
    walked = set(nids)
    response.backward_extremities.extend(
        dict.fromkeys(
            event_id
            for _, nid, event_id, _ in waiting.load_missing_prevs(conn, room.nid)
            if not request.from_event_ids or nid in walked
        )
    )
    return response


def _walk_back(conn: Connection, room: RoomRow, from_ids: list[str], limit: int) -> list[int]:
    start = events.load_events_by_id(conn, from_ids)
    heap = [(-row.depth, -row.nid, row) for row in start.values() if row.room_nid == room.nid]
    heapq.heapify(heap)
    seen = {row.nid for _, _, row in heap}
    found: list[int] = []
    steps = 0
    while heap and len(found) < limit and steps < MAX_WALK:
        steps += 1
        _, _, row = heapq.heappop(heap)
        if row.status == ACCEPTED:
            found.append(row.nid)
        missing = [nid for nid in row.prev if nid not in seen]
        seen.update(missing)
        for prev in events.load_events_by_nid(conn, missing).values():
            if prev.room_nid == room.nid:
                heapq.heappush(heap, (-prev.depth, -prev.nid, prev))
    return found


def read_missing(
    conn: Connection, request: query_pb2.QueryMissingEventsRequest
) -> query_pb2.QueryMissingEventsResponse:
    """What the ancestors of the latest events hold and those of the earliest do not; oldest first."""
    room = rooms.load_rooms(conn, [request.room_id]).get(request.room_id)
    response = query_pb2.QueryMissingEventsResponse()
    if room is None:
        return response
    earliest = events.load_events_by_id(conn, request.earliest_events)
    latest = events.load_events_by_id(conn, request.latest_events)
    seen = {row.nid for row in earliest.values()} | {row.nid for row in latest.values()}
    front = [
        nid for row in latest.values() if row.room_nid == room.nid for nid in row.prev if nid not in seen
    ]
    found: list[EventRow] = []
    limit = min(request.limit or 10, MAX_EVENTS)
    while front and len(found) < limit:
        rows = events.load_events_by_nid(conn, set(front) - seen)
        seen.update(front)
        front = []
        for row in sorted(rows.values(), key=lambda row: (-row.depth, -row.nid)):
            if row.depth < request.min_depth or len(found) >= limit or row.room_nid != room.nid:
                continue
            if row.status != REJECTED:
                found.append(row)
            front.extend(nid for nid in row.prev if nid not in seen)
    found.sort(key=lambda row: (row.depth, row.nid))
    full = events.load_full_by_nid(conn, [row.nid for row in found])
    response.events.extend(reads.make_stored(conn, [full[row.nid] for row in found if row.nid in full]))
    return response


def read_auth_chain(conn: Connection, event_ids: list[str]) -> list[int]:
    """The auth chain of events, each after those it refers to."""
    found = events.load_events_by_id(conn, event_ids)
    # Events of a room that is only being imported are nobody's yet.
    room_nids = rooms.load_rooms_by_nid(conn, {row.room_nid for row in found.values()}).keys()
    chain = auth_chains.load_auth_chain(
        conn, {nid for row in found.values() if row.room_nid in room_nids for nid in row.auth}
    )
    return sorted(chain)


class StateReader:
    """Parts of states at events, with memory for one question."""

    def __init__(self, conn: Connection, version: RoomVersion) -> None:
        self._conn = conn
        self._version = version
        self._paths: dict[int, list[snapshots.Node]] = {}

    def path(self, snapshot_id: int) -> list[snapshots.Node]:
        """A snapshot's path."""
        if snapshot_id not in self._paths:
            self._paths[snapshot_id] = snapshots.load_path(self._conn, snapshot_id) if snapshot_id else []
        return self._paths[snapshot_id]

    def nids(self, snapshot_id: int, key_ids: list[int]) -> dict[int, int]:
        """key number -> event number, of some entries."""
        found = {}
        for key_id in key_ids:
            for node in self.path(snapshot_id):
                nid = node.delta.get(key_id)
                if nid is not None:
                    if nid:
                        found[key_id] = nid
                    break
        return found

    def events_at(self, snapshot_id: int, keys: list[StateKey]) -> dict[StateKey, Event]:
        """key -> event, of some entries."""
        numbers = states.load_key_ids(self._conn, keys)
        nids = self.nids(snapshot_id, list(numbers.values()))
        found = self.parse(list(nids.values()))
        return {key: found[nids[number]] for key, number in numbers.items() if number in nids}

    def whole(self, snapshot_id: int) -> dict[int, int]:
        """A whole state."""
        return snapshots.compose(self.path(snapshot_id))

    def parse(self, nids: list[int]) -> dict[int, Event]:
        """Events by number."""
        return {
            nid: parse_event(pdu, self._version, event_id=row.event_id, verify_size=False)
            for nid, (row, pdu) in events.load_full_by_nid(self._conn, nids).items()
        }


def read_visible(conn: Connection, request: query_pb2.QueryVisibilityRequest) -> list[str]:
    """Those of the events that a user or a server may see, in the order asked."""
    room = rooms.load_rooms(conn, [request.room_id]).get(request.room_id)
    version = get_room_version(room.version) if room is not None else None
    if room is None or version is None:
        return []
    found = events.load_full_by_id(conn, request.event_ids)
    reader = StateReader(conn, version)
    if request.user_id:
        check = _user_check(conn, room, reader, request.user_id)
    else:
        check = _server_check(conn, room, reader, request.server_name, only_joined=request.only_joined)
    visible = []
    for event_id in request.event_ids:
        row, pdu = found.get(event_id, (None, b""))
        if row is None or row.room_nid != room.nid or row.status != ACCEPTED:
            continue
        event = parse_event(pdu, version, event_id=event_id, verify_size=False)
        if check(event, row):
            visible.append(event_id)
    return visible


def _user_check(
    conn: Connection, room: RoomRow, reader: StateReader, user_id: str
) -> Callable[[Event, EventRow], bool]:
    member_key = ("m.room.member", user_id)
    numbers = states.load_key_ids(conn, [member_key])
    members = states.load_members(conn, room.nid, list(numbers.values())) if numbers else []
    joined_now = any(item[2] == states.JOIN for item in members)
    joined_before: set[int] = set()
    if members and not joined_now:
        # Joined at any time after the event: some later state has the user's join.
        joined_before = _joins_of(conn, room, numbers[member_key])

    def check(event: Event, row: EventRow) -> bool:
        state = reader.events_at(row.snapshot_before, list(visibility.deciding_keys(user_id)))
        since = joined_now or any(depth > row.depth for depth in joined_before)
        return visibility.is_visible(event, state, user_id, joined_since=since)

    return check


_MEMBER_EVENTS = Sql(
    "SELECT e.depth, b.pdu FROM event e JOIN event_body b ON b.nid = e.nid"
    " WHERE e.room_nid = ? AND e.key_id = ? AND e.status = 1"
)


def _joins_of(conn: Connection, room: RoomRow, key_id: int) -> set[int]:
    """Depths at which a user joined."""
    return {
        depth
        for depth, pdu in _MEMBER_EVENTS.rows(conn, room.nid, key_id)
        if b'"membership":"join"' in bytes(pdu)
    }


def _server_check(
    conn: Connection, room: RoomRow, reader: StateReader, server: str, *, only_joined: bool
) -> Callable[[Event, EventRow], bool]:
    members: dict[int, dict[StateKey, Event]] = {}

    def members_at(snapshot_id: int) -> dict[StateKey, Event]:
        if snapshot_id not in members:
            state = reader.whole(snapshot_id)
            keys = states.load_keys(conn, list(state))
            wanted = {
                key: state[key_id]
                for key_id, key in keys.items()
                if key[0] == "m.room.member" and server_name_of(key[1]) == server
            }
            parsed = reader.parse(list(wanted.values()))
            members[snapshot_id] = {key: parsed[nid] for key, nid in wanted.items()}
        return members[snapshot_id]

    def check(event: Event, row: EventRow) -> bool:
        if only_joined:
            return visibility.had_server_joined(event, members_at(row.snapshot_before), server)
        state = reader.events_at(row.snapshot_before, [visibility.HISTORY_VISIBILITY_KEY])
        if visibility.server_needs_members(event, state):
            state = {**state, **members_at(row.snapshot_before)}
        return visibility.is_visible_to_server(event, state, server)

    return check

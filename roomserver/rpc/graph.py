"""Walks over a room's graph: history, missing events, auth chains, visibility, explanations."""

import heapq
from collections.abc import Callable

from sqlalchemy import Connection

from arbor.log.v1 import input_pb2
from arbor.roomserver.v1 import query_pb2
from matrixlib import state_resolution, visibility
from matrixlib.event_auth import state_types_for
from matrixlib.events import Event, StateKey, parse_event
from matrixlib.identifiers import server_name_of
from matrixlib.room_versions import RoomVersion, get_room_version
from roomserver.rpc import reads
from roomserver.storage import auth_chains, events, rooms, snapshots, states, waiting
from roomserver.storage.events import ACCEPTED, REJECTED, EventRow
from roomserver.storage.rooms import RoomRow
from roomserver.storage.sql import Sql

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
            if row.depth < request.min_depth or len(found) >= limit:
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
    chain = auth_chains.load_auth_chain(conn, {nid for row in found.values() for nid in row.auth})
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
        check = _server_check(conn, room, reader, request.server_name)
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
    conn: Connection, room: RoomRow, reader: StateReader, server: str
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
        state = reader.events_at(row.snapshot_before, [visibility.HISTORY_VISIBILITY_KEY])
        if visibility.server_needs_members(event, state):
            state = {**state, **members_at(row.snapshot_before)}
        return visibility.is_visible_to_server(event, state, server)

    return check


def read_explanation(conn: Connection, event_id: str) -> query_pb2.ExplainEventResponse:
    """Why an event was judged as it was: the rule, the state it was checked against, what a resolution
    picked.
    """
    stored = reads.read_stored(conn, [event_id])
    if not stored:
        return query_pb2.ExplainEventResponse()
    response = query_pb2.ExplainEventResponse(known=True, event=stored[0])
    if stored[0].status == query_pb2.EventStatus.EVENT_STATUS_WAITING:
        response.missing_event_ids.extend(waiting.load_missing(conn, event_id))
    version = get_room_version(stored[0].room_version)
    row = events.load_events_by_id(conn, [event_id]).get(event_id)
    if row is None or version is None:
        return response
    if row.rejection:
        response.decision.CopyFrom(input_pb2.Rejection.FromString(row.rejection))
    elif row.status == ACCEPTED:
        response.decision.reason = "allowed by its auth events and by the state before it"
    reader = StateReader(conn, version)
    event = parse_event(stored[0].event.pdu_json, version, event_id=event_id, verify_size=False)
    against = reader.events_at(row.snapshot_before, sorted(state_types_for(event)))
    response.checked_against.extend(
        reads.message_of(item.event_id, item.pdu_json) for _, item in sorted(against.items())
    )
    response.resolution.extend(_explain_resolution(conn, reader, row, version))
    return response


def _explain_resolution(
    conn: Connection, reader: StateReader, row: EventRow, version: RoomVersion
) -> list[str]:
    """One line for each entry that the resolution of the prev events' states had to pick."""
    prevs = events.load_events_by_nid(conn, row.prev)
    sets_by_id = {prev.snapshot_after for prev in prevs.values() if prev.snapshot_after}
    if len(sets_by_id) < 2:
        return []
    wholes = [reader.whole(snapshot_id) for snapshot_id in sorted(sets_by_id)]
    nids = {nid for state in wholes for nid in state.values()}
    chain = auth_chains.load_auth_chain(conn, nids) | nids
    if len(chain) > MAX_WALK:
        return ["the resolution is too large to be shown"]
    parsed = reader.parse(sorted(chain))
    rejected = {
        item.event_id for item in events.load_events_by_nid(conn, chain).values() if item.status == REJECTED
    }
    keys = states.load_keys(conn, {key_id for state in wholes for key_id in state})
    store = state_resolution.MemoryStore({item.event_id: item for item in parsed.values()}, rejected)
    explained = state_resolution.resolve_explained(
        version, [{keys[k]: parsed[nid].event_id for k, nid in state.items()} for state in wholes], store
    )
    lines = []
    for key in sorted(explained.conflicted):
        picked = explained.state.get(key)
        how = explained.steps.get(key, "left over")
        lines.append(f"{key[0]}|{key[1]}: {picked or 'nothing'} ({how})")
    lines += [f"{event_id} left out: {why}" for event_id, why in sorted(explained.refused.items())]
    return lines

"""Why an event was judged as it was: the rule, the state it was checked against, what a resolution picked.

Most of it is worked out anew from what is stored; what redactions took away since is missing there, too.
"""

from sqlalchemy import Connection

from arbor.log.v1 import input_pb2
from arbor.roomserver.v1 import query_pb2
from matrixlib import state_resolution
from matrixlib.event_auth import check_auth_events, check_event_auth, state_types_for
from matrixlib.events import Event, StateKey, parse_event
from matrixlib.room_versions import RoomVersion, get_room_version
from matrixlib.verdicts import Refused
from roomserver.rpc import reads
from roomserver.rpc.graph import MAX_WALK, StateReader
from roomserver.storage import auth_chains, events, states, waiting
from roomserver.storage.events import ACCEPTED, OUTLIER, REJECTED, SOFT_FAILED, EventRow

AUTH_EVENTS = "auth events"
STATE_BEFORE = "state before"
CURRENT_STATE = "current state"


def read_explanation(conn: Connection, event_id: str) -> query_pb2.ExplainEventResponse:
    """Answer for one event; `known` is false for one that is not here."""
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
    elif row.status == OUTLIER:
        response.decision.reason = "allowed by its auth events; it has no place in the room's graph"
    reader = StateReader(conn, version)
    event = parse_event(stored[0].event.pdu_json, version, event_id=event_id, verify_size=False)
    response.check, against = _checked_against(conn, reader, event, row, response.decision.snapshot_id)
    response.checked_against.extend(
        reads.message_of(item.event_id, item.pdu_json) for _, item in sorted(against.items())
    )
    response.resolution.extend(_explain_resolution(conn, reader, row, version))
    return response


def _checked_against(
    conn: Connection, reader: StateReader, event: Event, row: EventRow, snapshot_id: int
) -> tuple[str, dict[StateKey, Event]]:
    """Which check decided, and the entries that it looked at."""
    keys = sorted(state_types_for(event))
    cites = reader.parse(list(row.auth)).values()
    own = {item.key: item for item in cites if item.is_state}
    if row.status == OUTLIER:
        return AUTH_EVENTS, own
    if row.status == REJECTED:
        rejected = {item.event_id for item in _rejected_of(conn, row.auth)}
        cited = [item for item in cites if item.event_id in event.auth_event_ids]
        verdicts = (check_auth_events(event, cited, rejected=rejected), check_event_auth(event, own))
        if any(isinstance(verdict, Refused) for verdict in verdicts):
            # All that it cites, also what can be no auth event.
            return AUTH_EVENTS, {item.key if item.is_state else (item.type, ""): item for item in cites}
    if row.status == SOFT_FAILED and snapshot_id and reader.path(snapshot_id):
        return CURRENT_STATE, reader.events_at(snapshot_id, keys)
    return STATE_BEFORE, reader.events_at(row.snapshot_before, keys)


def _rejected_of(conn: Connection, nids: tuple[int, ...]) -> list[EventRow]:
    return [item for item in events.load_events_by_nid(conn, nids).values() if item.status == REJECTED]


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

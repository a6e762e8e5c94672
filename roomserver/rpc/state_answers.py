"""`QueryState` in parts: ids or events of the state at an event, then those of its auth chain."""

from collections.abc import AsyncIterator

from sqlalchemy import Connection

from arbor.log.v1 import common_pb2
from arbor.roomserver.v1 import query_pb2
from roomserver.rpc import reads
from roomserver.storage import auth_chains, events, states
from servicekit.database import Database

PART_EVENTS = 200
PART_IDS = 4000


async def answer(
    database: Database, request: query_pb2.QueryStateRequest, event_id: str
) -> AsyncIterator[query_pb2.QueryStateResponse]:
    """Yield the parts for one event."""
    found = await database.read(_read_nids, request, event_id)
    if found is None:
        yield query_pb2.QueryStateResponse(event_id=event_id, last=True, unknown=True)
        return
    size = PART_IDS if request.ids_only else PART_EVENTS
    work = [("state", found[0][i : i + size]) for i in range(0, len(found[0]), size)]
    work += [("auth_chain", found[1][i : i + size]) for i in range(0, len(found[1]), size)]
    for kind, nids in work:
        part = await database.read(read_events, nids, request.ids_only)
        if kind == "state":
            yield query_pb2.QueryStateResponse(event_id=event_id, state=part)
        else:
            yield query_pb2.QueryStateResponse(event_id=event_id, auth_chain=part)
    yield query_pb2.QueryStateResponse(event_id=event_id, last=True)


def _read_nids(
    conn: Connection, request: query_pb2.QueryStateRequest, event_id: str
) -> tuple[list[int], list[int]] | None:
    state = reads.read_state(conn, request.room_id, [event_id], request.after)[0][1]
    if state is None:
        return None
    if request.state_keys:
        numbers = states.load_key_ids(conn, [(key.type, key.state_key) for key in request.state_keys])
        nids = [state[number] for number in numbers.values() if number in state]
    else:
        nids = list(state.values())
    chain: list[int] = []
    if request.with_auth_chain:
        auth = events.load_auth(conn, nids)
        chain = sorted(auth_chains.load_auth_chain(conn, {nid for links in auth.values() for nid in links}))
    return sorted(nids), chain


def read_events(conn: Connection, nids: list[int], ids_only: bool) -> list[common_pb2.Event]:
    """Events by number, with or without their bodies."""
    if ids_only:
        ids = events.load_event_ids(conn, nids)
        return [common_pb2.Event(event_id=ids[nid]) for nid in nids if nid in ids]
    found = events.load_full_by_nid(conn, nids)
    return [reads.message_of(found[nid][0].event_id, found[nid][1]) for nid in nids if nid in found]

"""`QueryState` in parts: ids or events of the state at an event, then those of its auth chain."""

from collections.abc import AsyncIterator

from sqlalchemy import Connection

from arbor.log.v1 import common_pb2
from arbor.roomserver.v1 import query_pb2
from matrixlib.canonical_json import parse_json
from roomserver.rpc import reads
from roomserver.storage import auth_chains, events, states
from servicekit.database import Database

PART_EVENTS = 200
PART_IDS = 4000
# Who names a room that has no name (client-server API, "Calculating the display name for a room").
HEROES = 5
# So many members, the first ones, are looked at for them.
HERO_CANDIDATES = 500
HERO_PAGE = 20
MEMBER = "m.room.member"
NAMES = (("m.room.name", ""), ("m.room.canonical_alias", ""))


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
    own = None
    if request.omit_members or request.with_own_auth_chain:
        own = events.load_events_by_id(conn, [event_id]).get(event_id)
    if request.state_keys:
        numbers = states.load_key_ids(conn, [(key.type, key.state_key) for key in request.state_keys])
        nids = [state[number] for number in numbers.values() if number in state]
    elif request.omit_members:
        nids = _without_members(conn, state, own)
    else:
        nids = list(state.values())
    chain: set[int] = set()
    if request.with_auth_chain:
        roots = {nid for links in events.load_auth(conn, nids).values() for nid in links}
        if request.with_own_auth_chain and own is not None:
            roots.update(own.auth)
        chain = set(auth_chains.load_auth_chain(conn, roots))
        if request.omit_members:
            chain.difference_update(nids)
    return sorted(nids), sorted(chain)


def _without_members(conn: Connection, state: dict[int, int], own: events.EventRow | None) -> list[int]:
    """The state's events but for members that nobody needs at once (see `omit_members` in query.proto)."""
    # Of a large room nearly all are members, whose keys nobody needs.
    keys = states.load_keys_of_other_types(conn, state, MEMBER)
    members = {nid: number for number, nid in state.items() if number not in keys}
    nids = [nid for nid in state.values() if nid not in members]
    kept = {nid for nid in members if own is not None and nid in own.auth}
    if not any(key in NAMES for key in keys.values()):
        joiner = own.key_id if own is not None else 0
        kept.update(_heroes(conn, [nid for nid in sorted(members) if members[nid] != joiner]))
    return [*nids, *kept]


def _heroes(conn: Connection, nids: list[int]) -> list[int]:
    """The first few members who are joined or invited; where there is none, of those who were."""
    there: list[int] = []
    gone: list[int] = []
    for start in range(0, min(len(nids), HERO_CANDIDATES), HERO_PAGE):
        page = nids[start : start + HERO_PAGE]
        bodies = events.load_bodies(conn, set(page))
        for nid in page:
            body = parse_json(bodies[nid]) if nid in bodies else None
            content = body.get("content") if isinstance(body, dict) else None
            membership = content.get("membership") if isinstance(content, dict) else None
            if membership in ("join", "invite"):
                there.append(nid)
            elif membership in ("leave", "ban"):
                gone.append(nid)
        if len(there) >= HEROES:
            break
    return (there or gone)[:HEROES]


def read_events(conn: Connection, nids: list[int], ids_only: bool) -> list[common_pb2.Event]:
    """Events by number, with or without their bodies."""
    if ids_only:
        ids = events.load_event_ids(conn, nids)
        return [common_pb2.Event(event_id=ids[nid]) for nid in nids if nid in ids]
    found = events.load_ids_and_bodies(conn, nids)
    return [reads.message_of(*found[nid]) for nid in nids if nid in found]

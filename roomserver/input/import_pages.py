"""An import's events, judged by their auth events and stored as outliers page by page, as they come.

    cut         a part, parsed and brought into the order of auth events, in pages (reads and writes nothing)
    store       one page, in a transaction of its own, between the batches of INPUT
    store_aside events that came before what they need, tried again

The events get the number of their room, which `room` has no row of while nobody of us was ever in it: until the
import is committed (`commit_import`) no question about the room or about these events finds anything. Pages may be
stored twice, and imports of one room find each other's events.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from sqlalchemy import Connection

from arbor.roomserver.v1.query_pb2 import ImportRequest
from matrixlib.event_auth import check_auth_events, check_event_auth
from matrixlib.events import Event, EventFormatError, StateKey, parse_event, redact_event
from matrixlib.room_versions import RoomVersion
from matrixlib.verdicts import Refused
from roomserver.input import auth
from roomserver.input.batch import Batch
from roomserver.storage import auth_chains, events, rooms, staging
from roomserver.storage.events import OUTLIER, REJECTED, EventRow
from roomserver.storage.staging import AsideEvent, ImportJob, StateEntry
from roomserver.storage.states import MEMBERSHIP_NUMBERS
from servicekit.errors import invalid_param

MAX_IMPORT_EVENTS = 500_000
PAGE_BYTES = 512 * 1024


class Staged(NamedTuple):
    """An event of an import. `is_state`: part of the state, not only of its auth chain."""

    event: Event
    is_state: bool


class _Known(NamedTuple):
    nid: int
    status: int
    event: Event


class _Cited(NamedTuple):
    """Auth events, as an event is judged by them."""

    nids: tuple[int, ...]
    events: list[Event]
    rejected: set[str]
    state: dict[StateKey, Event]


_Citations = dict[tuple[tuple[str, ...], str | None], _Cited]
"""By what an event cites: most members of a room cite the same."""


@dataclass(frozen=True, slots=True)
class Import:
    """What an import is of."""

    import_id: str
    room_id: str
    version: RoomVersion


@dataclass(frozen=True, slots=True)
class Page:
    """A piece of a part. `ends`: how many events the part has, in its last page; None in the others."""

    of: Import
    part: int
    staged: list[Staged]
    ends: int | None = None


def cut(of: Import, request: ImportRequest) -> list[Page]:
    """Make pages of a part, the last of which may be empty. What cannot be an event of the room is left out."""
    events_ = [AsideEvent(event.event_id, False, event.pdu_json) for event in request.auth_chain]
    events_ += [AsideEvent(event.event_id, True, event.pdu_json) for event in request.state]
    pages = [Page(of, request.part, chunk) for chunk in _chunks(_read(of, events_))] or [
        Page(of, request.part, [])
    ]
    pages[-1] = replace(pages[-1], ends=len(events_))
    return pages


def _read(of: Import, found: Iterable[AsideEvent]) -> list[Staged]:
    """Parse events, each after its auth events among them; hash and id are checked here again."""
    parsed: dict[str, Staged] = {}
    for event_id, is_state, pdu in found:
        try:
            event = parse_event(pdu, of.version)
        except EventFormatError:
            continue
        if event.event_id != event_id or event.room_id != of.room_id or not event.is_state:
            continue
        if not auth.check_hash(event):
            event = redact_event(event)
        before = parsed.get(event_id)
        parsed[event_id] = Staged(event, is_state or (before is not None and before.is_state))
    order = _auth_first({event_id: item.event.auth_links for event_id, item in parsed.items()})
    return [parsed[event_id] for event_id in order]


def _chunks(items: list[Staged]) -> Iterator[list[Staged]]:
    chunk: list[Staged] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += len(item.event.pdu_json)
        if size >= PAGE_BYTES or len(chunk) >= staging.PAGE:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


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


def store(batch: Batch, page: Page) -> ImportJob:
    """Judge and store a page; of a part that is stored already, nothing.

    Raises:
        MatrixError: the page is not of this import or follows on nothing, or the import is too large.
    """
    job = _job(batch, page.of)
    if page.part <= job.last_part:
        return job
    if page.part > job.last_part + 1:
        raise invalid_param(f"Part {job.last_part + 1} is missing")
    if job.events + len(page.staged) > MAX_IMPORT_EVENTS:
        raise invalid_param("The import is too large")
    _store_events(batch, job, page.of.version, page.staged)
    if page.ends is not None:
        job.last_part = page.part
        job.events += page.ends
    staging.store_job(batch.conn, job, batch.now_ms)
    return job


def order_of_aside(conn: Connection, of: Import) -> list[str]:
    """Return the events that are set aside, each after its auth events among them."""
    links: dict[str, tuple[str, ...]] = {}
    after = ""
    while page := staging.load_aside(conn, of.import_id, after):
        for event_id, _, pdu in page:
            try:
                links[event_id] = parse_event(pdu, of.version, event_id=event_id).auth_links
            except EventFormatError:
                continue
        after = page[-1].event_id
    return _auth_first(links)


def store_aside(batch: Batch, of: Import, event_ids: list[str]) -> ImportJob:
    """Judge and store events that were set aside. What they need must be stored, or be among them."""
    job = _job(batch, of)
    found = staging.take_aside(batch.conn, of.import_id, event_ids)
    _store_events(batch, job, of.version, _read(of, found))
    staging.store_job(batch.conn, job, batch.now_ms)
    return job


def _job(batch: Batch, of: Import) -> ImportJob:
    """The import, locked; made if there is none. The room's number is that of its row, or of its other imports."""
    jobs = staging.lock_jobs(batch.conn, of.room_id, batch.now_ms)
    room = rooms.load_rooms(batch.conn, [of.room_id]).get(of.room_id)
    version = of.version.identifier
    if any(job.room_version != version for job in jobs.values()) or (room and room.version != version):
        raise invalid_param("The room has another version")
    job = jobs.get(of.import_id) or ImportJob(of.import_id, of.room_id, version, 0, 0, 0)
    if room is not None and job.room_nid not in (0, room.nid):
        raise invalid_param("The room was made by somebody else meanwhile")
    if room is not None:
        job.room_nid = room.nid
    elif not job.room_nid:
        taken = next((other.room_nid for other in jobs.values() if other.room_nid), 0)
        job.room_nid = taken or batch.take_id("room")
    return job


def _store_events(batch: Batch, job: ImportJob, version: RoomVersion, staged: list[Staged]) -> None:
    conn = batch.conn
    known = events.load_events_by_id(conn, [item.event.event_id for item in staged])
    batch.ensure_keys({item.event.key for item in staged})
    links = {link for item in staged for link in item.event.auth_links}
    here = _load(batch, job, version, links - {item.event.event_id for item in staged})
    citations: _Citations = {}
    rows: list[EventRow] = []
    bodies: list[tuple[int, bytes]] = []
    state: list[StateEntry] = []
    aside: list[AsideEvent] = []
    for event, is_state in staged:
        row = known.get(event.event_id)
        if row is None:
            row = _judge(batch, job.room_nid, event, here, citations)
            if row is None:
                aside.append(AsideEvent(event.event_id, is_state, event.pdu_json))
                continue
            rows.append(row)
            bodies.append((row.nid, event.pdu_json))
        elif row.room_nid != job.room_nid:
            continue
        here[event.event_id] = _Known(row.nid, row.status, event)
        if is_state and row.status != REJECTED:
            state.append(StateEntry(row.key_id, row.nid, MEMBERSHIP_NUMBERS.get(event.membership or "", 0)))
    events.store_events(conn, rows, bodies)
    auth_chains.extend(conn, [(row.nid, row.auth) for row in rows])
    staging.store_page(conn, job.import_id, state)
    staging.set_aside(conn, job.import_id, aside)


def _load(batch: Batch, job: ImportJob, version: RoomVersion, event_ids: Iterable[str]) -> dict[str, _Known]:
    """The events that a page cites."""
    here = {}
    for event_id, (row, pdu) in events.load_full_by_id(batch.conn, event_ids).items():
        # Another room's, of another version perhaps, is as good as missing.
        if row.room_nid == job.room_nid:
            event = parse_event(pdu, version, event_id=event_id, verify_size=False)
            here[event_id] = _Known(row.nid, row.status, event)
    return here


def _find_cited(event: Event, here: dict[str, _Known]) -> _Cited | None:
    """What an event cites; None: some of it is missing."""
    named = [here[event_id] for event_id in event.auth_links if event_id in here]
    if len(named) < len(event.auth_links):
        return None
    return _Cited(
        tuple(item.nid for item in named),
        [item.event for item in named if item.event.event_id in event.auth_event_ids],
        {item.event.event_id for item in named if item.status == REJECTED},
        {item.event.key: item.event for item in named if item.event.is_state},
    )


def _judge(
    batch: Batch, room_nid: int, event: Event, here: dict[str, _Known], citations: _Citations
) -> EventRow | None:
    """Judge an event by its auth events; None: one of them is missing."""
    what = event.auth_event_ids, event.implied_create_event_id
    cited = citations.get(what) or _find_cited(event, here)
    if cited is None:
        return None
    citations[what] = cited
    verdict = check_auth_events(event, cited.events, rejected=cited.rejected)
    if not isinstance(verdict, Refused):
        verdict = check_event_auth(event, cited.state)
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
        auth=cited.nids,
        rejection=refused.message().SerializeToString() if refused is not None else None,
    )

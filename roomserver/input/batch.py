"""What a batch has read and what it will write.

Nothing is written before the end (`store`), so reads see committed rows, and a refused entry leaves nothing
behind: what it added is taken away again (`mark`, `rewind`). After the commit `swap_in` makes the memory what
the batch has made of it; without a commit nobody ever sees any of it.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import Connection

from arbor.log.v1 import input_pb2
from matrixlib.events import Event, StateKey, parse_event
from matrixlib.room_versions import RoomVersion, get_room_version
from matrixlib.signing import SigningKey
from roomserver.input.decode import Request
from roomserver.memory import Allowed, AllowedKey, Memory
from roomserver.rooms import Entry, Head, Room, RoomWork, Told
from roomserver.storage import auth_chains, events, outputs, rooms, snapshots, states, transactions, waiting
from roomserver.storage.events import EventRow
from roomserver.storage.snapshots import Node
from servicekit.database.raw import Sql

_ENTRIES = Sql(
    "SELECT c.key_id, e.nid, e.event_id, b.pdu FROM current_state c JOIN event e ON e.nid = c.event_nid"
    " JOIN event_body b ON b.nid = e.nid WHERE c.room_nid = ? AND c.key_id IN ?"
)


@dataclass(frozen=True, slots=True)
class Context:
    """What judging knows of the deployment."""

    partitions: int
    partition_of: Callable[[str], int]
    is_local: Callable[[str], bool]
    signing_keys: dict[str, SigningKey]
    secure_erase: bool = False
    """What was redacted or purged leaves the log at once, not by retention."""
    raise_on_type: str = ""
    """Tests only: the handler raises when it meets this event type."""


class Answer(NamedTuple):
    """A verdict, and what on OUTPUT it refers to."""

    reply_to: str
    verdict: input_pb2.Verdict
    partition: int
    row: EventRow | None
    room: RoomWork | None
    room_id: str


class _Mark(NamedTuple):
    rows: int
    bodies: int
    nodes: int
    redactions: int
    work: RoomWork


@dataclass(slots=True)
class Batch:
    """See the module."""

    conn: Connection
    context: Context
    memory: Memory
    now_ms: int
    use_memory: bool = True
    works: dict[str, RoomWork] = field(default_factory=dict)
    no_room: set[str] = field(default_factory=set)
    rows: list[EventRow] = field(default_factory=list)
    by_id: dict[str, EventRow] = field(default_factory=dict)
    bodies: list[tuple[int, bytes]] = field(default_factory=list)
    new_events: dict[int, Event] = field(default_factory=dict)
    updated: dict[int, EventRow] = field(default_factory=dict)
    loaded_rows: dict[str, EventRow] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    loaded_events: dict[int, Event] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    nodes_by_id: dict[int, Node] = field(default_factory=dict)
    states: dict[int, dict[int, int]] = field(default_factory=dict)
    resolved: dict[frozenset[int], int] = field(default_factory=dict)
    allowed: dict[AllowedKey, Allowed] = field(default_factory=dict)
    resolved_rows: list[tuple[int, bytes, int]] = field(default_factory=list)
    chained: int = 0
    new_keys: dict[StateKey, int] = field(default_factory=dict)
    redactions: list[tuple[int, int, bytes]] = field(default_factory=list)
    transactions: dict[str, tuple[str, EventRow | int]] = field(default_factory=dict)
    new_transactions: list[tuple[str, int, int]] = field(default_factory=list)
    pending_redactions: list[tuple[str, int, int]] = field(default_factory=list)
    missing_prevs: list[tuple[int, str, int]] = field(default_factory=list)
    found_prevs: list[tuple[int, str]] = field(default_factory=list)
    dependencies_here: list[tuple[str, str]] = field(default_factory=list)
    """(room id, event id) of events stored now that others may have waited for."""
    answers: list[Answer] = field(default_factory=list)
    has_waiting: dict[str, bool] = field(default_factory=dict)
    purged: list[str] = field(default_factory=list)
    trimmed: list[str] = field(default_factory=list)
    strays: dict[str, list[Told]] = field(default_factory=dict)
    """room id -> entries about rooms of which we have no row."""
    ids: object = None

    def __post_init__(self) -> None:
        self.ids = self.memory.ids.copy()

    # -- numbers

    def take_id(self, name: str, count: int = 1) -> int:
        """Return numbers that nobody has."""
        return self.ids.take(self.conn, name, count)  # type: ignore[attr-defined, no-any-return]

    def key_id(self, key: StateKey) -> int:
        """Return the number of a state key, giving it one if it has none."""
        number = self.memory.key_ids.get(key) or self.new_keys.get(key)
        if number is None:
            self.ensure_keys([key])
            number = self.new_keys[key]
        return number

    def ensure_keys(self, keys: Iterable[StateKey]) -> None:
        """Give numbers to state keys, all in one go."""
        known = self.memory.key_ids
        unknown = [key for key in set(keys) if key not in known and key not in self.new_keys]
        if not unknown:
            return
        self.new_keys.update(states.load_key_ids(self.conn, unknown))
        missing = [key for key in unknown if key not in self.new_keys]
        if missing:
            first = self.take_id("key", len(missing))
            self.new_keys.update(states.store_keys(self.conn, list(enumerate_from(first, missing))))

    def find_key_ids(self, keys: Iterable[StateKey]) -> dict[StateKey, int]:
        """Return the numbers of those keys that have one."""
        found: dict[StateKey, int] = {}
        unknown = []
        for key in keys:
            number = self.memory.key_ids.get(key) or self.new_keys.get(key)
            if number is None:
                unknown.append(key)
            else:
                found[key] = number
        if unknown:
            loaded = states.load_key_ids(self.conn, unknown)
            self.new_keys.update(loaded)
            found.update(loaded)
        return found

    def keys_of(self, key_ids: Collection[int]) -> dict[int, StateKey]:
        """Return the state keys of numbers."""
        known = self.memory.keys
        found = {number: known[number] for number in key_ids if number in known}
        if len(found) < len(key_ids):
            back = {number: key for key, number in self.new_keys.items()}
            found.update((number, back[number]) for number in key_ids if number in back)
            missing = [number for number in key_ids if number not in found]
            if missing:
                loaded = states.load_keys(self.conn, missing)
                found.update(loaded)
                self.new_keys.update((key, number) for number, key in loaded.items())
        return found

    # -- rooms

    def work(self, room_id: str) -> RoomWork | None:
        """Return a room to work on; None: there is none."""
        work = self.works.get(room_id)
        if work is None and room_id not in self.no_room:
            self.load_rooms([room_id])
            work = self.works.get(room_id)
        return work

    def load_rooms(self, room_ids: Iterable[str]) -> None:
        """Get rooms ready to work on, from memory or with one statement."""
        unknown = []
        for room_id in set(room_ids):
            if room_id in self.works or room_id in self.no_room:
                continue
            hot = self.memory.rooms.get(room_id) if self.use_memory else None
            if hot is not None:
                self.works[room_id] = RoomWork(hot)
            else:
                unknown.append(room_id)
        if not unknown:
            return
        found = rooms.load_rooms(self.conn, unknown)
        head_rows = events.load_events_by_nid(self.conn, [nid for row in found.values() for nid in row.heads])
        for room_id in unknown:
            row = found.get(room_id)
            if row is None:
                self.no_room.add(room_id)
                continue
            heads = {
                head_rows[nid].event_id: Head(nid, head_rows[nid].depth, head_rows[nid].snapshot_after)
                for nid in row.heads
            }
            self.works[room_id] = RoomWork(Room(row, heads))

    def add_room(self, work: RoomWork) -> None:
        """Add a room that is made in this batch."""
        self.works[work.room_id] = work
        self.no_room.discard(work.room_id)

    # -- current state

    def load_entries(self, work: RoomWork, keys: Iterable[StateKey]) -> None:
        """Make entries of a room's current state known, those that are not yet, with one statement."""
        unknown = [key for key in set(keys) if not work.known(key)]
        if not unknown:
            return
        state = work.base.state
        if work.is_new:
            state.update(dict.fromkeys(unknown))
            return
        numbers = self.find_key_ids(unknown)
        state.update(dict.fromkeys(unknown))
        if not numbers:
            return
        back = {number: key for key, number in numbers.items()}
        for key_id, nid, event_id, pdu in _ENTRIES.rows(self.conn, work.row.nid, list(back)):
            event = self.memory.events.get(nid) or parse_event(
                pdu, work.version, event_id=event_id, verify_size=False
            )
            state[back[key_id]] = Entry(nid, event)

    def entries(self, work: RoomWork, keys: Iterable[StateKey]) -> dict[StateKey, Entry]:
        """Return the entries of a room's current state that exist, of those asked for."""
        keys = list(keys)
        self.load_entries(work, keys)
        found = {}
        for key in keys:
            entry = work.entry(key)
            if entry is not None:
                found[key] = entry
        return found

    # -- events

    def load_rows(self, event_ids: Iterable[str]) -> None:
        """Get the rows of events ready, with one statement."""
        unknown = [
            event_id
            for event_id in set(event_ids)
            if event_id not in self.by_id and event_id not in self.loaded_rows and event_id not in self.absent
        ]
        if unknown:
            found = events.load_events_by_id(self.conn, unknown)
            self.loaded_rows.update(found)
            self.absent.update(event_id for event_id in unknown if event_id not in found)

    def row_of(self, event_id: str) -> EventRow | None:
        """Return an event's row; None: it is not stored (it may wait)."""
        row = self.by_id.get(event_id) or self.loaded_rows.get(event_id)
        if row is None and event_id not in self.absent:
            self.load_rows([event_id])
            row = self.loaded_rows.get(event_id)
        return row

    def events_by_nid(self, nids: Collection[int], version: RoomVersion) -> dict[int, Event]:
        """Return events by number."""
        found: dict[int, Event] = {}
        missing = []
        for nid in nids:
            event = self.new_events.get(nid) or self.loaded_events.get(nid) or self.memory.events.get(nid)
            if event is None:
                missing.append(nid)
            else:
                found[nid] = event
        if missing:
            for nid, (row, pdu) in events.load_full_by_nid(self.conn, missing).items():
                event = parse_event(pdu, version, event_id=row.event_id, verify_size=False)
                self.loaded_events[nid] = found[nid] = event
        return found

    def event(self, nid: int, version: RoomVersion) -> Event:
        """Return one event by number."""
        return self.events_by_nid([nid], version)[nid]

    def add_row(self, row: EventRow, event: Event) -> None:
        """Store an event."""
        self.rows.append(row)
        self.by_id[row.event_id] = row
        self.bodies.append((row.nid, event.pdu_json))
        self.new_events[row.nid] = event
        self.absent.discard(row.event_id)

    def change_row(self, row: EventRow) -> None:
        """Write an event's row anew, if it is not new in this batch."""
        if row.event_id in self.by_id and row.nid in self.new_events:
            return
        self.updated[row.nid] = row

    def place_in_chains(self) -> None:
        """Give the state events added so far their places in the chain cover."""
        added = [(row.nid, row.auth) for row in self.rows[self.chained :] if row.key_id]
        self.chained = len(self.rows)
        if added:
            auth_chains.extend(self.conn, added)

    # -- verdicts that hold for messages alike

    def find_allowed(self, event: Event, snapshot_id: int) -> Allowed | None:
        """Return what judging found for a message of this sender and type, with these auth events, at a state."""
        key = (snapshot_id, event.type, event.sender, event.auth_links)
        return self.allowed.get(key) or self.memory.allowed.get(key)

    def note_allowed(
        self, event: Event, snapshot_id: int, auth_nids: tuple[int, ...], state: dict[StateKey, Event]
    ) -> None:
        """Remember that a message is allowed by the auth rules at a state, with these auth events.

        Neither its content nor anything else can change that, but for state events and redactions. What depends on
        the event itself (its hash, the policy server's signature) is looked at each time.
        """
        if event.state_key is None and event.type != "m.room.redaction":
            key = (snapshot_id, event.type, event.sender, event.auth_links)
            self.allowed[key] = Allowed(auth_nids, state)

    # -- entries that are refused leave nothing behind

    def mark(self, work: RoomWork) -> _Mark:
        """Return a point to go back to."""
        return _Mark(
            len(self.rows),
            len(self.bodies),
            len(self.nodes),
            len(self.redactions),
            work.mark(),
        )

    def rewind(self, mark: _Mark) -> None:
        """Take away what was added since, for one room. Only for entries of one room."""
        for row in self.rows[mark.rows :]:
            self.by_id.pop(row.event_id, None)
            self.new_events.pop(row.nid, None)
        for node in self.nodes[mark.nodes :]:
            self.nodes_by_id.pop(node.id, None)
            self.states.pop(node.id, None)
        if self.chained > mark.rows:
            auth_chains.remove(self.conn, [row.nid for row in self.rows[mark.rows : self.chained]])
            self.chained = mark.rows
        gone = {node.id for node in self.nodes[mark.nodes :]}
        if gone:
            self.allowed = {key: item for key, item in self.allowed.items() if key[0] not in gone}
            self.resolved = {k: v for k, v in self.resolved.items() if v not in gone and not (k & gone)}
            self.resolved_rows = [item for item in self.resolved_rows if item[2] not in gone]
        del self.rows[mark.rows :]
        del self.bodies[mark.bodies :]
        del self.nodes[mark.nodes :]
        del self.redactions[mark.redactions :]
        if mark.work.is_new and not mark.work.heads:
            self.works.pop(mark.work.room_id, None)
            self.no_room.add(mark.work.room_id)
        else:
            self.works[mark.work.room_id] = mark.work

    # -- verdicts

    def answer(
        self,
        request: Request,
        verdict: input_pb2.Verdict,
        *,
        row: EventRow | None = None,
        room: RoomWork | None = None,
    ) -> None:
        """Note a verdict; where it stands on OUTPUT is known after the commit."""
        entry = request.entry
        verdict.request_id = entry.request_id
        partition = self.context.partition_of(request.room_id)
        self.answers.append(Answer(entry.reply_to, verdict, partition, row, room, request.room_id))

    # -- the end

    def store(self, messages: list[outputs.Told], epochs: dict[int, int]) -> None:
        """Write everything."""
        conn = self.conn
        events.store_events(conn, self.rows, self.bodies)
        if self.updated:
            events.update_events(conn, self.updated.values())
        if self.nodes:
            snapshots.store_snapshots(conn, self.nodes)
        if self.resolved_rows:
            snapshots.store_resolved(conn, self.resolved_rows)
        self.place_in_chains()
        current = []
        servers = []
        for work in self.works.values():
            nid = work.row.nid
            current += [
                (nid, key_id, event_nid, member) for key_id, (event_nid, member) in work.current.items()
            ]
            servers += [(nid, server, joined) for server, joined in work.server_counts.items()]
        if current:
            states.store_current(conn, current)
        if servers:
            rooms.store_server_counts(conn, servers)
        rooms.store_rooms(
            conn,
            [work.row for work in self.works.values() if work.is_new],
            [work.row for work in self.works.values() if work.touched and not work.is_new],
        )
        if self.new_transactions:
            transactions.store_transactions(conn, self.new_transactions)
        if self.redactions:
            events.store_redactions(conn, self.redactions)
        if self.pending_redactions:
            waiting.store_pending_redactions(conn, self.pending_redactions)
        if self.missing_prevs or self.found_prevs:
            waiting.store_missing_prevs(conn, self.missing_prevs, self.found_prevs)
        if messages:
            outputs.store_outputs(conn, messages, epochs)

    def swap_in(self) -> None:
        """After the commit: make the memory what it is now."""
        memory = self.memory
        memory.ids = self.ids  # type: ignore[assignment]
        memory.add_keys(self.new_keys)
        for nid, event in self.new_events.items():
            if event.state_key is not None:
                memory.events.put(nid, event)
        for nid, event in self.loaded_events.items():
            memory.events.put(nid, event)
        for nid, _, _ in self.redactions:
            memory.events.pop(nid)
        for node in self.nodes_by_id.values():
            memory.nodes.put(node.id, node)
        for snapshot_id, state in self.states.items():
            memory.states.put(snapshot_id, state)
        for ids, snapshot_id in self.resolved.items():
            memory.resolved.put(ids, snapshot_id)
        for key, allowed in self.allowed.items():
            memory.allowed.put(key, allowed)
        for work in self.works.values():
            memory.rooms.put(work.commit())
        for room_id in self.purged:
            memory.rooms.drop(room_id)


def enumerate_from(first: int, keys: list[StateKey]) -> Iterable[tuple[int, StateKey]]:
    """Number things from `first`."""
    return enumerate(keys, first)


def version_of(identifier: str) -> RoomVersion | None:
    """The rules of a room version; None: we do not know it."""
    return get_room_version(identifier)

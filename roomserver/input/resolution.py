"""State resolution where branches meet, in numbers as far as it goes.

Two states of a large room differ in few entries. Only those, and the entries that auth checks look at, are
turned into ids and events and handed to `matrixlib.state_resolution`; auth-chain differences come from the
chain cover. A resolved state is stored once, however it was reached.
"""

import time
from collections.abc import Collection, Mapping, Sequence

from matrixlib import state_resolution
from matrixlib.event_auth import state_types_for
from matrixlib.events import Event, StateKey, parse_event
from matrixlib.room_versions import StateResolution
from roomserver import metrics
from roomserver.input import snapshots
from roomserver.input.batch import Batch
from roomserver.rooms import RoomWork
from roomserver.storage import auth_chains, events
from roomserver.storage import snapshots as snapshot_rows
from roomserver.storage.events import REJECTED
from servicekit.logging import get_logger

log = get_logger("roomserver.input")


class ResolutionStore:
    """What resolution asks for, from the database and the batch."""

    def __init__(self, batch: Batch, work: RoomWork, difference: set[int]) -> None:
        self._batch = batch
        self._work = work
        self._difference = difference
        self._events: dict[str, Event] = {}
        self._nids: dict[str, int] = {}
        self._rejected: set[str] = set()

    def add(self, nids: Collection[int]) -> dict[int, Event]:
        """Get events ready by number."""
        found = self._batch.events_by_nid(nids, self._work.version)
        for nid, event in found.items():
            self._events[event.event_id] = event
            self._nids[event.event_id] = nid
        return found

    def get_events(self, event_ids: Collection[str]) -> Mapping[str, Event]:
        """See `matrixlib.state_resolution.ResolutionStore`."""
        missing = [event_id for event_id in event_ids if event_id not in self._events]
        if missing:
            unloaded = []
            for event_id in missing:
                row = self._batch.by_id.get(event_id)
                if row is None:
                    unloaded.append(event_id)
                    continue
                self.add([row.nid])
            for event_id, (row, pdu) in events.load_full_by_id(self._batch.conn, unloaded).items():
                if row.room_nid != self._work.row.nid:
                    continue
                event = parse_event(pdu, self._work.version, event_id=event_id, verify_size=False)
                self._events[event_id] = event
                self._nids[event_id] = row.nid
                self._batch.loaded_events[row.nid] = event
                if row.status == REJECTED:
                    self._rejected.add(event_id)
        return {event_id: self._events[event_id] for event_id in event_ids if event_id in self._events}

    def number_of(self, event_id: str) -> int:
        """The number of an event that resolution gave."""
        if event_id not in self._nids:
            self.get_events([event_id])
        return self._nids[event_id]

    def is_rejected(self, event_id: str) -> bool:
        """See `matrixlib.state_resolution.ResolutionStore`."""
        if event_id in self._rejected:
            return True
        row = self._batch.row_of(event_id)
        return row is not None and row.status == REJECTED

    def auth_chain_difference(self, state_sets: Sequence[Collection[str]]) -> set[str]:
        """Worked out before, over the whole states."""
        return set(snapshots.event_ids_of(self._batch, self._difference).values())

    def conflicted_subgraph(self, conflicted: Collection[str]) -> set[str]:
        """Events on paths between conflicted ones: a walk that ends at the oldest of them."""
        self.get_events(conflicted)
        roots = {self._nids[event_id] for event_id in conflicted if event_id in self._nids}
        return set(snapshots.event_ids_of(self._batch, subgraph(self._batch, roots)).values())


def subgraph(batch: Batch, roots: set[int]) -> set[int]:
    """All events on paths of auth links from one root to another, roots included.

    An event's auth events have smaller numbers, so nothing before the oldest root can lead back to one.
    """
    if not roots:
        return set()
    oldest = min(roots)
    links: dict[int, tuple[int, ...]] = {}
    todo = set(roots)
    new_rows = {row.nid: row.auth for row in batch.rows}
    while todo:
        loaded = {nid: new_rows[nid] for nid in todo if nid in new_rows}
        loaded.update(events.load_auth(batch.conn, [nid for nid in todo if nid not in new_rows]))
        links.update(loaded)
        todo = {nid for auth in loaded.values() for nid in auth if nid >= oldest and nid not in links}
    leads_back: set[int] = set()
    for nid in sorted(links):
        if nid in roots or any(auth in leads_back for auth in links[nid]):
            leads_back.add(nid)
    return leads_back


def resolve(batch: Batch, work: RoomWork, snapshot_ids: Sequence[int], *, cause: str) -> int:
    """Return the snapshot with the resolution of states."""
    ids = frozenset(snapshot_ids)
    if len(ids) == 1:
        return next(iter(ids))
    known = batch.resolved.get(ids) or batch.memory.resolved.get(ids)
    if known:
        return known
    started = time.perf_counter()
    ordered = sorted(ids)
    keys = snapshots.differing_keys(batch, ordered)
    states = [snapshots.load_nids_at(batch, snapshot_id, keys) for snapshot_id in ordered]
    conflicted = {key for key in keys if len({state.get(key, 0) for state in states}) > 1}
    resolved = _resolve_keys(batch, work, ordered, states, conflicted) if conflicted else {}
    result = _find_snapshot(batch, work, ordered, states, resolved)
    metrics.resolutions.observe(time.perf_counter() - started)
    metrics.resolution_conflicts.observe(len(conflicted))
    batch.resolved[ids] = result
    log.debug("state_resolved", room_id=work.room_id, cause=cause, states=len(ids), conflicts=len(conflicted))
    return result


def _find_snapshot(
    batch: Batch, work: RoomWork, ids: list[int], states: list[dict[int, int]], resolved: dict[int, int]
) -> int:
    """The snapshot of a resolved state: one of those resolved, one made before, or a new one.

    `resolved`: key number -> event number (0: none), for each key that was in conflict or came in by resolution.
    """
    first = states[0]
    extra = [key for key in resolved if key not in first]
    base = {**snapshots.load_nids_at(batch, ids[0], extra), **first}
    for snapshot_id, state in zip(ids, states, strict=True):
        here = {**base, **{key: state.get(key, 0) for key in resolved if key in first or key in state}}
        if all(here.get(key, 0) == nid for key, nid in resolved.items()):
            return snapshot_id
    changes = {key: nid for key, nid in resolved.items() if base.get(key, 0) != nid}
    # Two resolutions that change the same state in the same way give the same state.
    hash_ = snapshot_rows.change_hash(ids[0], changes)
    result = next((item[2] for item in batch.resolved_rows if item[1] == hash_), 0)
    result = result or snapshot_rows.load_resolved(batch.conn, work.row.nid, hash_)
    if not result:
        result = snapshots.add_child(batch, work.row.nid, ids[0], changes)
        batch.resolved_rows.append((work.row.nid, hash_, result))
    return result


def _resolve_keys(
    batch: Batch, work: RoomWork, ids: list[int], states: list[dict[int, int]], conflicted: set[int]
) -> dict[int, int]:
    """Resolve; returns key number -> event number (0: none) for the conflicted keys and what else came in."""
    version = work.version
    batch.place_in_chains()
    parts = [{state[key] for key in conflicted if key in state} for state in states]
    own = {nid for part in parts for nid in part}
    difference: set[int] = set()
    if version.state_resolution is not StateResolution.V1:

        def load_common() -> set[int]:
            whole = snapshots.load_state(batch, ids[0])
            return {nid for key, nid in whole.items() if key not in conflicted}

        difference = auth_chains.load_difference(batch.conn, parts, load_common)
    store = ResolutionStore(batch, work, difference)
    loaded = store.add(own | difference)
    if version.state_resolution is StateResolution.V2_1:
        loaded.update(store.add(subgraph(batch, own)))
    # Auth checks look at entries that are not in conflict, too: only at those that these events need.
    needed: set[StateKey] = {key for event in loaded.values() for key in state_types_for(event)}
    agreed_keys = set(batch.find_key_ids(needed).values()) - conflicted
    agreed = snapshots.load_nids_at(batch, ids[0], agreed_keys)
    keys = batch.keys_of(conflicted | agreed.keys())
    ids_of = {nid: event.event_id for nid, event in store.add(own | set(agreed.values())).items()}
    common = {keys[key]: ids_of[nid] for key, nid in agreed.items()}
    sets = [
        {**common, **{keys[key]: ids_of[state[key]] for key in conflicted if key in state}}
        for state in states
    ]
    explained = state_resolution.resolve_explained(version, sets, store)
    resolved = dict.fromkeys(conflicted, 0)
    for key, event_id in explained.state.items():
        key_id = batch.key_id(key)
        if key_id not in agreed:
            resolved[key_id] = store.number_of(event_id)
    return resolved

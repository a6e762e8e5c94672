"""State resolution where branches meet, in numbers as far as it goes.

Two states of a large room differ in few entries. Only those, and the entries that auth checks look at, are
turned into ids and events and handed to `matrixlib.state_resolution`; auth-chain differences come from the
chain cover. A resolved state is stored once, however it was reached.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence

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
    states = {snapshot_id: snapshots.load_state(batch, snapshot_id) for snapshot_id in sorted(ids)}
    resolved, conflicts = resolve_states(batch, work, list(states.values()))
    metrics.resolutions.observe(time.perf_counter() - started)
    metrics.resolution_conflicts.observe(conflicts)
    result = next((snapshot_id for snapshot_id, state in states.items() if state == resolved), 0)
    if not result:
        hash_ = snapshot_rows.state_hash(resolved)
        result = snapshot_rows.load_resolved(batch.conn, work.row.nid, hash_)
        if not result:
            parent, old = min(states.items(), key=lambda item: len(resolved.items() ^ item[1].items()))
            delta = dict(resolved.items() - old.items())
            delta.update((key_id, 0) for key_id in old.keys() - resolved.keys())
            result = snapshots.add_child(batch, work.row.nid, parent, delta)
            batch.resolved_rows.append((work.row.nid, hash_, result))
        batch.states[result] = resolved
    batch.resolved[ids] = result
    log.debug("state_resolved", room_id=work.room_id, cause=cause, states=len(ids), conflicts=conflicts)
    return result


def resolve_states(batch: Batch, work: RoomWork, states: list[dict[int, int]]) -> tuple[dict[int, int], int]:
    """Resolve whole states, key number -> event number; returns the result and how many keys were in
    conflict.
    """
    found, base = explain_states(batch, work, states)
    if found is None:
        return base, 0
    explained, number_of = found
    result = dict(base)
    for key, event_id in explained.state.items():
        result[batch.key_id(key)] = number_of(event_id)
    return result, len(explained.conflicted)


Explained = tuple[state_resolution.Resolution, Callable[[str], int]]


def explain_states(
    batch: Batch, work: RoomWork, states: list[dict[int, int]]
) -> tuple[Explained | None, dict[int, int]]:
    """Return (the resolution or None where nothing conflicts, event id -> number, what all have in
    common).
    """
    common = dict(set(states[0].items()).intersection(*[state.items() for state in states[1:]]))
    conflicted = {key_id for state in states for key_id in state if key_id not in common}
    if not conflicted:
        return None, common
    _flush_chains(batch)
    difference: set[int] = set()
    version = work.version
    if version.state_resolution is not StateResolution.V1:
        difference = auth_chains.load_difference(batch.conn, [set(state.values()) for state in states])
    store = ResolutionStore(batch, work, difference)
    loaded = store.add(
        {state[key_id] for state in states for key_id in conflicted if key_id in state} | difference
    )
    if version.state_resolution is StateResolution.V2_1:
        between = subgraph(batch, {state[k] for state in states for k in conflicted if k in state})
        loaded.update(store.add(between))
    needed: set[StateKey] = {key for event in loaded.values() for key in state_types_for(event)}
    numbers = batch.find_key_ids(needed)
    wanted = conflicted | {number for number in numbers.values() if number in common}
    keys = batch.keys_of(wanted)
    used = {state[key_id] for state in states for key_id in wanted if key_id in state}
    ids = {nid: event.event_id for nid, event in store.add(used).items()}
    sets = [{keys[key_id]: ids[state[key_id]] for key_id in wanted if key_id in state} for state in states]
    explained = state_resolution.resolve_explained(version, sets, store)
    back = {event_id: nid for nid, event_id in ids.items()}

    def number_of(event_id: str) -> int:
        number = back.get(event_id)
        if number is None:
            row = batch.row_of(event_id)
            assert row is not None, f"resolution gave {event_id}, which is not stored"
            number = row.nid
        return number

    return (explained, number_of), common


def _flush_chains(batch: Batch) -> None:
    """Give the batch's own state events their places in the chain cover, which is asked next."""
    batch.place_in_chains()

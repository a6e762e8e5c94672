"""State at events: making snapshots, and reading states from them through the memory."""

from collections.abc import Iterable, Sequence

from matrixlib.events import Event, StateKey
from roomserver.input.batch import Batch
from roomserver.rooms import RoomWork
from roomserver.storage import events, snapshots
from roomserver.storage.snapshots import Node


def add_child(batch: Batch, room_nid: int, parent_id: int, changes: dict[int, int]) -> int:
    """Make the snapshot that differs from `parent_id` (0: from the empty state) by `changes`; returns its id.

    `changes`: key number -> event number, 0 for removed.
    """
    snapshot_id = batch.take_id("snapshot")
    if not parent_id:
        node = Node(snapshot_id, 0, 0, {k: v for k, v in changes.items() if v}, room_nid)
    else:
        path = load_path(batch, parent_id)
        number = path[0].number + 1
        base_number = number & (number - 1)
        delta: dict[int, int] = {}
        base = path[-1]
        later = []
        for step in path:
            if step.number <= base_number:
                base = step
                break
            later.append(step)
        for step in reversed(later):
            delta.update(step.delta)
        delta.update(changes)
        node = Node(snapshot_id, base.id, number, delta, room_nid)
    batch.nodes.append(node)
    batch.nodes_by_id[snapshot_id] = node
    known = batch.states.get(parent_id) if parent_id else {}
    if known is not None and len(known) < 64:
        state = {**known, **changes}
        batch.states[snapshot_id] = {k: v for k, v in state.items() if v}
    return snapshot_id


def load_path(batch: Batch, snapshot_id: int) -> list[Node]:
    """Return a snapshot, its base, the base's base and so on."""
    path: list[Node] = []
    wanted = snapshot_id
    while wanted:
        node = batch.nodes_by_id.get(wanted) or batch.memory.nodes.get(wanted)
        if node is None:
            for loaded in snapshots.load_path(batch.conn, wanted):
                batch.nodes_by_id.setdefault(loaded.id, loaded)
                path.append(loaded)
            break
        path.append(node)
        wanted = node.base_id
    if not path:
        raise LookupError(f"there is no snapshot {snapshot_id}")
    return path


def load_state(batch: Batch, snapshot_id: int) -> dict[int, int]:
    """Return a whole state, key number -> event number. Not to be changed."""
    if not snapshot_id:
        return {}
    state = batch.states.get(snapshot_id) or batch.memory.states.get(snapshot_id)
    if state is None:
        state = snapshots.compose(load_path(batch, snapshot_id))
        batch.states[snapshot_id] = state
    return state


def differing_keys(batch: Batch, snapshot_ids: Sequence[int]) -> set[int]:
    """Return the key numbers under which states may differ: all others stand equal in each of them.

    Snapshots with a base in common differ only by what was added on top of it.
    """
    paths = [load_path(batch, snapshot_id) if snapshot_id else [] for snapshot_id in snapshot_ids]
    shared = set.intersection(*[{node.id for node in path} for path in paths])
    keys: set[int] = set()
    for path in paths:
        for node in path:
            if node.id in shared:
                break
            keys.update(node.delta)
    return keys


def difference(batch: Batch, old: int, new: int) -> dict[int, int]:
    """Return key number -> event number (0: none any more) where a state differs from an older one."""
    keys = differing_keys(batch, [old, new])
    before, after = load_nids_at(batch, old, keys), load_nids_at(batch, new, keys)
    return {key: after.get(key, 0) for key in keys if before.get(key, 0) != after.get(key, 0)}


def load_nids_at(batch: Batch, snapshot_id: int, key_ids: Iterable[int]) -> dict[int, int]:
    """Return some entries of a state, key number -> event number."""
    if not snapshot_id:
        return {}
    path = load_path(batch, snapshot_id)
    found: dict[int, int] = {}
    for key_id in key_ids:
        for node in path:
            nid = node.delta.get(key_id)
            if nid is not None:
                if nid:
                    found[key_id] = nid
                break
    return found


def events_at(
    batch: Batch, work: RoomWork, snapshot_id: int, keys: Iterable[StateKey]
) -> dict[StateKey, Event]:
    """Return the events that stand under keys in a state, of those keys that have one."""
    if snapshot_id == work.row.snapshot_id:
        return {key: entry.event for key, entry in batch.entries(work, keys).items()}
    numbers = batch.find_key_ids(keys)
    nids = load_nids_at(batch, snapshot_id, numbers.values())
    loaded = batch.events_by_nid(list(nids.values()), work.version)
    return {key: loaded[nids[number]] for key, number in numbers.items() if number in nids}


def event_ids_of(batch: Batch, nids: Iterable[int]) -> dict[int, str]:
    """Return event ids by number."""
    found = {}
    missing = []
    for nid in nids:
        event = batch.new_events.get(nid) or batch.memory.events.get(nid)
        if event is None:
            missing.append(nid)
        else:
            found[nid] = event.event_id
    if missing:
        found.update(events.load_event_ids(batch.conn, missing))
    return found

"""What a batch needs, in few statements whatever its size: rooms, transaction keys, known events, state
entries.
"""

from arbor.log.v1 import input_pb2
from matrixlib.events import EventFormatError, StateKey, parse_event
from roomserver.input.auth import keys_needed
from roomserver.input.batch import Batch
from roomserver.input.decode import Request
from roomserver.storage import transactions, waiting

_LOCAL = input_pb2.EventOrigin.EVENT_ORIGIN_LOCAL


def load(batch: Batch, requests: list[Request]) -> None:
    """Get ready what `requests` will ask for."""
    batch.load_rooms(request.room_id for request in requests)
    hashes = [request.transaction_hash for request in requests if request.transaction_hash]
    if hashes:
        for hash_, (event_id, nid) in transactions.load_transactions(batch.conn, hashes).items():
            batch.transactions[hash_] = (event_id, nid)
    event_ids: list[str] = []
    needed: dict[str, set[StateKey]] = {}
    new_keys: set[StateKey] = set()
    for request in requests:
        if request.kind != "submit_events":
            continue
        submit = request.entry.submit_events
        work = batch.works.get(request.room_id)
        event_ids += [event.event_id for event in submit.events]
        if submit.origin != _LOCAL:
            continue
        version = work.version if work is not None else _version(submit)
        if version is None:
            continue
        try:
            request.events = [parse_event(event.pdu_json, version) for event in submit.events]
        except EventFormatError:
            request.events = []  # judged, and refused, in its turn
            continue
        for event in request.events:
            if work is None or batch.find_allowed(event, work.row.snapshot_id) is None:
                needed.setdefault(request.room_id, set()).update(keys_needed(event, is_local=True))
            if event.state_key is not None:
                new_keys.add((event.type, event.state_key))
            if event.redacts is not None:
                event_ids.append(event.redacts)
    batch.load_rows(event_ids)
    if new_keys:
        batch.ensure_keys(new_keys)
    for room_id, keys in needed.items():
        work = batch.works.get(room_id)
        if work is not None:
            batch.load_entries(work, keys)


def _version(submit: input_pb2.SubmitEvents):  # type: ignore[no-untyped-def]
    from matrixlib.room_versions import get_room_version

    return get_room_version(submit.room_version)


def is_waiting(batch: Batch, room_id: str) -> bool:
    """Whether any event of a room waits; asked once a batch."""
    known = batch.has_waiting.get(room_id)
    if known is None:
        known = batch.has_waiting[room_id] = waiting.is_anything_waiting(batch.conn, room_id)
    return known

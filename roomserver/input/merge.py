"""Extremity control: a hidden event that joins heads when they pile up.

Made by the RoomServer itself in the name of a local user who may send it, as `org.matrix.dummy_event`; it
goes to
other servers and is shown to nobody.
"""

from arbor.log.v1.output_pb2 import Placement
from matrixlib.event_auth import auth_types_for_event
from matrixlib.event_builder import build_event, next_depth
from matrixlib.events import EventFormatError
from matrixlib.identifiers import server_name_of
from roomserver import metrics
from roomserver.input import apply, auth, policy, resolution, snapshots
from roomserver.input.batch import Batch
from roomserver.input.heads import first_heads
from roomserver.rooms import RoomWork
from roomserver.storage import states
from roomserver.storage.events import ACCEPTED
from servicekit.logging import get_logger

log = get_logger("roomserver.input")

EVENT_TYPE = "org.matrix.dummy_event"
MERGE_FROM = 10
"""Heads from which a merge event is made."""
MERGE_AT_ONCE = 2 * MERGE_FROM
MAX_TRIES = 5


def merge_many_heads(batch: Batch, work: RoomWork, before: int) -> None:
    """In the middle of a batch: each event that comes costs more the more heads there are, so hundreds of forks
    do not wait for the end.

    Args:
        before: how many heads there were before the last event. Only whenever they pass a multiple of
            `MERGE_FROM` a merge is tried: where nobody may send one, it would be in vain for each event.
    """
    if len(work.heads) >= MERGE_AT_ONCE and len(work.heads) // MERGE_FROM > before // MERGE_FROM:
        merge_heads(batch, work)


def merge_heads(batch: Batch, work: RoomWork) -> bool:
    """Make a merge event if the room has too many heads and somebody of ours may send one."""
    if len(work.heads) < MERGE_FROM or not work.row.participating or work.row.quarantined_ms:
        return False
    if policy.server_in_use(batch, work) is not None:
        return False  # it would have to sign, and nobody is asked here
    heads = first_heads({event_id: head.depth for event_id, head in work.heads.items()})
    chosen = [work.heads[event_id] for event_id in heads]
    before = resolution.resolve(batch, work, [head.snapshot_after for head in chosen], cause="merge")
    for user_id in _local_members(batch, work, before)[:MAX_TRIES]:
        server = server_name_of(user_id)
        key = batch.context.signing_keys.get(server)
        if key is None:
            continue
        types = auth_types_for_event(work.version, EVENT_TYPE, user_id, None, {})
        state = snapshots.events_at(batch, work, before, {*types, ("m.room.create", ""), auth.VISIBILITY_KEY})
        try:
            event = build_event(
                work.version,
                room_id=work.room_id,
                sender=user_id,
                type=EVENT_TYPE,
                content={},
                prev_events=heads,
                auth_event_ids=[state[key_].event_id for key_ in sorted(types) if key_ in state],
                depth=next_depth(work.version, [head.depth for head in chosen]),
                origin_server_ts=batch.now_ms,
                server_name=server,
                signing_key=key,
                event_id=None
                if work.version.hashed_event_ids
                else f"$merge{batch.now_ms}{chosen[0].nid}:{server}",
            )
        except EventFormatError:
            return False
        if auth.check_at_state(event, state) is not None:
            continue
        found = auth.find_auth_events(batch, work, event)
        row = apply.make_row(batch, work, event, status=ACCEPTED, before=before, after=0, auth=found.nids)
        row.prev = tuple(head.nid for head in chosen)
        batch.add_row(row, event)
        apply.apply_event(batch, work, event, row, state, placement=Placement.PLACEMENT_HIDDEN)
        metrics.merges.inc()
        return True
    return False


def _local_members(batch: Batch, work: RoomWork, snapshot_id: int) -> list[str]:
    """Local users who are joined, in the rows and in this batch."""
    users = {
        row[3]
        for row in states.load_members(batch.conn, work.row.nid)
        if row[2] == states.JOIN and batch.context.is_local(server_name_of(row[3]))
    }
    for (event_type, user_id), entry in work.state.items():
        if event_type == "m.room.member" and batch.context.is_local(server_name_of(user_id)):
            if apply.membership_number(entry) == states.JOIN:
                users.add(user_id)
            else:
                users.discard(user_id)
    return sorted(users)

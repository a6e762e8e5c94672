"""What decides who may see an event (architecture, §6): history visibility and, outside of the timeline,
members.
"""

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate

from arbor.log.v1.common_pb2 import Membership
from arbor.log.v1.output_pb2 import Visibility
from matrixlib.events import Event, StateKey
from matrixlib.identifiers import server_name_of
from roomserver.input import snapshots
from roomserver.input.auth import VISIBILITY_KEY
from roomserver.input.batch import Batch
from roomserver.rooms import RoomWork
from servicekit.logging import get_logger

log = get_logger("roomserver.input")

FEW_MEMBERS = 50
"""So many may differ before it is worth a look whether a list of all would be shorter."""
MAX_MEMBERS_BYTES = 256 * 1024
_MEMBER_BYTES = 70
VALUES = ("world_readable", "shared", "invited", "joined")


def history_visibility(event: Event | None) -> str:
    """The value of a history visibility event; without one, or with another value, it is `shared`."""
    value = event.content.get("history_visibility") if event is not None else None
    return value if isinstance(value, str) and value in VALUES else "shared"


def annotate(visibility: Visibility, event: Event, state_before: Mapping[StateKey, Event]) -> None:
    """Say what decides who may see an event."""
    before = history_visibility(state_before.get(VISIBILITY_KEY))
    visibility.history_visibility = before
    if event.type == "m.room.history_visibility" and event.state_key == "":
        after = history_visibility(event)
        if after != before:
            visibility.history_visibility_after = after


def add_local_members(batch: Batch, work: RoomWork, snapshot_id: int, visibility: Visibility) -> None:
    """Say who of us had which membership in the state before an event outside of the timeline.

    Either all of them or, where a room was ours already, those that have another membership now: of the two the
    shorter list. One that no message could carry is cut: who is missing counts as not having been there.
    """
    chosen = _local(batch, snapshots.difference(batch, work.row.snapshot_id, snapshot_id))
    visibility.local_members_differ = True
    if len(chosen) > FEW_MEMBERS:
        all_of_them = _local(batch, snapshots.load_state(batch, snapshot_id))
        if len(all_of_them) < len(chosen) or _size_of(chosen) > MAX_MEMBERS_BYTES:
            chosen, visibility.local_members_differ = all_of_them, False
    listed = sorted(chosen)
    fitting = bisect_right(
        list(accumulate(len(user_id) + _MEMBER_BYTES for user_id in listed)), MAX_MEMBERS_BYTES
    )
    if fitting < len(listed):
        log.warning("local_members_cut", room_id=work.room_id, members=len(listed), listed=fitting)
    events = batch.events_by_nid(
        [chosen[user_id] for user_id in listed[:fitting] if chosen[user_id]], work.version
    )
    for user_id in listed[:fitting]:
        event = events.get(chosen[user_id])
        visibility.local_members.append(
            Membership(
                user_id=user_id,
                membership=(event.membership if event is not None else "leave") or "leave",
                event_id=event.event_id if event is not None else "",
            )
        )


def _local(batch: Batch, state: Mapping[int, int]) -> dict[str, int]:
    """User -> number of the membership event (0: none), of local users."""
    keys = batch.keys_of(list(state))
    return {
        key[1]: state[number]
        for number, key in keys.items()
        if key[0] == "m.room.member" and batch.context.is_local(server_name_of(key[1]))
    }


def _size_of(members: Mapping[str, int]) -> int:
    return sum(len(user_id) + _MEMBER_BYTES for user_id in members)

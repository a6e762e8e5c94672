"""Local writers do not fork rooms (architecture, rule 8): the heads an entry was built on are the room's
heads.
"""

from arbor.log.v1.common_pb2 import Event as EventMessage
from arbor.log.v1.common_pb2 import StateKey as StateKeyMessage
from arbor.log.v1.input_pb2 import StaleHeads
from matrixlib.event_auth import auth_types_for
from matrixlib.events import Event
from matrixlib.policy_servers import POLICY_KEY
from roomserver.input.batch import Batch
from roomserver.rooms import RoomWork

MAX_HEADS = 20


def is_current(work: RoomWork, built_on: list[str]) -> bool:
    """Whether these are the room's heads; where it has more than 20, 20 of them are enough."""
    heads = work.heads
    if len(heads) == 1 and len(built_on) == 1:
        return built_on[0] in heads
    wanted = set(built_on)
    if len(heads) <= MAX_HEADS:
        return wanted == heads.keys()
    return len(wanted) == MAX_HEADS and wanted <= heads.keys()


def first_heads(heads: dict[str, int]) -> list[str]:
    """At most 20 of a room's heads (event id -> depth), the deepest first."""
    return [
        event_id for event_id, _ in sorted(heads.items(), key=lambda item: (-item[1], item[0]))[:MAX_HEADS]
    ]


def stale_heads(batch: Batch, work: RoomWork, events: list[Event]) -> StaleHeads:
    """What a writer needs to build its events anew: the present heads, the auth state that differs, the policy."""
    depths = {event_id: head.depth for event_id, head in work.heads.items()}
    stale = StaleHeads(
        forward_extremities=first_heads(depths), depth=min(max(depths.values(), default=0), 2**53 - 1)
    )
    policy = batch.entries(work, [POLICY_KEY]).get(POLICY_KEY)
    if policy is not None:
        stale.changed_auth_state.append(_message_of(policy.event))
    own = {event.event_id for event in events}
    done = {POLICY_KEY}
    for event in events:
        cited = set(event.auth_event_ids)
        if cited & own:
            continue  # built on its own companions: they are built anew together
        for key, entry in batch.entries(work, auth_types_for(event)).items():
            if key not in done and entry.event.event_id not in cited:
                done.add(key)
                stale.changed_auth_state.append(_message_of(entry.event))
        for key in auth_types_for(event):
            if key in done or work.entry(key) is not None:
                continue
            if any(_key_of(batch, work, event_id) == key for event_id in cited):
                done.add(key)
                stale.removed_auth_state.append(StateKeyMessage(type=key[0], state_key=key[1]))
    return stale


def _message_of(event: Event) -> EventMessage:
    return EventMessage(event_id=event.event_id, pdu_json=event.pdu_json)


def _key_of(batch: Batch, work: RoomWork, event_id: str) -> tuple[str, str] | None:
    row = batch.row_of(event_id)
    if row is None or not row.key_id:
        return None
    return batch.event(row.nid, work.version).key

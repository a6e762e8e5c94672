"""The room's policy server (server-server API, "Validating Policy Server signatures").

Nobody is asked here: whoever writes an event to INPUT has asked the policy server for its signature before. What
comes without a right one is refused where it was made here, and soft-failed where another server made it.
"""

from matrixlib.events import Event, parse_event
from matrixlib.policy_servers import POLICY_KEY, PolicyServer, is_exempt, is_signed, policy_server_of
from roomserver.input.apply import server_count
from roomserver.input.auth import Refusal
from roomserver.input.batch import Batch
from roomserver.rooms import RoomWork

RULE = "policy"


def server_in_use(batch: Batch, work: RoomWork) -> PolicyServer | None:
    """The policy server that the room's current state names, if a user of it is joined."""
    if not work.known(POLICY_KEY):
        batch.load_entries(work, [POLICY_KEY])
    entry = work.entry(POLICY_KEY)
    server = policy_server_of(entry.event) if entry is not None else None
    return server if server is not None and server_count(batch, work, server.name) else None


def is_wanting(batch: Batch, work: RoomWork, pdu_json: bytes, event: Event) -> bool:
    """Whether an event that waits lacks the signature which it comes with now: the policy is the younger one."""
    server = server_in_use(batch, work)
    if server is None or not is_signed(event, server):
        return False
    kept = parse_event(pdu_json, work.version, event_id=event.event_id, verify_size=False)
    return not is_signed(kept, server)


def check(batch: Batch, work: RoomWork, event: Event) -> Refusal | None:
    """Why the room's policy server does not recommend an event; None: it does, or there is none."""
    server = server_in_use(batch, work)
    if server is None or is_exempt(event) or is_signed(event, server):
        return None
    return Refusal(
        RULE,
        f"the room's policy server {server.name} has not signed the event",
        "M_FORBIDDEN",
        work.row.snapshot_id,
    )

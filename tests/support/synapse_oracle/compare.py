"""A room judged by us and by the oracle: where do they differ?"""

import orjson

from tests.support.rooms import Room
from tests.support.synapse_oracle.client import Oracle


def differences(room: Room, oracle: Oracle) -> list[str]:
    """One line per event on whose acceptance or state before it the two disagree; empty if they agree."""
    pdus = [orjson.loads(room.events[event_id].pdu_json) for event_id in room.order]
    theirs = oracle.replay(room.version.identifier, pdus)
    lines = []
    accepted = set(theirs["accepted"])
    for event_id in room.order:
        event = room.events[event_id]
        name = f"{event.type}|{event.state_key} by {event.sender} ({event_id})"
        if event_id not in theirs["before"]:
            lines.append(f"{name}: the oracle gives it another id")
            break
        if (event_id in accepted) != (event_id not in room.rejected):
            ours = room.rejected.get(event_id, "accepted")
            lines.append(f"{name}: ours {ours}; oracle {theirs['refused'].get(event_id, 'accepted')}")
        ours_before = {f"{kind}|{key}": value for (kind, key), value in room.before[event_id].items()}
        other = theirs["before"][event_id]
        lines += [
            f"state before {name}: {key}: ours {ours_before.get(key)}, oracle {other.get(key)}"
            for key in sorted(ours_before.keys() | other.keys())
            if ours_before.get(key) != other.get(key)
        ]
    return lines

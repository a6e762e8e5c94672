"""A room judged by us and by the oracle: where do they differ?"""

import random
from collections.abc import Mapping

import orjson

from matrixlib.events import StateKey
from matrixlib.state_resolution import resolve
from tests.support.rooms import Room
from tests.support.synapse_oracle.client import Oracle

MERGES = 12


def differences(room: Room, oracle: Oracle) -> list[str]:
    """One line per event on whose acceptance or state before it the two disagree; empty if they agree.

    Beside the merges that the room has, some of states from anywhere in it are compared: old against new.
    """
    pdus = [orjson.loads(room.events[event_id].pdu_json) for event_id in room.order]
    rng = random.Random(room.order[-1])
    accepted_here = [event_id for event_id in room.order if event_id not in room.rejected]
    merges = [
        rng.sample(accepted_here, min(len(accepted_here), rng.randint(2, 4)))
        for _ in range(MERGES if accepted_here else 0)
    ]
    theirs = oracle.replay(room.version.identifier, pdus, merges, soft_fail=room.soft_fail)
    lines = []
    accepted = set(theirs["accepted"])
    for event_id in room.order:
        event = room.events[event_id]
        name = f"{event.type}|{event.state_key} by {event.sender} ({event_id})"
        if event_id not in theirs["before"]:
            lines.append(f"{name}: the oracle gives it another id")
            break
        if (event_id in accepted) != (event_id not in room.rejected):
            verdict = room.rejected.get(event_id, "accepted")
            lines.append(f"{name}: ours {verdict}; oracle {theirs['refused'].get(event_id, 'accepted')}")
        if (event_id in room.soft_failed) != (event_id in theirs["soft_failed"]):
            verdict = room.soft_failed.get(event_id, "not soft-failed")
            other = theirs["soft_failed"].get(event_id, "not soft-failed")
            lines.append(f"{name}: ours {verdict}; oracle {other}")
        lines += _compare(f"before {name}", room.before[event_id], theirs["before"][event_id])
    for chosen, merged in zip(merges, theirs["merged"], strict=True):
        ours = resolve(room.version, [room.after[event_id] for event_id in chosen], room.store)
        lines += _compare(f"merge of {chosen}", ours, merged)
    return lines


def _compare(name: str, ours: Mapping[StateKey, str], theirs: Mapping[str, str]) -> list[str]:
    named = {f"{kind}|{key}": value for (kind, key), value in ours.items()}
    return [
        f"state {name}: {key}: ours {named.get(key)}, oracle {theirs.get(key)}"
        for key in sorted(named.keys() | theirs.keys())
        if named.get(key) != theirs.get(key)
    ]

"""The oracle's end of the pipe; runs under the Python of `.peers/synapse` with Synapse's modules.

Reads one JSON request a line, writes one JSON answer a line. Only glue stands here: auth checks, event
parsing and state resolution are Synapse's.
"""

import json
import sys
import time
import traceback

from canonicaljson import encode_canonical_json
from synapse import event_auth
from synapse.api.errors import SynapseError
from synapse.api.room_versions import KNOWN_ROOM_VERSIONS, StateResolutionVersions
from synapse.events import make_event_from_dict
from synapse.state import v1, v2
from synapse.storage.databases.main.event_federation import StateDifference


def run(coroutine):
    """Drive a coroutine that never really waits."""
    try:
        while True:
            coroutine.send(None)
    except StopIteration as stop:
        return stop.value


class Clock:
    """The clock that resolution yields to."""

    async def sleep(self, duration):
        """No waiting here."""


class Store:
    """Events in memory, as Synapse's resolution asks for them."""

    def __init__(self, events, links, fixed=None):
        self.events = events
        self.links = links
        self.fixed = fixed

    async def get_events(
        self, event_ids, redact_behaviour=None, get_prev_content=False, allow_rejected=False
    ):
        """Known events."""
        found = {event_id: self.events[event_id] for event_id in event_ids if event_id in self.events}
        if not allow_rejected:
            found = {key: event for key, event in found.items() if event.rejected_reason is None}
        return found

    def chain(self, event_ids):
        """Events and all behind them."""
        seen, stack = set(), list(event_ids)
        while stack:
            event_id = stack.pop()
            if event_id not in seen:
                seen.add(event_id)
                stack.extend(self.links(event_id))
        return seen

    async def get_auth_chain_difference(self, room_id, state_sets, conflicted_state, additional_backwards):
        """Walked naively, set by set; or what was worked out before."""
        if self.fixed is not None:
            return self.fixed
        chains = [self.chain(state_set) for state_set in state_sets]
        difference = set().union(*chains) - set(chains[0]).intersection(*chains[1:])
        subgraph = None
        if conflicted_state is not None:
            subgraph = {
                event_id
                for event_id in self.chain(conflicted_state)
                if self.chain([event_id]) & conflicted_state
            }
            return StateDifference(auth_difference=difference | subgraph, conflicted_subgraph=subgraph)
        return StateDifference(auth_difference=difference, conflicted_subgraph=subgraph)


def resolve(room_id, version, state_sets, events, fixed=None):
    """Synapse's resolution of state sets."""
    store = Store(
        events, lambda event_id: events[event_id].auth_event_ids() if event_id in events else (), fixed
    )
    if version.state_res == StateResolutionVersions.V1:
        return dict(run(v1.resolve_events_with_store(room_id, version, state_sets, None, store.get_events)))
    return dict(run(v2.resolve_events_with_store(Clock(), room_id, version, state_sets, None, store)))


def judge(event, state, events, store):
    """Why Synapse refuses an event, None if it does not."""
    try:
        event_auth.validate_event_for_room_version(event)
        run(event_auth.check_state_independent_auth_rules(store, event))
        own = [events[event_id] for event_id in event.auth_event_ids()]
        event_auth.check_state_dependent_auth_rules(event, own)
        wanted = event_auth.auth_types_for_event(event.room_version, event)
        current = [events[state[key]] for key in wanted if key in state]
        event_auth.check_state_dependent_auth_rules(event, current)
    except SynapseError as error:
        return str(error)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # What Synapse answers with an internal error it does not accept either.
        return f"internal: {type(error).__name__}: {error}"
    return None


def soft_failure(event, state, heads, after, events):
    """Why Synapse refuses an event by the current state, None if it does not."""
    if set(event.prev_event_ids()) == set(heads):
        return None
    states = [after[head] for head in heads]
    current = resolve(event.room_id, event.room_version, states, events) if len(states) > 1 else dict(*states)
    if current == state:
        return None
    wanted = event_auth.auth_types_for_event(event.room_version, event)
    try:
        event_auth.check_state_dependent_auth_rules(
            event, [events[current[key]] for key in wanted if key in current]
        )
    except SynapseError as error:
        return str(error)
    return None


def behind(event, events, no_heads):
    """The previous events of an event, through those that cannot be heads."""
    found, stack = set(), list(event.prev_event_ids())
    while stack:
        event_id = stack.pop()
        if event_id not in found:
            found.add(event_id)
            if event_id in no_heads:
                stack.extend(events[event_id].prev_event_ids())
    return found


def op_replay(request):
    """Judge events in order and resolve the state before each."""
    version = KNOWN_ROOM_VERSIONS[request["room_version"]]
    events, after = {}, {}
    accepted, refused, before = [], {}, {}
    soft_failed, heads = {}, []
    store = Store(events, None)
    for pdu in request["events"]:
        event = make_event_from_dict(pdu, version)
        states = [after[event_id] for event_id in event.prev_event_ids()]
        state = resolve(event.room_id, version, states, events) if len(states) > 1 else dict(*states)
        reason = judge(event, state, events, store)
        event_id = event.event_id
        before[event_id] = {f"{kind}|{key}": value for (kind, key), value in state.items()}
        if reason is None:
            accepted.append(event_id)
        else:
            refused[event_id] = reason
            event = make_event_from_dict(pdu, version, rejected_reason="auth_error")
        events[event_id] = event
        after[event_id] = state
        if reason is None and event.is_state():
            after[event_id] = {**state, (event.type, event.state_key): event_id}
        if reason is None and request["soft_fail"]:
            failure = soft_failure(event, state, heads, after, events)
            if failure is None:
                gone = behind(event, events, soft_failed.keys() | refused.keys())
                heads = [head for head in heads if head not in gone] + [event_id]
            else:
                soft_failed[event_id] = failure
    room_id = next(iter(events.values())).room_id
    merged = []
    for chosen in request["merges"]:
        states = [after[event_id] for event_id in chosen]
        state = resolve(room_id, version, states, events)
        merged.append({f"{kind}|{key}": value for (kind, key), value in state.items()})
    return {
        "accepted": accepted,
        "refused": refused,
        "soft_failed": soft_failed,
        "before": before,
        "merged": merged,
    }


def op_event_ids(request):
    """Event ids of PDUs."""
    version = KNOWN_ROOM_VERSIONS[request["room_version"]]
    return [make_event_from_dict(pdu, version).event_id for pdu in request["events"]]


def op_time_resolution(request):
    """CPU seconds of one resolution, best of `rounds`; events are loaded and the auth chains walked
    beforehand.
    """
    version = KNOWN_ROOM_VERSIONS[request["room_version"]]
    events = {
        event.event_id: event for event in (make_event_from_dict(p, version) for p in request["events"])
    }
    sets = [{tuple(key): event_id for key, event_id in state} for state in request["state_sets"]]
    difference = set(request["difference"])
    fixed = StateDifference(auth_difference=difference, conflicted_subgraph=None)
    best, result = None, {}
    for _ in range(request["rounds"]):
        start = time.process_time()
        result = resolve(request["room_id"], version, sets, events, fixed)
        spent = time.process_time() - start
        best = spent if best is None else min(best, spent)
    return {"seconds": best, "state": [[*key, event_id] for key, event_id in result.items()]}


def op_time_auth(request):
    """CPU seconds to judge message events in a row against one state, parsed beforehand."""
    version = KNOWN_ROOM_VERSIONS[request["room_version"]]
    state = [make_event_from_dict(pdu, version) for pdu in request["state"]]
    events = {event.event_id: event for event in state}
    by_key = {(event.type, event.state_key): event for event in state}
    candidates = [make_event_from_dict(pdu, version) for pdu in request["events"]]
    store = Store(events, None)
    best = None
    for _ in range(request["rounds"]):
        start = time.process_time()
        allowed = 0
        for event in candidates:
            run(event_auth.check_state_independent_auth_rules(store, event))
            wanted = event_auth.auth_types_for_event(version, event)
            event_auth.check_state_dependent_auth_rules(
                event, [by_key[key] for key in wanted if key in by_key]
            )
            allowed += 1
        spent = time.process_time() - start
        best = spent if best is None else min(best, spent)
    return {"seconds": best, "allowed": allowed}


def op_time_parse(request):
    """CPU seconds to parse PDUs from JSON text and compute their ids."""
    version = KNOWN_ROOM_VERSIONS[request["room_version"]]
    best = None
    for _ in range(request["rounds"]):
        start = time.process_time()
        for text in request["texts"]:
            _ = make_event_from_dict(json.loads(text), version).event_id
        spent = time.process_time() - start
        best = spent if best is None else min(best, spent)
    return {"seconds": best}


def op_canonical(request):
    """Canonical JSON of values, as text."""
    return [encode_canonical_json(value).decode() for value in request["values"]]


def main():
    """Answer until the pipe closes."""
    operations = {name[3:]: function for name, function in globals().items() if name.startswith("op_")}
    for line in sys.stdin:
        try:
            request = json.loads(line)
            answer = {"result": operations[request["op"]](request)}
        except Exception:  # the other end raises it
            answer = {"error": traceback.format_exc()}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

"""State resolution v1 (room version 1, "State resolution"). Called by ``state_resolution`` only."""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from matrixlib.event_auth import check_event_auth, state_types_for
from matrixlib.events import Event, StateKey
from matrixlib.power_levels import POWER_LEVELS_KEY
from matrixlib.verdicts import Refused


class EventSource(Protocol):
    """The part of a ``ResolutionStore`` that v1 asks."""

    def get_events(self, event_ids: Collection[str]) -> Mapping[str, Event]:
        """event id -> event."""

    def is_rejected(self, event_id: str) -> bool:
        """Whether an event was rejected."""


def resolve_v1(
    unconflicted: Mapping[StateKey, str],
    conflicted: Mapping[StateKey, set[str]],
    store: EventSource,
    steps: dict[StateKey, str],
    refused: dict[str, Refused],
) -> dict[StateKey, str]:
    """Resolve; ``steps`` and ``refused`` are filled in. Rejected and unknown events take no part."""
    # "Start by setting *R* to the union of the states to be resolved, excluding any *conflicting* events."
    result = dict(unconflicted)
    events = _accepted(store, {event_id for event_ids in conflicted.values() for event_id in event_ids})
    disputed: dict[StateKey, list[Event]] = {}
    for key, event_ids in conflicted.items():
        candidates = [events[event_id] for event_id in event_ids if event_id in events]
        if len(candidates) == 1:
            # Branches that have no event for a key do not disagree about it in v1.
            result[key] = candidates[0].event_id
        elif candidates:
            disputed[key] = candidates
    wanted = {
        key for candidates in disputed.values() for event in candidates for key in state_types_for(event)
    }
    known = _accepted(store, {result[key] for key in wanted if key in result})
    state = {key: known[result[key]] for key in wanted if result.get(key) in known}

    def settle(step: str, keys: Iterable[StateKey]) -> None:
        # All keys of a step are resolved against the state before it, so that their order does not matter.
        picked = {key: _pick_auth_event(key, disputed[key], state, refused) for key in keys}
        for key, event in picked.items():
            steps[key] = step
            result[key] = event.event_id
            del disputed[key]
        state.update(picked)

    # "First we resolve conflicts between `m.room.power_levels` events."
    settle("power levels", [key for key in disputed if key == POWER_LEVELS_KEY])
    # "Repeat the above process for conflicts between `m.room.join_rules` events."
    settle("join rules", [key for key in disputed if key[0] == "m.room.join_rules"])
    # "Repeat the above process for conflicts between `m.room.member` events."
    settle("members", [key for key in disputed if key[0] == "m.room.member"])
    # "... for all other conflicts, just pick the event with the highest depth and lowest `sha1(event_id)`
    # that passes
    # authentication in *R* and add it to *R*."
    for key, candidates in disputed.items():
        steps[key] = "other events"
        result[key] = _pick_normal_event(candidates, state, refused).event_id
    return result


def _accepted(store: EventSource, event_ids: Collection[str]) -> dict[str, Event]:
    found = store.get_events(event_ids)
    return {event_id: event for event_id, event in found.items() if not store.is_rejected(event_id)}


def _pick_auth_event(
    key: StateKey, candidates: list[Event], state: Mapping[StateKey, Event], refused: dict[str, Refused]
) -> Event:
    # "Sort the list by ascending `depth` then descending `sha1(event_id)`. Add the first event in the list to
    # *R*. For
    # each subsequent event in the list, check that the event would be allowed by the authorisation rules for
    # a room in
    # state *R*. ... If it would not be allowed, stop and continue below ..."
    first, *rest = reversed(_highest_first(candidates))
    picked = first
    for event in rest:
        verdict = check_event_auth(event, {**_needed(event, state), key: picked})
        if isinstance(verdict, Refused):
            refused[event.event_id] = verdict
            break
        picked = event
    return picked


def _pick_normal_event(
    candidates: list[Event], state: Mapping[StateKey, Event], refused: dict[str, Refused]
) -> Event:
    ordered = _highest_first(candidates)
    for event in ordered:
        verdict = check_event_auth(event, _needed(event, state))
        if not isinstance(verdict, Refused):
            return event
        refused[event.event_id] = verdict
    # NOTSPEC: the page does not say what happens if none passes; all servers keep the one of least depth.
    return ordered[-1]


def _needed(event: Event, state: Mapping[StateKey, Event]) -> dict[StateKey, Event]:
    return {key: state[key] for key in state_types_for(event) if key in state}


def _highest_first(events: list[Event]) -> list[Event]:
    return sorted(
        events,
        key=lambda event: (
            -event.depth,
            hashlib.sha1(event.event_id.encode(), usedforsecurity=False).digest(),
        ),
    )

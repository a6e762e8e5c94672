"""State resolution v1, v2 and v2.1 (room versions 1, 2 and 12, "State resolution").

``resolve`` merges the states of branches into one. It is synchronous and pure: events come from a
``ResolutionStore``, asked few times for many ids; the result depends on nothing else, in particular not on
the order of the sets. ``state_resolution_v1`` and ``state_resolution_v2`` hold the algorithms, ``auth_graph``
the walks.

``resolve_explained`` also says where each entry that was in conflict came from, and what was refused by which
rule.
"""

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from matrixlib.auth_graph import auth_chain_difference, conflicted_subgraph
from matrixlib.events import Event, StateKey
from matrixlib.room_versions import RoomVersion, StateResolution
from matrixlib.state_resolution_v1 import resolve_v1
from matrixlib.state_resolution_v2 import resolve_v2
from matrixlib.verdicts import Refused

StateMap = Mapping[StateKey, str]


class ResolutionStore(Protocol):
    """What resolution asks for. Each method is called few times, with many ids at once.

    Ids that the store does not know, or that are of another room, are left out of what it gives.
    """

    def get_events(self, event_ids: Collection[str]) -> Mapping[str, Event]:
        """event id -> event, those unknown left out; rejected ones are included."""

    def is_rejected(self, event_id: str) -> bool:
        """Whether an event was rejected."""

    def auth_chain_difference(self, state_sets: Sequence[Collection[str]]) -> set[str]:
        """The events in the full auth chain of some, but not of every set (``auth_graph``)."""

    def conflicted_subgraph(self, conflicted: Collection[str]) -> set[str]:
        """The events on paths between conflicted ones, ends included (``auth_graph``; room version 12
        only).
        """


class MemoryStore:
    """A ``ResolutionStore`` over a mapping of events, which must hold their auth chains."""

    def __init__(self, events: Mapping[str, Event], rejected: Container[str] = frozenset()) -> None:
        """``events``: event id -> event. ``rejected``: ids of rejected ones."""
        self._events = events
        self._rejected = rejected

    def get_events(self, event_ids: Collection[str]) -> Mapping[str, Event]:
        """event id -> event."""
        events = self._events
        return {event_id: events[event_id] for event_id in event_ids if event_id in events}

    def is_rejected(self, event_id: str) -> bool:
        """Whether an event was rejected."""
        return event_id in self._rejected

    def auth_chain_difference(self, state_sets: Sequence[Collection[str]]) -> set[str]:
        """Walked each time, in one pass over the chains."""
        return auth_chain_difference(state_sets, self._links)

    def conflicted_subgraph(self, conflicted: Collection[str]) -> set[str]:
        """Walked each time, in one pass over the chains."""
        return conflicted_subgraph(conflicted, self._links)

    def _links(self, event_id: str) -> Iterable[str]:
        event = self._events.get(event_id)
        return event.auth_links if event is not None else ()


@dataclass(slots=True)
class Resolution:
    """A resolved state and how it came about."""

    state: dict[StateKey, str]
    conflicted: frozenset[StateKey] = frozenset()
    """The keys on which the state sets did not agree."""
    steps: dict[StateKey, str] = field(default_factory=dict)
    """For a key picked by the algorithm: which step picked its entry."""
    refused: dict[str, Refused] = field(default_factory=dict)
    """Event id -> why it did not make it into the state."""


def resolve(
    room_version: RoomVersion, state_sets: Sequence[StateMap], store: ResolutionStore
) -> dict[StateKey, str]:
    """Resolve state sets, each `(type, state_key) -> event_id`, into one."""
    return resolve_explained(room_version, state_sets, store).state


def resolve_explained(
    room_version: RoomVersion, state_sets: Sequence[StateMap], store: ResolutionStore
) -> Resolution:
    """``resolve``, with the reasons."""
    unconflicted, conflicted = separate(state_sets)
    if not conflicted:
        return Resolution(unconflicted)
    resolution = Resolution({}, frozenset(conflicted))
    if room_version.state_resolution is StateResolution.V1:
        resolution.state = resolve_v1(unconflicted, conflicted, store, resolution.steps, resolution.refused)
        return resolution
    conflicted_ids = {event_id for event_ids in conflicted.values() for event_id in event_ids}
    # "The *full conflicted set* is the union of the conflicted state set, the conflicted state subgraph, and
    # the auth
    # difference." The subgraph is of v2.1.
    full_conflicted = conflicted_ids | store.auth_chain_difference(
        [set(state.values()) for state in state_sets]
    )
    base: StateMap = unconflicted
    if room_version.state_resolution is StateResolution.V2_1:
        full_conflicted |= store.conflicted_subgraph(conflicted_ids)
        base = {}
    state = resolve_v2(base, full_conflicted, store, resolution.steps, resolution.refused)
    # 5. "Update the result by replacing any event with the event with the same key from the *unconflicted
    # state map*,
    # if such an event exists, to get the final resolved state."
    state.update(unconflicted)
    for key in resolution.steps.keys() & unconflicted.keys():
        del resolution.steps[key]
    resolution.state = state
    return resolution


def separate(state_sets: Sequence[StateMap]) -> tuple[dict[StateKey, str], dict[StateKey, set[str]]]:
    """The unconflicted state map, and key -> event ids of the conflicted state set.

    "If a given key *K* is present in every *S_i* with the same value *V* in each state map, then the pair
    (*K*, *V*) belongs to the *unconflicted state map*. Otherwise, *V* belongs to the *conflicted state set*."
    """
    if not state_sets:
        return {}, {}
    first, *others = state_sets
    keys: set[StateKey] = set()
    for other in others:
        if other is first:
            continue
        different = [key for key, event_id in other.items() if first.get(key) != event_id]
        keys.update(different)
        # What `first` alone has shows in the count; only then is it worth another walk.
        if len(other) - len(different) + sum(key in first for key in different) < len(first):
            keys.update(first.keys() - other.keys())
    if not keys:
        return dict(first), {}
    unconflicted = {key: event_id for key, event_id in first.items() if key not in keys}
    conflicted = {key: {state[key] for state in state_sets if key in state} for key in keys}
    return unconflicted, conflicted

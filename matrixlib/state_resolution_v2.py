"""State resolution v2 and v2.1 (room versions 2 and 12, "State resolution", "Algorithm", steps 1 to 4).

Called by ``state_resolution`` only, which finds the full conflicted set and does step 5. The two differ in
what they are given: v2.1 starts from an empty state and has the conflicted subgraph in its full conflicted
set.
"""

import heapq
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from matrixlib.event_auth import check_event_auth, state_types_for
from matrixlib.events import Event, StateKey
from matrixlib.power_levels import CREATE_KEY, POWER_LEVELS_KEY, Level, PowerLevels
from matrixlib.verdicts import Refused

_NO_MAINLINE = -1


class EventSource(Protocol):
    """The part of a ``ResolutionStore`` that these steps ask."""

    def get_events(self, event_ids: Collection[str]) -> Mapping[str, Event]:
        """event id -> event."""

    def is_rejected(self, event_id: str) -> bool:
        """Whether an event was rejected."""


class _Cache:
    """Events already fetched; an unknown one is asked for once."""

    def __init__(self, store: EventSource) -> None:
        self._store = store
        self._known: dict[str, Event | None] = {}

    def load(self, event_ids: Iterable[str]) -> None:
        missing = {event_id for event_id in event_ids if event_id not in self._known}
        if missing:
            found = self._store.get_events(missing)
            for event_id in missing:
                self._known[event_id] = found.get(event_id)

    def get(self, event_id: str) -> Event | None:
        if event_id not in self._known:
            self.load((event_id,))
        return self._known[event_id]

    def auth_event(self, event: Event, key: StateKey) -> Event | None:
        """The first of an event's auth events with a key."""
        event_type, state_key = key
        for link in event.auth_links:
            found = self.get(link)
            if found is not None and found.type == event_type and found.state_key == state_key:
                return found
        return None


def resolve_v2(
    base: Mapping[StateKey, str],
    full_conflicted: Collection[str],
    store: EventSource,
    steps: dict[StateKey, str],
    refused: dict[str, Refused],
) -> dict[StateKey, str]:
    """Steps 1 to 4, from a base state; ``steps`` and ``refused`` are filled in."""
    cache = _Cache(store)
    cache.load(full_conflicted)
    events = {event_id: event for event_id in full_conflicted if (event := cache.get(event_id)) is not None}
    cache.load({link for event in events.values() for link in event.auth_links})
    # 1. "Select the set *X* of all *power events* that appear in the *full conflicted set*. For each such
    # power event
    # *P*, enlarge *X* by adding the events in the auth chain of *P* which also belong to the full conflicted
    # set. Sort
    # *X* into a list using the *reverse topological power ordering*."
    power_events = _reverse_topological_power_ordering(_with_auth_chains(events), events, cache)
    # 2. "Apply the *iterative auth checks algorithm*, starting from ..., to the list of events from the
    # previous step
    # to get a partially resolved state."
    checks = _IterativeAuthChecks(base, cache, store, steps, refused)
    checks.apply(power_events, "power events")
    # 3. "Take all remaining events that weren't picked in step 1 and order them by the mainline ordering
    # based on the
    # power level in the partially resolved state obtained in step 2."
    picked = {event.event_id for event in power_events}
    remaining = [event for event_id, event in events.items() if event_id not in picked]
    ordered = _mainline_ordering(remaining, checks.state.get(POWER_LEVELS_KEY), cache)
    # 4. "Apply the *iterative auth checks algorithm* on the partial resolved state and the list of events
    # from the
    # previous step."
    checks.apply(ordered, "mainline order")
    return checks.state


def is_power_event(event: Event) -> bool:
    """Whether an event might remove someone's ability to do something ("Power events").

    NOTSPEC: create counts as one, as in all servers; it comes before everything else either way.
    """
    if event.type in ("m.room.power_levels", "m.room.join_rules", "m.room.create"):
        return event.state_key == ""
    return (
        event.membership in ("leave", "ban")
        and event.state_key is not None
        and event.sender != event.state_key
    )


def _with_auth_chains(events: Mapping[str, Event]) -> dict[str, list[str]]:
    # NOTSPEC: as in all servers, an auth chain is followed within the full conflicted set only; the page
    # would also
    # have those that are reached through an event outside of it.
    graph: dict[str, list[str]] = {}
    stack = [event_id for event_id, event in events.items() if is_power_event(event)]
    while stack:
        event_id = stack.pop()
        if event_id not in graph:
            links = list({link for link in events[event_id].auth_links if link in events})
            graph[event_id] = links
            stack.extend(links)
    return graph


def _reverse_topological_power_ordering(
    graph: Mapping[str, list[str]], events: Mapping[str, Event], cache: _Cache
) -> list[Event]:
    # "The reverse topological power ordering can be found by sorting the events using Kahn's algorithm for
    # topological
    # sorting, and at each step selecting, among all the candidate vertices, the smallest vertex using the
    # above
    # comparison relation."
    def rank(event_id: str) -> tuple[Level, int, str]:
        event = events[event_id]
        return (-_sender_level(event, cache), event.origin_server_ts, event_id)

    followers: dict[str, list[str]] = {}
    open_links = {event_id: len(links) for event_id, links in graph.items()}
    for event_id, links in graph.items():
        for link in links:
            followers.setdefault(link, []).append(event_id)
    ready = [rank(event_id) for event_id, count in open_links.items() if not count]
    heapq.heapify(ready)
    ordered = []
    while ready:
        event_id = heapq.heappop(ready)[2]
        ordered.append(events[event_id])
        for follower in followers.get(event_id, ()):
            open_links[follower] -= 1
            if not open_links[follower]:
                heapq.heappush(ready, rank(follower))
    return ordered


def _sender_level(event: Event, cache: _Cache) -> Level:
    # "*x*'s sender has *greater* power level than *y*'s sender, when looking at their respective
    # `auth_event`s"
    create = cache.auth_event(event, CREATE_KEY)
    power_levels = cache.auth_event(event, POWER_LEVELS_KEY)
    return PowerLevels(event.room_version, create, power_levels).user_level(event.sender)


def _mainline_ordering(remaining: list[Event], power_levels_id: str | None, cache: _Cache) -> list[Event]:
    if not remaining:
        return []
    # The mainline of P_0, numbered so that *smaller* is earlier: P_n has 0, P_0 has n.
    mainline: list[str] = []
    on_mainline: set[str] = set()
    current = cache.get(power_levels_id) if power_levels_id is not None else None
    while current is not None and current.event_id not in on_mainline:
        mainline.append(current.event_id)
        on_mainline.add(current.event_id)
        current = cache.auth_event(current, POWER_LEVELS_KEY)
    place = {event_id: index for index, event_id in enumerate(reversed(mainline))}

    def position(event: Event) -> int:
        # "Find the smallest index *j* >= 1 for which *e_j* belongs to the mainline of *P*." Every power
        # levels event
        # on the way gets the result too, so that each is walked once.
        passed: list[str] = []
        found = cache.auth_event(event, POWER_LEVELS_KEY)
        while found is not None and found.event_id not in place:
            place[found.event_id] = _NO_MAINLINE
            passed.append(found.event_id)
            found = cache.auth_event(found, POWER_LEVELS_KEY)
        index = place[found.event_id] if found is not None else _NO_MAINLINE
        for event_id in passed:
            place[event_id] = index
        return index

    # "the mainline position of *x* is **greater** than the mainline position of *y* ...; or ...
    # `origin_server_ts` ...;
    # or ... `event_id`"
    return sorted(remaining, key=lambda event: (position(event), event.origin_server_ts, event.event_id))


class _IterativeAuthChecks:
    """A room state that events are applied to, in order, if they are allowed ("Iterative auth checks")."""

    def __init__(
        self,
        base: Mapping[StateKey, str],
        cache: _Cache,
        store: EventSource,
        steps: dict[StateKey, str],
        refused: dict[str, Refused],
    ) -> None:
        self.state = dict(base)
        self._cache = cache
        self._store = store
        self._steps = steps
        self._refused = refused

    def apply(self, events: list[Event], step: str) -> None:
        """Apply events in their order."""
        store = self._store
        for event in events:
            # NOTSPEC: the page would admit an event that was rejected by its state and passes here. No server
            # does:
            # its rejection stands, so that a rejected event never comes back into state.
            if event.state_key is None or store.is_rejected(event.event_id):
                continue
            verdict = check_event_auth(event, self._state_for(event))
            if isinstance(verdict, Refused):
                self._refused[event.event_id] = verdict
                continue
            key = (event.type, event.state_key)
            self.state[key] = event.event_id
            self._steps[key] = step

    def _state_for(self, event: Event) -> dict[StateKey, Event]:
        # "If a `(event_type, state_key)` key that is required for checking the authorisation rules is not
        # present in
        # the state, then the appropriate state event from the event's `auth_events` is used if the auth event
        # is not
        # rejected."
        needed: dict[StateKey, Event] = {}
        missing = []
        for key in state_types_for(event):
            event_id = self.state.get(key)
            entry = self._cache.get(event_id) if event_id is not None else None
            if entry is None or self._store.is_rejected(entry.event_id):
                missing.append(key)
            else:
                needed[key] = entry
        for key in missing:
            auth_event = self._cache.auth_event(event, key)
            if auth_event is not None and not self._store.is_rejected(auth_event.event_id):
                needed[key] = auth_event
        return needed

"""Walks over the graph of `auth_events` (room version 12, "State resolution", "Definitions").

Each function takes ``links``: event id -> the ids that it names as auth events (``Event.auth_links``), empty
for an unknown event. All are linear in what they visit and use no recursion, so that chains of 100,000 events
are no trouble.
"""

from collections.abc import Callable, Collection, Iterable, Sequence

Links = Callable[[str], Iterable[str]]


def auth_chain(event_ids: Iterable[str], links: Links) -> set[str]:
    """The auth chain of some events: all that is reachable, the events themselves only if others reach
    them.
    """
    chain: set[str] = set()
    stack = [link for event_id in event_ids for link in links(event_id)]
    while stack:
        event_id = stack.pop()
        if event_id not in chain:
            chain.add(event_id)
            stack.extend(links(event_id))
    return chain


def auth_chain_difference(state_sets: Sequence[Collection[str]], links: Links) -> set[str]:
    """The auth difference of some state sets: what is in the full auth chain of one, but not of each.

    As servers do, and harmlessly for the result, a set's own events count as part of its chain.
    """
    if len(state_sets) < 2:
        return set()
    # What every set holds, and all behind it, is in every chain: walked plainly, and a wall for the walk
    # below.
    common = set(state_sets[0]).intersection(*state_sets[1:])
    everywhere = common | auth_chain(common, links)
    all_marks = (1 << len(state_sets)) - 1
    reached: dict[str, int] = {}
    for index, state_set in enumerate(state_sets):
        for event_id in state_set:
            if event_id not in everywhere:
                reached[event_id] = reached.get(event_id, 0) | (1 << index)

    def outside(event_id: str) -> list[str]:
        return [link for link in links(event_id) if link not in everywhere]

    # Pass each event's marks on to what it links to, later events first.
    for event_id in reversed(_links_first(list(reached), outside)):
        marks = reached[event_id]
        for link in outside(event_id):
            reached[link] = reached.get(link, 0) | marks
    return {event_id for event_id, marks in reached.items() if marks != all_marks}


def conflicted_subgraph(conflicted: Collection[str], links: Links) -> set[str]:
    """All events on paths of auth links from one conflicted event to another, ends included."""
    leads_back: set[str] = set()
    for event_id in _links_first(list(conflicted), links):
        if event_id in conflicted or any(link in leads_back for link in links(event_id)):
            leads_back.add(event_id)
    return leads_back


def _links_first(roots: list[str], links: Links) -> list[str]:
    """All events reachable from the roots, roots included, each behind those that it links to."""
    order: list[str] = []
    seen: set[str] = set()
    # An event is pushed twice: to open it, and (marked) to close it once its links are done.
    stack: list[tuple[str, bool]] = [(root, False) for root in roots]
    while stack:
        event_id, done = stack.pop()
        if done:
            order.append(event_id)
        elif event_id not in seen:
            seen.add(event_id)
            stack.append((event_id, True))
            stack.extend((link, False) for link in links(event_id) if link not in seen)
    return order

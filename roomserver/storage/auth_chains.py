"""The chain cover: auth events laid out in chains, so that reachability is a comparison of two numbers.

Every state event is number `seq` of a chain; in a chain each event reaches all before it. What else an event
reaches is said by links, "from number s of chain A one reaches number t of chain B". The auth chain of a set
of events is then one number per chain, worked out from few rows even where it has 100,000 events.

    chain A   1 ── 2 ── 3 ── 4            link (A, 3) -> (B, 2): 3 and 4 of A reach 1 and 2 of B
                        │
    chain B   1 ── 2 ◄──┘
"""

from collections.abc import Callable, Collection, Iterable, Sequence

from sqlalchemy import Connection

from servicekit.database.raw import Sql, chunks

_PLACES = Sql("SELECT event_nid, chain_id, seq FROM auth_chain WHERE event_nid IN ?")
_TIPS = Sql("SELECT chain_id, MAX(seq) FROM auth_chain WHERE chain_id IN ? GROUP BY chain_id")
_LINKS = Sql("SELECT chain_id, seq, to_chain, to_seq FROM auth_chain_link WHERE chain_id IN ?")
_RANGE = Sql("SELECT event_nid FROM auth_chain WHERE chain_id = ? AND seq > ? AND seq <= ?")
_RANGES = Sql("SELECT event_nid, chain_id, seq FROM auth_chain WHERE chain_id IN ? AND seq > ? AND seq <= ?")
_STORE = Sql("INSERT INTO auth_chain (event_nid, chain_id, seq) VALUES (?, ?, ?)")
_STORE_LINK = Sql(
    "INSERT INTO auth_chain_link (chain_id, seq, to_chain, to_seq) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (chain_id, seq, to_chain) DO NOTHING"
)
_REMOVE = Sql("DELETE FROM auth_chain WHERE event_nid IN ?")
_REMOVE_LINKS = Sql(
    "DELETE FROM auth_chain_link WHERE (chain_id, seq) IN"
    " (SELECT chain_id, seq FROM auth_chain WHERE event_nid IN ?)"
)

WINDOW = 500
"""Ranges of a chain that are longer are read one by one."""

Reach = dict[int, int]
"""chain -> greatest number reached in it."""


def extend(conn: Connection, events: Iterable[tuple[int, tuple[int, ...]]]) -> None:
    """Give new events, (number, numbers of their auth events) in order of number, their places."""
    events = list(events)
    if not events:
        return
    own = {nid for nid, _ in events}
    known = sorted({nid for _, auth in events for nid in auth} - own)
    place = _load_places(conn, known)
    chains = sorted({chain for chain, _ in place.values()})
    tips = {row[0]: row[1] for part in chunks(chains, 10_000) for row in _TIPS.rows(conn, list(part))}
    links: dict[int, list[tuple[int, int, int]]] = {}
    # Links only serve to leave out those that follow from others; beyond a few chains that is not worth it.
    for chain, seq, to_chain, to_seq in _LINKS.rows(conn, chains) if 0 < len(chains) <= 500 else ():
        links.setdefault(chain, []).append((seq, to_chain, to_seq))
    new_places, new_links = [], []
    for nid, auth in events:
        targets: Reach = {}
        extended = None
        for auth_nid in sorted(auth):
            found = place.get(auth_nid)
            if found is None:
                continue
            chain, seq = found
            targets[chain] = max(targets.get(chain, 0), seq)
            if tips.get(chain) == seq:
                extended = chain
        if extended is None:
            chain, seq = nid, 1
        else:
            chain, seq = extended, tips[extended] + 1
        implied: Reach = {}
        for from_chain, from_seq in targets.items():
            for link_seq, to_chain, to_seq in links.get(from_chain, ()):
                if link_seq <= from_seq and implied.get(to_chain, 0) < to_seq:
                    implied[to_chain] = to_seq
        for to_chain, to_seq in targets.items():
            if to_chain != chain and implied.get(to_chain, 0) < to_seq:
                new_links.append((chain, seq, to_chain, to_seq))
                links.setdefault(chain, []).append((seq, to_chain, to_seq))
        place[nid] = (chain, seq)
        tips[chain] = seq
        new_places.append((nid, chain, seq))
    _STORE.many(conn, new_places)
    _STORE_LINK.many(conn, new_links)


def remove(conn: Connection, nids: list[int]) -> None:
    """Take back the places of the events that were given theirs last."""
    _REMOVE_LINKS.change(conn, nids)
    _REMOVE.change(conn, nids)


def _load_places(conn: Connection, nids: Sequence[int]) -> dict[int, tuple[int, int]]:
    found: dict[int, tuple[int, int]] = {}
    for part in chunks(nids, 20_000):
        found.update((row[0], (row[1], row[2])) for row in _PLACES.rows(conn, list(part)))
    return found


def load_reach(conn: Connection, nids: Iterable[int]) -> Reach:
    """Return what events reach, themselves included."""
    reach: Reach = {}
    for chain, seq in _load_places(conn, list(nids)).values():
        if reach.get(chain, 0) < seq:
            reach[chain] = seq
    done: Reach = {}
    links: dict[int, list[tuple[int, int, int]]] = {}
    todo = set(reach)
    while todo:
        unloaded = [chain for chain in todo if chain not in links]
        for chain in unloaded:
            links[chain] = []
        for part in chunks(unloaded, 20_000):
            for chain, seq, to_chain, to_seq in _LINKS.rows(conn, list(part)):
                links[chain].append((seq, to_chain, to_seq))
        more: set[int] = set()
        for chain in todo:
            before, now = done.get(chain, 0), reach[chain]
            done[chain] = now
            for seq, to_chain, to_seq in links[chain]:
                if before < seq <= now and reach.get(to_chain, 0) < to_seq:
                    reach[to_chain] = to_seq
                    more.add(to_chain)
        todo = {chain for chain in more if reach[chain] > done.get(chain, 0)}
    return reach


def load_difference(
    conn: Connection, parts: Sequence[Collection[int]], load_common: Callable[[], Collection[int]]
) -> set[int]:
    """Return the events in the auth chain of some, but not of every state set; a set's own events count.

    A state set is one of `parts` and what all of them have in common. With C in common and D_i the parts, the
    difference is what some D_i reach, but neither C nor all D_i do. The parts themselves are always in it, so
    what C reaches is only asked where there is more.
    """
    own = {nid for part in parts for nid in part}
    reaches = [load_reach(conn, part) for part in parts]
    ranges: dict[int, tuple[int, int]] = {}
    for chain in {chain for reach in reaches for chain in reach}:
        low = min(reach.get(chain, 0) for reach in reaches)
        high = max(reach.get(chain, 0) for reach in reaches)
        if low < high:
            ranges[chain] = (low, high)
    if load_ranges(conn, ranges) <= own:
        return own
    everywhere = load_reach(conn, load_common())
    ranges = {
        chain: (max(low, everywhere.get(chain, 0)), high)
        for chain, (low, high) in ranges.items()
        if everywhere.get(chain, 0) < high
    }
    return own | load_ranges(conn, ranges)


def load_ranges(conn: Connection, ranges: dict[int, tuple[int, int]]) -> set[int]:
    """Return the events of chains between two numbers, the first excluded."""
    # A chain's first event has the chain's number, and most chains are one member event.
    found = {chain for chain, (low, high) in ranges.items() if low == 0 < high}
    windows: dict[int, dict[int, tuple[int, int]]] = {}
    for chain, (after, high) in ranges.items():
        low = max(after, 1)
        if high - low > WINDOW:
            found.update(row[0] for row in _RANGE.rows(conn, chain, low, high))
        elif high > low:
            windows.setdefault(low // WINDOW, {})[chain] = (low, high)
    # Short ranges that lie near to each other in their chains go together.
    for window, chains in windows.items():
        start = window * WINDOW
        for part in chunks(list(chains), 10_000):
            for nid, chain, seq in _RANGES.rows(conn, list(part), start, start + 2 * WINDOW):
                low, high = chains[chain]
                if low < seq <= high:
                    found.add(nid)
    return found


def load_auth_chain(conn: Connection, nids: Iterable[int]) -> set[int]:
    """Return the events that these reach, themselves included."""
    return load_ranges(conn, {chain: (0, seq) for chain, seq in load_reach(conn, nids).items()})

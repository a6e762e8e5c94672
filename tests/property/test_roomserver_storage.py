"""Snapshots and the chain cover against the naive way."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from matrixlib.auth_graph import auth_chain, auth_chain_difference
from roomserver.input import snapshots
from roomserver.input.batch import Batch, Context
from roomserver.memory import Memory
from roomserver.storage import auth_chains, packing
from roomserver.storage import snapshots as rows
from roomserver.storage.tables import metadata
from servicekit.database import create_engine
from servicekit.log.subjects import partition_of

NOBODY = Context(4, partial(partition_of, partitions=4), lambda name: False, {})


@contextmanager
def connection() -> Iterator[Connection]:
    with tempfile.TemporaryDirectory() as folder:
        engine = create_engine(f"sqlite:///{Path(folder) / 'r.db'}")
        with engine.connect() as conn, conn.begin():
            metadata.create_all(conn)
            yield conn
        engine.dispose()


@given(st.lists(st.integers(0, 2**40)))
def test_numbers_come_back(numbers: list[int]) -> None:
    assert packing.unpack_ids(packing.pack_ids(numbers)) == tuple(numbers)


changes = st.dictionaries(st.integers(1, 12), st.integers(0, 30), max_size=3)


@settings(max_examples=60)
@given(
    steps=st.lists(st.tuples(st.integers(0, 10**6), changes), min_size=1, max_size=60),
    flush=st.integers(1, 9),
)
def test_any_state_is_put_together_from_few_rows(steps: list[tuple[int, dict[int, int]]], flush: int) -> None:
    with connection() as conn:
        memory = Memory()
        states: dict[int, dict[int, int]] = {0: {}}
        batch = Batch(conn, NOBODY, memory, 1)
        for number, (pick, delta) in enumerate(steps):
            parent = sorted(states)[pick % len(states)]
            made = snapshots.add_child(batch, 7, parent, delta)
            states[made] = {k: v for k, v in {**states[parent], **delta}.items() if v}
            if number % flush == 0:
                rows.store_snapshots(conn, batch.nodes)
                batch = Batch(conn, NOBODY, Memory() if number % 2 else memory, 1)
                batch.ids.take(conn, "snapshot", 5000)  # type: ignore[attr-defined]
        rows.store_snapshots(conn, batch.nodes)
        for snapshot_id, state in states.items():
            path = rows.load_path(conn, snapshot_id)
            assert rows.compose(path) == state
            assert len(path) <= len(steps).bit_length() + 1
        fresh = Batch(conn, NOBODY, Memory(), 1)
        ids = sorted(states)[1:]
        for one, other in zip(ids, ids[::-1], strict=True):
            expected = {
                key: states[other].get(key, 0)
                for key in states[one].keys() | states[other].keys()
                if states[one].get(key, 0) != states[other].get(key, 0)
            }
            assert snapshots.difference(fresh, one, other) == expected


graphs = st.lists(st.lists(st.integers(0, 10**6), max_size=4), min_size=1, max_size=60)


@settings(max_examples=60)
@given(
    graph=graphs,
    sets=st.lists(st.lists(st.integers(0, 10**6), max_size=5), min_size=2, max_size=4),
    size=st.integers(1, 20),
    window=st.sampled_from([1, 3, 500]),
)
def test_the_chain_cover_tells_what_a_walk_tells(
    graph: list[list[int]], sets: list[list[int]], size: int, window: int
) -> None:
    links = {
        nid: tuple(sorted({1 + pick % (nid - 1) for pick in picks})) if nid > 1 else ()
        for nid, picks in enumerate(graph, 1)
    }
    state_sets = [{1 + pick % len(links) for pick in picks} for picks in sets]

    def walk(nid: str) -> list[str]:
        return [str(link) for link in links[int(nid)]]

    with connection() as conn, mock.patch.object(auth_chains, "WINDOW", window):
        everything = sorted(links.items())
        for start in range(0, len(everything), size):
            auth_chains.extend(conn, everything[start : start + size])
        common = set.intersection(*state_sets)
        difference = auth_chains.load_difference(
            conn, [state - common for state in state_sets], lambda: common
        )
        expected = {int(n) for n in auth_chain_difference([{str(n) for n in s} for s in state_sets], walk)}
        # What stands in some but not all sets is resolved anyway, so it may be named though all reach it.
        conflicted = {nid for state in state_sets for nid in state} - common
        assert difference | conflicted == expected | conflicted
        for state in state_sets:
            chain = auth_chains.load_auth_chain(conn, state)
            assert chain == {int(n) for n in auth_chain({str(n) for n in state}, walk)} | state

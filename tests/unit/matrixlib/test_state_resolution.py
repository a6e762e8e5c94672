"""State resolution: its building blocks, its store, its reasons."""

import pytest

from matrixlib.auth_graph import auth_chain, auth_chain_difference, conflicted_subgraph
from matrixlib.room_versions import ROOM_VERSIONS
from matrixlib.state_resolution import MemoryStore, resolve, resolve_explained, separate
from tests.support.rooms import ALICE, BOB, Room

GRAPH = {"a": [], "b": ["a"], "c": ["a"], "d": ["b"], "e": ["b", "c"], "f": ["d", "e"]}


def links(event_id: str) -> list[str]:
    """Auth links of the toy graph."""
    return GRAPH.get(event_id, [])


def test_walks() -> None:
    assert auth_chain(["d"], links) == {"a", "b"}
    assert auth_chain(["f", "d"], links) == {"a", "b", "c", "d", "e"}
    assert auth_chain_difference([{"d"}, {"e"}], links) == {"d", "e", "c"}
    assert auth_chain_difference([{"d"}, {"d"}], links) == set()
    assert auth_chain_difference([{"f"}], links) == set()
    assert auth_chain_difference([{"f"}, {"d"}, {"unknown"}], links) == set(GRAPH) | {"unknown"}
    assert conflicted_subgraph({"f", "a"}, links) == set(GRAPH)
    assert conflicted_subgraph({"f", "c"}, links) == {"f", "e", "c"}
    assert conflicted_subgraph({"d", "c"}, links) == {"d", "c"}


def test_walks_survive_circles() -> None:
    circle = {"a": ["b"], "b": ["c"], "c": ["a"]}
    assert auth_chain(["a"], circle.__getitem__) == {"a", "b", "c"}
    assert "a" in conflicted_subgraph({"a"}, circle.__getitem__)
    auth_chain_difference([{"a"}, {"b"}], circle.__getitem__)


def test_separation() -> None:
    one = {("t", "a"): "1", ("t", "b"): "1", ("t", "c"): "1"}
    two = {("t", "a"): "1", ("t", "b"): "2"}
    assert separate([one, two]) == ({("t", "a"): "1"}, {("t", "b"): {"1", "2"}, ("t", "c"): {"1"}})
    assert separate([two, one]) == separate([one, two])
    assert separate([one, dict(one)]) == (one, {})
    assert separate([one, two, one]) == separate([one, two])
    assert separate([]) == ({}, {})
    assert separate([{}, one])[0] == {}


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_without_conflict_nothing_is_asked(version: str) -> None:
    state = {("m.room.topic", ""): "$x"}
    assert resolve(ROOM_VERSIONS[version], [state, dict(state)], MemoryStore({})) == state
    assert resolve(ROOM_VERSIONS[version], [], MemoryStore({})) == {}


@pytest.mark.parametrize("version", [version for version in ROOM_VERSIONS if version != "1"])
def test_reasons(version: str) -> None:
    room = Room(version).with_members(BOB)
    fork = room.heads
    topic = room.send(BOB, "m.room.topic", {"topic": "x"}, state_key="", prev=fork)
    join = room.member(BOB, "join", prev=fork, content={"displayname": "x"})
    ban = room.member(BOB, "ban", by=ALICE, prev=fork)
    assert topic.event_id in room.rejected
    states = [room.after[event.event_id] for event in (join, ban)]
    found = resolve_explained(room.version, states, room.store)
    assert found.state[("m.room.member", BOB)] == ban.event_id
    assert found.conflicted == {("m.room.member", BOB)}
    assert found.steps[("m.room.member", BOB)] == "power events"
    assert found.refused[join.event_id].rule == room.version.rule("join.banned")


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_unknown_and_rejected_events_are_never_picked(version: str) -> None:
    room = Room(version)
    good = room.send(ALICE, "m.room.topic", {"topic": "good"}, state_key="")
    base = dict(room.after[good.event_id])
    bad = room.send(BOB, "m.room.topic", {"topic": "bad"}, state_key="")
    assert bad.event_id in room.rejected
    key = ("m.room.topic", "")
    for other in (bad.event_id, "$unknown"):
        states = [base, {**base, key: other}]
        assert resolve(room.version, states, room.store)[key] == good.event_id


def test_events_are_asked_for_in_few_calls() -> None:
    room = Room("11").with_members(*(f"@u{number}:b.example" for number in range(60)))
    fork = room.heads
    sides = []
    for side in range(2):
        prev = fork
        for number in range(60):
            event = room.member(
                f"@u{number}:b.example", "join", prev=prev, content={"displayname": str(side)}
            )
            prev = [event.event_id]
        sides.append(room.after[prev[0]])
    calls = []

    class Counting(MemoryStore):
        def get_events(self, event_ids):  # type: ignore[no-untyped-def]
            calls.append(len(event_ids))
            return super().get_events(event_ids)

    resolve(room.version, sides, Counting(room.events))
    assert len(calls) < 8

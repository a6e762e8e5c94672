"""Row 10: auth chains and graphs of 10,000 and more, wide and deep: bounded time, no recursion."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from matrixlib.auth_graph import auth_chain, auth_chain_difference, conflicted_subgraph
from matrixlib.events import Event, EventTooLargeError, parse_event
from matrixlib.room_versions import V10, V11, V12, RoomVersion
from matrixlib.state_resolution import MemoryStore, resolve
from tests.support.rooms import ALICE, Room

DEEP = 100_000


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Fail if the block takes more CPU time than this (generous: a slow machine is no defect)."""
    start = time.process_time()
    yield
    assert time.process_time() - start < seconds


def test_walks_of_deep_and_wide_graphs() -> None:
    deep = {str(number): [str(number - 1)] for number in range(1, DEEP)} | {"0": []}
    wide: dict[str, list[str]] = {str(number): ["root"] for number in range(DEEP)} | {"root": []}
    ladder = {
        f"{number}{side}": [f"{number - 1}a", f"{number - 1}b"]
        for number in range(1, 30_000)
        for side in "ab"
    }
    for graph, ends in ((deep, [str(DEEP - 1), "5"]), (wide, ["7", "8"]), (ladder, ["29999a", "29998b"])):
        links = {**graph}.get
        with at_most(8):
            walk = lambda event_id, links=links: links(event_id, ())  # noqa: E731
            auth_chain(ends, walk)
            auth_chain_difference([{ends[0]}, {ends[1]}], walk)
            conflicted_subgraph(set(ends), walk)


def fake(
    version: RoomVersion, number: int, kind: str, state_key: str, links: tuple[str, ...], **content: object
) -> Event:
    """An event that was never signed, cheap to make by the ten thousand."""
    return Event(
        event_id=f"$event{number:06}",
        room_id="!" + "r" * 43,
        type=kind,
        state_key=state_key,
        sender=ALICE,
        content={"membership": "join", **content},
        depth=number,
        origin_server_ts=number,
        prev_event_ids=(),
        auth_event_ids=links,
        redacts=None,
        pdu={},
        room_version=version,
    )


@pytest.mark.parametrize("version", [V11, V12], ids=str)
def test_resolution_over_a_deep_chain_of_power_levels(version: RoomVersion) -> None:
    create = Event(
        event_id="$" + "r" * 43,
        room_id="!" + "r" * 43,
        type="m.room.create",
        state_key="",
        sender=ALICE,
        content={},
        depth=0,
        origin_server_ts=0,
        prev_event_ids=(),
        auth_event_ids=(),
        redacts=None,
        pdu={},
        room_version=version,
    )
    base = () if version.room_id_is_create_hash else (create.event_id,)
    join = fake(version, 1, "m.room.member", ALICE, base)
    events = {create.event_id: create, join.event_id: join}
    last = join
    for number in range(2, 10_002):
        links = (*base, join.event_id) + ((last.event_id,) if last is not join else ())
        users = {} if version.privileged_creators else {ALICE: 100}
        last = fake(version, number, "m.room.power_levels", "", links, users=users, n=number)
        events[last.event_id] = last
    short = {("m.room.create", ""): create.event_id, ("m.room.member", ALICE): join.event_id}
    long = {**short, ("m.room.power_levels", ""): last.event_id}
    with at_most(10):
        state = resolve(version, [short, long], MemoryStore(events))
    assert state[("m.room.power_levels", "")] == last.event_id


def test_many_forward_extremities() -> None:
    room = Room("11")
    fork = room.heads
    topics = [
        room.send(ALICE, "m.room.topic", {"topic": str(n)}, state_key="", prev=fork) for n in range(500)
    ]
    with at_most(10):
        state = resolve(room.version, [room.after[topic.event_id] for topic in topics], room.store)
    assert state[("m.room.topic", "")] == topics[-1].event_id


@pytest.mark.parametrize(("key", "count"), [("prev_events", 21), ("auth_events", 11), ("prev_events", 1000)])
def test_too_many_references(key: str, count: int) -> None:
    event = Room("10").send(ALICE, "m.room.message", {})
    references = ["$" + "A" * 43] * count
    with pytest.raises(EventTooLargeError):
        parse_event({**event.pdu, key: references}, V10)

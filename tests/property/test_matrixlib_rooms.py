"""Random rooms: resolution, auth and visibility as properties."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from matrixlib.auth_graph import auth_chain, auth_chain_difference, conflicted_subgraph
from matrixlib.event_auth import check_event_auth, state_types_for
from matrixlib.events import Event, EventFormatError, StateKey, parse_event
from matrixlib.globs import compile_glob
from matrixlib.power_levels import PowerLevels
from matrixlib.push_rules import PushEvaluator, default_ruleset
from matrixlib.room_versions import ROOM_VERSIONS, RoomVersion, StateResolution
from matrixlib.server_acl import ServerAcl
from matrixlib.state_resolution import resolve
from matrixlib.state_resolution_v2 import is_power_event
from matrixlib.verdicts import Allowed, Refused
from matrixlib.visibility import is_visible, may_see
from tests.support.json_strategies import event_types, hostile_contents, hostile_values
from tests.support.random_rooms import USERS, random_room
from tests.support.rooms import ALICE, BOB, Room

version_names = st.sampled_from(list(ROOM_VERSIONS))
seeds = st.integers(0, 10**9)
few = settings(max_examples=40)


@few
@given(version_names, seeds)
def test_resolution_does_not_depend_on_order(version: str, seed: int) -> None:
    room = random_room(version, seed, steps=20)
    rng = random.Random(seed)
    accepted = [event_id for event_id in room.order if event_id not in room.rejected]
    for _ in range(4):
        states = [room.after[event_id] for event_id in rng.sample(accepted, min(4, len(accepted)))]
        expected = resolve(room.version, states, room.store)
        for _ in range(3):
            rng.shuffle(states)
            shuffled = [dict(rng.sample(list(state.items()), len(state))) for state in states]
            assert resolve(room.version, shuffled, room.store) == expected
        assert resolve(room.version, [*states, states[0]], room.store) == expected


@few
@given(version_names, seeds)
def test_resolution_keeps_what_all_agree_on(version: str, seed: int) -> None:
    room = random_room(version, seed, steps=20)
    states = [room.after[event_id] for event_id in room.order[-4:]]
    resolved = resolve(room.version, states, room.store)
    for key, event_id in states[0].items():
        if all(state.get(key) == event_id for state in states):
            assert resolved[key] == event_id
    assert all(
        any(state.get(key) == event_id for state in states) or version != "1"
        for key, event_id in resolved.items()
    )
    assert not set(resolved.values()) & set(room.rejected)
    assert all(room.events[event_id].key == key for key, event_id in resolved.items())


@few
@given(version_names.filter(lambda name: name != "1"), seeds)
def test_resolution_equals_a_naive_one(version: str, seed: int) -> None:
    room = random_room(version, seed, steps=14)
    rng = random.Random(seed)
    accepted = [event_id for event_id in room.order if event_id not in room.rejected]
    for _ in range(3):
        states = [room.after[event_id] for event_id in rng.sample(accepted, min(3, len(accepted)))]
        assert resolve(room.version, states, room.store) == naive_resolve(room, states)


def naive_resolve(room: Room, states: Sequence[Mapping[StateKey, str]]) -> dict[StateKey, str]:
    """Resolution v2 and v2.1 as the page reads, with no thought of cost."""
    version = room.version
    keys = {key for state in states for key in state}
    unconflicted = {key: states[0][key] for key in keys if len({state.get(key) for state in states}) == 1}
    conflicted = {state[key] for state in states for key in keys - unconflicted.keys() if key in state}
    links: Callable[[str], Sequence[str]] = lambda event_id: room.events[event_id].auth_links  # noqa: E731
    chains = [set(state.values()) | auth_chain(state.values(), links) for state in states]
    full = conflicted | (set().union(*chains) - chains[0].intersection(*chains[1:])) if conflicted else set()
    start: dict[StateKey, str] = dict(unconflicted)
    if version.state_resolution is StateResolution.V2_1:
        start = {}
        full |= {
            event_id
            for event_id in conflicted | auth_chain(conflicted, links)
            if (event_id in conflicted or event_id in auth_chain(conflicted, links))
            and ({event_id} | auth_chain([event_id], links)) & conflicted
        }

    def first_auth(event: Event, kind: str) -> Event | None:
        return next(
            (room.events[link] for link in event.auth_links if room.events[link].key == (kind, "")), None
        )

    def order(event_id: str) -> tuple[float, int, str]:
        event = room.events[event_id]
        levels = PowerLevels(
            version, first_auth(event, "m.room.create"), first_auth(event, "m.room.power_levels")
        )
        return (-levels.user_level(event.sender), event.origin_server_ts, event_id)

    power = {event_id for event_id in full if is_power_event(room.events[event_id])}
    while more := {link for event_id in power for link in links(event_id) if link in full} - power:
        power |= more
    ordered: list[str] = []
    while len(ordered) < len(power):
        ready = [one for one in power - set(ordered) if not (set(links(one)) & power) - set(ordered)]
        ordered.append(min(ready, key=order))

    def apply(state: dict[StateKey, str], event_ids: Sequence[str]) -> None:
        for event_id in event_ids:
            event = room.events[event_id]
            if event_id in room.rejected:
                continue
            known = {
                room.events[link].key: room.events[link]
                for link in event.auth_links
                if link not in room.rejected
            }
            known |= {key: room.events[state[key]] for key in state_types_for(event) if key in state}
            if isinstance(check_event_auth(event, known), Allowed):
                state[event.key] = event_id

    apply(start, ordered)
    mainline: list[str] = []
    current = room.events.get(start.get(("m.room.power_levels", ""), ""))
    while current is not None:
        mainline.append(current.event_id)
        current = first_auth(current, "m.room.power_levels")

    def position(event_id: str) -> float:
        found = first_auth(room.events[event_id], "m.room.power_levels")
        while found is not None:
            if found.event_id in mainline:
                return mainline.index(found.event_id)
            found = first_auth(found, "m.room.power_levels")
        return float("inf")

    rest = sorted(full - power, key=lambda one: (-position(one), room.events[one].origin_server_ts, one))
    apply(start, rest)
    return {**start, **unconflicted}


@given(st.dictionaries(st.integers(0, 12), st.lists(st.integers(0, 12), max_size=4)), st.data())
def test_walks_equal_naive_ones(raw: dict[int, list[int]], data: st.DataObject) -> None:
    graph = {str(node): [str(to) for to in targets if to < node] for node, targets in raw.items()}
    links: Callable[[str], list[str]] = lambda event_id: graph.get(event_id, [])  # noqa: E731
    nodes = st.sets(st.integers(0, 12).map(str), max_size=5)
    sets = data.draw(st.lists(nodes, min_size=2, max_size=4))
    chains = [chosen | auth_chain(chosen, links) for chosen in sets]
    assert auth_chain_difference(sets, links) == set().union(*chains) - chains[0].intersection(*chains[1:])
    chosen = sets[0]
    reachable = chosen | auth_chain(chosen, links)
    expected = {one for one in reachable if ({one} | auth_chain([one], links)) & chosen}
    assert conflicted_subgraph(chosen, links) == expected


@few
@given(version_names, seeds)
def test_auth_is_deterministic_and_needs_only_what_it_asks_for(version: str, seed: int) -> None:
    room = random_room(version, seed, steps=15)
    for event_id in room.order:
        event = room.events[event_id]
        full = room.with_events(room.before[event_id])
        needed = {key: full[key] for key in state_types_for(event) if key in full}
        verdict = check_event_auth(event, full)
        assert check_event_auth(event, needed) == verdict
        assert (
            check_event_auth(parse_event(event.pdu_json, room.version), dict(reversed(needed.items())))
            == verdict
        )
        if isinstance(verdict, Refused):
            assert verdict.rule in room.version.rule_numbers.values()


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(version_names, event_types, hostile_contents, hostile_contents, st.data())
def test_hostile_contents_always_get_a_verdict(
    version: str, event_type: str, content: dict[str, Any], other: dict[str, Any], data: st.DataObject
) -> None:
    room = Room(version, bare=True)
    base = room.send(ALICE, "m.room.message", {"body": "x"})
    rules = room.version
    state = dict(room.state)
    key = data.draw(st.sampled_from([None, "", ALICE, BOB, "x"]))
    hostile_type = data.draw(event_types)
    for kind, body in ((hostile_type, other), ("m.room.power_levels", other), (event_type, content)):
        pdu = {**base.pdu, "type": kind, "content": body}
        if key is not None:
            pdu["state_key"] = key
        if data.draw(st.booleans()):
            pdu["prev_events"] = []
        if rules.room_id_is_create_hash and kind == "m.room.create" and key == "":
            pdu.pop("room_id", None)
        try:
            event = parse_event(pdu, rules, verify_size=False)
        except EventFormatError:
            continue
        verdict = check_event_auth(event, state)
        assert isinstance(verdict, Allowed | Refused)
        if event.is_state and kind != "m.room.create":
            # Even what was refused: whatever a state holds, there is a verdict.
            state[event.key] = event
        for user in (ALICE, BOB):
            is_visible(event, state, user, joined_since=False)
        PushEvaluator(event, member_count=2).evaluate(default_ruleset(BOB), BOB, "Bob")
        ServerAcl(event.content).allows("a.example")


@given(hostile_values, version_names)
def test_hostile_pdus_raise_nothing_else(value: Any, version: str) -> None:
    for pdu in (value, {"content": value}, {"signatures": value, "hashes": value, "type": "x"}):
        with pytest.raises(EventFormatError):
            parse_event(pdu, ROOM_VERSIONS[version])


@given(
    st.sampled_from(["world_readable", "shared", "invited", "joined"]),
    st.sampled_from(["join", "invite", "leave", "ban", "knock"]),
    st.booleans(),
)
def test_visibility_is_monotone(setting: str, membership: str, joined_since: bool) -> None:
    # A later join never takes anything away, a membership nearer to joining neither, nor does a more open
    # setting for
    # somebody who joined.
    seen = may_see(setting, membership, joined_since=joined_since)
    assert may_see(setting, membership, joined_since=True) >= seen
    assert may_see(setting, "join", joined_since=joined_since) >= seen
    assert may_see("world_readable", membership, joined_since=joined_since) >= seen
    if joined_since:
        assert may_see("shared", membership, joined_since=True) >= seen


@few
@given(st.sampled_from(["6", "10", "12"]), seeds)
def test_nobody_sees_what_was_before_them_unless_it_was_shared(version: str, seed: int) -> None:
    room = random_room(version, seed, steps=12)
    for event_id in room.order:
        event, state = room.events[event_id], room.with_events(room.before[event_id])
        for user in USERS:
            without = is_visible(event, state, user, joined_since=False)
            assert is_visible(event, state, user, joined_since=True) >= without
            member = state.get(("m.room.member", user))
            own = event.type == "m.room.member" and event.state_key == user
            if without and not own:
                assert member is not None
                assert member.membership == "join"


@given(st.text(alphabet="ab*?_ ", max_size=8), st.text(alphabet="ab_ ", max_size=12))
def test_globs_equal_a_naive_matcher(pattern: str, text: str) -> None:
    glob = compile_glob(pattern)
    assert glob.matches(text) == naive_glob(pattern, text)
    edges = [
        place
        for place in range(len(text) + 1)
        if place in (0, len(text)) or " " in (text[place - 1], text[place])
    ]
    assert glob.matches_words(text) == any(
        naive_glob(pattern, text[start:end]) for start in edges for end in edges if start <= end
    )


def naive_glob(pattern: str, text: str) -> bool:
    """Globbing by definition."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(naive_glob(pattern[1:], text[place:]) for place in range(len(text) + 1))
    return bool(text) and pattern[0] in ("?", text[0]) and naive_glob(pattern[1:], text[1:])


@given(version_names, st.integers(-(2**53), 2**53))
def test_levels_are_numbers(version: str, level: int) -> None:
    rules: RoomVersion = ROOM_VERSIONS[version]
    room = Room(version, bare=True)
    event = room.send(ALICE, "m.room.power_levels", {"users": {BOB: level % 2**53}}, state_key="")
    assert PowerLevels(rules, room.create, event).user_level(BOB) == level % 2**53

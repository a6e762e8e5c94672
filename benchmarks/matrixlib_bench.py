"""CPU time of the protocol library beside Synapse's modules, where both have the function.

    python -m benchmarks.matrixlib_bench [--members 10000] [--events 10000] [--rounds 3]

Both sides get the same events in one run: ours here, Synapse's in the oracle process, each measured with its
own process clock. What only one side would do (walking auth chains, which Synapse leaves to its database) is
done for both beforehand. A ratio below 1 means that ours takes less.
"""

import argparse
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import orjson

from matrixlib.event_auth import (
    Allowed,
    auth_types_for_event,
    check_auth_events,
    check_event_auth,
    state_types_for,
)
from matrixlib.event_builder import build_event
from matrixlib.events import Event, StateKey, parse_event
from matrixlib.identifiers import server_name_of
from matrixlib.room_versions import ROOM_VERSIONS, RoomVersion
from matrixlib.state_resolution import MemoryStore, resolve, separate
from tests.support.rooms import ALICE, key_of
from tests.support.synapse_oracle.client import Oracle, is_installed

State = dict[StateKey, str]


@dataclass
class BigRoom:
    """A room with many members, and what is needed to add to it."""

    version: RoomVersion
    events: dict[str, Event]
    state: State
    room_id: str | None = None
    clock: int = 1_700_000_000_000

    def add(
        self,
        sender: str,
        kind: str,
        content: dict[str, object],
        state_key: str | None,
        state: State,
        prev: Sequence[str],
    ) -> Event:
        """An event on top of a state, which is changed."""
        self.clock += 1
        types = auth_types_for_event(self.version, kind, sender, state_key, content)
        event = build_event(
            self.version,
            room_id=self.room_id,
            sender=sender,
            type=kind,
            content=content,
            state_key=state_key,
            prev_events=prev,
            auth_event_ids=sorted(state[key] for key in types if key in state),
            depth=len(self.events) + 1,
            origin_server_ts=self.clock,
            server_name=server_name_of(sender),
            signing_key=key_of(server_name_of(sender)),
        )
        self.events[event.event_id] = event
        if state_key is not None:
            state[event.key] = event.event_id
        return event


def build_room(version: str, members: int) -> BigRoom:
    """A public room with members of ten servers."""
    rules = ROOM_VERSIONS[version]
    room = BigRoom(rules, {}, {}, None if rules.room_id_is_create_hash else "!room:a.example")
    create = room.add(ALICE, "m.room.create", {"room_version": version, "creator": ALICE}, "", room.state, [])
    room.room_id = create.room_id
    last = room.add(ALICE, "m.room.member", {"membership": "join"}, ALICE, room.state, [create.event_id])
    users = {} if rules.privileged_creators else {ALICE: 100}
    last = room.add(ALICE, "m.room.power_levels", {"users": users}, "", room.state, [last.event_id])
    last = room.add(ALICE, "m.room.join_rules", {"join_rule": "public"}, "", room.state, [last.event_id])
    for number in range(members):
        user = member(number)
        last = room.add(user, "m.room.member", {"membership": "join"}, user, room.state, [last.event_id])
    return room


def member(number: int) -> str:
    """The name of a member."""
    return f"@user{number}:server{number % 10}.example"


def branch(room: BigRoom, number: int, changes: int, members: int) -> State:
    """A branch: bans, a change of levels, new names of members, some the same as in other branches."""
    state = dict(room.state)
    users = {member(number): 50} | ({} if room.version.privileged_creators else {ALICE: 100})
    last = room.add(ALICE, "m.room.power_levels", {"users": users}, "", state, ["$unused"])
    for step in range(changes // 20):
        target = member((number + 1) * 50 + step)
        last = room.add(ALICE, "m.room.member", {"membership": "ban"}, target, state, [last.event_id])
    for step in range(changes):
        user = member((members // 2 + step) % members)
        content: dict[str, object] = {"membership": "join", "displayname": f"name {number}"}
        last = room.add(user, "m.room.member", content, user, state, [last.event_id])
    return state


class WalkedStore(MemoryStore):
    """A store whose auth chains were walked before."""

    def __init__(self, events: dict[str, Event], state_sets: Sequence[State]) -> None:
        super().__init__(events)
        self.difference = super().auth_chain_difference([set(state.values()) for state in state_sets])
        conflicted = separate(state_sets)[1]
        self.subgraph = super().conflicted_subgraph({one for ids in conflicted.values() for one in ids})

    def auth_chain_difference(self, state_sets: Sequence[Collection[str]]) -> set[str]:
        """As walked before."""
        return self.difference

    def conflicted_subgraph(self, conflicted: Collection[str]) -> set[str]:
        """As walked before."""
        return self.subgraph


def cpu_seconds(rounds: int, function: Callable[[], object]) -> float:
    """The best of some rounds."""
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        function()
        best = min(best, time.process_time() - start)
    return best


def report(name: str, ours: float, theirs: float, each: int = 1) -> None:
    """One line of the table."""
    print(
        f"{name:44} {ours / each * 1e6:12.1f} us {theirs / each * 1e6:12.1f} us   x {ours / theirs:.2f}",
        flush=True,
    )


def bench_resolution(
    room: BigRoom, oracle: Oracle, branches: int, changes: int, members: int, rounds: int
) -> None:
    """Resolve some branches."""
    sets = [branch(room, number, changes, members) for number in range(branches)]
    walked = WalkedStore(room.events, sets)
    walk = cpu_seconds(1, lambda: WalkedStore(room.events, sets))
    ours = resolve(room.version, sets, walked)
    seconds = cpu_seconds(rounds, lambda: resolve(room.version, sets, walked))
    subgraph = walked.subgraph if room.version.room_id_is_create_hash else set()
    answer = oracle.ask(
        "time_resolution",
        room_version=room.version.identifier,
        room_id=room.room_id,
        events=[orjson.loads(event.pdu_json) for event in room.events.values()],
        state_sets=[[[list(key), event_id] for key, event_id in state.items()] for state in sets],
        difference=sorted(walked.difference | subgraph),
        rounds=rounds,
    )
    if {(kind, key): event_id for kind, key, event_id in answer["state"]} != ours:
        raise SystemExit("the two resolve differently")
    name = f"v{room.version}: {branches} branches, {members} members"
    report(name, seconds, answer["seconds"])
    print(f"{'  (walking the auth chains, ours only)':44} {walk * 1e6:12.1f} us", flush=True)


def bench_auth(room: BigRoom, oracle: Oracle, count: int, rounds: int) -> None:
    """Parse and authorise messages in a row."""
    messages = []
    last = "$unused"
    for number in range(count):
        content: dict[str, object] = {"msgtype": "m.text", "body": f"message {number}"}
        event = room.add(member(number % 100), "m.room.message", content, None, room.state, [last])
        messages.append(event)
        last = event.event_id
    state = {key: room.events[event_id] for key, event_id in room.state.items()}
    needed = {key for event in messages for key in state_types_for(event)}
    few = {key: state[key] for key in needed}
    texts = [event.pdu_json for event in messages]
    version = room.version

    def authorise() -> None:
        for event in messages:
            own = [room.events[event_id] for event_id in event.auth_event_ids]
            verdicts = (check_auth_events(event, own), check_event_auth(event, few))
            if not all(isinstance(verdict, Allowed) for verdict in verdicts):
                raise SystemExit(f"refused: {verdicts}")

    ours = cpu_seconds(rounds, authorise)
    theirs = oracle.ask(
        "time_auth",
        room_version=version.identifier,
        state=[orjson.loads(event.pdu_json) for event in few.values()],
        events=[orjson.loads(text) for text in texts],
        rounds=rounds,
    )
    if theirs["allowed"] != count:
        raise SystemExit("the oracle refused a message")
    report(f"v{version}: auth of a message, {count} in a row", ours, theirs["seconds"], count)

    def parse_all() -> None:
        # Nothing is kept, as on the other side.
        for text in texts:
            parse_event(text, version)

    parse = cpu_seconds(rounds, parse_all)
    theirs = oracle.ask(
        "time_parse",
        room_version=version.identifier,
        texts=[text.decode() for text in texts],
        rounds=rounds,
    )
    report(f"v{version}: parse a message and work out its id", parse, theirs["seconds"], count)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--changes", type=int, default=500, help="member events a branch changes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--versions", default="10,12")
    options = parser.parse_args()
    if not is_installed():
        raise SystemExit("no venv with Synapse: make peers-setup")
    print(f"{'CPU time':44} {'ours':>15} {'Synapse':>15}   ratio")
    with Oracle() as oracle:
        for version in options.versions.split(","):
            for branches in (2, 10):
                room = build_room(version, options.members)
                bench_resolution(room, oracle, branches, options.changes, options.members, options.rounds)
            bench_auth(build_room(version, 200), oracle, options.events, options.rounds)


if __name__ == "__main__":
    main()

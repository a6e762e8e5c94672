"""What the RoomServer's judge costs: INPUT batches straight into it, with a SQLite file, no log and no
network.

    python -m benchmarks.roomserver_bench            CPU per event at batch 1, 16 and 64, for 1 and 50 rooms
    python -m benchmarks.roomserver_bench --disk     bytes on disk per event in a large room
    python -m benchmarks.roomserver_bench --large    import of a large room, states at random events, a fork

Events are built and signed before the clock starts. CPU time is that of the process, its writer thread
included.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from arbor.log.v1 import input_pb2
from benchmarks.matrixlib_bench import bench_auth, bench_resolution, build_room
from matrixlib.event_builder import build_event
from matrixlib.events import Event
from matrixlib.room_versions import ROOM_VERSIONS
from roomserver.rpc import reads
from servicekit.log.reader import LogMessage
from tests.support.judging import JudgeBench, foreign, local
from tests.support.judging import message as message_of
from tests.support.rooms import key_of
from tests.support.synapse_oracle.client import Oracle, is_installed

SERVER = "a.example"
ROUNDS = 3
"""The best of so many counts, on both sides."""
ALICE = f"@alice:{SERVER}"
VERSION = ROOM_VERSIONS["12"]
KEY = key_of(SERVER)


class Writer:
    """Builds a room's events quickly: one chain, state by key."""

    def __init__(self, name: str, creator: str = ALICE) -> None:
        self.state: dict[tuple[str, str], str] = {}
        self.room_id: str | None = None
        self.head: list[str] = []
        self.depth = 0
        self.clock = 1_700_000_000_000
        self.first = [
            self.send(creator, "m.room.create", {"room_version": "12", "name": name}, ""),
            self.send(creator, "m.room.member", {"membership": "join"}, creator),
            self.send(creator, "m.room.power_levels", {"users": {}}, ""),
            self.send(creator, "m.room.join_rules", {"join_rule": "public"}, ""),
            self.send(creator, "m.room.history_visibility", {"history_visibility": "shared"}, ""),
        ]

    def send(self, sender: str, type_: str, content: dict[str, Any], state_key: str | None = None) -> Event:
        """Build the next event."""
        keys = [("m.room.power_levels", ""), ("m.room.member", sender)]
        if type_ == "m.room.member":
            keys += [("m.room.join_rules", "")]
        self.depth += 1
        self.clock += 1
        event = build_event(
            VERSION,
            room_id=self.room_id,
            sender=sender,
            type=type_,
            content=content,
            state_key=state_key,
            prev_events=self.head,
            auth_event_ids=[]
            if type_ == "m.room.create"
            else [self.state[k] for k in keys if k in self.state],
            depth=self.depth,
            origin_server_ts=self.clock,
            server_name=SERVER,
            signing_key=KEY,
        )
        self.room_id = event.room_id
        self.head = [event.event_id]
        if state_key is not None:
            self.state[type_, state_key] = event.event_id
        return event


def make_bench(folder: str) -> JudgeBench:
    """A judge on a fresh file."""
    return JudgeBench(f"sqlite:///{Path(folder) / 'r.db'}", keep_output=False)


def measure(
    rooms: int, batch: int, count: int, make: Callable[[Writer, int], Event], *, profile: bool = False
) -> float:
    """CPU milliseconds per event."""
    with tempfile.TemporaryDirectory() as folder:
        bench = make_bench(folder)
        writers = [Writer(f"room {number}") for number in range(rooms)]
        for writer in writers:
            bench.submit(local(writer.room_id or "", writer.first))
        requests = []
        for number in range(count):
            writer = writers[number % rooms]
            requests.append(local(writer.room_id or "", [make(writer, number)], txn=f"t{number}"))
        messages = bench.messages(requests)
        batches = [messages[start : start + batch] for start in range(0, len(messages), batch)]
        run(bench, batches[:2])
        profiler = None
        if profile:
            import cProfile

            profiler = cProfile.Profile()
            judge_apply = bench.judge.apply
            setattr(bench.judge, "apply", lambda *args: profiler.runcall(judge_apply, *args))  # noqa: B010
        started, wall = time.process_time(), time.perf_counter()
        run(bench, batches[2:])
        cpu_ms = (time.process_time() - started) * 1000 / (count - 2 * batch)
        wall_ms = (time.perf_counter() - wall) * 1000 / (count - 2 * batch)
        bench.close()
        if profiler is not None:
            import pstats

            pstats.Stats(profiler).sort_stats("tottime").print_stats(35)
        print(f"{'':14}wall {wall_ms:6.3f} ms", end="")
        return cpu_ms


def run(bench: JudgeBench, batches: list[list[LogMessage]]) -> None:
    """Judge batches; all must be accepted."""
    for messages in batches:
        verdicts = bench.judge_messages(messages)
        assert all(verdict.code == 1 for verdict in verdicts), [v for v in verdicts if v.code != 1][:1]


def message(writer: Writer, number: int, sender: str = ALICE) -> Event:
    """A message."""
    return writer.send(sender, "m.room.message", {"msgtype": "m.text", "body": f"message number {number}"})


def topic(writer: Writer, number: int) -> Event:
    """A change of state."""
    sender = "@far:b.example" if ("m.room.member", "@far:b.example") in writer.state else ALICE
    return writer.send(sender, "m.room.topic", {"topic": f"topic {number}"}, "")


def join(writer: Writer, number: int) -> Event:
    """A join of somebody new."""
    user = f"@user{number}:{SERVER}"
    return writer.send(user, "m.room.member", {"membership": "join", "displayname": f"User {number}"}, user)


def measure_disk(events: int, members: int, changes: int) -> None:
    """Bytes on disk per event in a large room."""
    with tempfile.TemporaryDirectory() as folder:
        bench = make_bench(folder)
        writer = Writer("large")
        bench.submit(local(writer.room_id or "", writer.first))
        started = time.process_time()
        users = [f"@user{number}:{SERVER}" for number in range(members)]
        pending: list[Any] = []

        def flush() -> None:
            if pending:
                run(bench, [bench.messages(pending)])
                pending.clear()

        def put(event: Event, number: int) -> None:
            pending.append(local(writer.room_id or "", [event], txn=f"t{number}"))
            if len(pending) == 64:
                flush()

        for number in range(members):
            put(join(writer, number), number)
        flush()
        bench.settle()
        joined = size_of(folder)
        every = max(events // max(changes, 1), 1)
        for number in range(events):
            if number % every == 0:
                put(topic(writer, number), members + number)
            else:
                sender = users[number % len(users)]
                body = {"msgtype": "m.text", "body": f"This is message number {number}, of common length."}
                put(writer.send(sender, "m.room.message", body), members + number)
        flush()
        bench.settle()
        total = size_of(folder)
        print(f"{members} joins: {joined / members:.0f} bytes each")
        print(f"{events} events, {changes} changes of state: {(total - joined) / events:.0f} bytes each")
        cpu_ms = (time.process_time() - started) * 1000 / (events + members)
        print(f"CPU, building included: {cpu_ms:.3f} ms each")
        for name, size in table_sizes(bench):
            print(f"  {name:40} {size / (events + members):7.1f} bytes/event")
        bench.close()


def measure_large(members: int) -> None:
    """Import of a room with many members, then states at random events and forks in it."""
    with tempfile.TemporaryDirectory() as folder:
        bench = make_bench(folder)
        writer = Writer("far", creator="@far:b.example")
        events = [*writer.first]
        for number in range(members):
            user = f"@user{number}:b{number % 50}.example"
            events.append(writer.send(user, "m.room.member", {"membership": "join"}, user))
        room_id = writer.room_id or ""
        join_event = writer.send(ALICE, "m.room.member", {"membership": "join"}, ALICE)
        base = psutil.Process().memory_info().rss
        clock = Clock()
        for part, start in enumerate(range(0, len(events), 500), 1):
            bench.stage("i", room_id, "12", events[start : start + 500], part=part)
        clock.tell(f"storing {len(events)} state events as outliers")
        commit = input_pb2.CommitImport(import_id="i", room_version="12", join_event=message_of(join_event))
        assert bench.submit((room_id, [input_pb2.InputEntry(commit_import=commit)]))[0].code == 1
        grown = (psutil.Process().memory_info().rss - base) / 2**20
        clock.tell(f"committing the import (memory grew by {grown:.0f} MiB)")
        later = [topic(writer, number) for number in range(1000)]
        for start in range(0, len(later), 50):
            bench.submit(*[foreign(room_id, [event]) for event in later[start : start + 50]])
        clock.tell("1,000 changes of state")
        chosen = random.Random(1).sample([event.event_id for event in later], 1000)
        for event_id in chosen:
            assert bench.database.read_sync(reads.read_state, room_id, [event_id], True)[0][1]
        clock.tell("whole states at 1,000 random events")
        for branches in (2, 10):
            head, depth = list(writer.head), writer.depth
            tips = []
            for number in range(branches):
                writer.head, writer.depth = list(head), depth
                tips.append(writer.send("@far:b.example", "m.room.name", {"name": str(number)}, ""))
            codes = [v.code for v in bench.submit(*[foreign(room_id, [tip]) for tip in tips])]
            assert set(codes) == {1}, codes
            clock.tell(f"{branches} branches that conflict, resolved at each step")
            writer.head = [tip.event_id for tip in tips]
            assert bench.submit(foreign(room_id, [message(writer, 1, "@far:b.example")]))[0].code == 1
        bench.close()


def measure_beside_synapse(members: int, events: int) -> None:
    """What Synapse's modules have, too: state resolution and auth, ours and theirs on the same events."""
    if not is_installed():
        print("Synapse is not installed (make peers-setup): resolution and auth are not compared")
        return
    print("Of import and states at events Synapse has no module to compare with: they are its database's.")
    print(f"{'CPU time':44} {'ours':>15} {'Synapse':>15}   ratio")
    with Oracle() as oracle:
        for branches in (2, 10):
            bench_resolution(build_room("12", members), oracle, branches, 500, members, ROUNDS)
        bench_auth(build_room("12", 200), oracle, events, ROUNDS)


class Clock:
    """Tells the CPU time since it was asked last."""

    def __init__(self) -> None:
        self._last = time.process_time()

    def tell(self, what: str) -> None:
        """Print a line."""
        now = time.process_time()
        memory = psutil.Process().memory_info().rss / 2**20
        print(f"{what:60} {(now - self._last) * 1000:9.1f} ms CPU, {memory:6.0f} MiB in all", flush=True)
        self._last = now


def size_of(folder: str) -> int:
    """Bytes of the database's files, the log of writes left out."""
    return sum(path.stat().st_size for path in Path(folder).iterdir() if path.suffix == ".db")


def table_sizes(bench: JudgeBench) -> list[tuple[str, int]]:
    """Bytes by table and index, where SQLite can say it."""

    def read(conn: Any) -> list[tuple[str, int]]:
        rows = conn.exec_driver_sql(
            "SELECT name, SUM(pgsize) FROM dbstat GROUP BY name ORDER BY 2 DESC LIMIT 16"
        )
        return [(row[0], row[1]) for row in rows]

    try:
        return bench.database.read_sync(read)
    except Exception:
        return []


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--disk", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--members", type=int, default=10_000)
    parser.add_argument("--changes", type=int, default=1_000)
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument(
        "--profile", default="", help="kind of event to profile at batch 64: message, topic or join"
    )
    arguments = parser.parse_args()
    kinds = {"message": message, "topic": topic, "join": join}
    if arguments.disk:
        measure_disk(arguments.events, arguments.members, arguments.changes)
        return
    if arguments.large:
        measure_large(2 * arguments.members)
        measure_beside_synapse(arguments.members, min(arguments.events, 10_000))
        return
    if arguments.profile:
        measure(1, 64, arguments.count, kinds[arguments.profile], profile=True)
        return
    for name, make in kinds.items():
        for rooms in (1, 50):
            for batch in (1, 16, 64):
                count = min(arguments.count, 600) if batch == 1 else arguments.count
                cpu_ms = measure(rooms, batch, count, make)
                print(f"  {name:8} {rooms:3} rooms, batch {batch:3}: {cpu_ms:6.3f} ms CPU per event")


if __name__ == "__main__":
    main()

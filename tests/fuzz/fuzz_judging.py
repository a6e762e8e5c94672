"""Throw other servers' mutated events at the RoomServer's judge, for a bounded time.

    python -m tests.fuzz.fuzz_judging --seconds 60 [--seed 1]

Random rooms are told in random order, with events whose content, references, state keys and types were changed,
through every way in: received, with a told state, as history, as outliers, in an import. Whatever comes, each
entry gets a verdict, nothing ends among the dead letters, no room is quarantined, nothing refers to another room. Every
tenth event is explained. Everything is decided by the seed, which a failure prints.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from arbor.log.v1.input_pb2 import CommitImport, EventOrigin, InputEntry, VerdictCode
from matrixlib.events import Event, EventFormatError
from matrixlib.room_versions import ROOM_VERSIONS
from roomserver.rpc import explain
from roomserver.storage import dead_letters, rooms
from roomserver.storage.packing import unpack_ids
from servicekit.database.raw import Sql
from tests.support.judging import JudgeBench, foreign, local, message
from tests.support.random_rooms import USERS, random_room
from tests.support.rooms import Room, sign_for_all

SERVERS = ("a.example",)
_LINKS = Sql("SELECT nid, room_nid, prev, auth FROM event")
_HEADS = Sql("SELECT nid, heads FROM room")
_CURRENT = Sql("SELECT room_nid, event_nid FROM current_state")
NASTY: list[Any] = [
    None,
    True,
    0,
    -1,
    2**53 - 1,
    "",
    "x" * 300,
    "@a:b",
    "$x:a.example",
    [],
    {},
    [[]],
    {"": {}},
]
TYPES = ("m.room.create", "m.room.member", "m.room.power_levels", "m.room.join_rules", "m.room.redaction",
         "m.room.history_visibility", "m.room.third_party_invite", "m.room.server_acl", "org.example")  # fmt: skip
ORIGINS = (
    EventOrigin.EVENT_ORIGIN_FEDERATION,
    EventOrigin.EVENT_ORIGIN_HISTORY,
    EventOrigin.EVENT_ORIGIN_OUTLIER,
)


def mutate(rng: random.Random, room: Room, event: Event, others: list[str]) -> Event | None:
    """A changed event, hashed and signed anew; None: it is no event any more."""
    pdu = {key: value for key, value in event.pdu.items() if key not in ("hashes", "signatures")}
    for _ in range(rng.randint(1, 3)):
        match rng.randrange(8):
            case 0:
                content = dict(pdu["content"])
                content[rng.choice([*content, "users", "membership", "redacts", "allow"])] = rng.choice(NASTY)
                pdu["content"] = content
            case 1 | 2:
                key = rng.choice(("prev_events", "auth_events"))
                chosen = rng.sample([*room.order, *others], min(len(room.order), rng.randint(0, 6)))
                if room.version.references_carry_hashes:
                    pdu[key] = [[event_id, {"sha256": "x"}] for event_id in chosen]
                else:
                    pdu[key] = chosen
            case 3:
                pdu["type"] = rng.choice(TYPES)
            case 4:
                pdu["state_key"] = rng.choice(("", *USERS, "x"))
            case 5:
                pdu.pop("state_key", None)
            case 6:
                pdu["depth"] = rng.choice((0, 1, 2**53 - 1))
            case _:
                pdu["sender"] = rng.choice(USERS)
    if "event_id" in pdu:
        pdu["event_id"] = f"$m{rng.randrange(10**9)}:{event.sender.partition(':')[2]}"
    try:
        return sign_for_all(pdu, room.version)
    except (EventFormatError, ValueError):
        return None


def run_one(seed: int) -> int:
    """One room; returns how many entries were judged."""
    rng = random.Random(seed)
    version = rng.choice(list(ROOM_VERSIONS))
    room = random_room(version, seed, steps=25)
    if len(room.order) < 5 or set(room.order[:2]) & set(room.rejected):
        return 0
    room_id = room.room_id or ""
    other = Room(rng.choice(list(ROOM_VERSIONS)), creator="@other:a.example", content={"n": seed})
    with tempfile.TemporaryDirectory() as folder:
        bench = JudgeBench(f"sqlite:///{Path(folder) / 'r.db'}", local=SERVERS)
        try:
            if other.room_id != room_id:
                bench.submit(local(other.room_id or "", [other.events[i] for i in other.order]))
            ways = [room.events[event_id] for event_id in room.order]
            if rng.random() < 0.3:
                judged = begin_by_import(rng, bench, room, other)
            else:
                bench.submit(local(room_id, [room.events[i] for i in room.order[:2]]))
                judged = 1
            todo = list(ways)
            for event in ways:
                todo += [found for _ in range(2) if (found := mutate(rng, room, event, other.order))]
            rng.shuffle(todo)
            while todo:
                size = rng.randint(1, 6)
                part, todo = todo[:size], todo[size:]
                requests = [request_for(rng, room, room_id, event, ways) for event in part]
                verdicts = bench.submit(*requests)
                assert len(verdicts) == len(requests)
                for verdict in verdicts:
                    assert verdict.code != VerdictCode.VERDICT_CODE_UNSPECIFIED
                    assert verdict.rejection.rule not in ("internal", "quarantined"), verdict
                judged += len(requests)
                if rng.random() < 0.2:
                    for event in part:
                        bench.database.read_sync(explain.read_explanation, event.event_id)
            assert bench.database.read_sync(dead_letters.load_dead_letters) == []
            rows = bench.database.read_sync(rooms.load_rooms, [room_id])
            assert not any(row.quarantined_ms for row in rows.values())
            bench.database.read_sync(check_rooms_apart)
            return judged
        finally:
            bench.close()


def check_rooms_apart(conn: Connection) -> None:
    """Nothing of a room refers to an event of another."""
    rows = _LINKS.rows(conn)
    room_of = {nid: room_nid for nid, room_nid, _, _ in rows}
    for nid, room_nid, prev, auth in rows:
        for link in (*unpack_ids(prev), *unpack_ids(auth)):
            assert room_of[link] == room_nid, (nid, link)
    for room_nid, heads in _HEADS.rows(conn):
        assert {room_of[nid] for nid in unpack_ids(heads)} <= {room_nid}
    for room_nid, event_nid in _CURRENT.rows(conn):
        assert room_of[event_nid] == room_nid


def begin_by_import(rng: random.Random, bench: JudgeBench, room: Room, other: Room) -> int:
    """The room comes as a join of another server's room, its state changed here and there."""
    room_id = room.room_id or ""
    at = rng.choice(room.order[2:])
    state = [room.events[event_id] for event_id in room.before[at].values()]
    state += [room.events[event_id] for event_id in rng.sample(room.order, 3)]
    state += [found for event in list(state) if (found := mutate(rng, room, event, other.order))]
    version = room.version.identifier
    bench.stage("i", room_id, version, state)
    join = room.member("@alice:a.example", "join", prev=[at])
    commit = CommitImport(import_id="i", room_version=version, join_event=message(join))
    (verdict,) = bench.submit((room_id, [InputEntry(commit_import=commit)]))
    assert verdict.rejection.rule != "internal", verdict
    return 1


def request_for(rng: random.Random, room: Room, room_id: str, event: Event, ways: list[Event]) -> Any:
    """An entry that brings an event, one way or another."""
    fields: dict[str, Any] = {"origin": rng.choices(ORIGINS, (6, 3, 1))[0]}
    if rng.random() < 0.3:
        told = room.after[rng.choice(list(room.after))]
        fields["state_before_event_ids"] = [*told.values(), *rng.sample(room.order, rng.randint(0, 2))]
        fields["outliers"] = [room.events[event_id] for event_id in room.order if event_id in told.values()]
    return foreign(room_id, [event], **fields)


def main() -> None:
    """Run until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    seed, judged = options.seed, 0
    while time.monotonic() < end:
        try:
            judged += run_one(seed)
        except BaseException:
            print(f"failed with --seed {seed}", file=sys.stderr)
            raise
        seed += 1
    print(f"{judged} entries in {seed - options.seed} rooms, from seed {options.seed}: nothing found")


if __name__ == "__main__":
    main()

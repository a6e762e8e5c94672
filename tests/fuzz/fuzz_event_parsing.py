"""Throw mutated events at the parser and at all that follows it, for a bounded time.

    python -m tests.fuzz.fuzz_event_parsing --seconds 60 [--seed 1]

Real events are cut, spliced, nested, and filled with values that have hurt servers. For each result, in every
room version: parsing gives an event or ``EventFormatError``; an event that was parsed encodes, parses again
to the same id, redacts, is authorised with a verdict, and its signature check ends; nothing takes long.
Everything is decided by the seed, which a failure prints together with the input.
"""

import argparse
import random
import sys
import time
from typing import Any

import orjson

from matrixlib.canonical_json import CanonicalJsonError, encode_canonical, parse_json
from matrixlib.client_event import client_event_json
from matrixlib.event_auth import auth_types_for, check_event_auth
from matrixlib.events import Event, EventFormatError, StateKey, parse_event, redact_event
from matrixlib.hashes import check_content_hash
from matrixlib.push_rules import PushEvaluator, default_ruleset
from matrixlib.room_versions import ROOM_VERSIONS
from matrixlib.server_acl import ServerAcl
from matrixlib.signing import SignatureError, event_signers, verify_event_signature
from matrixlib.visibility import is_visible
from tests.support.random_rooms import USERS, random_room
from tests.support.rooms import BOB, Room, key_of

SLOW_S = 0.5
NASTY: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    -0.0,
    1e308,
    2**53,
    -(2**53),
    2**63,
    2**64,
    10**30,
    "",
    "\0",
    "é" * 200,
    "x" * 70_000,
    "@a:b",
    "@:b",
    "!r:a.example",
    "$x:a.example",
    "*" * 500 + "a",
    [],
    {},
    [[]],
    [{}],
    {"": ""},
    "50",
    " -7 ",
    "m.room.create",
    {"ed25519:1": "x"},
    {"a.example": {"ed25519:test": "AAAA"}},
    ["$" + "A" * 43] * 30,
    [["$x:a", {}]],
    [[1, 2]],
]
RAW: list[bytes] = [
    b"\\ud800",
    b"\xff",
    b"\x00",
    b"NaN",
    b"1e999",
    b"-0",
    b"123456789012345678901234567890",
    b"{",
    b"}",
    b"[",
    b'"',
    b",",
    b'"a":1,"a":2',
    b"\\u0000",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"[" * 2000,
    b'{"a":' * 2000,
]


def seeds() -> list[tuple[str, bytes]]:
    """Real events of all versions."""
    found = []
    for version in ROOM_VERSIONS:
        room = random_room(version, 7, steps=25)
        found += [(version, room.events[event_id].pdu_json) for event_id in room.order]
    return found


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One mutated input: by value where it still parses, by byte otherwise."""
    for _ in range(rng.randint(1, 4)):
        if rng.random() < 0.6:
            try:
                value = orjson.loads(data)
                data = orjson.dumps(_mutate_value(value, rng), option=orjson.OPT_NON_STR_KEYS)
                continue
            except (ValueError, TypeError):
                pass
        place = rng.randint(0, len(data))
        match rng.randint(0, 3):
            case 0:
                data = data[:place] + rng.choice(RAW) + data[place:]
            case 1:
                data = data[:place] + data[place + rng.randint(1, 20) :]
            case 2:
                data = data[:place] + bytes([rng.randint(0, 255)]) + data[place + 1 :]
            case _:
                other = rng.randint(0, len(data))
                data = data[:place] + data[min(place, other) : max(place, other)] + data[place:]
    return data[:200_000]


def _mutate_value(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        match rng.randint(0, 5):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return {
                    **value,
                    rng.choice(["x", "room_id", "users", "membership", "redacts", ""]): rng.choice(NASTY),
                }
            case _:
                return {**value, key: _mutate_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.5:
        copy = list(value)
        copy[rng.randrange(len(copy))] = rng.choice(NASTY)
        return copy
    return rng.choice(NASTY)


def check(data: bytes, version: str, state: dict[StateKey, Event]) -> bool:
    """Run an input through everything; whether it was an event. Raises on any defect."""
    rules = ROOM_VERSIONS[version]
    try:
        value = parse_json(data)
        again = encode_canonical(value)
        if encode_canonical(parse_json(again)) != again:
            raise AssertionError("encoding is not stable")
    except CanonicalJsonError:
        pass
    try:
        event = parse_event(data, rules)
    except EventFormatError:
        return False
    twin = parse_event(event.pdu_json, rules)
    if (twin.event_id, twin.pdu_json) != (event.event_id, event.pdu_json):
        raise AssertionError("another id after a round trip")
    redacted = redact_event(event)
    if rules.hashed_event_ids and parse_event(redacted.pdu_json, rules).event_id != event.event_id:
        raise AssertionError("another id after redaction")
    auth_types_for(event)
    check_event_auth(event, state)
    check_event_auth(event, {**state, (event.type, event.state_key or ""): event})
    check_content_hash(event.pdu)
    for server in event_signers(event):
        try:
            verify_event_signature(event, server, key_of("a.example").verify_key)
        except SignatureError:
            continue
    is_visible(event, state, BOB, joined_since=True)
    client_event_json(event)
    ServerAcl(event.content).allows("a.example")
    PushEvaluator(event, member_count=2).evaluate(default_ruleset(BOB), BOB, "Bob")
    return True


def main() -> int:
    """Run for the time given; 1 on a defect."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    corpus = seeds()
    states = {version: Room(version).with_members(*USERS[1:]).state for version in ROOM_VERSIONS}
    rng = random.Random(options.seed)
    end = time.monotonic() + options.seconds
    inputs = events = 0
    while time.monotonic() < end:
        version, original = rng.choice(corpus)
        data = mutate(original, rng)
        if rng.random() < 0.2:
            version = rng.choice(list(ROOM_VERSIONS))
        start = time.process_time()
        try:
            events += check(data, version, states[version])
            if time.process_time() - start > SLOW_S:
                raise AssertionError(f"took {time.process_time() - start:.2f} s")
        except Exception as error:
            print(
                f"seed {options.seed}, input {inputs}, version {version}: {error!r}\n{data[:2000]!r}",
                file=sys.stderr,
            )
            raise
        inputs += 1
    print(f"{inputs} inputs, {events} of them events, no defect")
    return 0


if __name__ == "__main__":
    sys.exit(main())

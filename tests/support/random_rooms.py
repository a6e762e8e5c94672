"""Random rooms: forks, bans against joins, power races, redactions, restricted joins, knocks, third-party invites,
creators of version 12, rejected and soft-failed events.

A room is wholly decided by its seed and version. Many steps are meant to be refused: the others would prove
little.
"""

import random
from typing import Any

from matrixlib.events import Event
from matrixlib.signing import sign_json
from tests.support.rooms import ALICE, BOB, CAROL, DAVE, Room, key_of

ERIN = "@erin:a.example"
USERS = (ALICE, BOB, CAROL, DAVE, ERIN)
_LEVELS = (0, 0, 10, 50, 50, 99, 100, 100)
_PROPERTIES = ("ban", "kick", "invite", "redact", "state_default", "events_default", "users_default")
_TYPES = ("m.room.topic", "m.room.name", "m.room.power_levels", "m.room.join_rules", "m.room.message")

_STATE_ACTIONS = (
    "join",
    "join",
    "leave",
    "ban",
    "ban",
    "kick",
    "invite",
    "levels",
    "levels",
    "rules",
    "state",
    "state",
)
_ACTIONS = (
    *_STATE_ACTIONS,
    "knock",
    "knock",
    "restricted",
    "restricted",
    "message",
    "redact",
    "other",
    "rejected",
    "issue",
    "redeem",
    "redeem",
)
_IDENTITY_SERVERS = ("id.example", "id2.example")


def random_room(version: str, seed: int, *, steps: int = 30) -> Room:
    """A room of some steps after its creation."""
    rng = random.Random(f"{version}/{seed}")
    content: dict[str, Any] = {}
    if rng.random() < 0.3:
        content["additional_creators"] = [BOB] if rng.random() < 0.9 else [BOB, "nobody"]
    room = Room(version, content=content, bare=rng.random() < 0.15, soft_fail=True)
    if room.create.event_id in room.rejected:
        return room
    joiners = rng.sample(USERS[1:], rng.randint(1, 4))
    room.with_members(*joiners)
    if rng.random() < 0.6:
        users = {user: rng.choice(_LEVELS) for user in joiners}
        if not room.version.privileged_creators:
            users[ALICE] = 100
        else:
            users.pop(BOB, None)
        room.send(ALICE, "m.room.power_levels", {"users": users}, state_key="")
    for _ in range(steps):
        _step(room, rng)
    if len(room.heads) > 1:
        room.send(ALICE, "m.room.message", {"body": "merge"}, prev=room.heads[-20:])
    return room


def _step(room: Room, rng: random.Random) -> None:
    prev = None
    chance = rng.random()
    if chance < 0.5:
        prev = room.shuffled_heads(rng, rng.randint(1, 3))
        if rng.random() < 0.1:
            # Rejected and soft-failed events are part of the graph too.
            prev = sorted({*prev, rng.choice(room.order[-12:])})
    elif len(room.heads) > 8:
        prev = room.heads[-8:]
    # Equal times happen; the event id then decides.
    ts = rng.choice((None, None, room.clock, 1_700_000_000_000 + rng.randint(0, 50)))
    sender = ALICE if rng.random() < 0.4 else rng.choice(USERS)
    target = rng.choice(USERS)
    action = rng.choice(_ACTIONS)
    common: dict[str, Any] = {"prev": prev, "ts": ts}
    match action:
        case "join" | "leave":
            room.member(sender, action, **common)
        case "knock":
            room.member(_outsider(room, rng, common), action, **common)
        case "invite":
            room.member(_outsider(room, rng, common), action, by=sender, **common)
        case "ban":
            room.member(target, action, by=sender, **common)
        case "kick":
            room.member(target, "leave", by=sender, **common)
        case "levels":
            _change_levels(room, rng, sender, common)
        case "rules":
            rules = (
                *("public", "invite", "private"),
                *("knock", "knock", "restricted", "restricted", "knock_restricted", "knock_restricted"),
            )
            rule: dict[str, Any] = {"join_rule": rng.choice(rules)}
            room.send(sender, "m.room.join_rules", rule, state_key="", **common)
        case "restricted":
            room.member(sender, "join", content={"join_authorised_via_users_server": target}, **common)
        case "state":
            content = {"topic": str(rng.random())}
            room.send(sender, rng.choice(("m.room.topic", "m.room.name")), content, state_key="", **common)
        case "other":
            key = rng.choice((sender, target, "x", "a.example"))
            kind = rng.choice(("org.example.own", "m.room.aliases", "m.room.third_party_invite"))
            room.send(sender, kind, {"display_name": "x"}, state_key=key, **common)
        case "redact":
            room.send(sender, "m.room.redaction", {}, redacts=rng.choice(room.order), **common)
        case "issue":
            _issue_third_party_invite(room, rng, sender, common)
        case "redeem":
            _redeem_third_party_invite(room, rng, target, common)
        case "rejected":
            _with_foreign_auth_event(room, rng, sender, common)
        case _:
            room.send(sender, "m.room.message", {"body": "hello"}, **common)


def _outsider(room: Room, rng: random.Random, common: dict[str, Any]) -> str:
    # Mostly somebody who is not joined: the others are refused for that alone.
    prev = common["prev"]
    state = room.with_events(room.state_before(room.heads if prev is None else prev))
    joined = {key[1] for key, event in state.items() if event.membership == "join"}
    outside = [user for user in USERS if user not in joined]
    return rng.choice(outside if outside and rng.random() < 0.8 else USERS)


def _change_levels(room: Room, rng: random.Random, sender: str, common: dict[str, Any]) -> None:
    prev = common["prev"]
    state = room.state_before(room.heads if prev is None else prev)
    current = state.get(("m.room.power_levels", ""))
    content: dict[str, Any] = dict(room.events[current].content) if current else {}
    users = dict(content.get("users", {}))
    for _ in range(rng.randint(1, 2)):
        what = rng.random()
        if what < 0.5:
            users[rng.choice(USERS)] = rng.choice(_LEVELS)
        elif what < 0.6 and users:
            users.pop(rng.choice(sorted(users)))
        elif what < 0.8:
            content[rng.choice(_PROPERTIES)] = rng.choice(_LEVELS)
        elif what < 0.9:
            content["notifications"] = {"room": rng.choice(_LEVELS)}
        else:
            content["events"] = {**content.get("events", {}), rng.choice(_TYPES): rng.choice(_LEVELS)}
    if rng.random() < 0.08:
        users[rng.choice(USERS)] = rng.choice(("50", " 7 ", "-3"))
    room.send(sender, "m.room.power_levels", {**content, "users": users}, state_key="", **common)


def _with_foreign_auth_event(room: Room, rng: random.Random, sender: str, common: dict[str, Any]) -> Event:
    # An event whose auth events are not those of the selection, or hold a rejected one.
    prev = common["prev"]
    state = room.state_before(room.heads if prev is None else prev)
    keys = [("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.member", sender)]
    if room.version.room_id_is_create_hash:
        del keys[0]
    auth = [state[key] for key in keys if key in state]
    # Not create in version 12: the oracle fails on such an event instead of refusing it.
    auth.append(rng.choice(room.order[1:] if room.version.room_id_is_create_hash else room.order))
    return room.send(sender, "m.room.message", {"body": "odd"}, auth=sorted(set(auth)), **common)


def _issue_third_party_invite(room: Room, rng: random.Random, sender: str, common: dict[str, Any]) -> Event:
    keys = [key_of(name).verify_key.base64 for name in rng.sample(_IDENTITY_SERVERS, rng.randint(1, 2))]
    content: dict[str, Any] = {"display_name": "x..."}
    if rng.random() < 0.7:
        content["public_key"] = keys[0]
    if len(keys) > 1 or "public_key" not in content:
        content["public_keys"] = [{"public_key": key} for key in keys]
    token = f"token{rng.randint(0, 3)}"
    return room.send(sender, "m.room.third_party_invite", content, state_key=token, **common)


def _redeem_third_party_invite(room: Room, rng: random.Random, target: str, common: dict[str, Any]) -> Event:
    # Mostly by who issued it, for whom it was signed, with a key that was listed.
    prev = common["prev"]
    state = room.with_events(room.state_before(room.heads if prev is None else prev))
    issued = [event for key, event in state.items() if key[0] == "m.room.third_party_invite"]
    chosen = rng.choice(issued) if issued else None
    token = "token0" if chosen is None or rng.random() < 0.05 else chosen.state_key
    sender = rng.choice(USERS) if chosen is None or rng.random() < 0.1 else chosen.sender
    signed: dict[str, Any] = {"mxid": target if rng.random() < 0.9 else rng.choice(USERS), "token": token}
    # One at most: of several, Synapse gives up at the first that does not match.
    for name in rng.sample(_IDENTITY_SERVERS, rng.choice((0, 1, 1, 1, 1))):
        signed = sign_json(signed, name, key_of(name))
    if rng.random() < 0.05:
        signed["token"] = "token1"
    content = {"third_party_invite": {"display_name": "x...", "signed": signed}}
    return room.member(target, "invite", by=sender, content=content, **common)

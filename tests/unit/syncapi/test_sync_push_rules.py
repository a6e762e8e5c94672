"""Unread counts of users who have edited their push rules."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from matrixlib.push_rules import default_ruleset
from syncapi.notifications import HIGHLIGHT, class_outcome, evaluator, may_notify_room, mentioned_users
from tests.support.sync_world import ALICE, BOB, CAROL, Room, SyncWorld


@pytest.fixture
def world(database_url: str) -> Iterator[SyncWorld]:
    made = SyncWorld(database_url)
    yield made
    made.close()


async def counts(world: SyncWorld, user: str, room: Room) -> tuple[int, int]:
    unread = (await world.sync(user))["rooms"]["join"][room.room_id]["unread_notifications"]
    return unread["notification_count"], unread["highlight_count"]


async def test_muted_room_counts_nothing_for_who_muted_it(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    room.join(CAROL)
    rules = {kind: [dict(rule) for rule in some] for kind, some in default_ruleset(BOB).items()}
    rules["override"].insert(
        0,
        {
            "rule_id": room.room_id,
            "enabled": True,
            "default": False,
            "actions": [],
            "conditions": [{"kind": "event_match", "key": "room_id", "pattern": room.room_id}],
        },
    )
    world.account_data(BOB, "m.push_rules", {"global": rules})
    room.say(ALICE, "one")
    room.say(ALICE, "two", **{"m.mentions": {"user_ids": [BOB, CAROL]}})
    assert await counts(world, BOB, room) == (0, 0)
    assert await counts(world, CAROL, room) == (2, 1)
    world.account_data(BOB, "m.push_rules", {"global": default_ruleset(BOB)})
    last = room.say(ALICE, "three", **{"m.mentions": {"user_ids": [BOB]}})
    assert await counts(world, BOB, room) == (1, 1)
    room.receipt(BOB, last)
    assert await counts(world, BOB, room) == (0, 0)


async def test_keyword_highlights(world: SyncWorld) -> None:
    room = world.room(ALICE)
    room.join(BOB)
    rules = {kind: [dict(rule) for rule in some] for kind, some in default_ruleset(BOB).items()}
    rules.setdefault("content", []).insert(
        0,
        {
            "rule_id": "cheese",
            "enabled": True,
            "default": False,
            "pattern": "cheese",
            "actions": ["notify", {"set_tweak": "highlight"}],
        },
    )
    world.account_data(BOB, "m.push_rules", {"global": rules})
    room.say(ALICE, "ham")
    room.say(ALICE, "Cheese!")
    assert await counts(world, BOB, room) == (2, 1)


CONTENTS: list[dict[str, Any]] = [
    {"body": "x", "msgtype": "m.text"},
    {"body": "x", "msgtype": "m.notice"},
    {"body": "@room bob", "msgtype": "m.text"},
    {"body": "x", "m.mentions": {"user_ids": [BOB]}},
    {"body": "x", "m.mentions": {"user_ids": [CAROL, 3]}},
    {"body": "x", "m.mentions": {"user_ids": BOB, "room": True}},
    {"body": "x", "msgtype": "m.notice", "m.mentions": {"room": True, "user_ids": [BOB]}},
    {"m.relates_to": {"rel_type": "m.replace", "event_id": "$x"}},
    {"m.relates_to": {"rel_type": "m.replace"}, "m.mentions": {"user_ids": [BOB]}},
    {"membership": "join", "m.mentions": {"user_ids": [BOB]}},
]
TYPES = ["m.room.message", "m.room.encrypted", "m.reaction", "m.room.member", "m.room.tombstone"]
TYPES += ["m.call.invite", "m.room.topic", "m.room.server_acl", "org.example.thing"]


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("level", [0, 100])
def test_class_outcome_is_what_the_predefined_rules_say(content: dict[str, Any], level: int) -> None:
    levels = {"users": {ALICE: level}}
    for type_ in TYPES:
        for state_key in (None, "", BOB):
            pdu: dict[str, Any] = {
                "type": type_,
                "sender": ALICE,
                "content": content,
                "room_id": "!r:here",
                "depth": 1,
                "origin_server_ts": 1,
                "hashes": {"sha256": "x"},
                "signatures": {},
                "prev_events": [],
                "auth_events": [],
            }
            if state_key is not None:
                pdu["state_key"] = state_key
            evaluate = evaluator(orjson.dumps(pdu), "$e", "11", "!r:here", 3, levels, frozenset())
            assert evaluate is not None
            wanted = evaluate(default_ruleset(BOB), BOB, "Bob")
            may = may_notify_room(ALICE, levels, frozenset())
            outcome = class_outcome(type_, state_key, content, sender_may_notify_room=may)
            if BOB in mentioned_users(type_, content):
                outcome = HIGHLIGHT
            assert outcome == wanted, (type_, state_key)

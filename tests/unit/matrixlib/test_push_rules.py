"""Push rules: conditions, kinds, defaults."""

from typing import Any

import pytest

from matrixlib.push_rules import PushEvaluator, default_ruleset, is_valid_actions, is_valid_rule
from tests.support.rooms import ALICE, BOB, Room


def evaluator(
    content: dict[str, Any], *, kind: str = "m.room.message", state_key: str | None = None, **kwargs: Any
) -> PushEvaluator:
    """For an event of Alice's."""
    room = Room("10")
    event = room.send(ALICE, kind, content, state_key=state_key)
    return PushEvaluator(event, **{"member_count": 3, **kwargs})


def holds(condition: dict[str, Any], content: dict[str, Any], **kwargs: Any) -> bool:
    """Whether a condition holds for a content."""
    return evaluator(content, **kwargs).matches("override", {"conditions": [condition]}, "Bob B.")


@pytest.mark.parametrize(
    ("key", "pattern", "expected"),
    [
        ("content.body", "cake", True),
        ("content.body", "ake", False),
        ("content.topic", "x", False),
        ("content.msgtype", "M.*", True),
        ("content.msgtype", "text", False),
        ("type", "m.room.message", True),
        ("sender", ALICE, True),
        (r"content.a\.b", "dot", True),
        ("content.a.b", "nested", True),
        (r"content.back\\slash", "x", True),
        (r"content.\x", "literal", True),
        ("content.number", "*", False),
        ("content.null", "*", False),
        ("room_id", "!room:*", True),
        ("content", "*", False),
        ("state_key", "", False),
        ("", "*", False),
        (5, "*", False),
        ("content.body", 5, False),
        ("content.list", "*", False),
    ],
)
def test_event_match(key: Any, pattern: Any, expected: bool) -> None:
    content = {
        "body": "some Cake!",
        "msgtype": "m.text",
        "a.b": "dot",
        "a": {"b": "nested"},
        "back\\slash": "x",
        "\\x": "literal",
        "number": 5,
        "null": None,
        "list": ["x"],
    }
    assert holds({"kind": "event_match", "key": key, "pattern": pattern}, content) is expected


@pytest.mark.parametrize(
    ("value", "wanted", "expected"),
    [
        (True, True, True),
        (True, 1, False),
        (1, True, False),
        (1, 1, True),
        ("true", True, False),
        (None, None, True),
        ("x", "X", False),
        ([], [], False),
        ({}, {}, False),
        (0, False, False),
    ],
)
def test_event_property_is(value: Any, wanted: Any, expected: bool) -> None:
    assert holds({"kind": "event_property_is", "key": "content.p", "value": wanted}, {"p": value}) is expected


def test_event_property_contains() -> None:
    condition = {"kind": "event_property_contains", "key": "content.list", "value": "a"}
    assert holds(condition, {"list": ["b", "a"]})
    assert not holds(condition, {"list": ["ab", ["a"], {"a": 1}]})
    assert not holds(condition, {"list": "a"})
    assert not holds(condition, {})
    assert not holds({"kind": "event_property_contains", "key": "content.list"}, {"list": [None]})


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("3", True),
        ("==3", True),
        ("<3", False),
        (">2", True),
        (">=3", True),
        ("<=2", False),
        ("2", False),
        ("", False),
        ("three", False),
        (3, False),
        (None, False),
        ("=3", False),
        ("9" * 40, False),
    ],
)
def test_room_member_count(expression: Any, expected: bool) -> None:
    assert holds({"kind": "room_member_count", "is": expression}, {}) is expected


def test_sender_notification_permission() -> None:
    condition = {"kind": "sender_notification_permission", "key": "room"}
    assert holds(condition, {}, sender_level=50)
    assert not holds(condition, {}, sender_level=49)
    assert holds(condition, {}, sender_level=10, notification_levels={"room": 10})
    assert holds(condition, {}, sender_level=float("inf"), notification_levels={"room": 2**53 - 1})
    assert not holds({"kind": "sender_notification_permission"}, {}, sender_level=100)


def test_display_names() -> None:
    condition = {"kind": "contains_display_name"}
    assert holds(condition, {"body": "hi bob b., how are you"})
    assert not holds(condition, {"body": "hi bob bx"})
    assert not holds(condition, {"body": 5})


@pytest.mark.parametrize(
    "condition", [None, 5, "x", [], {}, {"kind": "unknown"}, {"kind": None}, {"kind": []}]
)
def test_unknown_conditions_match_nothing(condition: Any) -> None:
    assert not holds(condition, {"body": "x"})


def test_kinds_in_order_and_disabled_rules() -> None:
    ruleset: dict[str, list[dict[str, Any]]] = {
        "override": [{"rule_id": "off", "enabled": False, "actions": ["notify"]}],
        "content": [
            {"rule_id": "cake", "pattern": "cake", "actions": ["notify", {"set_tweak": "highlight"}]}
        ],
        "room": [{"rule_id": "!room:a.example", "actions": ["dont_notify"]}],
        "sender": [{"rule_id": ALICE, "actions": ["notify"]}],
        "underride": [],
    }
    found = evaluator({"body": "cake"}).evaluate(ruleset, BOB)
    assert (found.kind, found.rule_id, found.notify, found.highlight) == ("content", "cake", True, True)
    found = evaluator({"body": "bread"}).evaluate(ruleset, BOB)
    assert (found.kind, found.actions, found.notify) == ("room", (), False)
    del ruleset["room"]
    assert evaluator({"body": "bread"}).evaluate(ruleset, BOB).rule_id == ALICE
    assert evaluator({"body": "cake"}).evaluate(ruleset, ALICE).rule_id is None
    assert not evaluator({"body": "x"}).evaluate({}, BOB).notify


@pytest.mark.parametrize(
    ("kind", "content", "state_key", "members", "level", "rule", "notify", "highlight"),
    [
        ("m.room.message", {"body": "x"}, None, 3, 0, "message", True, False),
        ("m.room.message", {"body": "x"}, None, 2, 0, "room_one_to_one", True, False),
        ("m.room.encrypted", {}, None, 2, 0, "encrypted_room_one_to_one", True, False),
        ("m.room.encrypted", {}, None, 9, 0, "encrypted", True, False),
        ("m.room.message", {"msgtype": "m.notice"}, None, 3, 0, "suppress_notices", False, False),
        ("m.room.message", {"m.mentions": {"user_ids": [BOB]}}, None, 3, 0, "is_user_mention", True, True),
        ("m.room.message", {"m.mentions": {"room": True}}, None, 3, 50, "is_room_mention", True, True),
        ("m.room.message", {"m.mentions": {"room": True}}, None, 3, 0, "message", True, False),
        (
            "m.room.message",
            {"m.relates_to": {"rel_type": "m.replace"}},
            None,
            3,
            0,
            "suppress_edits",
            False,
            False,
        ),
        ("m.reaction", {}, None, 3, 0, "reaction", False, False),
        ("m.room.member", {"membership": "invite"}, BOB, 3, 0, "invite_for_me", True, False),
        ("m.room.member", {"membership": "join"}, ALICE, 3, 0, "member_event", False, False),
        ("m.room.tombstone", {}, "", 3, 0, "tombstone", True, True),
        ("m.room.tombstone", {}, None, 3, 0, None, False, False),
        ("m.room.server_acl", {}, "", 3, 0, "room.server_acl", False, False),
        ("m.call.invite", {}, None, 3, 0, "call", True, False),
        ("m.room.topic", {}, "", 3, 0, None, False, False),
    ],
)
def test_default_rules(
    kind: str,
    content: dict[str, Any],
    state_key: str | None,
    members: int,
    level: int,
    rule: str | None,
    notify: bool,
    highlight: bool,
) -> None:
    run = evaluator(content, kind=kind, state_key=state_key, member_count=members, sender_level=level)
    found = run.evaluate(default_ruleset(BOB), BOB, "Bob")
    assert found.rule_id == (f".m.rule.{rule}" if rule else None)
    assert (found.notify, found.highlight) == (notify, highlight)


def test_default_rules_are_complete_and_fresh() -> None:
    rules = default_ruleset(BOB)
    assert [len(rules[kind]) for kind in ("override", "content", "room", "sender", "underride")] == [
        10,
        0,
        0,
        0,
        5,
    ]
    assert all(
        rule["default"] and is_valid_rule(kind, rule) for kind, of_kind in rules.items() for rule in of_kind
    )
    rules["override"][2]["actions"][1]["value"] = "changed"
    assert default_ruleset(BOB)["override"][2]["actions"][1]["value"] == "default"


def test_malformed_rules_do_not_match_and_are_not_stored() -> None:
    run = evaluator({"body": "x"})
    malformed: list[tuple[str, dict[str, Any]]] = [
        ("content", {}),
        ("content", {"pattern": 5}),
        ("override", {"conditions": 5}),
        ("room", {}),
    ]
    for kind, rule in malformed:
        assert not run.matches(kind, rule)
    assert run.matches("override", {})
    assert run.evaluate({"override": [{"actions": "notify"}]}, BOB).actions == ()
    assert not is_valid_actions(["notify", 5])
    assert not is_valid_actions([{"set_tweak": 5}])
    assert is_valid_rule("content", {"pattern": "x", "actions": []})
    unstorable: list[tuple[str, dict[str, Any]]] = [
        ("content", {"actions": []}),
        ("x", {"actions": []}),
        ("override", {"actions": [], "conditions": [5]}),
    ]
    for kind, rule in unstorable:
        assert not is_valid_rule(kind, rule)

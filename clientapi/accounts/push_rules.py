"""A user's push rules: the predefined ones with what the user changed (client-server API, "Push Rules: API").

Stored and told as the account data `m.push_rules`, `{"global": {kind: [rule]}}`. What is stored is whole,
predefined rules included; predefined rules that came later than the stored form are filled in when it is
read.
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from matrixlib.push_rules import KINDS, default_ruleset
from servicekit.errors import MatrixError, bad_json, invalid_param, not_found, too_much

MAX_RULES: Final = 10_000
MAX_RULE_ID_BYTES: Final = 300
MAX_RULE_BYTES: Final = 1024 * 4

Rule = dict[str, Any]
Ruleset = dict[str, list[Rule]]


def load_ruleset(user_id: str, content_json: bytes | None) -> Ruleset:
    """Return the user's rules of all kinds, from the stored account data (None: never changed)."""
    defaults = {kind: [dict(rule) for rule in rules] for kind, rules in default_ruleset(user_id).items()}
    if content_json is None:
        return defaults
    stored = orjson.loads(content_json).get("global", {})
    ruleset: Ruleset = {}
    for kind in KINDS:
        changed = {rule["rule_id"]: rule for rule in stored.get(kind, ()) if rule.get("default")}
        own = [rule for rule in stored.get(kind, ()) if not rule.get("default")]
        predefined = []
        for rule in defaults[kind]:
            old = changed.get(rule["rule_id"])
            if old is not None:
                rule["enabled"] = old.get("enabled", True)
                rule["actions"] = old.get("actions", rule["actions"])
            predefined.append(rule)
        # The master rule stands before everything; the user's rules before the other predefined ones.
        first = [rule for rule in predefined if rule["rule_id"] == ".m.rule.master"]
        ruleset[kind] = [*first, *own, *(rule for rule in predefined if rule["rule_id"] != ".m.rule.master")]
    return ruleset


def dump_ruleset(ruleset: Ruleset) -> bytes:
    """Return the account data that stores rules."""
    return orjson.dumps({"global": ruleset})


def find_rule(ruleset: Ruleset, kind: str, rule_id: str) -> Rule:
    """Return a rule. Raises MatrixError M_NOT_FOUND, M_INVALID_PARAM for an unknown kind."""
    for rule in rules_of(ruleset, kind):
        if rule["rule_id"] == rule_id:
            return rule
    raise not_found("There is no such push rule")


def rules_of(ruleset: Ruleset, kind: str) -> list[Rule]:
    """Return the rules of a kind. Raises MatrixError M_INVALID_PARAM."""
    if kind not in KINDS:
        raise invalid_param("Not a kind of push rule")
    return ruleset[kind]


def put_rule(
    ruleset: Ruleset, kind: str, rule_id: str, body: Mapping[str, Any], before: str | None, after: str | None
) -> None:
    """Add a rule or replace the user's own of that id.

    Raises:
        MatrixError: M_INVALID_PARAM, M_BAD_JSON, M_UNKNOWN for `before` or `after`,
        M_RESOURCE_LIMIT_EXCEEDED.
    """
    rules = rules_of(ruleset, kind)
    if rule_id.startswith("."):
        raise invalid_param("Ids that begin with a dot are predefined")
    if len(rule_id.encode()) > MAX_RULE_ID_BYTES or "/" in rule_id or "\\" in rule_id:
        raise invalid_param(f"A rule id has at most {MAX_RULE_ID_BYTES} bytes, and no slash or backslash")
    rule = _new_rule(kind, rule_id, body)
    old = next((index for index, known in enumerate(rules) if known["rule_id"] == rule_id), None)
    if old is not None:
        rule["enabled"] = rules[old]["enabled"]
        if before is None and after is None:
            rules[old] = rule
            return
        del rules[old]
    elif sum(len(known) for known in ruleset.values()) >= MAX_RULES:
        raise too_much(f"A user has at most {MAX_RULES} rules")
    if before is not None:
        rules.insert(_place(rules, before), rule)
    elif after is not None:
        rules.insert(_place(rules, after) + 1, rule)
    else:
        # Newest first among the user's own.
        first = 1 if rules and rules[0]["rule_id"] == ".m.rule.master" else 0
        rules.insert(first, rule)


def delete_rule(ruleset: Ruleset, kind: str, rule_id: str) -> None:
    """Remove a rule of the user's own. Raises MatrixError."""
    rule = find_rule(ruleset, kind, rule_id)
    if rule.get("default"):
        raise invalid_param("Predefined rules cannot be removed, only disabled")
    ruleset[kind].remove(rule)


def set_enabled(ruleset: Ruleset, kind: str, rule_id: str, enabled: bool) -> None:
    """Switch a rule on or off. Raises MatrixError."""
    find_rule(ruleset, kind, rule_id)["enabled"] = enabled


def set_actions(ruleset: Ruleset, kind: str, rule_id: str, actions: Any) -> None:
    """Change what a rule does. Raises MatrixError."""
    find_rule(ruleset, kind, rule_id)["actions"] = check_actions(actions)


def check_actions(actions: Any) -> list[Any]:
    """Return actions that are well-formed: strings and `set_tweak` objects. Raises MatrixError M_BAD_JSON."""
    if not isinstance(actions, list):
        raise bad_json("actions is not a list")
    for action in actions:
        if isinstance(action, str):
            if action not in ("notify", "dont_notify", "coalesce"):
                raise invalid_param("Not an action")
        elif not isinstance(action, dict) or not isinstance(action.get("set_tweak"), str):
            raise invalid_param("Not an action")
    _check_size(actions)
    return actions


def copy_rules_of_room(ruleset: Ruleset, old_room_id: str, new_room_id: str) -> bool:
    """Give a room the rules that the user has for another one; False if there was nothing to do."""
    changed = False
    for kind in ("override", "room", "underride"):
        rules = ruleset[kind]
        ids = {rule["rule_id"] for rule in rules}
        copies = []
        for index, rule in enumerate(rules):
            copy = None if rule.get("default") else _copy_for_room(kind, rule, old_room_id, new_room_id)
            if copy is not None and copy["rule_id"] not in ids:
                copies.append((index, copy))
        # From behind, so that the places of those before stay right.
        for index, copy in reversed(copies):
            if sum(len(known) for known in ruleset.values()) < MAX_RULES:
                rules.insert(index + 1, copy)
                changed = True
    return changed


def _copy_for_room(kind: str, rule: Rule, old_room_id: str, new_room_id: str) -> Rule | None:
    rule_id = rule["rule_id"]
    if kind == "room":
        return {**rule, "rule_id": new_room_id} if rule_id == old_room_id else None
    old = {"kind": "event_match", "key": "room_id", "pattern": old_room_id}
    conditions = rule.get("conditions", [])
    if old not in conditions:
        return None
    new_id = (
        rule_id.replace(old_room_id, new_room_id) if old_room_id in rule_id else f"{rule_id}_{new_room_id}"
    )
    if len(new_id.encode()) > MAX_RULE_ID_BYTES:
        return None
    new = [{**old, "pattern": new_room_id} if condition == old else condition for condition in conditions]
    return {**rule, "rule_id": new_id, "conditions": new}


def _new_rule(kind: str, rule_id: str, body: Mapping[str, Any]) -> Rule:
    if "actions" not in body:
        raise MatrixError("M_MISSING_PARAM", 400, "Missing actions")
    rule: Rule = {
        "rule_id": rule_id,
        "default": False,
        "enabled": True,
        "actions": check_actions(body["actions"]),
    }
    if kind in ("override", "underride"):
        conditions = body.get("conditions", [])
        if not isinstance(conditions, list) or not all(
            isinstance(condition, dict) and isinstance(condition.get("kind"), str) for condition in conditions
        ):
            raise bad_json("conditions is not a list of objects with a kind")
        rule["conditions"] = conditions
    elif kind == "content":
        pattern = body.get("pattern")
        if not isinstance(pattern, str):
            raise MatrixError("M_MISSING_PARAM", 400, "A content rule needs a pattern")
        rule["pattern"] = pattern
    _check_size(rule)
    return rule


def _check_size(value: Any) -> None:
    if len(orjson.dumps(value)) > MAX_RULE_BYTES:
        raise MatrixError("M_TOO_LARGE", 413, f"A push rule holds at most {MAX_RULE_BYTES} bytes")


def _place(rules: list[Rule], rule_id: str) -> int:
    for index, rule in enumerate(rules):
        if rule["rule_id"] == rule_id and not rule.get("default"):
            return index
    raise MatrixError("M_UNKNOWN", 400, f"before/after rule not found: {rule_id}")

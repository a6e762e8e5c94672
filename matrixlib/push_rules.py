"""Push rules: who is to be notified of an event, and how (client-server API, "Push Rules").

``default_ruleset`` makes the predefined rules; ``PushEvaluator`` evaluates many users' rule sets against one
event, computing once what depends on the event only. ``validate_rule`` checks what a client wants to store.

Nothing here raises for a malformed stored rule: it does not match. Time is linear in the event for each
condition.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from matrixlib.default_push_rules import default_ruleset
from matrixlib.events import Event
from matrixlib.globs import compile_glob, compile_literal
from matrixlib.power_levels import Level, parse_level
from matrixlib.room_versions import PowerLevelValues

__all__ = [
    "KINDS",
    "PushEvaluator",
    "PushVerdict",
    "Ruleset",
    "default_ruleset",
    "is_valid_actions",
    "is_valid_rule",
]

KINDS: Final = ("override", "content", "room", "sender", "underride")

Ruleset = Mapping[str, Sequence[Mapping[str, Any]]]
"""Kind -> rules in the client API's format, in order of priority."""

_MISSING: Final = object()
_MEMBER_COUNT: Final = re.compile(r"(==|<=|>=|<|>)?([0-9]{1,15})")
_IGNORED_ACTIONS: Final = ("dont_notify", "coalesce")


@dataclass(frozen=True, slots=True)
class PushVerdict:
    """What a rule set says of an event."""

    kind: str | None
    """Kind of the rule that matched, ``None`` if none did."""
    rule_id: str | None
    actions: tuple[Any, ...]
    """The rule's actions without historical ones."""
    notify: bool
    highlight: bool


_NO_RULE: Final = PushVerdict(None, None, (), notify=False, highlight=False)


class PushEvaluator:
    """Evaluates rule sets against one event."""

    __slots__ = ("_body", "_event", "_levels", "_member_count", "_properties", "_sender_level")

    def __init__(
        self,
        event: Event,
        *,
        member_count: int,
        sender_level: Level = 0,
        notification_levels: Mapping[str, Any] | None = None,
    ) -> None:
        """``member_count``: joined members. ``sender_level``: the sender's power level.
        ``notification_levels``: `notifications` of the power levels event.
        """
        self._event = event
        self._member_count = member_count
        self._sender_level = sender_level
        self._levels = notification_levels if isinstance(notification_levels, dict) else {}
        self._properties: dict[str, Any] = {}
        body = event.content.get("body")
        self._body = body if isinstance(body, str) else None

    def evaluate(self, ruleset: Ruleset, user_id: str, display_name: str | None = None) -> PushVerdict:
        """What a user's rules say: the first that matches decides; without a match nothing is notified.

        ``display_name`` is the user's in the room. The user's own events match nothing.
        """
        if user_id == self._event.sender:
            return _NO_RULE
        for kind in KINDS:
            for rule in ruleset.get(kind, ()):
                if rule.get("enabled", True) is not False and self._matches(kind, rule, display_name):
                    return _verdict(kind, rule)
        return _NO_RULE

    def matches(self, kind: str, rule: Mapping[str, Any], display_name: str | None = None) -> bool:
        """Whether one rule matches the event, enabled or not."""
        return self._matches(kind, rule, display_name)

    def _matches(self, kind: str, rule: Mapping[str, Any], display_name: str | None) -> bool:
        if kind == "room":
            return bool(rule.get("rule_id") == self._event.room_id)
        if kind == "sender":
            return bool(rule.get("rule_id") == self._event.sender)
        if kind == "content":
            pattern = rule.get("pattern")
            if self._body is None or not isinstance(pattern, str):
                return False
            return compile_glob(pattern).matches_words(self._body)
        conditions = rule.get("conditions", ())
        if not isinstance(conditions, list | tuple):
            return False
        return all(self._holds(condition, display_name) for condition in conditions)

    def _holds(self, condition: Any, display_name: str | None) -> bool:
        if not isinstance(condition, dict):
            return False
        match condition.get("kind"):
            case "event_match":
                return self._event_match(condition)
            case "event_property_is":
                return _same(self._property(condition.get("key")), condition.get("value", _MISSING))
            case "event_property_contains":
                values = self._property(condition.get("key"))
                wanted = condition.get("value", _MISSING)
                return isinstance(values, list) and any(_same(value, wanted) for value in values)
            case "contains_display_name":
                # Not a pattern: wildcards in a name stand for themselves.
                if not display_name or self._body is None:
                    return False
                return compile_literal(display_name).matches_words(self._body)
            case "room_member_count":
                return self._member_count_is(condition.get("is"))
            case "sender_notification_permission":
                return self._may_notify(condition.get("key"))
            case _:
                # "Unrecognised conditions MUST NOT match any events"
                return False

    def _event_match(self, condition: Mapping[str, Any]) -> bool:
        key, pattern = condition.get("key"), condition.get("pattern")
        value = self._property(key)
        if not isinstance(value, str) or not isinstance(pattern, str):
            return False
        glob = compile_glob(pattern)
        return glob.matches_words(value) if key == "content.body" else glob.matches(value)

    def _property(self, key: Any) -> Any:
        if not isinstance(key, str):
            return _MISSING
        if key in self._properties:
            return self._properties[key]
        event = self._event
        path = _split_path(key)
        value: Any = _MISSING
        match path[0]:
            case "content":
                value = event.content
            case "room_id":
                value = event.room_id
            case "event_id":
                value = event.event_id
            case "redacts" if event.redacts is not None:
                value = event.redacts
            case name:
                value = event.pdu.get(name, _MISSING)
        for name in path[1:]:
            value = value.get(name, _MISSING) if isinstance(value, dict) else _MISSING
        self._properties[key] = value
        return value

    def _member_count_is(self, expression: Any) -> bool:
        match = _MEMBER_COUNT.fullmatch(expression) if isinstance(expression, str) else None
        if match is None:
            return False
        count = int(match[2])
        match match[1]:
            case "<":
                return self._member_count < count
            case ">":
                return self._member_count > count
            case "<=":
                return self._member_count <= count
            case ">=":
                return self._member_count >= count
            case _:
                return self._member_count == count

    def _may_notify(self, key: Any) -> bool:
        if not isinstance(key, str):
            return False
        level = parse_level(self._levels.get(key), PowerLevelValues.STRINGS)
        return self._sender_level >= (50 if level is None else level)


def is_valid_actions(actions: Any) -> bool:
    """Whether a list of actions may be stored."""
    return isinstance(actions, list) and all(
        isinstance(action, str) or (isinstance(action, dict) and isinstance(action.get("set_tweak"), str))
        for action in actions
    )


def is_valid_rule(kind: str, rule: Mapping[str, Any]) -> bool:
    """Whether a rule of a client may be stored: its shape only; unknown conditions are allowed and match
    nothing.
    """
    if kind not in KINDS or not is_valid_actions(rule.get("actions")):
        return False
    if kind == "content":
        return isinstance(rule.get("pattern"), str)
    if kind in ("override", "underride"):
        conditions = rule.get("conditions", [])
        return isinstance(conditions, list) and all(
            isinstance(condition, dict) and isinstance(condition.get("kind"), str) for condition in conditions
        )
    return True


@lru_cache(maxsize=4096)
def _split_path(key: str) -> tuple[str, ...]:
    # Appendices, "Dot-separated property paths": a backslash escapes a dot or a backslash, nothing else.
    parts = [""]
    position = 0
    while position < len(key):
        char = key[position]
        if char == "\\" and key[position + 1 : position + 2] in (".", "\\"):
            parts[-1] += key[position + 1]
            position += 1
        elif char == ".":
            parts.append("")
        else:
            parts[-1] += char
        position += 1
    return tuple(parts)


def _same(value: Any, wanted: Any) -> bool:
    # "The match is performed exactly and only supports non-compound canonical JSON values"; True is not 1.
    if value is _MISSING or wanted is _MISSING:
        return False
    if value is None or isinstance(value, str | bool | int):
        return type(value) is type(wanted) and bool(value == wanted)
    return False


def _verdict(kind: str, rule: Mapping[str, Any]) -> PushVerdict:
    listed = rule.get("actions")
    actions = tuple(
        action for action in (listed if isinstance(listed, list) else ()) if action not in _IGNORED_ACTIONS
    )
    # "If a `highlight` tweak is given with no value, its value is defined to be `true`."
    highlight = any(
        isinstance(action, dict)
        and action.get("set_tweak") == "highlight"
        and action.get("value", True) is True
        for action in actions
    )
    rule_id = rule.get("rule_id")
    return PushVerdict(
        kind,
        rule_id if isinstance(rule_id, str) else None,
        actions,
        notify="notify" in actions,
        highlight=highlight,
    )

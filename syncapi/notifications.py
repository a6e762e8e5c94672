"""What push rules make of an event, without a row per member (client-server API, "Push notifications").

Users with the default rules form one class: an event notifies all of them or none, and highlights all or
none (`ClassOutcome`). Only who differs gets a row: who is mentioned, and who has edited rules.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import orjson

from matrixlib.events import parse_event
from matrixlib.push_rules import PushEvaluator, Ruleset
from matrixlib.room_versions import get_room_version
from servicekit.logging import get_logger

log = get_logger(__name__)

__all__ = ["Outcome", "Ruleset", "class_outcome", "evaluator", "mentioned_users", "parse_rules"]
Evaluate = Callable[[Ruleset, str, str | None], "Outcome"]


class Outcome(NamedTuple):
    """Whether an event notifies, and whether with a highlight."""

    notify: bool
    highlight: bool


SILENT = Outcome(False, False)
NOTIFY = Outcome(True, False)
HIGHLIGHT = Outcome(True, True)

_NOTIFYING_TYPES = frozenset({"m.room.message", "m.room.encrypted", "m.call.invite"})


def is_edit(content: Mapping[str, Any]) -> bool:
    """Whether the content replaces another event's."""
    relation = content.get("m.relates_to")
    return isinstance(relation, dict) and relation.get("rel_type") == "m.replace"


def may_notify_room(sender: str, power_levels: Mapping[str, Any] | None, creators: frozenset[str]) -> bool:
    """Whether the sender's `@room` counts: `notifications.room` of the power levels, 50 by default."""
    levels = power_levels or {}
    notifications = levels.get("notifications")
    required = notifications.get("room", 50) if isinstance(notifications, dict) else 50
    level = sender_level(sender, levels, creators)
    try:
        return level >= int(required)
    except (TypeError, ValueError):
        return False


def sender_level(sender: str, power_levels: Mapping[str, Any], creators: frozenset[str]) -> float:
    """Return a user's power level; of a creator with unlimited power, infinity."""
    if sender in creators:
        return float("inf")
    users = power_levels.get("users")
    level = users.get(sender) if isinstance(users, dict) else None
    try:
        return int(power_levels.get("users_default", 0) if level is None else level)
    except (TypeError, ValueError):
        return 0


def creators_with_power(room_version: str, create_sender: str, content: Mapping[str, Any]) -> frozenset[str]:
    """Return the users whose power is without limit, by the create event of a room; none in most versions."""
    version = get_room_version(room_version)
    if version is None or not version.privileged_creators:
        return frozenset()
    others = content.get("additional_creators")
    others = others if isinstance(others, list) else []
    return frozenset({create_sender, *(user for user in others if isinstance(user, str))})


def parse_rules(content_json: bytes) -> Ruleset:
    """Return the rule set in an `m.push_rules`; an empty one if it is none."""
    content = orjson.loads(content_json)
    rules = content.get("global") if isinstance(content, dict) else None
    return rules if isinstance(rules, dict) else {}


def evaluator(
    pdu_json: bytes,
    event_id: str,
    room_version: str,
    room_id: str,
    member_count: int,
    power_levels: Mapping[str, Any],
    creators: frozenset[str],
) -> Evaluate | None:
    """Return what says how a user's edited rules take an event; None: the event does not parse."""
    version = get_room_version(room_version)
    if version is None:
        return None
    try:
        event = parse_event(pdu_json, version, event_id=event_id, verify_size=False)
    except Exception as error:
        log.warning("push_rules_not_evaluated", room_id=room_id, event_id=event_id, error=repr(error))
        return None
    made = PushEvaluator(
        event,
        member_count=member_count,
        sender_level=sender_level(event.sender, power_levels, creators),
        notification_levels=power_levels.get("notifications"),
    )

    def evaluate(rules: Ruleset, user_id: str, display_name: str | None) -> Outcome:
        verdict = made.evaluate(rules, user_id, display_name)
        return Outcome(verdict.notify, verdict.highlight and verdict.notify)

    return evaluate


def class_outcome(
    type_: str, state_key: str | None, content: Mapping[str, Any], *, sender_may_notify_room: bool
) -> Outcome:
    """Return what the predefined rules say to a user whom the event does not mention."""
    if content.get("msgtype") == "m.notice" or type_ == "m.room.member":
        return SILENT
    if sender_may_notify_room and pings_room(content):
        return HIGHLIGHT
    if type_ == "m.room.tombstone" and state_key == "":
        return HIGHLIGHT
    if type_ not in _NOTIFYING_TYPES or is_edit(content):
        return SILENT
    return NOTIFY


def pings_room(content: Mapping[str, Any]) -> bool:
    """Whether the content mentions the whole room."""
    mentions = content.get("m.mentions")
    return isinstance(mentions, dict) and mentions.get("room") is True


def mentioned_users(type_: str, content: Mapping[str, Any]) -> list[str]:
    """Return the users whom the content mentions and the predefined rules highlight the event for."""
    mentions = content.get("m.mentions")
    if not isinstance(mentions, dict) or content.get("msgtype") == "m.notice" or type_ == "m.room.member":
        return []
    user_ids = mentions.get("user_ids")
    return [user for user in user_ids if isinstance(user, str)] if isinstance(user_ids, list) else []

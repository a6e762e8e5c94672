"""What push rules make of an event, without a row per member (client-server API, "Push notifications").

Users with the default rules form one class: an event notifies all of them or none, and highlights all or
none (`ClassOutcome`). Only who differs gets a row: who is mentioned, and who has edited rules.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from servicekit.logging import get_logger

log = get_logger(__name__)


class Outcome(NamedTuple):
    """Whether an event notifies, and whether with a highlight."""

    notify: bool
    highlight: bool


SILENT = Outcome(False, False)
NOTIFY = Outcome(True, False)
HIGHLIGHT = Outcome(True, True)

_NOTIFYING_TYPES = frozenset({"m.room.message", "m.room.encrypted", "m.call.invite"})
_ROOM_WORD = re.compile(r"(?<!\w)@room(?!\w)", re.IGNORECASE)


def is_edit(content: Mapping[str, Any]) -> bool:
    """Whether the content replaces another event's."""
    relation = content.get("m.relates_to")
    return isinstance(relation, dict) and relation.get("rel_type") == "m.replace"


def may_notify_room(sender: str, power_levels: Mapping[str, Any] | None, creators: frozenset[str]) -> bool:
    """Whether the sender's `@room` counts: `notifications.room` of the power levels, 50 by default."""
    if sender in creators:
        return True
    levels = power_levels or {}
    notifications = levels.get("notifications")
    required = notifications.get("room", 50) if isinstance(notifications, dict) else 50
    users = levels.get("users")
    level = users.get(sender) if isinstance(users, dict) else None
    if level is None:
        level = levels.get("users_default", 0)
    try:
        return int(level) >= int(required)
    except (TypeError, ValueError):
        return False


def class_outcome(
    type_: str, state_key: str | None, content: Mapping[str, Any], *, sender_may_notify_room: bool
) -> Outcome:
    """Return what the predefined rules say to a user whom the event does not mention."""
    if type_ == "m.room.member":
        return SILENT
    if type_ == "m.room.message" and content.get("msgtype") == "m.notice":
        return SILENT
    mentions = content.get("m.mentions")
    if sender_may_notify_room:
        if isinstance(mentions, dict):
            if mentions.get("room") is True:
                return HIGHLIGHT
        elif isinstance(body := content.get("body"), str) and _ROOM_WORD.search(body):
            return HIGHLIGHT
    if type_ == "m.room.tombstone" and state_key == "":
        return HIGHLIGHT
    if type_ not in _NOTIFYING_TYPES or is_edit(content):
        return SILENT
    return NOTIFY


def mentioned_users(type_: str, content: Mapping[str, Any], names: Mapping[str, str | None]) -> set[str]:
    """Return those users whom the predefined rules highlight the event for by name.

    Args:
        names: the users who may be meant -> their display names.
    """
    if type_ == "m.room.member" or (type_ == "m.room.message" and content.get("msgtype") == "m.notice"):
        return set()
    mentions = content.get("m.mentions")
    if isinstance(mentions, dict):
        user_ids = mentions.get("user_ids")
        if not isinstance(user_ids, list):
            return set()
        return {user for user in user_ids if isinstance(user, str) and user in names}
    body = content.get("body")
    if type_ != "m.room.message" or not isinstance(body, str):
        return set()
    folded = body.casefold()
    edit = is_edit(content)
    found = set()
    for user, display_name in names.items():
        # The rule on the localpart comes after the one that silences edits, the one on the display name before.
        words = [display_name] if edit else [display_name, user[1:].partition(":")[0]]
        for word in words:
            if word and (lower := word.casefold()) in folded and _stands_alone(lower, folded):
                found.add(user)
                break
    return found


def _stands_alone(word: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None

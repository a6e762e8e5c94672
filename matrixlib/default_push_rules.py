"""The predefined push rules (client-server API, "Predefined Rules")."""

from collections.abc import Sequence
from typing import Any

_NOTIFY = "notify"
_SOUND = {"set_tweak": "sound", "value": "default"}
_RING = {"set_tweak": "sound", "value": "ring"}
_HIGHLIGHT = {"set_tweak": "highlight"}

Rule = dict[str, Any]


def default_ruleset(user_id: str) -> dict[str, list[Rule]]:
    """The predefined rules for a user: kind -> rules, in order of priority.

    `.m.rule.master` stands before, all others of a kind behind the user's own rules of that kind.
    """
    return {
        "override": [
            _rule("master", [], [], enabled=False),
            _rule("suppress_notices", [_match("content.msgtype", "m.notice")], []),
            _rule(
                "invite_for_me",
                [
                    _match("type", "m.room.member"),
                    _match("content.membership", "invite"),
                    _match("state_key", user_id),
                ],
                [_NOTIFY, _SOUND],
            ),
            _rule("member_event", [_match("type", "m.room.member")], []),
            _rule(
                "is_user_mention",
                [
                    {
                        "kind": "event_property_contains",
                        "key": r"content.m\.mentions.user_ids",
                        "value": user_id,
                    }
                ],
                [_NOTIFY, _SOUND, _HIGHLIGHT],
            ),
            _rule(
                "is_room_mention",
                [
                    {"kind": "event_property_is", "key": r"content.m\.mentions.room", "value": True},
                    {"kind": "sender_notification_permission", "key": "room"},
                ],
                [_NOTIFY, _HIGHLIGHT],
            ),
            _rule(
                "tombstone",
                [_match("type", "m.room.tombstone"), _match("state_key", "")],
                [_NOTIFY, _HIGHLIGHT],
            ),
            _rule("reaction", [_match("type", "m.reaction")], []),
            _rule("room.server_acl", [_match("type", "m.room.server_acl"), _match("state_key", "")], []),
            _rule(
                "suppress_edits",
                [
                    {
                        "kind": "event_property_is",
                        "key": r"content.m\.relates_to.rel_type",
                        "value": "m.replace",
                    }
                ],
                [],
            ),
        ],
        "content": [],
        "room": [],
        "sender": [],
        "underride": [
            _rule("call", [_match("type", "m.call.invite")], [_NOTIFY, _RING]),
            _rule(
                "encrypted_room_one_to_one",
                [_members("2"), _match("type", "m.room.encrypted")],
                [_NOTIFY, _SOUND],
            ),
            _rule("room_one_to_one", [_members("2"), _match("type", "m.room.message")], [_NOTIFY, _SOUND]),
            _rule("message", [_match("type", "m.room.message")], [_NOTIFY]),
            _rule("encrypted", [_match("type", "m.room.encrypted")], [_NOTIFY]),
        ],
    }


def _rule(name: str, conditions: list[Rule], actions: Sequence[Any], *, enabled: bool = True) -> Rule:
    return {
        "rule_id": f".m.rule.{name}",
        "default": True,
        "enabled": enabled,
        "conditions": conditions,
        "actions": [dict(action) if isinstance(action, dict) else action for action in actions],
    }


def _match(key: str, pattern: str) -> Rule:
    return {"kind": "event_match", "key": key, "pattern": pattern}


def _members(count: str) -> Rule:
    return {"kind": "room_member_count", "is": count}

"""Push rules: the defaults and their evaluation (client-server API, "Push Notifications")."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matrixlib.events import Event

Ruleset = Mapping[str, Sequence[Mapping[str, Any]]]
"""Kind (override, content, room, sender, underride) -> rules in the client API's format, in order."""


@dataclass(frozen=True, slots=True)
class PushVerdict:
    """What a rule set says of an event: the matching rule's id, and its actions parsed."""

    rule_id: str | None
    actions: tuple[Any, ...]
    notify: bool
    highlight: bool


def default_ruleset(user_id: str) -> dict[str, list[dict[str, Any]]]:
    """The predefined rules for a user."""
    raise NotImplementedError


class PushEvaluator:
    """Evaluates many users' rules against one event; what depends on the event only is computed once."""

    def __init__(
        self,
        event: Event,
        *,
        member_count: int,
        sender_level: float = 0,
        notification_levels: Mapping[str, Any] | None = None,
    ) -> None:
        """``member_count``: joined members. ``notification_levels``: `notifications` of the power levels."""
        raise NotImplementedError

    def evaluate(self, ruleset: Ruleset, user_id: str, display_name: str | None) -> PushVerdict:
        """The first rule that matches decides; none matching means no notification."""
        raise NotImplementedError

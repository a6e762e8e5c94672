"""What a user's push rules have clients do for an event that notified the user, worked out when asked for.

Only whether an event notified, and with a highlight, is kept (`notifications`); so the rules that the user has now are
asked about the room as it was at the event. Where they say something else than what was kept, they were others then.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import Connection

from matrixlib.events import Event
from matrixlib.push_rules import PushEvaluator, Ruleset, default_ruleset
from matrixlib.room_versions import get_room_version
from syncapi.applied import RoomCounters, StoredEvent
from syncapi.notifications import Outcome, creators_with_power, parse_rules, sender_level
from syncapi.storage import rooms, state
from syncapi.storage.accounts import load_account_entry

NOTIFY: Sequence[Any] = ("notify",)
HIGHLIGHT: Sequence[Any] = ("notify", {"set_tweak": "highlight"})


class PushActions:
    """Tells one user's actions for events, in one snapshot."""

    def __init__(self, connection: Connection, user_id: str) -> None:
        self._connection = connection
        self._user_id = user_id
        stored = load_account_entry(connection, user_id, "m.push_rules")
        self._rules: Ruleset = default_ruleset(user_id) if stored is None else parse_rules(stored)
        self._rooms: dict[str, RoomCounters | None] = {}

    def of(self, event: StoredEvent, outcome: Outcome) -> Sequence[Any]:
        """Return the actions of the rule by which an event notified; `outcome` is what was kept of that."""
        evaluator = self._evaluator(event)
        if evaluator is not None:
            name = self._content(event, "m.room.member", self._user_id).get("displayname")
            verdict = evaluator.evaluate(self._rules, self._user_id, name if isinstance(name, str) else None)
            if (verdict.notify, verdict.highlight) == outcome:
                return verdict.actions
        return HIGHLIGHT if outcome.highlight else NOTIFY

    def _evaluator(self, event: StoredEvent) -> PushEvaluator | None:
        room_id = event.room_id
        if room_id not in self._rooms:
            self._rooms[room_id] = rooms.load_room(self._connection, room_id)
        room = self._rooms[room_id]
        version = get_room_version(room.version) if room is not None else None
        if room is None or version is None:
            return None
        shown: dict[str, Any] = orjson.loads(event.body + b"}")
        levels = self._content(event, "m.room.power_levels")
        create = state.load_state_event(self._connection, room_id, "m.room.create", "")
        creators: frozenset[str] = frozenset()
        if create is not None:
            creators = creators_with_power(
                room.version, create.sender, orjson.loads(create.body + b"}")["content"]
            )
        return PushEvaluator(
            Event(
                event_id=event.event_id,
                room_id=room_id,
                type=event.type,
                state_key=event.state_key,
                sender=event.sender,
                content=shown["content"],
                depth=event.depth,
                origin_server_ts=shown["origin_server_ts"],
                prev_event_ids=(),
                auth_event_ids=(),
                redacts=shown.get("redacts"),
                pdu=shown,
                room_version=version,
            ),
            member_count=state.count_joined(self._connection, room_id, room.joined, event.position),
            sender_level=sender_level(event.sender, levels, creators),
            notification_levels=levels.get("notifications"),
        )

    def _content(self, event: StoredEvent, type_: str, state_key: str = "") -> Mapping[str, Any]:
        found = state.load_state_event(self._connection, event.room_id, type_, state_key, event.position)
        content: dict[str, Any] = {} if found is None else orjson.loads(found.body + b"}")["content"]
        return content

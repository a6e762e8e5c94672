"""Authorisation rules of room versions 1 to 12 (stub being completed; names are stable)."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from matrixlib.events import Event, StateKey
from matrixlib.room_versions import RoomVersion


@dataclass(frozen=True, slots=True)
class Allowed:
    """The event is allowed."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The event is refused: by which rule of which room version's page, and why in words."""

    room_version: str
    rule: str
    reason: str

    def __str__(self) -> str:
        return f"room version {self.room_version}, rule {self.rule}: {self.reason}"


Verdict = Allowed | Refused
ALLOWED: Final = Allowed()


def auth_types_for_event(
    room_version: RoomVersion, event_type: str, sender: str, state_key: str | None, content: Mapping[str, Any]
) -> frozenset[StateKey]:
    """The state entries to select as an event's `auth_events`, as `(type, state_key)`."""
    raise NotImplementedError


def check_auth_events(
    event: Event, auth_events: Iterable[Event], *, rejected: Container[str] = frozenset()
) -> Verdict:
    """Judge an event's `auth_events` themselves (the rule "Considering the event's `auth_events`").

    ``auth_events``: all the events that it names. ``rejected``: ids of those that were rejected.
    """
    raise NotImplementedError


def check_event_auth(event: Event, state: Mapping[StateKey, Event]) -> Verdict:
    """Judge an event against a state, which needs only the entries of ``auth_types_for_event`` (and create).

    The caller has checked signatures (``signing.event_signers``) and, for an event received,
    ``check_auth_events``.
    """
    raise NotImplementedError

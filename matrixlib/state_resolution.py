"""State resolution v1, v2 and v2.1 (room versions, "State resolution"). Synchronous; asks a store for
events.
"""

from collections.abc import Collection, Container, Mapping, Sequence
from typing import Protocol

from matrixlib.events import Event, StateKey
from matrixlib.room_versions import RoomVersion

StateMap = Mapping[StateKey, str]


class ResolutionStore(Protocol):
    """What resolution asks for. Each method is called few times, with many ids at once."""

    def get_events(self, event_ids: Collection[str]) -> Mapping[str, Event]:
        """event id -> event, those unknown left out."""

    def is_rejected(self, event_id: str) -> bool:
        """Whether an event was rejected."""

    def auth_chain_difference(self, state_sets: Sequence[frozenset[str]]) -> set[str]:
        """Events in the full auth chain of some, but not of every set of event ids."""


class MemoryStore:
    """A ``ResolutionStore`` over events in memory."""

    def __init__(self, events: Mapping[str, Event], rejected: Container[str] = frozenset()) -> None:
        self.events = events
        self.rejected = rejected


def resolve(
    room_version: RoomVersion, state_sets: Sequence[StateMap], store: ResolutionStore
) -> dict[StateKey, str]:
    """Resolve state sets, each `(type, state_key) -> event_id`, into one."""
    raise NotImplementedError

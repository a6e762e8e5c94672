"""What somebody wants to happen in a room, and what came of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from matrixlib.events import Event, StateKey
from matrixlib.room_versions import RoomVersion


class TransactionKey(NamedTuple):
    """Names a client's request, so that a repeated one never makes a second event."""

    user_id: str
    device_id: str
    endpoint: str
    room_id: str
    txn_id: str


class Sent(NamedTuple):
    """An event is stored and judged. `output_sequence` 0: nothing was told on OUTPUT."""

    event_id: str
    output_sequence: int


@dataclass(frozen=True, slots=True)
class Draft:
    """An event before it is built."""

    type: str
    content: Mapping[str, Any]
    state_key: str | None = None
    redacts: str | None = None


@dataclass(frozen=True, slots=True)
class AlreadyThere:
    """Nothing is to be sent: this event says it already."""

    event_id: str


Decide = Callable[[RoomVersion, Mapping[StateKey, Event]], Draft | AlreadyThere]
"""Decides by the room's state (the wanted entries of it) what is to be sent, or raises MatrixError."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a user wants to send into a room.

    Attributes:
        sender: full user id of a local user.
        draft: the event; with `decide`, only its type, state key and the content's membership count, to
            know which
            state is needed.
        wanted: further state entries that `decide` looks at.
        decide: see `Decide`; None: the draft is sent as it is.
    """

    sender: str
    draft: Draft
    wanted: frozenset[StateKey] = field(default=frozenset())
    decide: Decide | None = None

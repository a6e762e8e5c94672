"""What is true for a moment: who types, and who is present, from the LIVE stream. In memory only.

A token's LIVE part says up to where a client knows; after a restart of NATS the epoch differs, and the client
is told what is current.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import orjson

from arbor.log.v1 import live_pb2
from servicekit.logging import get_logger

log = get_logger(__name__)

FORGET_AFTER_MS = 5 * 60 * 1000


def now_ms() -> int:
    """Return the wall clock in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class RoomTyping:
    """Who types in a room: user -> until when. `sequence` of the last change."""

    sequence: int
    changed_ms: int
    until_ms: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class UserPresence:
    """A user's presence; `sequence` of the last change, `rooms` of a user of another server."""

    sequence: int
    presence: str
    status_msg: str | None
    last_active_ms: int
    currently_active: bool
    rooms: set[str] = field(default_factory=set)

    def render(self, user_id: str, clock_ms: int) -> bytes:
        """Return the `m.presence` event."""
        content: dict[str, object] = {
            "presence": self.presence,
            "currently_active": self.currently_active,
        }
        if self.last_active_ms:
            content["last_active_ago"] = max(clock_ms - self.last_active_ms, 0)
        if self.status_msg is not None:
            content["status_msg"] = self.status_msg
        return orjson.dumps({"type": "m.presence", "sender": user_id, "content": content})


class Live:
    """See the module. Only used on the event loop."""

    def __init__(self, clock_ms: Callable[[], int] = now_ms) -> None:
        self.epoch = "0"
        self.sequence = 0
        self.typing: dict[str, RoomTyping] = {}
        self.presence: dict[str, UserPresence] = {}
        self.clock_ms = clock_ms

    def begin(self, epoch: str) -> None:
        """Follow a stream: another epoch means that nothing of before is true any more."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.sequence = 0
            self.typing.clear()
            self.presence.clear()

    def apply(self, sequence: int, data: bytes) -> tuple[str | None, str | None]:
        """Take in a message; returns (room whose typing changed, user whose presence changed)."""
        self.sequence = max(self.sequence, sequence)
        message = live_pb2.LiveMessage()
        try:
            message.ParseFromString(data)
        except Exception:
            log.warning("live_message_undecodable", sequence=sequence)
            return None, None
        kind = message.WhichOneof("kind")
        if kind == "typing":
            self._typing(sequence, message.typing)
            return message.typing.room_id, None
        if kind == "presence":
            told = message.presence
            self.presence.pop(told.user_id, None)  # the dictionary is in the order of changes
            self.presence[told.user_id] = UserPresence(
                sequence,
                told.presence,
                told.status_msg if told.HasField("status_msg") else None,
                told.last_active_ms,
                told.currently_active,
                set(told.room_ids),
            )
            return None, told.user_id
        return None, None

    def _typing(self, sequence: int, told: live_pb2.Typing) -> None:
        clock = self.clock_ms()
        room = self.typing.get(told.room_id)
        if room is None:
            room = self.typing[told.room_id] = RoomTyping(sequence, clock)
        room.sequence, room.changed_ms = sequence, clock
        if told.typing:
            room.until_ms[told.user_id] = told.until_ms
        else:
            room.until_ms.pop(told.user_id, None)
        if len(self.typing) > 1000:
            for room_id, other in list(self.typing.items()):
                if other.changed_ms + FORGET_AFTER_MS < clock:
                    del self.typing[room_id]

    def move(self, room_id: str, user_id: str, joined: bool) -> None:
        """Note that a user of another server came into a room, or left it."""
        told = self.presence.get(user_id)
        if told is None:
            return
        if joined:
            told.rooms.add(room_id)
        else:
            told.rooms.discard(room_id)

    def typists(self, room_id: str) -> list[str]:
        """Return who types in a room now."""
        room = self.typing.get(room_id)
        if room is None:
            return []
        clock = self.clock_ms()
        return [user for user, until in room.until_ms.items() if until > clock]

    def typing_since(self, rooms: set[str], epoch: str | None, sequence: int) -> dict[str, list[str]]:
        """Return the rooms whose typing the client does not know -> who types there.

        Args:
            rooms: that may be told of.
            epoch: of the client's token; None or another one: tell what is current.
        """
        current = epoch == self.epoch
        found: dict[str, list[str]] = {}
        for room_id, room in self.typing.items():
            if room_id in rooms and (not current or room.sequence > sequence):
                users = self.typists(room_id)
                if users or current:
                    found[room_id] = users
        return found

    def presence_since(self, epoch: str | None, sequence: int) -> Iterator[tuple[str, UserPresence]]:
        """Yield the users whose presence the client does not know, last changed first."""
        known = sequence if epoch == self.epoch else 0
        for user_id, told in reversed(self.presence.items()):
            if told.sequence <= known:
                return
            yield user_id, told

"""Readers of one process that read along with another, so that each message crosses the wire once.

    a reader of everything ──► Lead ──► readers with filters that have caught up
                                │
                                └─ ends with trouble of any kind: each opens a consumer of its own again

The lead keeps the last messages, so that one who is a little behind can begin without a gap.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from servicekit.log.reader import LogMessage

RECENT = 256
RECENT_BYTES = 2 * 1024 * 1024


class Along(Protocol):
    """Who reads along."""

    def on_told(self, message: "LogMessage") -> None:
        """Take a message, if it is wanted. It belongs to others, too."""
        ...

    def on_lead_ended(self) -> None:
        """Go on alone, after the last message that was told."""
        ...


class Lead:
    """What a reader of everything in a stream has to tell: all messages after `after`, in order."""

    def __init__(self, after: int) -> None:
        self.heard_s = 0.0
        """When the leading reader heard of the server last."""
        self._loop = asyncio.get_running_loop()
        self._complete_after = after
        self._recent: deque[LogMessage] = deque()
        self._recent_bytes = 0
        self._along: list[Along] = []

    def tell(self, message: "LogMessage") -> None:
        """Pass a message on."""
        self._recent.append(message)
        self._recent_bytes += len(message.data)
        while len(self._recent) > RECENT or self._recent_bytes > RECENT_BYTES:
            oldest = self._recent.popleft()
            self._recent_bytes -= len(oldest.data)
            self._complete_after = oldest.sequence
        for reader in list(self._along):
            reader.on_told(message)

    def join(self, reader: Along, after: int) -> bool:
        """Have a reader that stands after a sequence told of all that follows; False: some of it is gone from
        here.
        """
        if after < self._complete_after or self._loop is not asyncio.get_running_loop():
            return False
        self._along.append(reader)
        for message in list(self._recent):
            if message.sequence > after:
                reader.on_told(message)
        return True

    def leave(self, reader: Along) -> None:
        """Tell a reader nothing more."""
        if reader in self._along:
            self._along.remove(reader)

    def end(self) -> None:
        """Leave everybody alone."""
        along, self._along = self._along, []
        for reader in along:
            reader.on_lead_ended()


leads: dict[tuple[str, str], Lead] = {}
"""(stream, epoch) -> the lead of this process."""

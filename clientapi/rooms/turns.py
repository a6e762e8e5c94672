"""Whose turn it is in a room that another process writes into, too.

A lane that hears of another writer (STALE, or `contended` in a verdict) is *contended* for a while: it has
one message under way at a time, with all that waits chained in it, and before the next it watches the room's
head until the other writer has had its turn, or has not taken it. Two writers alternate instead of making
each other's chains stale. How that came to be: docs/decisions/clientapi-lanes.md.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from enum import Enum

from clientapi.rooms.head import Head
from servicekit.errors import MatrixError

CHAIN_MAX_ENTRIES = 100
CHAIN_MIN_ENTRIES = 4
CONTENDED_S = 1.0
MIN_TURN_S = 0.006
MAX_TURN_S = 0.1
PATIENCE_TURNS = 6


class Patience(Enum):
    """What a contended lane waits for before it writes."""

    NONE = "nothing"
    UNTIL_OTHER = "the other writer's event"
    UNTIL_QUIET = "a head that stands still"


class Turns:
    """The turns of one lane. Times are of the loop's clock, in seconds."""

    __slots__ = ("_chain_limit", "_contended_until_s", "_turn_s", "chain_length", "last_accepted", "patience")

    def __init__(self) -> None:
        self._contended_until_s = 0.0
        self._turn_s = 0.005
        # Halved by each STALE, for what is in a chain is lost together; doubled by each message accepted.
        self._chain_limit = CHAIN_MAX_ENTRIES
        self.chain_length = 0
        """Entries of the message written last."""
        self.patience = Patience.NONE
        """What to wait for before the next message, if the room is contended by then."""
        self.last_accepted = ""
        """The event of ours that was accepted last."""

    def contended(self, now_s: float) -> bool:
        """Say whether another writer was heard of a short time ago."""
        return now_s < self._contended_until_s

    def chain_limit(self, now_s: float) -> int:
        """Return how many entries the next message may have."""
        return self._chain_limit if now_s < self._contended_until_s else CHAIN_MAX_ENTRIES

    def contend(self, now_s: float) -> bool:
        """Another writer is in this room: take turns for a while. Returns whether that was known."""
        known = now_s < self._contended_until_s
        self._contended_until_s = now_s + CONTENDED_S
        return known

    def lose(self, now_s: float, *, once_more: bool) -> None:
        """Another writer was quicker. `once_more`: the same request lost before."""
        known = self.contend(now_s)
        self._chain_limit = max(min(self._chain_limit, self.chain_length) // 2, CHAIN_MIN_ENTRIES)
        # Known: the other writer waits for us. New, or once more: it hears only now that it is not alone, and
        # may have more under way.
        self.patience = Patience.NONE if known and not once_more else Patience.UNTIL_QUIET

    def settle(self, took_s: float, *, on_present_view: bool) -> None:
        """A message came back after `took_s`; `on_present_view`: nothing has made its view old."""
        if on_present_view:
            self._chain_limit = min(self._chain_limit * 2, CHAIN_MAX_ENTRIES)
        self._turn_s = 0.8 * self._turn_s + 0.2 * took_s

    async def wait(self, look: Callable[[], Awaitable[Head | None]]) -> None:
        """Watch the room's head until it is our turn. To be called while contended, patience or not.

        After something of ours was accepted the other writer is next: wait until its event is there. When
        contention begins the other may have more under way: wait until the head stands still. Both for some
        turns only; whoever does not use them has nothing to write.

        Args:
            look: asks for the head anew and takes it as the lane's view; None if there is no such room.
        """
        patience, self.patience = self.patience, Patience.NONE
        if patience is Patience.NONE:
            return
        loop = asyncio.get_running_loop()
        turn_s = min(max(self._turn_s, MIN_TURN_S), MAX_TURN_S)
        until_s = loop.time() + PATIENCE_TURNS * turn_s
        before: tuple[str, ...] = ()
        while True:
            try:
                head = await look()
            except MatrixError:
                return  # who sends will hear it
            if head is None:
                return
            if patience is Patience.UNTIL_OTHER:
                if head.extremities != (self.last_accepted,):
                    return
            elif head.extremities == before:
                return
            before = head.extremities
            if loop.time() >= until_s:
                if patience is Patience.UNTIL_OTHER:
                    self._contended_until_s = 0.0
                return
            await asyncio.sleep(turn_s * random.uniform(0.25, 0.45))  # noqa: S311

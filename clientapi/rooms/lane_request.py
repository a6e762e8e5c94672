"""A wish on its way through a room's lane."""

import asyncio
import itertools
from collections.abc import Mapping

from clientapi.rooms.requests import Sent, TransactionKey, Wish
from matrixlib.events import Event, StateKey
from servicekit.errors import MatrixError

_order = itertools.count()


class LaneRequest:
    """See the module. What is built of it belongs to the view that it was built on."""

    __slots__ = (
        "auth_state",
        "built",
        "deadline_s",
        "future",
        "generation",
        "key",
        "order",
        "policy",
        "rechecked",
        "stale",
        "wish",
    )

    def __init__(
        self, wish: Wish, key: TransactionKey | None, deadline_s: float, future: "asyncio.Future[Sent]"
    ) -> None:
        self.wish = wish
        self.key = key
        self.deadline_s = deadline_s
        self.future = future
        self.order = next(_order)
        # It was refused once on a view that may have been old.
        self.rechecked = False
        # How often it was turned down for a stale view, which is what `may_fork` counts.
        self.stale = 0
        self.generation = 0
        self.built: Event | None = None
        # The room's policy where it was built, which names who must sign it; None: nobody.
        self.policy: Event | None = None
        self.auth_state: Mapping[StateKey, Event] = {}

    def succeed(self, sent: Sent) -> None:
        """Hand the result to whoever waits."""
        if not self.future.done():
            self.future.set_result(sent)

    def fail(self, error: MatrixError) -> None:
        """Hand the refusal to whoever waits."""
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # seen: nobody may be waiting any more

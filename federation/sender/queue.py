"""One destination's queue: what it is to be told, and the order in which that happens. No I/O.

    FOLLOWING    every event that it was not told is in memory, in order
       |  too many, or a restart, or a failure
       v
    BEHIND       memory holds nothing; the database says what is missing from `sent_position` on
       |  all of it, if it is little; else only the newest event of each room
       v
    FOLLOWING

EDUs that are true for a moment only (typing, presence, receipts) stand here in their newest form by what they
are about, and are dropped when the destination fails. Those that must not be lost are rows in the database.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from federation.storage.outgoing import OutgoingEvent

MAX_IN_MEMORY = 500
MAX_EPHEMERAL = 500
MAX_PDUS = 50
MAX_EDUS = 100


@dataclass(slots=True)
class DestinationQueue:
    """See the module."""

    server_name: str
    behind: bool
    events: deque[OutgoingEvent] = field(default_factory=deque)
    ephemeral: dict[tuple[str, ...], dict[str, Any]] = field(default_factory=dict)
    has_durable: bool = False
    """There may be durable EDUs in the database."""
    in_flight: Any = None
    """The transaction that is being sent, the same until the destination has it."""
    max_pdus: int = MAX_PDUS
    """Events in a transaction; fewer for a server that finds that too large."""
    last_origin: str = ""
    """Of several local names the one that the last transaction spoke as."""
    known_through: int = 0
    """Events up to here were in memory once, or are found in the database."""

    def add_event(self, event: OutgoingEvent) -> None:
        """A new event is for the destination."""
        if self.behind or event.position <= self.known_through:
            return  # it is found in the database, in its turn
        self.known_through = event.position
        self.events.append(event)
        if len(self.events) > MAX_IN_MEMORY:
            self.fall_behind()

    def add_ephemeral(self, about: tuple[str, ...], edu: dict[str, Any]) -> None:
        """Something of the moment; an older EDU about the same is replaced."""
        self.ephemeral.pop(about, None)
        if len(self.ephemeral) < MAX_EPHEMERAL:
            self.ephemeral[about] = edu

    def fall_behind(self) -> None:
        """Leave it to the database to know what is missing."""
        self.behind = True
        self.events.clear()

    def caught_up(self, events: Iterable[OutgoingEvent], through: int) -> None:
        """These are all events up to a position that are missing: memory is followed again."""
        self.behind = False
        self.events.extend(events)
        self.known_through = max(self.known_through, through)

    def failed(self) -> None:
        """The destination could not be reached: what is of the moment is old by the next time."""
        self.ephemeral.clear()
        if len(self.events) > MAX_PDUS:
            self.fall_behind()

    def too_large(self, pdus: int) -> None:
        """The destination does not take a transaction of so many events: smaller ones from now on."""
        self.max_pdus = max(pdus // 2, 1)
        self.in_flight = None

    @property
    def is_empty(self) -> bool:
        """Nothing is to be sent."""
        waiting = self.behind or self.events or self.ephemeral or self.has_durable
        return not waiting and self.in_flight is None

    def next_events(self) -> list[OutgoingEvent]:
        """The events of the next transaction; they stay in the queue until `sent`."""
        return [self.events[index] for index in range(min(len(self.events), self.max_pdus))]

    def next_ephemeral(
        self, room: int, of: Callable[[dict[str, Any]], bool] | None = None
    ) -> dict[tuple[str, ...], dict[str, Any]]:
        """Up to `room` EDUs of the moment, those that `of` chooses; they stay in the queue until `sent`."""
        chosen = (item for item in self.ephemeral.items() if of is None or of(item[1]))
        return dict(islice(chosen, max(room, 0)))

    def sent(self, through: int, ephemeral: Iterable[tuple[tuple[str, ...], dict[str, Any]]]) -> None:
        """The destination has events up to a position, and these EDUs."""
        while self.events and self.events[0].position <= through:
            self.events.popleft()
        for about, edu in ephemeral:
            # A newer one about the same, that came meanwhile, still has to go.
            if self.ephemeral.get(about) is edu:
                del self.ephemeral[about]

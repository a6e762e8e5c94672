"""A lane's view of its room over time: its head, how it is had and lost, and what is under way on it.

    query ──► head ──► events built on it ──► accepted: the head was right all the time
                ▲             │
                └─ STALE, or ─┘ void: the next generation

Generations count the views: what was built on an earlier one comes back before anything is built on the next.
"""

import asyncio
from collections.abc import Iterable, Sequence

from arbor.log.v1 import input_pb2
from clientapi.rooms.head import Head
from clientapi.rooms.lane_request import LaneRequest
from clientapi.rooms.queries import RoomQueries
from matrixlib.event_auth import auth_types_for_event
from matrixlib.events import Event, StateKey
from matrixlib.policy_servers import POLICY_KEY
from matrixlib.power_levels import CREATE_KEY, POWER_LEVELS_KEY
from servicekit.errors import MatrixError

FIRST_KEYS = (CREATE_KEY, POLICY_KEY, POWER_LEVELS_KEY, ("m.room.join_rules", ""))


class LaneView:
    """See the module."""

    def __init__(self, room_id: str, queries: RoomQueries) -> None:
        self.head: Head | None = None
        self.generation = 0
        self.progress = asyncio.Event()
        """Set whenever a message comes back."""
        self._room_id = room_id
        self._queries = queries
        self._wanted: set[StateKey] = set()
        # Under way at the RoomServer; its result says whether there is such a room.
        self._question: asyncio.Future[bool] | None = None
        # generation -> messages
        self._in_flight: dict[int, int] = {}

    # -- what is under way

    @property
    def messages(self) -> int:
        """How many messages are under way, built on whatever view."""
        return sum(self._in_flight.values())

    @property
    def has_old_messages(self) -> bool:
        """Whether something is under way that was built on an earlier view."""
        return any(generation != self.generation for generation in self._in_flight)

    def begin_message(self, generation: int) -> None:
        """A message that was built on this view is under way."""
        self._in_flight[generation] = self._in_flight.get(generation, 0) + 1

    def end_message(self, generation: int) -> None:
        """It came back."""
        left = self._in_flight[generation] - 1
        if left:
            self._in_flight[generation] = left
        else:
            del self._in_flight[generation]
        self.progress.set()

    # -- how it is had and lost

    def begin(self, head: Head) -> None:
        """Take the view of a room that was just made here."""
        self.generation += 1
        self.head = head

    def forget(self) -> None:
        """Ask the RoomServer before the next event is built, unless own events are under way."""
        if not self._in_flight:
            self.generation += 1
            self.head = None

    def lose(self, request: LaneRequest) -> None:
        """What was built after this request stands on an event that will never be: the view is void."""
        if request.generation == self.generation:
            self.generation += 1
            self.head = None

    def take_stale(self, request: LaneRequest, built: Event, stale: input_pb2.StaleHeads) -> bool:
        """Take the heads and state of a STALE verdict over.

        Returns whether it is the first to come back of what was built on this view.
        """
        if request.generation == self.generation:
            self.generation += 1
            self.head = Head.from_stale(built, request.auth_state, stale)
            return True
        head = self.head
        if head is None or (not head.provisional and stale.output_sequence > head.output_sequence):
            self.generation += 1
            self.head = Head.from_stale(built, request.auth_state, stale)
        elif not head.provisional and stale.output_sequence == head.output_sequence:
            head.merge_stale(built.room_version, stale)
        return False

    async def look_anew(self, requests: Iterable[LaneRequest]) -> Head | None:
        """Ask for the head again, with what these requests are likely to need."""
        self.forget()
        return await self.load_state(_first_keys(requests))

    async def load_needed_state(self, batch: Sequence[LaneRequest]) -> Head | None:
        """Work out which state is needed to authorise the events, and have it in the head."""
        head = self.head
        if head is None:
            head = await self.load_state(_first_keys(batch))
            if head is None:
                return None
        while True:
            needed: set[StateKey] = {CREATE_KEY, POLICY_KEY}
            for request in batch:
                wish = request.wish
                draft = wish.draft
                needed |= wish.wanted
                needed |= auth_types_for_event(
                    head.room_version, draft.type, wish.sender, draft.state_key, draft.content
                )
            if not head.missing(needed) and head is self.head:
                return head
            head = await self.load_state(frozenset(needed))
            if head is None:
                return None

    async def load_state(self, keys: frozenset[StateKey]) -> Head | None:
        """Take state from the head, or query it and the latest events. None: no such room.

        One question at a time: what is wanted while one is under way goes out together as the next.
        """
        while True:
            head = self.head
            # Whatever a first question is about, an event is likely to be built on its answer.
            missing = keys.union(FIRST_KEYS) if head is None else head.missing(keys)
            if head is not None and not missing:
                return head
            self._wanted.update(missing)
            if self._question is not None:
                if not await asyncio.shield(self._question):
                    return None
                continue
            question = self._question = asyncio.get_running_loop().create_future()
            try:
                await asyncio.sleep(0)  # those of the same tick ask along
                head, wanted, self._wanted = self.head, list(self._wanted), set()
                generation = self.generation
                latest = await self._queries.latest(self._room_id, wanted)
            except MatrixError as error:
                question.set_exception(error)
                question.exception()  # seen: nobody else may be waiting
                raise
            except BaseException:
                question.set_result(True)  # whoever waits asks again
                raise
            finally:
                self._question = None
            question.set_result(latest is not None)
            if latest is None:
                return None
            if generation != self.generation or self.head is not head:
                continue
            if head is None:
                head = self.head = Head.from_latest(latest, wanted)
            else:
                head.learn(latest.state, wanted)
            if not head.missing(keys):
                return head


def _first_keys(requests: Iterable[LaneRequest]) -> frozenset[StateKey]:
    """Return the state to ask for first, when the exact needs are not known with the version."""
    keys = {*FIRST_KEYS}
    for request in requests:
        wish = request.wish
        keys |= wish.wanted
        keys.add(("m.room.member", wish.sender))
        if wish.draft.type == "m.room.member" and wish.draft.state_key is not None:
            keys.add(("m.room.member", wish.draft.state_key))
    return frozenset(keys)

"""The local-send flow: the way into a room for every event of a local user (docs/architecture.md, section 3).

0. A request reaches the edge (`clientapi.http`), which authenticates the token.
1. `RoomSender.send`: look whether this transaction is in progress here (`_in_progress`); then the room's
   `RoomLane`:
   work out which state is needed to authorise the event (`LaneView.load_needed_state`); take it from the
   lane's head, or query it and the latest events from the RoomServer (`load_state`); check that the room
   exists and the event is allowed (`check_and_build`, `check_allowed`); build, hash, sign (`EventBuilder`);
   have the room's policy server sign, if it has one (`_sign_by_policy_server`); write to INPUT
   (`_write_to_input`); await the verdict (`settle`).
2. and 3. are the RoomServer's and the readers'.

What was accepted goes on when the client is gone: a lane works for the service, not for the request.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

from clientapi.clock import Clock
from clientapi.rooms.building import EventBuilder
from clientapi.rooms.head import Head
from clientapi.rooms.input_writer import InputWriter
from clientapi.rooms.lane import RoomLane
from clientapi.rooms.queries import RoomQueries
from clientapi.rooms.remote import RemoteRooms
from clientapi.rooms.requests import AlreadyThere, Draft, Sent, TransactionKey, Wish
from matrixlib.canonical_json import encode_canonical
from matrixlib.events import Event, StateKey
from matrixlib.room_versions import RoomVersion
from servicekit import metrics
from servicekit.errors import MatrixError, unavailable
from servicekit.positions import user_positions

WHOLE_TIMEOUT_S: Final = 15.0
WHOLE_LOOK_S: Final = 0.2
WHOLE_RETRY_MS: Final = 2000
MAX_IDLE_LANES: Final = 10_000
MAX_REMEMBERED_TRANSACTIONS: Final = 20_000

_repeated = metrics.counter(
    "clientapi_repeated_transactions_total", "Requests that repeated a transaction known here"
)


class RoomSender:
    """Sends events of local users into rooms.

    Args:
        writer: writes to INPUT.
        queries: to the RoomServer.
        remote: what other servers are asked through.
        builder: builds and signs.
        clock: the time.
        spawn: starts a task in the service's task group.
    """

    def __init__(
        self,
        writer: InputWriter,
        queries: RoomQueries,
        remote: RemoteRooms,
        builder: EventBuilder,
        clock: Clock,
        spawn: Callable[..., object],
    ) -> None:
        self.writer = writer
        self.queries = queries
        self.remote = remote
        self.builder = builder
        self.clock = clock
        self.spawn = spawn
        self._lanes: OrderedDict[str, RoomLane] = OrderedDict()
        self._in_progress: dict[TransactionKey, asyncio.Future[Sent]] = {}
        self._done: OrderedDict[TransactionKey, Sent] = OrderedDict()
        self.on_left: Callable[[str, str], None] = lambda room_id, user_id: None
        """Called when a local user had somebody, or oneself, leave a room."""

    async def send(self, room_id: str, wish: Wish, key: TransactionKey | None = None) -> Sent:
        """Send one event and return it once it is stored and judged.

        Args:
            room_id: the room.
            wish: who wants what.
            key: the client's transaction; a second request under it gets the first's result.

        Raises:
            MatrixError: what the client is answered; 503 when NATS or the RoomServer does not answer in time.
        """
        if key is None:
            sent = await self._await(self.lane(room_id).submit(wish, None), wish.sender)
            draft = wish.draft
            if draft.type == "m.room.member" and draft.content.get("membership") in ("leave", "ban"):
                self.on_left(room_id, draft.state_key or "")
            return sent
        done = self._done.get(key)
        if done is not None:
            _repeated.inc()
            return done
        # Is this transaction in progress here?
        future = self._in_progress.get(key)
        if future is not None:
            _repeated.inc()
            return await self._await(future, wish.sender)
        future = self.lane(room_id).submit(wish, key)
        self._in_progress[key] = future
        future.add_done_callback(lambda ended: self._end(key, ended))
        return await self._await(future, wish.sender)

    async def _await(self, future: "asyncio.Future[Sent]", sender: str) -> Sent:
        # Shielded: the client's disconnect does not take back what was accepted.
        sent = await asyncio.shield(future)
        if sent.output_sequence:
            user_positions.note(sender, sent.output_sequence)
        return sent

    def _end(self, key: TransactionKey, future: "asyncio.Future[Sent]") -> None:
        self._in_progress.pop(key, None)
        if not future.cancelled() and future.exception() is None:
            self._done[key] = future.result()
            if len(self._done) > MAX_REMEMBERED_TRANSACTIONS:
                self._done.popitem(last=False)

    async def send_draft(
        self, room_id: str, sender: str, draft: Draft, key: TransactionKey | None = None
    ) -> Sent:
        """Send an event as it is. Raises as `send`."""
        return await self.send(room_id, Wish(sender, draft), key)

    async def send_state(self, room_id: str, sender: str, draft: Draft) -> Sent:
        """Set an entry of the state; where it says the same already, by the same sender, that event is it.

        Raises as `send`.
        """
        key, member_key = (draft.type, draft.state_key or ""), ("m.room.member", sender)

        def decide(_version: RoomVersion, state: Mapping[StateKey, Event]) -> Draft | AlreadyThere:
            held, member = state.get(key), state.get(member_key)
            if (
                held is not None
                and held.sender == sender
                # As JSON: to Python true is 1.
                and encode_canonical(held.content) == encode_canonical(draft.content)
                # Whoever is gone is refused like with anything else.
                and (member is not None and member.membership == "join")
            ):
                return AlreadyThere(held.event_id)
            return draft

        return await self.send(room_id, Wish(sender, draft, frozenset({key, member_key}), decide))

    async def view(self, room_id: str, keys: frozenset[StateKey]) -> tuple[Head, Mapping[StateKey, Event]]:
        """Return a room's present head and these entries of its state.

        Raises:
            MatrixError: M_NOT_FOUND, or 503.
        """
        return await self.lane(room_id).view(keys)

    async def is_joined(self, room_id: str, user_id: str, *, ask_again: bool = False) -> bool:
        """Say whether a user is in a room; in one that is not known nobody is.

        Args:
            ask_again: ask the RoomServer before saying no.

        Raises:
            MatrixError: 503.
        """
        member_key = ("m.room.member", user_id)
        for look in (self.view, self.fresh_view) if ask_again else (self.view,):
            try:
                _head, state = await look(room_id, frozenset({member_key}))
            except MatrixError as error:
                if error.errcode != "M_NOT_FOUND":
                    raise
                return False
            member = state.get(member_key)
            if member is not None and member.membership == "join":
                return True
        return False

    async def fresh_view(
        self, room_id: str, keys: frozenset[StateKey]
    ) -> tuple[Head, Mapping[StateKey, Event]]:
        """Do as `view`, but ask the RoomServer: where a wrong refusal would be worse than the question."""
        lane = self.lane(room_id)
        lane.forget_view()
        return await lane.view(keys)

    async def until_whole(self, room_id: str) -> None:
        """Wait until all members of a room are known, where a join with partial state brings them later.

        What concerns anybody's membership but a joined user's own cannot be judged before.

        Raises:
            MatrixError: 503, it takes too long.
        """
        try:
            head, _state = await self.view(room_id, frozenset())
        except MatrixError as error:
            if error.errcode != "M_NOT_FOUND":
                raise
            return  # whoever writes there is told so
        deadline_s = asyncio.get_running_loop().time() + WHOLE_TIMEOUT_S
        while head.partial:
            latest = await self.queries.latest(room_id)
            if latest is None or not latest.partial:
                self.lane(room_id).forget_view()
                return
            if asyncio.get_running_loop().time() > deadline_s:
                raise unavailable("The room's members are not all known yet", WHOLE_RETRY_MS)
            await asyncio.sleep(WHOLE_LOOK_S)

    def lane(self, room_id: str) -> RoomLane:
        """Return the lane of a room."""
        lane = self._lanes.get(room_id)
        if lane is None:
            lane = RoomLane(
                room_id, self.writer, self.queries, self.remote, self.builder, self.clock, self.spawn
            )
            self._lanes[room_id] = lane
            if len(self._lanes) > MAX_IDLE_LANES:
                self._drop_idle_lanes()
        else:
            self._lanes.move_to_end(room_id)
        return lane

    def _drop_idle_lanes(self) -> None:
        for room_id in [room_id for room_id, lane in self._lanes.items() if lane.idle][
            : MAX_IDLE_LANES // 10
        ]:
            del self._lanes[room_id]

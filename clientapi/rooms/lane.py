"""A room's lane: what is to be sent into one room goes through here, in order.

    submit ──► waiting ──► one tick's requests, built as a chain on the head ──► one message ──► verdicts
                  ▲                  ▲ head: own events not yet judged included   │
                  └──── rebuilt, in order, same transaction keys ◄── STALE ───────┘

Where the room has a policy server it signs each chain before that is written.

Pipelined: the next chain is built on the last one without waiting for its ack or verdict, up to `WINDOW`
messages.

STALE means that another writer was quicker; the quicker one is told so, too (`contended`). The lane takes
the verdict's heads and state over, waits until everything built on the old view has come back, and builds
it anew; from the third try it lets the room fork. For a while the two then take turns
(`clientapi.rooms.turns`).
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable

from arbor.log.v1 import input_pb2
from clientapi.clock import Clock
from clientapi.rooms.building import EventBuilder, check_and_build
from clientapi.rooms.head import Head
from clientapi.rooms.input_writer import InputWriter, Outcome, PendingEntry, PendingMessage, Unsettled
from clientapi.rooms.lane_request import LaneRequest
from clientapi.rooms.lane_view import LaneView
from clientapi.rooms.queries import RoomQueries
from clientapi.rooms.remote import RemoteRooms
from clientapi.rooms.requests import AlreadyThere, Sent, TransactionKey, Wish
from clientapi.rooms.turns import CHAIN_MAX_ENTRIES, Patience, Turns
from clientapi.rooms.verdicts import error_of_rejection
from matrixlib.events import Event, StateKey
from matrixlib.policy_servers import is_exempt
from servicekit import metrics
from servicekit.errors import MatrixError, forbidden, unavailable
from servicekit.logging import get_logger

log = get_logger("clientapi.rooms")

REQUEST_DEADLINE_S = 15.0
WINDOW = 16
LINGER_S = 0.003
CHAIN_MAX_BYTES = 600_000
MAY_FORK_FROM_TRY = 3

_rebuilds = metrics.counter("clientapi_rebuilds_total", "Requests built anew because the room had moved on")
_stale_messages = metrics.counter("clientapi_contentions_total", "Times another writer was quicker in a room")
_forks = metrics.counter("clientapi_may_fork_total", "Messages that were allowed to fork a room")
_chain_entries = metrics.histogram(
    "clientapi_chain_entries", "Requests that went out in one message", buckets=metrics.SIZE_BUCKETS
)


class RoomLane:
    """See the module. Belongs to one event loop; `spawn` starts a task in the service's task group."""

    def __init__(
        self,
        room_id: str,
        writer: InputWriter,
        queries: RoomQueries,
        remote: RemoteRooms,
        builder: EventBuilder,
        clock: Clock,
        spawn: Callable[..., object],
    ) -> None:
        self.room_id = room_id
        self._writer = writer
        self._remote = remote
        self._builder = builder
        self._clock = clock
        self._spawn = spawn
        self._waiting: deque[LaneRequest] = deque()
        self._returned: list[LaneRequest] = []
        self._refused: list[LaneRequest] = []
        self._view = LaneView(room_id, queries)
        self._working = False
        self._turns = Turns()
        self._not_before_s = 0.0

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is under way."""
        return not (self._working or self._waiting or self._view.messages or self._returned or self._refused)

    def submit(self, wish: Wish, key: TransactionKey | None) -> "asyncio.Future[Sent]":
        """Send a wish; the future gets the stored event, or a MatrixError."""
        loop = asyncio.get_running_loop()
        request = LaneRequest(wish, key, loop.time() + REQUEST_DEADLINE_S, loop.create_future())
        self._waiting.append(request)
        self._start()
        return request.future

    async def view(self, keys: frozenset[StateKey]) -> tuple[Head, dict[StateKey, Event]]:
        """Return the room's present view and these entries of its state, the own unjudged events included.

        Raises:
            MatrixError: M_NOT_FOUND if the room is not known, or 503.
        """
        head = await self._view.load_state(keys)
        if head is None:
            raise MatrixError("M_NOT_FOUND", 404, "There is no such room here")
        return head, head.select(keys)

    def forget_view(self) -> None:
        """Ask the RoomServer before the next event is built, unless own events are under way."""
        self._view.forget()

    def begin(self, head: Head) -> None:
        """Take the view of a room that was just made here."""
        self._view.begin(head)

    # -- the worker
    # ----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if not self._working:
            self._working = True
            self._spawn(self._work())

    async def _work(self) -> None:
        try:
            # All that arrives in this tick goes out together; while an earlier message is under way, all that
            # arrives within a moment, since each message costs as much as many requests in it.
            await asyncio.sleep(LINGER_S if self._view.messages else 0)
            while self._waiting or self._returned or self._refused:
                await self._wait_for_turn()
                batch = self._take_batch()
                if batch:
                    await self._send_chain(batch)
        except BaseException:
            for request in (*self._waiting, *self._returned, *self._refused):
                request.fail(unavailable())
            self._waiting.clear()
            self._returned.clear()
            self._refused.clear()
            raise
        finally:
            self._working = False

    async def _wait_for_turn(self) -> None:
        loop = asyncio.get_running_loop()
        view = self._view
        while True:
            view.progress.clear()
            wait_s = self._not_before_s - loop.time()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
                continue
            if not self._writer.connection.connected:
                await self._wait_for_connection()
                return
            contended = self._turns.contended(loop.time())
            if self._refused:
                # They are asked about once more, on a view that is nobody's guess.
                blocked = view.messages > 0
            elif contended:
                blocked = view.messages > 0
            else:
                blocked = view.has_old_messages or view.messages >= WINDOW
            if not blocked:
                break
            await view.progress.wait()
        if contended:
            await self._turns.wait(self._look_anew)
        if self._refused:
            view.forget()

    async def _look_anew(self) -> Head | None:
        waiting = itertools.islice(self._waiting, CHAIN_MAX_ENTRIES)
        return await self._view.look_anew([*self._returned, *self._refused, *waiting])

    async def _wait_for_connection(self) -> None:
        first = min(request.deadline_s for request in (*self._waiting, *self._returned, *self._refused))
        try:
            async with asyncio.timeout_at(first):
                await self._writer.connection.wait_connected()
        except TimeoutError:
            pass  # those whose deadline it was are told so by `_take_batch`

    def _take_batch(self) -> list[LaneRequest]:
        """Take what goes out together, in order; those whose deadline is over are answered."""
        if self._returned or self._refused:
            back = sorted((*self._returned, *self._refused), key=lambda request: request.order)
            self._returned, self._refused = [], []
            self._waiting.extendleft(reversed(back))
        now = asyncio.get_running_loop().time()
        batch: list[LaneRequest] = []
        limit = self._turns.chain_limit(now)
        while self._waiting and len(batch) < limit:
            request = self._waiting.popleft()
            if request.deadline_s <= now:
                request.fail(unavailable("The room could not be written to in time"))
            else:
                batch.append(request)
        return batch

    async def _send_chain(self, batch: list[LaneRequest]) -> None:
        view = self._view
        if view.head is not None and view.head.policy is not None:
            # What is built on an old view would be one event more that the policy server is asked for.
            view.forget()
        had_view = view.head is not None
        try:
            head = await view.load_needed_state(batch)
        except MatrixError as error:
            for request in batch:
                request.fail(error)
            return
        if head is None:
            for request in batch:
                # A room that is not here answers as one that the user is not in.
                request.fail(forbidden("You are not in this room"))
            return
        built_on = head.extremities
        chain = self._build(batch, head, fresh=not had_view and not head.provisional)
        if any(request.policy is not None for request in chain):
            chain = await self._sign_by_policy_server(chain)
        if chain:
            self._write_to_input(chain, built_on)

    # -- the steps of the local-send flow, in their order
    # ---------------------------------------------------------

    def _build(self, batch: list[LaneRequest], head: Head, *, fresh: bool) -> list[LaneRequest]:
        """Check each event, build, hash and sign it; returns the chain to write."""
        chain: list[LaneRequest] = []
        size = 0
        for index, request in enumerate(batch):
            if size >= CHAIN_MAX_BYTES:
                self._waiting.extendleft(reversed(batch[index:]))
                break
            if self._check_and_build(request, head, fresh=fresh):
                assert request.built is not None
                size += len(request.built.pdu_json)
                chain.append(request)
        return chain

    def _check_and_build(self, request: LaneRequest, head: Head, *, fresh: bool) -> bool:
        """Build one request on the head; False if it is answered, or to be asked about again."""
        try:
            built = check_and_build(self._builder, head, self.room_id, request.wish)
        except MatrixError as error:
            if error.errcode == "M_FORBIDDEN" and not fresh and not request.rechecked:
                # The view may be old: look once at the RoomServer's before refusing.
                request.rechecked = True
                self._refused.append(request)
            else:
                request.fail(error)
            return False
        except Exception:
            log.exception("building_failed", room_id=self.room_id, type=request.wish.draft.type)
            request.fail(MatrixError("M_UNKNOWN", 500, "Internal server error"))
            return False
        if isinstance(built, AlreadyThere):
            # Reads wait for it, too: it may be there only just now, by another's hand.
            request.succeed(Sent(built.event_id, head.output_sequence))
            return False
        event, request.auth_state = built
        request.built = event
        request.generation = self._view.generation
        request.policy = None if is_exempt(event) else head.policy
        head.advance(event)
        return True

    async def _sign_by_policy_server(self, chain: list[LaneRequest]) -> list[LaneRequest]:
        """Have the room's policy server sign; returns what may be written.

        What it refuses is answered with its error, and what is built on that is built anew; so is all of it
        where the view was void before the answer came.
        """
        generation = chain[0].generation
        self._view.begin_message(generation)
        try:
            signed = await self._signed(chain)
        except BaseException as error:
            told = error if isinstance(error, MatrixError) else unavailable()
            for request in chain:
                request.fail(told)
            self._view.lose(chain[0])
            if isinstance(error, MatrixError):
                return []
            raise
        finally:
            self._view.end_message(generation)
        if generation != self._view.generation:
            self._returned += chain
            return []
        for index, (request, result) in enumerate(zip(chain, signed, strict=True)):
            if isinstance(result, MatrixError):
                request.fail(result)
                self._view.lose(request)
                self._returned += chain[index + 1 :]
                return chain[:index]
            request.built = result
        return chain

    async def _signed(self, chain: list[LaneRequest]) -> list[Event | MatrixError]:
        """Ask for the signatures of a chain, in the middle of which the policy may change."""
        signed: list[Event | MatrixError] = []
        for _, group in itertools.groupby(chain, lambda request: request.policy):
            requests = list(group)
            events = [request.built for request in requests if request.built is not None]
            signed += await self._remote.sign_by_policy_server(self.room_id, requests[0].policy, events)
        return signed

    def _write_to_input(self, chain: list[LaneRequest], built_on: tuple[str, ...]) -> None:
        loop = asyncio.get_running_loop()
        generation = chain[0].generation
        may_fork = any(request.stale + 1 >= MAY_FORK_FROM_TRY for request in chain)
        if may_fork:
            _forks.inc()
        _chain_entries.observe(len(chain))
        entries = []
        for request in chain:
            assert request.built is not None
            entries.append(PendingEntry([request.built], request.key, _Settle(self, request)))
        written_s = loop.time()

        def on_settled(message: PendingMessage) -> None:
            self._view.end_message(generation)
            self._turns.settle(loop.time() - written_s, on_present_view=generation == self._view.generation)

        self._turns.chain_length = len(chain)
        self._view.begin_message(generation)
        deadline_s = max(request.deadline_s for request in chain)
        message = PendingMessage(self.room_id, entries, deadline_s, on_settled)
        self._writer.publish(message, self._clock(), built_on, may_fork=may_fork)

    # -- verdicts
    # --------------------------------------------------------------------------------------------------

    def settle(self, request: LaneRequest, outcome: Outcome) -> None:
        """Answer a request by what became of its entry, or have it built anew."""
        if isinstance(outcome, Unsettled):
            self._view.lose(request)
            if outcome is Unsettled.LOST:
                request.fail(unavailable("It is not known yet whether this was sent; try again"))
            else:
                self._not_before_s = asyncio.get_running_loop().time() + 0.02
                self._again(request)
            return
        built = request.built
        assert built is not None
        match outcome.code:
            case input_pb2.VERDICT_CODE_ACCEPTED:
                turns = self._turns
                if outcome.contended:
                    turns.contend(asyncio.get_running_loop().time())
                turns.last_accepted = built.event_id
                turns.patience = Patience.UNTIL_OTHER
                request.succeed(Sent(outcome.event_id or built.event_id, outcome.output_sequence))
            case input_pb2.VERDICT_CODE_DUPLICATE:
                if outcome.event_id != built.event_id:
                    self._view.lose(request)
                request.succeed(Sent(outcome.event_id, outcome.output_sequence))
            case input_pb2.VERDICT_CODE_STALE:
                request.stale += 1
                _rebuilds.inc()
                if self._view.take_stale(request, built, outcome.stale):
                    # Another writer was quicker.
                    self._turns.lose(asyncio.get_running_loop().time(), once_more=request.stale > 1)
                    _stale_messages.inc()
                self._again(request)
            case input_pb2.VERDICT_CODE_REJECTED if (
                outcome.rejection.rule == "policy" and not request.rechecked
            ):
                # The room has a policy server that nobody knew of when this was built.
                self._view.lose(request)
                request.rechecked = True
                self._again(request)
            case input_pb2.VERDICT_CODE_SOFT_FAILED | input_pb2.VERDICT_CODE_REJECTED:
                self._view.lose(request)
                request.fail(error_of_rejection(outcome.rejection))
            case input_pb2.VERDICT_CODE_BUSY:
                self._view.lose(request)
                wait_s = outcome.retry_after_ms / 1000
                now = asyncio.get_running_loop().time()
                if now + wait_s >= request.deadline_s:
                    request.fail(unavailable("The server is busy", max(outcome.retry_after_ms, 1)))
                else:
                    self._not_before_s = max(self._not_before_s, now + wait_s)
                    self._again(request)
            case _:
                self._view.lose(request)
                request.fail(unavailable("The room waits for events of other servers"))

    def _again(self, request: LaneRequest) -> None:
        self._returned.append(request)
        self._start()


class _Settle:
    """Brings an entry's outcome to its lane; cheaper than a closure a request."""

    __slots__ = ("_lane", "_request")

    def __init__(self, lane: RoomLane, request: LaneRequest) -> None:
        self._lane = lane
        self._request = request

    def __call__(self, entry: PendingEntry, outcome: Outcome) -> None:
        self._lane.settle(self._request, outcome)

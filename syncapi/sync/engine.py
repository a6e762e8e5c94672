"""One `/sync` request from arrival to answer.

    wait for the user's own writes -> answer from memory, else from the database
        -> empty and time left? wait for something that concerns the user, and again

An identical repeated request (a client that lost the answer) gets the answer that it lost.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from servicekit import metrics
from servicekit.database import Database
from servicekit.errors import invalid_param
from syncapi.live import Live
from syncapi.reads import ReadsFollowWrites
from syncapi.storage import to_device
from syncapi.sync import from_database, from_window
from syncapi.sync.context import Reader
from syncapi.sync.presence import presence_events
from syncapi.sync.request import SyncRequest
from syncapi.sync.response import Answer
from syncapi.sync.sent_members import MemberMemory, SentMembers
from syncapi.sync.state import NotInMemory
from syncapi.sync.typing import render_typing
from syncapi.tokens import SyncToken
from syncapi.window import Window

FUTURE_WAIT_S = 2.0
FetchPdus = Callable[[Sequence[str]], Awaitable[Mapping[str, bytes]]]
CACHE_BYTES = 64 * 1024 * 1024

_answers = metrics.counter("syncapi_answers", "Answers to /sync", ["from"])
_from_memory = _answers.labels("memory")
_from_database = _answers.labels("database")


@dataclass(slots=True)
class _Made:
    answer: Answer
    token: SyncToken
    members: SentMembers


class AnswerCache:
    """Answers given lately, bounded in time and bytes. `seconds` 0: none are kept."""

    def __init__(self, seconds: float, clock_s: Callable[[], float], max_bytes: int = CACHE_BYTES) -> None:
        self._seconds = seconds
        self._clock_s = clock_s
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[object, tuple[float, int, bytes]] = OrderedDict()

    def get(self, key: object, least_sequence: int) -> bytes | None:
        """Return the answer, unless it is too old or does not reach the user's own last write."""
        found = self._kept.get(key)
        if found is None or found[0] < self._clock_s() or found[1] < least_sequence:
            return None
        return found[2]

    def put(self, key: object, sequence: int, body: bytes) -> None:
        """Keep an answer."""
        if not self._seconds:
            return
        now = self._clock_s()
        old = self._kept.pop(key, None)
        if old is not None:
            self._bytes -= len(old[2])
        self._kept[key] = (now + self._seconds, sequence, body)
        self._bytes += len(body)
        while self._kept:
            first = next(iter(self._kept))
            until, _, kept = self._kept[first]
            if until >= now and self._bytes <= self._max_bytes:
                break
            del self._kept[first]
            self._bytes -= len(kept)


async def no_pdus(event_ids: Sequence[str]) -> Mapping[str, bytes]:
    """Fetch nothing: events stay in the client format."""
    return {}


class SyncEngine:
    """See the module.

    Args:
        database: the service's.
        window: what is recent.
        live: typing and presence.
        reads: for reads that follow writes.
        output_epoch: says the epoch of OUTPUT.
        fetch_pdus: event ids -> PDUs, for the federation format.
        cache_seconds: how long an answer is kept for a repeated request.
    """

    def __init__(
        self,
        database: Database,
        window: Window,
        live: Live,
        reads: ReadsFollowWrites,
        output_epoch: Callable[[], str],
        cache_seconds: float = 0,
        clock_s: Callable[[], float] = time.monotonic,
        fetch_pdus: FetchPdus = no_pdus,
    ) -> None:
        self._database = database
        self._window = window
        self._live = live
        self._reads = reads
        self._output_epoch = output_epoch
        self._cache = AnswerCache(cache_seconds, clock_s)
        self._members = MemberMemory()
        self._clock_s = clock_s
        self._fetch_pdus = fetch_pdus
        # While somebody asks the database; set when what was read is in the window.
        self._filling: asyncio.Event | None = None
        self.stopping = False

    async def answer(self, request: SyncRequest) -> bytes:
        """Return the body of the answer.

        Raises:
            MatrixError: M_INVALID_PARAM for a token of the future; 503 while stopping.
        """
        await self._reads.wait()
        key = self._key(request)
        if request.since is not None:
            await self._check_since(request.since)
            kept = self._cache.get(key, self._reads.last_write(request.user_id))
            if kept is not None:
                return kept
            await self._take_received(request)
        client = (request.user_id, request.device_id, request.filter.key)
        known = self._members.known(client, request.since) if request.filter.remembers_members else {}
        deadline_s = self._clock_s() + request.timeout_ms / 1000
        waits = request.since is not None and not request.full_state and request.timeout_ms > 0
        while True:
            made = await self._make(request, known)
            left_s = deadline_s - self._clock_s()
            if not made.answer.empty or not waits or left_s <= 0 or self.stopping:
                break
            token = made.token
            if token.output_sequence >= self._window.sequence and token.live_sequence >= self._live.sequence:
                await self._wait(request.user_id, left_s)
        if request.filter.remembers_members:
            self._members.sent(client, made.token, made.members)
        body = made.answer.render(str(made.token))
        if not made.answer.empty and request.since is not None and not request.full_state:
            self._cache.put(key, made.token.output_sequence, body)
        return body

    def _key(self, request: SyncRequest) -> object:
        return (
            request.user_id,
            request.device_id,
            request.since,
            request.filter.key,
            request.state_key,
            request.full_state,
        )

    async def _check_since(self, since: SyncToken) -> None:
        """Refuse a token of the future; one of another replica may be a moment ahead of us."""
        if since.output_sequence > self._window.sequence and not await self._reads.wait_for_sequence(
            since.output_sequence, FUTURE_WAIT_S
        ):
            raise invalid_param("since is not a token of this server")

    async def _take_received(self, request: SyncRequest) -> None:
        """Delete the to-device messages that the client's token says it has."""
        assert request.since is not None
        view = self._window.users.get(request.user_id)
        if view is None or request.device_id not in view.inboxes or not request.since.output_sequence:
            return
        last = view.inboxes[request.device_id]
        received = request.since.inbox or request.since.position
        await self._database.write(to_device.delete_received, request.user_id, request.device_id, received)
        left = await self._database.read(
            to_device.load_messages, request.user_id, request.device_id, 2**62, 1
        )
        if not left and view.inboxes.get(request.device_id) == last:  # nothing came meanwhile
            del view.inboxes[request.device_id]

    async def _make(self, request: SyncRequest, known: Mapping[str, AbstractSet[str]]) -> _Made:
        reader = Reader(request.user_id, request.device_id, request.filter, known_members=known)
        # What LIVE tells while the database is asked is for the next answer.
        live_epoch, live_sequence = self._live.epoch, self._live.sequence
        typing = self._typing(request, reader)
        try:
            answer = from_window.make_answer(self._window, request, reader, typing)
        except NotInMemory:
            answer = await self._from_memory_of_others(request, reader)
        if answer is not None:
            _from_memory.inc()
            epoch, sequence, inbox = self._output_epoch(), self._window.sequence, 0
        else:
            loaded = await self._load(request, reader)
            answer, sequence, inbox = loaded.answer, loaded.sequence, loaded.inbox
            epoch = loaded.epoch or self._output_epoch()
        answer.presence = presence_events(self._window, self._live, request, reader, answer.changed)
        token = SyncToken(epoch, sequence, live_epoch, live_sequence, inbox)
        return _Made(answer, token, reader.sent_members)

    async def _load(self, request: SyncRequest, reader: Reader) -> from_database.DatabaseAnswer:
        """Ask the database, and let the window keep what others may need."""
        _from_database.inc()
        filling = asyncio.Event()
        if self._filling is None:
            self._filling = filling
        try:
            loaded = await self._reads.read(
                self._database,
                from_database.load_answer,
                request,
                reader,
                self._typing(request, reader),
                from_window.known_summaries(self._window, request.user_id),
            )
            if reader.filter.federation_format:
                loaded = await self._with_pdus(request, reader)
            self._window.remember_members(loaded.sequence, loaded.members)
            if loaded.sequence == self._window.sequence:
                for room_id, parts in loaded.summaries.items():
                    if room_id in self._window.rooms:
                        self._window.rooms[room_id].rendered[from_window.SUMMARY] = parts
                for room_id, counts in loaded.threads.items():
                    if room_id in self._window.rooms:
                        self._window.rooms[room_id].threads[reader.user_id] = counts
            return loaded
        finally:
            if self._filling is filling:
                self._filling = None
                filling.set()

    async def _with_pdus(self, request: SyncRequest, reader: Reader) -> from_database.DatabaseAnswer:
        """Make the answer in federation format: fetch what was rendered, and render again."""
        reader.pdus = await self._fetch_pdus(sorted(reader.rendered))
        return await self._reads.read(
            self._database, from_database.load_answer, request, reader, self._typing(request, reader)
        )

    async def _from_memory_of_others(self, request: SyncRequest, reader: Reader) -> Answer | None:
        """Wait for somebody who asks the database already, and look into the memory once more."""
        if self._filling is None:
            return None
        await self._filling.wait()
        try:
            return from_window.make_answer(self._window, request, reader, self._typing(request, reader))
        except NotInMemory:
            return None

    def _typing(self, request: SyncRequest, reader: Reader) -> dict[str, bytes]:
        """Return the rooms whose typing is new to the client -> the event."""
        view = self._window.users.get(request.user_id)
        if view is None or not self._live.typing:
            return {}
        epoch, sequence = (
            (request.since.live_epoch, request.since.live_sequence) if request.since else (None, 0)
        )
        found: dict[str, bytes] = {}
        for room_id, users in self._live.typing_since(view.joined, epoch, sequence).items():
            rendered = render_typing(users, reader)
            if rendered is not None and reader.filter.ephemeral.passes_room(room_id):
                found[room_id] = rendered
        return found

    async def _wait(self, user_id: str, seconds: float) -> None:
        """Wait until something concerns the user, or the time is over."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        view = self._window.user(user_id)
        view.waiters.add(waiter)
        timer = loop.call_later(seconds, _let_go, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            # The window may have been loaded anew meanwhile.
            self._window.user(user_id).waiters.discard(waiter)

    def stop(self) -> None:
        """Let every request that waits answer now."""
        self.stopping = True
        self._window.wake_all()


def _let_go(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)

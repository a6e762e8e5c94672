"""The queues of all destinations: one transaction in flight each, in order, until the destination has it.

`Sender.dispatch` gives out what the consumer heard. A destination's task lives as long as there is something
to send or to wait for; one that fails is tried again after its backoff, or as soon as it speaks to us.
"""

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import orjson

from federation.clock import NowMs
from federation.outbound.client import FederationClient, path_of
from federation.outbound.errors import RemoteError, RemoteRefused, Unreachable
from federation.rooms import Rooms
from federation.sender.consumer import Heard, LocalReceipt
from federation.sender.destinations import Destinations
from federation.sender.encoded import EncodedPdus
from federation.sender.names import LocalNames
from federation.sender.queue import MAX_EDUS, MAX_PDUS, DestinationQueue
from federation.storage import outgoing as storage
from federation.storage.outgoing import UNKNOWN, OutgoingEdu, OutgoingEvent, Presence
from matrixlib.canonical_json import encode_canonical
from matrixlib.identifiers import is_valid_server_name
from servicekit import metrics
from servicekit.database import Database
from servicekit.errors import MatrixError
from servicekit.logging import get_logger

log = get_logger("federation.sender")

SEND_TIMEOUT_S = 60.0
MAX_ROOMS_IN_MEMORY = 5_000
# So many events behind, and a destination is told each; more, and it is told the newest of each room.
CATCH_UP_ALL = MAX_PDUS
CATCH_UP_ROOMS = 5_000
MAX_SENDING = 200
STAGGER_MAX_S = 60.0
STAGGER_EACH_S = 0.05
# Something here is wrong, and will be so again: not in a busy loop.
INTERNAL_RETRY_MS = 60_000
KEEP_EVENTS_MS = 24 * 3600 * 1000

_transactions = metrics.counter("federation_transactions_sent_total", "Transactions sent", ["result"])
_sent_pdus = metrics.counter("federation_pdus_sent_total", "PDUs delivered to other servers")


@dataclass(frozen=True, slots=True)
class _Transaction:
    """What one PUT /send carries. `through`: the position that the destination has reached with it."""

    txn_id: str
    origin: str
    pdus: Sequence[OutgoingEvent]
    durable: Sequence[OutgoingEdu]
    ephemeral: dict[tuple[str, ...], dict[str, Any]]
    through: int


class Sender:
    """See the module.

    Args:
        local_names: our server names, the first being the one for what belongs to none of our users.
    """

    def __init__(
        self,
        client: FederationClient,
        destinations: Destinations,
        database: Database,
        rooms: Rooms,
        local_names: Sequence[str],
        now_ms: NowMs,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._destinations = destinations
        self._database = database
        self._rooms = rooms
        self._names = LocalNames(local_names)
        self._encoded = EncodedPdus()
        self._local_names = self._names.local
        self._now_ms = now_ms
        self._jitter = jitter
        self._queues: dict[str, DestinationQueue] = {}
        self._wakes: dict[str, asyncio.Event] = {}
        self._group: asyncio.TaskGroup | None = None
        self._slots = asyncio.Semaphore(MAX_SENDING)
        self._servers: OrderedDict[str, dict[str, Presence]] = OrderedDict()
        self._heard: asyncio.Queue[Heard] = asyncio.Queue()
        self._positioned = asyncio.Event()
        self._txn_prefix = f"{now_ms()}"
        self._txn_no = 0
        self.position = 0
        """The event position that every queue knows of."""
        destinations.on_wake(self.wake)

    # -- life ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Give out what is heard, and send, until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            await self._positioned.wait()
            await self._ask_for_servers()
            await self._spread_edus()
            behind = await self._database.read(storage.load_behind)
            spread_s = min(STAGGER_MAX_S, STAGGER_EACH_S * len(behind))
            for server_name in behind:
                self._start(server_name, delay_s=self._jitter() * spread_s)
            group.create_task(self._prune())
            while True:
                await self._dispatch(await self._heard.get())

    def start_at(self, position: int) -> None:
        """Everything up to an event position is stored already. To be called before anything is heard."""
        self.position = max(self.position, position)
        self._positioned.set()

    def hear(self, heard: Heard) -> None:
        """Take what the consumer heard. On the loop."""
        self._heard.put_nowait(heard)

    def wake(self, server_name: str) -> None:
        """A destination may be tried at once."""
        event = self._wakes.get(server_name)
        if event is not None:
            event.set()

    def queue_of(self, server_name: str) -> DestinationQueue | None:
        """A destination's queue, if it has one now."""
        return self._queues.get(server_name)

    # -- giving out ----------------------------------------------------------------------------------------

    async def _dispatch(self, heard: Heard) -> None:
        for room_id in heard.changed_rooms:
            self._servers.pop(room_id, None)
            self._rooms.forget(room_id)
        if heard.unknown_rooms:
            await self._ask_for_servers()
        # First the position, then the queues: a queue that is catching up meanwhile reads up to it, and takes
        # no notice of what it has read when that is given out.
        self.position = max(self.position, heard.through)
        for event in heard.events:
            for server_name in await self._servers_for(event):
                self._queue(server_name).add_event(event)
                self._start(server_name)
        for receipt in heard.receipts:
            await self._give_receipt(receipt)
        for server_name in heard.edu_servers:
            if server_name == UNKNOWN:
                await self._spread_edus()
            else:
                self._has_durable(server_name)

    async def _ask_for_servers(self) -> None:
        """Learn which servers are in rooms that are new to us; as often as it takes."""
        delay_s = 0.1
        while True:
            unknown = await self._database.read(storage.load_unknown_rooms)
            if not unknown:
                return
            try:
                rooms = await self._rooms.rooms(list(unknown), with_servers=True)
            except MatrixError as error:
                log.info("room_servers_not_known_yet", rooms=len(unknown), reason=str(error))
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, 5.0)
                continue
            servers = {
                room.room_id: [s for s in room.servers if s not in self._local_names] for room in rooms
            }
            for room_id, stay in unknown.items():
                await self._database.write(storage.replace_servers, room_id, servers.get(room_id, []), stay)
                self._servers.pop(room_id, None)

    async def _servers_for(self, event: OutgoingEvent) -> list[str]:
        present = await self._presences(event.room_id)
        names = [name for name, presence in present.items() if name and presence.covers(event.position)]
        if event.also and event.also not in names:
            names.append(event.also)
        return [name for name in names if name != event.exclude and name not in self._local_names]

    async def _presences(self, room_id: str) -> dict[str, Presence]:
        known = self._servers.get(room_id)
        if known is None:
            known = await self._database.read(storage.load_room_servers, room_id)
            self._servers[room_id] = known
            if len(self._servers) > MAX_ROOMS_IN_MEMORY:
                self._servers.popitem(last=False)
        return known

    async def servers_now(self, room_id: str) -> list[str]:
        """The other servers in a room now."""
        present = await self._presences(room_id)
        return [
            name
            for name, presence in present.items()
            if presence.left_position is None and name and name not in self._local_names
        ]

    async def _give_receipt(self, item: LocalReceipt) -> None:
        receipt = item.receipt
        data: dict[str, Any] = {"ts": receipt.timestamp_ms}
        if receipt.thread_id:
            data["thread_id"] = receipt.thread_id
        content = {
            item.room_id: {
                "m.read": {receipt.user_id: {"event_ids": [receipt.event_id], "data": data}},
            }
        }
        about = ("m.receipt", item.room_id, receipt.user_id, receipt.thread_id)
        self.give_ephemeral(
            await self.servers_now(item.room_id), about, {"edu_type": "m.receipt", "content": content}
        )

    def give_ephemeral(self, servers: Iterable[str], about: tuple[str, ...], edu: dict[str, Any]) -> None:
        """Have an EDU of the moment sent to servers; those that are away never get it."""
        for server_name in servers:
            if self._destinations.next_try_ms(server_name):
                continue
            self._queue(server_name).add_ephemeral(about, edu)
            self._start(server_name)

    async def _spread_edus(self) -> None:
        """Find out who must hear of our users' devices: every server that shares a room with them."""
        edus = await self._database.read(storage.load_edus, UNKNOWN, 1000)
        for edu in edus:
            user_id = orjson.loads(edu.edu_json)["content"].get("user_id", "")
            servers: set[str] = set()
            try:
                for room in await self._rooms.rooms_of_users([user_id]):
                    servers.update(room.servers)
            except MatrixError as error:
                log.info("edu_not_spread_yet", reason=str(error))
                return  # the next one, or the next start, finds them
            servers.difference_update(self._local_names)
            await self._database.write(storage.spread_edu, edu, servers, self._now_ms())
            for server_name in servers:
                self._has_durable(server_name)

    def _has_durable(self, server_name: str) -> None:
        self._queue(server_name).has_durable = True
        self._start(server_name)

    # -- one destination -----------------------------------------------------------------------------------

    def _queue(self, server_name: str) -> DestinationQueue:
        queue = self._queues.get(server_name)
        if queue is None:
            # New here: whatever the database has for it is what is in memory now, unless it failed.
            queue = DestinationQueue(server_name, behind=False)
            self._queues[server_name] = queue
        return queue

    def _start(self, server_name: str, delay_s: float = 0.0) -> None:
        if server_name in self._wakes:
            if not delay_s and not self._destinations.next_try_ms(server_name):
                self._wakes[server_name].set()
            return
        if self._group is None or not is_valid_server_name(server_name):
            return
        if delay_s:
            queue = self._queue(server_name)
            queue.behind, queue.has_durable = True, True
        self._wakes[server_name] = asyncio.Event()
        self._group.create_task(self._serve(server_name, delay_s), name=f"send {server_name}")

    async def _serve(self, server_name: str, delay_s: float) -> None:
        """Send to one destination until there is nothing left."""
        wake = self._wakes[server_name]
        queue = self._queue(server_name)
        await self._wait(wake, delay_s)
        while True:
            wake.clear()
            due_ms = self._destinations.next_try_ms(server_name)
            if due_ms:
                await self._wait(wake, (due_ms - self._now_ms()) / 1000)
                continue
            async with self._slots:
                transaction = await self._try(queue)
            if transaction is None and queue.is_empty:
                # Nothing is awaited between this check and the end: who comes later starts anew.
                del self._wakes[server_name]
                del self._queues[server_name]
                return

    async def _try(self, queue: DestinationQueue) -> _Transaction | None:
        """Make the next transaction and send it; None: there was nothing to send."""
        transaction: _Transaction | None = None
        try:
            transaction = await self._next(queue)
            if transaction is not None:
                await self._send(queue, transaction)
        except Exception as error:
            # One destination's trouble, of whatever kind, is not everybody's.
            log.error("send_failed", exc_info=error, server=queue.server_name)
            self._destinations.note_failure(
                queue.server_name, f"internal error: {error!r}", INTERNAL_RETRY_MS
            )
        return transaction

    async def _wait(self, wake: asyncio.Event, seconds: float) -> None:
        if seconds <= 0:
            return
        try:
            async with asyncio.timeout(seconds):
                await wake.wait()
        except TimeoutError:
            pass

    async def _next(self, queue: DestinationQueue) -> _Transaction | None:
        # "must wait and retry for a 200 OK response before sending a transaction with a different `txnId`"
        retry: _Transaction | None = queue.in_flight
        if retry is not None:
            return retry
        events: Sequence[OutgoingEvent]
        if queue.behind:
            events, through = await self._catch_up(queue)
        else:
            events = queue.next_events()
            through = events[-1].position if events else 0
        durable: list[OutgoingEdu] = []
        if queue.has_durable:
            durable = await self._database.read(storage.load_edus, queue.server_name, MAX_EDUS)
            if not durable:
                queue.has_durable = False
        if len(self._names.local) > 1:
            return self._of_one_name(queue, events, durable, through)
        ephemeral = queue.next_ephemeral(MAX_EDUS - len(durable))
        if not events and not durable and not ephemeral:
            return None
        return self._transaction(self._names.local[0], events, durable, ephemeral, through)

    def _transaction(
        self,
        origin: str,
        events: Sequence[OutgoingEvent],
        durable: Sequence[OutgoingEdu],
        ephemeral: dict[tuple[str, ...], dict[str, Any]],
        through: int,
    ) -> _Transaction:
        self._txn_no += 1
        return _Transaction(f"{self._txn_prefix}-{self._txn_no}", origin, events, durable, ephemeral, through)

    def _of_one_name(
        self,
        queue: DestinationQueue,
        events: Sequence[OutgoingEvent],
        durable: Sequence[OutgoingEdu],
        through: int,
    ) -> _Transaction | None:
        """What one of several local names has to say; the names take turns."""
        names = self._names
        of_durable = [names.of_edu(orjson.loads(edu.edu_json)) for edu in durable]
        waiting = [
            *(names.of_event(event) for event in events[:1]),
            *of_durable,
            *(names.of_edu(edu) for edu in queue.ephemeral.values()),
        ]
        if not waiting:
            return None
        origin = next((name for name in waiting if name != queue.last_origin), waiting[0])
        queue.last_origin = origin
        # Events in their order, without a gap: as far as the first name's go.
        own_events = list(takewhile(lambda event: names.of_event(event) == origin, events))
        own_durable = [edu for edu, name in zip(durable, of_durable, strict=True) if name == origin]
        ephemeral = queue.next_ephemeral(MAX_EDUS - len(own_durable), lambda edu: names.of_edu(edu) == origin)
        if len(own_events) < len(events):
            through = own_events[-1].position if own_events else 0
        return self._transaction(origin, own_events, own_durable, ephemeral, through)

    async def _catch_up(self, queue: DestinationQueue) -> tuple[Sequence[OutgoingEvent], int]:
        """The next events from the database; when these are all, memory is followed again."""
        name = queue.server_name
        after = self._destinations.get(name).sent_position
        through = self.position
        pending = await self._database.read(storage.load_pending, name, after, through, CATCH_UP_ALL + 1)
        if len(pending) <= CATCH_UP_ALL:
            if through == self.position:
                # Nothing was given out meanwhile: from here on memory has everything.
                queue.caught_up(pending, through)
            chunk = pending[: queue.max_pdus]
            return chunk, chunk[-1].position if chunk else 0
        newest = await self._database.read(storage.load_newest_by_room, name, after, through, CATCH_UP_ROOMS)
        log.info("catching_up", server=name, rooms=len(newest))
        # In chunks; the position moves only as far as everything older of these rooms may be left out.
        chunk = newest[: queue.max_pdus]
        return chunk, chunk[-1].position

    async def _send(self, queue: DestinationQueue, transaction: _Transaction) -> None:
        name = queue.server_name
        queue.in_flight = transaction
        path = path_of("/_matrix/federation/v1/send/{}", transaction.txn_id)
        edus = [orjson.loads(edu.edu_json) for edu in transaction.durable]
        edus.extend(transaction.ephemeral.values())
        # Canonical JSON, put together of parts that are.
        head = encode_canonical(
            {"edus": edus, "origin": transaction.origin, "origin_server_ts": self._now_ms()}
        )
        pdus = b",".join(self._encoded.pdu(event) for event in transaction.pdus)
        content_json = head[:-1] + b',"pdus":[' + pdus + b"]}"
        try:
            answer = await self._client.request(
                name,
                "PUT",
                path,
                content_json=content_json,
                origin=transaction.origin,
                timeout_s=SEND_TIMEOUT_S,
                count=False,
                ignore_backoff=True,
            )
        except RemoteError as error:
            if isinstance(error, RemoteRefused) and error.http_status == 413 and len(transaction.pdus) > 1:
                log.info("transaction_too_large", server=name, pdus=len(transaction.pdus))
                queue.too_large(len(transaction.pdus))
                return
            self._failed(queue, error)
            return
        queue.in_flight = None
        _transactions.labels("ok").inc()
        _sent_pdus.inc(len(transaction.pdus))
        _log_refused(name, answer)
        queue.sent(transaction.through, transaction.ephemeral.items())
        if transaction.pdus:
            self._destinations.note_sent(name, transaction.through)
        self._destinations.note_success(name)
        if transaction.durable:
            await self._database.write(storage.delete_edus, [edu.id for edu in transaction.durable])

    def _failed(self, queue: DestinationQueue, error: RemoteError) -> None:
        _transactions.labels(type(error).__name__).inc()
        self._destinations.note_failure(queue.server_name, error.reason, _retry_after_ms(error))
        queue.failed()

    async def _prune(self) -> None:
        while True:
            await asyncio.sleep(600)
            await self._database.write(storage.prune_events, self._now_ms() - KEEP_EVENTS_MS)


def _retry_after_ms(error: RemoteError) -> int:
    # Any answer other than 200 means the same: not now. One that limits us says it loudly.
    if isinstance(error, RemoteRefused) and error.http_status == 429:
        return 30_000
    return 0 if isinstance(error, Unreachable) else 5_000


def _log_refused(server_name: str, answer: Any) -> None:
    results = answer.get("pdus") if isinstance(answer, dict) else None
    for event_id, result in results.items() if isinstance(results, dict) else ():
        if isinstance(result, dict) and result.get("error"):
            log.info("pdu_refused", server=server_name, event=event_id, reason=str(result["error"])[:200])

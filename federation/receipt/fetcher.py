"""Events that are missing, fetched from whoever may have them.

The RoomServer never asks anybody: it stores an event that it cannot judge as waiting, and says on OUTPUT what
it waits for. For each of these, here:

1. `get_missing_events` between our heads and the event, from the server that sent it, then from others;
2. where a gap remains, the state before the first event after the gap: `state_ids` and the single events that
   we lack, or all of `state` where that is much;
3. everything goes through the same checks as what comes in transactions, and to the RoomServer through INPUT;
   the room's policy server is asked for the signatures that new events lack.

What does not come is tried again, with a growing delay, and given up after a day. No room waits for another.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from arbor.log.v1 import input_pb2
from arbor.roomserver.v1 import query_pb2
from federation.clock import NowMs
from federation.outbound.client import LARGE_MAX_BYTES, LARGE_TIMEOUT_S, FederationClient, path_of
from federation.outbound.errors import BadAnswer, RemoteError
from federation.policy import PolicySignatures
from federation.receipt.ordering import with_whole_auth
from federation.receipt.pdu_checks import PduChecker
from federation.rooms import Rooms, RoomView
from federation.storage import fetching as storage
from federation.storage.fetching import Wanted
from federation.submit import MAX_MESSAGE_BYTES, Submitter, event_message, federation_entry
from matrixlib.events import Event, EventFormatError, parse_event
from servicekit.database import Database
from servicekit.errors import MatrixError
from servicekit.logging import get_logger

log = get_logger("federation.fetcher")

# Rooms for which something is fetched at a time; and those of them whose event one server sent, which may never
# answer.
MAX_AT_ONCE = 32
MAX_OF_ORIGIN = 4
BATCH = 200
MAX_SERVERS = 4
MISSING_LIMIT = 20
FIRST_DELAY_MS = 2_000
MAX_DELAY_MS = 3_600_000
MAX_ATTEMPTS = 32
# More unknown events than this are not fetched one by one.
MAX_SINGLE = 100
MAX_STATE_IDS = 500_000
SINGLE_AT_ONCE = 8


class NothingHelped(Exception):
    """No server gave what is missing."""


class Fetcher:
    """See the module.

    Args:
        local_names: our server names, who are not asked.
    """

    def __init__(
        self,
        client: FederationClient,
        checker: PduChecker,
        policy: PolicySignatures,
        rooms: Rooms,
        submitter: Submitter,
        database: Database,
        local_names: Sequence[str],
        now_ms: NowMs,
    ) -> None:
        self._client = client
        self._checker = checker
        self._policy = policy
        self._rooms = rooms
        self._submitter = submitter
        self._database = database
        self._local_names = frozenset(local_names)
        self._now_ms = now_ms
        self._wake = asyncio.Event()
        # Room -> the server that sent the event which waits.
        self._busy_rooms: dict[str, str] = {}

    def wake(self) -> None:
        """Something new is missing."""
        self._wake.set()

    async def run(self) -> None:
        """Fetch what is wanted, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                while begun := await self._next():
                    for wanted in begun:
                        group.create_task(self._fetch(wanted))
                await self._sleep()

    async def _next(self) -> list[Wanted]:
        """Take up what is due, as much as there is room for; it is busy from here on."""
        if len(self._busy_rooms) >= MAX_AT_ONCE:
            return []
        of_origin = Counter(self._busy_rooms.values())
        due = await self._database.read(
            storage.load_due,
            self._now_ms(),
            BATCH,
            without_rooms=list(self._busy_rooms),
            without_origins=[name for name, count in of_origin.items() if count >= MAX_OF_ORIGIN],
        )
        begun = []
        for wanted in due:
            room_id, origin = wanted.room_id, wanted.origin
            if (
                room_id not in self._busy_rooms
                and of_origin[origin] < MAX_OF_ORIGIN
                and len(self._busy_rooms) < MAX_AT_ONCE
            ):
                self._busy_rooms[room_id] = origin
                of_origin[origin] += 1
                begun.append(wanted)
        return begun

    async def _sleep(self) -> None:
        due_ms = await self._database.read(storage.next_due_ms)
        seconds = 30.0 if due_ms is None else max((due_ms - self._now_ms()) / 1000, 0.05)
        try:
            # While something is being fetched its end wakes us: what is due now waits for that.
            async with asyncio.timeout(5.0 if self._busy_rooms else min(seconds, 30.0)):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _fetch(self, wanted: Wanted) -> None:
        try:
            await self._fetch_once(wanted)
        finally:
            self._busy_rooms.pop(wanted.room_id, None)
            self._wake.set()

    async def _fetch_once(self, wanted: Wanted) -> None:
        try:
            done = await self.fetch(wanted)
            cause = "" if done else "still waiting"
        except (NothingHelped, RemoteError, MatrixError) as error:
            done, cause = False, str(error)
        except Exception as error:  # one room's trouble is not the service's
            log.error("fetch_failed", exc_info=error, room=wanted.room_id)
            done, cause = False, repr(error)
        if done or wanted.attempts >= MAX_ATTEMPTS:
            if not done:
                log.warning("fetch_given_up", room=wanted.room_id, event=wanted.waiting_event_id, cause=cause)
            await self._database.write(storage.forget_wanted, wanted.waiting_event_id)
        else:
            delay = min(FIRST_DELAY_MS * 2 ** min(wanted.attempts, 20), MAX_DELAY_MS)
            await self._database.write(
                storage.note_attempt,
                wanted.waiting_event_id,
                wanted.attempts + 1,
                self._now_ms() + delay,
                cause,
            )

    async def fetch(self, wanted: Wanted) -> bool:
        """Try to get what one event waits for; True: it waits no more.

        Raises:
            NothingHelped, RemoteError, MatrixError: it did not work.
        """
        view = await self._rooms.view(wanted.room_id)
        if view is None or not view.participating:
            return True
        waiting = await self._waiting(view, wanted.waiting_event_id)
        if waiting is None:
            return True
        causes: list[str] = []
        for server in await self._servers(wanted):
            try:
                await self._ask(view, waiting, wanted, server)
            except RemoteError as error:
                causes.append(str(error))
                continue
            if await self._waiting(view, wanted.waiting_event_id) is None:
                return True
        raise NothingHelped("; ".join(causes)[:400] or "what came did not help")

    async def _waiting(self, view: RoomView, event_id: str) -> Event | None:
        """The event, if it is known and still waits."""
        found = await self._rooms.events([event_id], view.room_id)
        if not found or found[0].status != query_pb2.EVENT_STATUS_WAITING:
            return None
        return _stored_event(found[0], view)

    async def _servers(self, wanted: Wanted) -> list[str]:
        others = await self._rooms.servers(wanted.room_id)
        ordered = dict.fromkeys([wanted.origin, *others])
        return [name for name in ordered if name and name not in self._local_names][:MAX_SERVERS]

    async def _ask(self, view: RoomView, waiting: Event, wanted: Wanted, server: str) -> None:
        signed = (await self._policy.of_received(view, [waiting]))[0]
        if signed is not waiting:
            # The policy came after it. What comes below wakes it, and is to find it signed.
            await self._submit(view, [signed], server)
            waiting = signed
        missing = set(wanted.missing_event_ids)
        lacks_auth = [event_id for event_id in waiting.auth_links if event_id in missing]
        if lacks_auth:
            await self._fetch_auth(view, waiting, server)
        if not missing.intersection(waiting.prev_event_ids):
            return
        # Step 1
        between = await self._missing_events(view, waiting, server)
        first = await self._first_after_gap(view, [*between, waiting])
        if first is not None:
            # Step 2
            await self._fetch_state(view, first, server)
        rest = [event for event in between if first is None or event.event_id != first.event_id]
        await self._submit(view, rest, server)
        if first is None or first.event_id != waiting.event_id:
            await self._submit(view, [waiting], server)

    # -- step 1 --------------------------------------------------------------------------------------------

    async def _missing_events(self, view: RoomView, waiting: Event, server: str) -> list[Event]:
        latest = await self._rooms.latest(view.room_id)
        answer = await self._client.request(
            server,
            "POST",
            path_of("/_matrix/federation/v1/get_missing_events/{}", view.room_id),
            origin=view.speaks_as,
            content={
                "earliest_events": list(latest.heads) if latest is not None else [],
                "latest_events": [waiting.event_id],
                "limit": MISSING_LIMIT,
                "min_depth": 0,
            },
        )
        events = await self._checked(view, answer, "events", server)
        found = {event.event_id: event for event in events[: 2 * MISSING_LIMIT]}
        found.pop(waiting.event_id, None)
        return _by_prev(found)

    async def _first_after_gap(self, view: RoomView, events: Sequence[Event]) -> Event | None:
        """The first event that has a prev event which is neither here nor among those before it."""
        ids = {prev for event in events for prev in event.prev_event_ids}
        known = {
            stored.event.event_id
            for stored in await self._rooms.events(list(ids), view.room_id)
            if stored.status in (query_pb2.EVENT_STATUS_ACCEPTED, query_pb2.EVENT_STATUS_SOFT_FAILED)
            or stored.status == query_pb2.EVENT_STATUS_REJECTED
        }
        for event in events:
            if any(prev not in known for prev in event.prev_event_ids):
                return event
            known.add(event.event_id)
        return None

    # -- step 2 --------------------------------------------------------------------------------------------

    async def _fetch_auth(self, view: RoomView, event: Event, server: str) -> None:
        path = path_of("/_matrix/federation/v1/event_auth/{}/{}", view.room_id, event.event_id)
        answer = await self._get_large(view, server, path)
        events = await self._checked(view, answer, "auth_chain", server)
        await self._submit_outliers(view, events, server)

    async def _fetch_state(self, view: RoomView, event: Event, server: str) -> None:
        """Get the state before an event from a server and submit the event with it."""
        path = path_of("/_matrix/federation/v1/state_ids/{}", view.room_id, event_id=event.event_id)
        answer = await self._get_large(view, server, path)
        state_ids = _id_list(answer, "pdu_ids", server)
        chain_ids = _id_list(answer, "auth_chain_ids", server)
        wanted = list(dict.fromkeys([*chain_ids, *state_ids]))
        known = {stored.event.event_id for stored in await self._rooms.events(wanted, view.room_id)}
        unknown = [event_id for event_id in wanted if event_id not in known]
        if unknown:
            found = await self._fetch_events(view, event, unknown, server)
            await self._submit_outliers(view, found, server)
            known |= {found_event.event_id for found_event in found}
        signed = await self._policy.of_received(view, [event])
        entry = input_pb2.InputEntry(
            submit_events=input_pb2.SubmitEvents(
                origin=input_pb2.EVENT_ORIGIN_FEDERATION,
                room_version=view.version.identifier,
                events=[event_message(item) for item in signed],
                origin_server=server,
                state_before_event_ids=[event_id for event_id in state_ids if event_id in known],
            )
        )
        await self._submitter.submit_all(view.room_id, [entry])

    async def _fetch_events(
        self, view: RoomView, event: Event, unknown: Sequence[str], server: str
    ) -> list[Event]:
        wanted = frozenset(unknown)
        if len(unknown) > MAX_SINGLE:
            path = path_of("/_matrix/federation/v1/state/{}", view.room_id, event_id=event.event_id)
            answer = await self._get_large(view, server, path)
            found = [
                *await self._checked(view, answer, "auth_chain", server),
                *await self._checked(view, answer, "pdus", server),
            ]
            return [item for item in found if item.event_id in wanted]
        slots = asyncio.Semaphore(SINGLE_AT_ONCE)
        results: list[Event] = []

        async def fetch_one(event_id: str) -> None:
            async with slots:
                try:
                    path = path_of("/_matrix/federation/v1/event/{}", event_id)
                    answer = await self._client.get(server, path, origin=view.speaks_as)
                    events = await self._checked(view, answer, "pdus", server)
                except RemoteError as error:
                    log.info("event_not_fetched", server=server, event=event_id, reason=str(error))
                    return
                results.extend(item for item in events if item.event_id == event_id)

        async with asyncio.TaskGroup() as group:
            for event_id in unknown:
                group.create_task(fetch_one(event_id))
        return results

    async def _get_large(self, view: RoomView, server: str, path: str) -> Any:
        """Get what may be the state of a large room."""
        return await self._client.get(
            server, path, origin=view.speaks_as, timeout_s=LARGE_TIMEOUT_S, max_bytes=LARGE_MAX_BYTES
        )

    # -- both ----------------------------------------------------------------------------------------------

    async def _checked(self, view: RoomView, answer: Any, key: str, server: str) -> list[Event]:
        """The events of an answer that pass the checks on receipt."""
        pdus = answer.get(key) if isinstance(answer, dict) else None
        if not isinstance(pdus, list):
            raise BadAnswer(server, f"{key} is no array")
        checked = await self._checker.check(pdus[:MAX_STATE_IDS], view.version, room_id=view.room_id)
        return [item for item in checked if isinstance(item, Event)]

    async def _submit(self, view: RoomView, events: Sequence[Event], server: str) -> None:
        if events:
            signed = await self._policy.of_received(view, events)
            entries = [federation_entry(event, server) for event in signed]
            await self._submitter.submit_all(view.room_id, entries)

    async def _submit_outliers(self, view: RoomView, events: Iterable[Event], server: str) -> None:
        by_id = {event.event_id: event for event in events}
        links = {link for event in by_id.values() for link in event.auth_links}
        known = {
            stored.event.event_id
            for stored in await self._rooms.events([link for link in links if link not in by_id])
        }
        chunk: list[Event] = []
        size = 0
        entries = []
        for event in with_whole_auth(by_id, known).values():
            chunk.append(event)
            size += len(event.pdu_json) + 100
            if size > MAX_MESSAGE_BYTES // 2:
                entries.append(_outliers(view, chunk, server))
                chunk, size = [], 0
        if chunk:
            entries.append(_outliers(view, chunk, server))
        # One after the other: a large state must not keep other rooms waiting until the RoomServer is through with it.
        for entry in entries:
            await self._submitter.submit_all(view.room_id, [entry])


def _outliers(view: RoomView, events: Sequence[Event], server: str) -> input_pb2.InputEntry:
    return input_pb2.InputEntry(
        submit_events=input_pb2.SubmitEvents(
            origin=input_pb2.EVENT_ORIGIN_OUTLIER,
            room_version=view.version.identifier,
            events=[event_message(event) for event in events],
            origin_server=server,
        )
    )


def _stored_event(stored: query_pb2.StoredEvent, view: RoomView) -> Event | None:
    try:
        return parse_event(
            stored.event.pdu_json, view.version, event_id=stored.event.event_id, verify_size=False
        )
    except EventFormatError:
        return None


def _id_list(answer: Any, key: str, server: str) -> list[str]:
    ids = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(ids, list) or not all(isinstance(item, str) and len(item) <= 255 for item in ids):
        raise BadAnswer(server, f"{key} is no array of event ids")
    if len(ids) > MAX_STATE_IDS:
        raise BadAnswer(server, f"{key} is too long")
    return ids


def _by_prev(events: dict[str, Event]) -> list[Event]:
    """Events in an order in which each comes after those of its prev events that are among them."""
    ordered: dict[str, Event] = {}
    seen: set[str] = set()
    for root in sorted(events.values(), key=lambda event: event.depth):
        stack = [(root.event_id, False)]
        while stack:
            event_id, returning = stack.pop()
            event = events.get(event_id)
            if event is None:
                continue
            if returning:
                ordered[event_id] = event
            elif event_id not in seen:
                seen.add(event_id)
                stack.append((event_id, True))
                stack.extend((prev, False) for prev in event.prev_event_ids if prev not in seen)
    return list(ordered.values())

"""Older history from other servers, for local users who scroll back (server-server API, "Backfilling").

A room whose servers all failed is left alone for a while, growing: nobody's `/messages` waits for it again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from arbor.log.v1 import input_pb2
from arbor.roomserver.v1 import query_pb2
from federation.clock import NowMs
from federation.outbound.client import FederationClient, path_of
from federation.outbound.errors import BadAnswer, RemoteError
from federation.receipt.pdu_checks import PduChecker
from federation.rooms import Rooms, RoomView
from federation.storage import fetching as storage
from federation.submit import Submitter, event_message
from matrixlib.events import Event
from servicekit.database import Database
from servicekit.logging import get_logger

log = get_logger("federation.history")

MAX_SERVERS = 4
MAX_EVENTS = 100
TIMEOUT_S = 15.0
RETRY_MIN_MS = 30_000
RETRY_MAX_MS = 6 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Fetched:
    """How many events were new, the OUTPUT sequence that tells the last of them, and whether all failed."""

    events: int
    output_sequence: int
    failed: bool


class History:
    """See the module."""

    def __init__(
        self,
        client: FederationClient,
        checker: PduChecker,
        rooms: Rooms,
        submitter: Submitter,
        database: Database,
        local_names: Sequence[str],
        now_ms: NowMs,
    ) -> None:
        self._client = client
        self._checker = checker
        self._rooms = rooms
        self._submitter = submitter
        self._database = database
        self._local_names = frozenset(local_names)
        self._now_ms = now_ms

    async def backfill(self, room_id: str, from_event_ids: Sequence[str], limit: int) -> Fetched:
        """Fetch events before some that we have, from one server after the other until one gives any."""
        view = await self._rooms.view(room_id)
        if view is None or not view.participating or not from_event_ids:
            return Fetched(0, 0, False)
        if view.partial:
            return Fetched(0, 0, True)  # who may see what of it is not known until the members are here
        subject = f"backfill:{room_id}"
        failures, not_before_ms = await self._database.read(storage.load_pull, subject)
        if not_before_ms > self._now_ms():
            return Fetched(0, 0, True)
        cause = "no other server is in the room"
        answered = False
        for server in await self._servers(room_id):
            try:
                events = await self._ask(view, server, from_event_ids, limit)
            except RemoteError as error:
                cause = str(error)
                continue
            answered = True
            count, sequence = await self._submit(view, events, server)
            if count:
                await self._database.write(storage.forget_pull, subject)
                return Fetched(count, sequence, False)
        if answered:
            return Fetched(0, 0, False)
        delay = min(RETRY_MIN_MS * 2 ** min(failures, 20), RETRY_MAX_MS)
        await self._database.write(
            storage.note_pull_failed, subject, failures + 1, self._now_ms() + delay, cause
        )
        return Fetched(0, 0, True)

    async def nearest(self, room_id: str, at_ms: int, backwards: bool) -> tuple[str, int] | None:
        """Ask other servers for the event nearest to a time, and fetch it; None: nobody knows one."""
        view = await self._rooms.view(room_id)
        if view is None or not view.participating or view.partial:
            return None
        direction = "b" if backwards else "f"
        path = path_of("/_matrix/federation/v1/timestamp_to_event/{}", room_id, ts=str(at_ms), dir=direction)
        for server in await self._servers(room_id):
            try:
                answer = await self._client.get(server, path, origin=view.speaks_as, timeout_s=TIMEOUT_S)
                event_id = answer.get("event_id") if isinstance(answer, dict) else None
                if not isinstance(event_id, str):
                    continue
                event = await self._event(view, server, event_id)
            except RemoteError as error:
                log.info("nearest_not_found", room=room_id, server=server, reason=str(error))
                continue
            if event is not None:
                return event_id, event.origin_server_ts
        return None

    async def _event(self, view: RoomView, server: str, event_id: str) -> Event | None:
        events = await self._ask(view, server, [event_id], 1)
        found = next((event for event in events if event.event_id == event_id), None)
        if found is not None:
            await self._submit(view, events, server)
        return found

    async def _servers(self, room_id: str) -> list[str]:
        names = [name for name in await self._rooms.servers(room_id) if name not in self._local_names]
        return names[:MAX_SERVERS]

    async def _ask(
        self, view: RoomView, server: str, from_event_ids: Sequence[str], limit: int
    ) -> list[Event]:
        path = path_of(
            "/_matrix/federation/v1/backfill/{}",
            view.room_id,
            v=list(from_event_ids)[:20],
            limit=str(min(max(limit, 1), MAX_EVENTS)),
        )
        answer = await self._client.get(server, path, origin=view.speaks_as, timeout_s=TIMEOUT_S)
        pdus = answer.get("pdus") if isinstance(answer, dict) else None
        if not isinstance(pdus, list):
            raise BadAnswer(server, "pdus is no array")
        checked = await self._checker.check(pdus[: 2 * MAX_EVENTS], view.version, room_id=view.room_id)
        return [event for event in checked if isinstance(event, Event)]

    async def _submit(self, view: RoomView, events: Sequence[Event], server: str) -> tuple[int, int]:
        known = {
            stored.event.event_id
            for stored in await self._rooms.events([event.event_id for event in events], view.room_id)
            if stored.status != query_pb2.EVENT_STATUS_OUTLIER
        }
        fresh = sorted(
            (event for event in events if event.event_id not in known), key=lambda event: event.depth
        )
        if not fresh:
            return 0, 0
        entries = [
            input_pb2.InputEntry(
                submit_events=input_pb2.SubmitEvents(
                    origin=input_pb2.EVENT_ORIGIN_HISTORY,
                    room_version=view.version.identifier,
                    events=[event_message(event)],
                    origin_server=server,
                )
            )
            for event in fresh
        ]
        verdicts = await self._submitter.submit_all(view.room_id, entries)
        told = [
            verdict
            for verdict in verdicts
            if verdict is not None
            and verdict.code in (input_pb2.VERDICT_CODE_ACCEPTED, input_pb2.VERDICT_CODE_SOFT_FAILED)
        ]
        return len(told), max((verdict.output_sequence for verdict in told), default=0)

"""What other servers know of a room and we do not: older history, events near a time, rooms of a space.

Asked through the federation service, for a few seconds at most; then what is here is the answer.
"""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Final

import grpc.aio
import orjson

from arbor.federation.v1 import federation_pb2, federation_pb2_grpc
from arbor.roomserver.v1 import query_pb2
from servicekit.config import Config
from servicekit.grpc import channel_to
from servicekit.logging import get_logger

log = get_logger(__name__)

WAIT_S: Final = 5.0
APPLY_S: Final = 2.0
QUERY_S: Final = 2.0
# A room without holes is not looked at again for so long; holes that nobody could fill neither.
WHOLE_S: Final = 3.0
FRUITLESS_S: Final = 60.0
MAX_REMEMBERED: Final = 10_000
MAX_FROM: Final = 10


class RemoteHistory:
    """See the module.

    Args:
        rooms: stub of the RoomServer's queries.
        wait_for: waits until an OUTPUT sequence is applied here, at most some seconds.
        now_s: a monotonic time.
    """

    def __init__(
        self,
        config: Config,
        rooms: Any,
        wait_for: Callable[[int, float], Awaitable[bool]],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._rooms = rooms
        self._wait_for = wait_for
        self._now_s = now_s
        self._channel: grpc.aio.Channel | None = None
        self._whole: OrderedDict[str, float] = OrderedDict()
        self._fruitless: OrderedDict[str, float] = OrderedDict()

    async def edges(self, room_id: str) -> list[str]:
        """Return the events of a room whose prev events are missing here; none if nobody can be asked."""
        if not self._config.federation.enabled or self._recent(self._whole, room_id, WHOLE_S):
            return []
        try:
            answer = await self._rooms.QueryHistory(
                query_pb2.QueryHistoryRequest(room_id=room_id, limit=1), timeout=QUERY_S
            )
        except grpc.aio.AioRpcError as error:
            log.info("edges_not_got", room=room_id, reason=error.details())
            return []
        found = list(answer.backward_extremities)
        if not found:
            self._note(self._whole, room_id)
        return found

    async def fetch_before(self, room_id: str, user_id: str, event_ids: Collection[str], limit: int) -> bool:
        """Fetch events from before some that we have. Returns whether there are new ones to read."""
        wanted = [id_ for id_ in event_ids if not self._recent(self._fruitless, id_, FRUITLESS_S)][:MAX_FROM]
        if not wanted:
            return False
        request = federation_pb2.BackfillRequest(
            room_id=room_id, from_event_ids=wanted, limit=limit, user_id=user_id
        )
        answer = await self._ask(lambda stub: stub.Backfill, request)
        if answer is None or not answer.events:
            for event_id in wanted:
                self._note(self._fruitless, event_id)
            return False
        return await self._wait_for(answer.output_sequence, APPLY_S)

    async def fetch_nearest(self, room_id: str, timestamp_ms: int, backwards: bool) -> bool:
        """Fetch the event nearest to a time. Returns whether there may be a new one to read."""
        request = federation_pb2.QueryTimestampRequest(
            room_id=room_id, timestamp_ms=timestamp_ms, backwards=backwards
        )
        answer = await self._ask(lambda stub: stub.QueryTimestamp, request)
        if answer is None or not answer.event_id:
            return False
        try:
            told = await self._rooms.QueryRoomPosition(
                query_pb2.QueryRoomPositionRequest(room_ids=[room_id]), timeout=QUERY_S
            )
        except grpc.aio.AioRpcError:
            return False
        return await self._wait_for(max(told.output_sequences, default=0), APPLY_S)

    async def hierarchy(self, room_id: str, via: Sequence[str]) -> dict[str, Any] | None:
        """Return a room and the rooms below it as another server tells them; None: nobody does."""
        request = federation_pb2.QueryHierarchyRequest(room_id=room_id, via=via)
        answer = await self._ask(lambda stub: stub.QueryHierarchy, request)
        if answer is None:
            return None
        found: dict[str, Any] = orjson.loads(answer.hierarchy_json)
        return found

    async def room_of_alias(self, alias: str) -> tuple[str, list[str]] | None:
        """Return the room of another server's alias and servers in it; None: it is not known, or not told."""
        request = federation_pb2.ResolveAliasRequest(room_alias=alias)
        answer = await self._ask(lambda stub: stub.ResolveAlias, request)
        return None if answer is None else (answer.room_id, list(answer.servers))

    async def _ask(self, method: Callable[[Any], Any], request: Any) -> Any:
        if not self._config.federation.enabled:
            return None
        if self._channel is None:
            self._channel = channel_to(self._config, "federation", caller="syncapi")
        stub: Any = federation_pb2_grpc.FederationServiceStub(self._channel)
        try:
            return await method(stub)(request, timeout=WAIT_S, wait_for_ready=False)
        except grpc.aio.AioRpcError as error:
            log.info("not_got_from_others", request=type(request).__name__, reason=error.details())
            return None

    def _recent(self, times: OrderedDict[str, float], key: str, seconds: float) -> bool:
        at = times.get(key)
        return at is not None and self._now_s() - at < seconds

    def _note(self, times: OrderedDict[str, float], key: str) -> None:
        times[key] = self._now_s()
        times.move_to_end(key)
        if len(times) > MAX_REMEMBERED:
            times.popitem(last=False)

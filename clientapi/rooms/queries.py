"""Questions to the RoomServer, their answers as our own types."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import grpc.aio

from arbor.log.v1 import common_pb2, input_pb2
from arbor.roomserver.v1 import query_pb2, query_pb2_grpc
from clientapi.rooms.requests import TransactionKey
from matrixlib.events import Event, StateKey, parse_event
from matrixlib.room_versions import RoomVersion, get_room_version
from servicekit.errors import MatrixError
from servicekit.grpc import matrix_error_from

QUERY_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Latest:
    """A room's heads and the state asked for, `(type, state_key) -> event`, absent entries left out.

    `partial`: the room's members are not all known yet, since a join with partial state is not complete.
    """

    room_version: RoomVersion
    forward_extremities: tuple[str, ...]
    depth: int
    state: dict[StateKey, Event]
    output_sequence: int
    participating: bool
    partial: bool = False


@dataclass(frozen=True, slots=True)
class FoundEvent:
    """An event that is part of a room."""

    event: Event
    room_id: str


class RoomQueries:
    """See the module. Usable after `connect`. Each raises MatrixError (503) when nobody answers."""

    _stub: "query_pb2_grpc.QueryServiceAsyncStub"

    def connect(self, channel: grpc.aio.Channel) -> None:
        """Take the channel to the RoomServer."""
        self._stub = query_pb2_grpc.QueryServiceStub(channel)

    async def latest(
        self, room_id: str, keys: Iterable[StateKey] = (), *, all_state: bool = False, min_sequence: int = 0
    ) -> Latest | None:
        """Return a room's heads and chosen state; None if the room is not known here."""
        request = query_pb2.QueryLatestRequest(
            room_id=room_id,
            state_keys=[common_pb2.StateKey(type=type_, state_key=key) for type_, key in keys],
            min_sequence=min_sequence,
            all_state=all_state,
        )
        try:
            answer = await self._stub.QueryLatest(request, timeout=QUERY_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error
        if not answer.exists:
            return None
        if answer.quarantined:
            raise MatrixError(
                "M_UNKNOWN", 503, "This room is out of order; the server's operator must mend it", 60_000
            )
        version = get_room_version(answer.room_version)
        if version is None:
            raise MatrixError("M_UNSUPPORTED_ROOM_VERSION", 400, "The room's version is not known here")
        state = {}
        for item in answer.state:
            event = parse_event(item.pdu_json, version, event_id=item.event_id, verify_size=False)
            state[event.key] = event
        return Latest(
            room_version=version,
            forward_extremities=tuple(answer.forward_extremities),
            depth=answer.depth,
            state=state,
            output_sequence=answer.output_sequence,
            participating=answer.participating,
            partial=answer.partial,
        )

    async def event(self, room_id: str, event_id: str) -> Event | None:
        """Return an event of a room (empty: of any) that is accepted there, or None."""
        return (await self.events([event_id], room_id)).get(event_id)

    async def events(self, event_ids: Sequence[str], room_id: str = "") -> dict[str, Event]:
        """Return those of these events that are accepted in a room (empty: in any), by id."""
        found: dict[str, Event] = {}
        for stored in await self._accepted(event_ids, room_id):
            version = get_room_version(stored.room_version)
            if version is not None:
                event = parse_event(
                    stored.event.pdu_json, version, event_id=stored.event.event_id, verify_size=False
                )
                found[event.event_id] = event
        return found

    async def stands(self, room_id: str, event_id: str) -> bool:
        """Say whether an event is accepted in a room and not redacted."""
        accepted = await self._accepted([event_id], room_id)
        return any(not stored.HasField("redacted_because") for stored in accepted)

    async def _accepted(self, event_ids: Sequence[str], room_id: str) -> list[query_pb2.StoredEvent]:
        if not event_ids:
            return []
        request = query_pb2.QueryEventsRequest(event_ids=event_ids, room_id=room_id)
        try:
            answer = await self._stub.QueryEvents(request, timeout=QUERY_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error
        return [stored for stored in answer.events if stored.status == query_pb2.EVENT_STATUS_ACCEPTED]

    async def event_at(self, room_id: str, before_ms: int) -> str | None:
        """Return the newest event of a room that was sent before a time, or None."""
        if before_ms <= 0:
            return None
        request = query_pb2.QueryHistoryRequest(
            room_id=room_id, nearest_to_ms=before_ms, backwards=True, limit=1
        )
        try:
            answer = await self._stub.QueryHistory(request, timeout=QUERY_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error
        return answer.events[0].event.event_id if answer.events else None

    async def memberships(
        self, user_ids: Sequence[str], room_id: str = "", kinds: Sequence[str] = (), min_sequence: int = 0
    ) -> list[query_pb2.RoomMembership]:
        """Return memberships of users in a room (or in all), or of everybody in a room."""
        try:
            answer = await self._stub.QueryMemberships(
                query_pb2.QueryMembershipsRequest(
                    room_id=room_id, user_ids=user_ids, memberships=kinds, min_sequence=min_sequence
                ),
                timeout=QUERY_TIMEOUT_S,
            )
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error
        return list(answer.memberships)

    async def rooms(
        self,
        room_ids: Sequence[str] | None,
        *,
        with_local_users: bool = False,
        keys: Iterable[StateKey] = (),
    ) -> list[query_pb2.Room]:
        """Return what is known of rooms (None: of all), with these entries of their state: see `state_of`."""
        if room_ids is not None and not room_ids:
            return []
        request = query_pb2.QueryRoomsRequest(
            room_ids=room_ids or (),
            with_local_users=with_local_users,
            state_keys=[common_pb2.StateKey(type=type_, state_key=key) for type_, key in keys],
        )
        try:
            answer = await self._stub.QueryRooms(request, timeout=QUERY_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error
        return list(answer.rooms)

    async def outcome(
        self, room_id: str, key: TransactionKey | None, event_id: str, input_sequence: int, timeout_s: float
    ) -> input_pb2.Verdict | None:
        """Return how an entry was judged, None if nothing was ever stored for it.

        With an `input_sequence` the answer waits until that entry was judged, at most `timeout_s`.
        """
        request = query_pb2.QueryOutcomeRequest(
            room_id=room_id, event_id=event_id, input_sequence=input_sequence
        )
        if key is not None:
            request.transaction_key.CopyFrom(
                common_pb2.TransactionKey(
                    user_id=key.user_id,
                    device_id=key.device_id,
                    endpoint=key.endpoint,
                    room_id=key.room_id,
                    txn_id=key.txn_id,
                )
            )
        try:
            answer = await self._stub.QueryOutcome(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error
        return answer.verdict if answer.known else None


def state_of(room: query_pb2.Room) -> dict[StateKey, Event]:
    """Return the state that came with a room; nothing of a room whose version is not known here."""
    version = get_room_version(room.room_version)
    if version is None:
        return {}
    events = (
        parse_event(item.pdu_json, version, event_id=item.event_id, verify_size=False) for item in room.state
    )
    return {event.key: event for event in events}

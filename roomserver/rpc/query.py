"""`QueryService`: questions about rooms, each answered from committed rows in one hop to a reader thread.

Whatever has an OUTPUT sequence was committed before, so a position to wait for is always reached already in
the owner; a question about a room's latest that meets another process is answered `NOT_OWNER`.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from arbor.log.v1 import input_pb2
from arbor.roomserver.v1 import query_pb2
from arbor.roomserver.v1.query_pb2_grpc import QueryServiceServicer
from matrixlib.identifiers import server_name_of
from roomserver.rpc import explain, exports, graph, reads, state_answers
from roomserver.storage import partitions, snapshots, states, transactions
from servicekit.errors import MatrixError, invalid_param, not_found
from servicekit.grpc.errors import NOT_OWNER

if TYPE_CHECKING:
    from roomserver.service import RoomServer

MAX_EVENTS = 1000
PART_EVENTS = 200
PART_IDS = 4000
RELAY_WAIT_S = 2.0
OUTCOME_WAIT_S = 10.0
Context = Any


class QueryServicer(QueryServiceServicer):
    """See the module."""

    def __init__(self, server: "RoomServer") -> None:
        self._server = server
        self._database = server.database

    async def check_owner(self, room_id: str) -> None:
        """Refuse a question about a room whose partition another process owns."""
        partition = self._server.context.partition_of(room_id)
        if self._server.processor.owns(partition):
            return
        rows = await self._database.read(partitions.load_partitions)
        address = next((row.address for row in rows if row.id == partition), "")
        raise MatrixError(
            NOT_OWNER, 503, "Another process owns this room's partition", 200, owner_address=address or None
        )

    async def _sequence(self, room_id: str, output_no: int) -> int:
        """The OUTPUT sequence of a room's message, waiting a little for the relay."""
        if not output_no:
            return 0
        places = self._server.processor.places
        partition = self._server.context.partition_of(room_id)
        deadline = asyncio.get_running_loop().time() + RELAY_WAIT_S
        while True:
            known = places.sequences.get((partition, output_no)) or await self._database.read(
                reads.read_sequence, room_id
            )
            if known or asyncio.get_running_loop().time() > deadline:
                return known or 0
            await asyncio.sleep(0.005)

    async def QueryLatest(  # noqa: N802 - the contract's name
        self, request: query_pb2.QueryLatestRequest, context: Context
    ) -> query_pb2.QueryLatestResponse:
        """See query.proto."""
        await self.check_owner(request.room_id)
        response, output_no = await self._database.read(reads.read_latest, request)
        if response.exists:
            response.output_sequence = await self._sequence(request.room_id, output_no)
        return response

    async def QueryState(  # noqa: N802
        self, request: query_pb2.QueryStateRequest, context: Context
    ) -> AsyncIterator[query_pb2.QueryStateResponse]:
        """See query.proto."""
        for event_id in list(request.event_ids):
            async for part in state_answers.answer(self._database, request, event_id):
                yield part

    async def QueryEvents(  # noqa: N802
        self, request: query_pb2.QueryEventsRequest, context: Context
    ) -> query_pb2.QueryEventsResponse:
        """See query.proto."""
        if len(request.event_ids) > MAX_EVENTS:
            raise invalid_param(f"at most {MAX_EVENTS} events")
        found = await self._database.read(reads.read_stored, list(request.event_ids), request.room_id)
        return query_pb2.QueryEventsResponse(events=found)

    async def QueryMemberships(  # noqa: N802
        self, request: query_pb2.QueryMembershipsRequest, context: Context
    ) -> query_pb2.QueryMembershipsResponse:
        """See query.proto."""
        if not request.room_id and not request.user_ids:
            raise invalid_param("a room or users must be named")
        response = await self._database.read(reads.read_memberships, request)
        if request.room_id:
            response.output_sequence = await self._position(request.room_id)
        else:
            response.output_sequence = self._server.processor.places.output_last
        return response

    async def QueryRooms(  # noqa: N802
        self, request: query_pb2.QueryRoomsRequest, context: Context
    ) -> query_pb2.QueryRoomsResponse:
        """See query.proto."""
        is_local = self._server.context.is_local
        return await self._database.read(
            reads.read_rooms, request, lambda user_id: is_local(server_name_of(user_id))
        )

    async def QueryOutcome(  # noqa: N802
        self, request: query_pb2.QueryOutcomeRequest, context: Context
    ) -> query_pb2.QueryOutcomeResponse:
        """See query.proto."""
        if request.room_id:
            await self.check_owner(request.room_id)
        if request.input_sequence:
            remaining = context.time_remaining() if context is not None else None
            wait_s = min(OUTCOME_WAIT_S, remaining * 0.9) if remaining is not None else OUTCOME_WAIT_S
            if not await self._server.processor.wait_judged(request.input_sequence, wait_s):
                raise MatrixError("M_UNKNOWN", 503, "The entry has not been judged yet", 500)
        event_id = request.event_id
        if request.HasField("transaction_key"):
            hash_ = transactions.hash_of(request.transaction_key)
            known = await self._database.read(transactions.load_transactions, [hash_])
            if hash_ in known:
                event_id = known[hash_][0]
            elif not event_id:
                return query_pb2.QueryOutcomeResponse()
        if not event_id:
            return query_pb2.QueryOutcomeResponse()
        found = await self._database.read(reads.read_stored, [event_id])
        if not found:
            return query_pb2.QueryOutcomeResponse()
        stored = found[0]
        code = _CODES[stored.status]
        verdict = input_pb2.Verdict(code=code, event_id=event_id)
        if stored.HasField("rejection"):
            verdict.rejection.CopyFrom(stored.rejection)
        verdict.output_sequence = stored.output_position // 4096 or await self._position(stored.room_id)
        return query_pb2.QueryOutcomeResponse(known=True, verdict=verdict)

    async def _position(self, room_id: str) -> int:
        known = self._server.processor.places.position_of(room_id)
        if known:
            return known
        return await self._database.read(reads.read_sequence, room_id)

    async def QueryRoomPosition(  # noqa: N802
        self, request: query_pb2.QueryRoomPositionRequest, context: Context
    ) -> query_pb2.QueryRoomPositionResponse:
        """See query.proto."""
        return query_pb2.QueryRoomPositionResponse(
            output_sequences=[await self._position(room_id) for room_id in request.room_ids]
        )

    async def QueryVisibility(  # noqa: N802
        self, request: query_pb2.QueryVisibilityRequest, context: Context
    ) -> query_pb2.QueryVisibilityResponse:
        """See query.proto."""
        if bool(request.user_id) == bool(request.server_name):
            raise invalid_param("Either a user or a server must be named")
        visible = await self._database.read(graph.read_visible, request)
        return query_pb2.QueryVisibilityResponse(visible_event_ids=visible)

    async def QueryAuthChain(  # noqa: N802
        self, request: query_pb2.QueryAuthChainRequest, context: Context
    ) -> AsyncIterator[query_pb2.QueryAuthChainResponse]:
        """See query.proto."""
        nids = await self._database.read(graph.read_auth_chain, list(request.event_ids))
        size = PART_IDS if request.ids_only else PART_EVENTS
        for start in range(0, len(nids), size):
            part = await self._database.read(
                state_answers.read_events, nids[start : start + size], request.ids_only
            )
            yield query_pb2.QueryAuthChainResponse(events=part)

    async def QueryMissingEvents(  # noqa: N802
        self, request: query_pb2.QueryMissingEventsRequest, context: Context
    ) -> query_pb2.QueryMissingEventsResponse:
        """See query.proto."""
        return await self._database.read(graph.read_missing, request)

    async def QueryHistory(  # noqa: N802
        self, request: query_pb2.QueryHistoryRequest, context: Context
    ) -> query_pb2.QueryHistoryResponse:
        """See query.proto."""
        return await self._database.read(graph.read_history, request)

    async def ExplainEvent(  # noqa: N802
        self, request: query_pb2.ExplainEventRequest, context: Context
    ) -> query_pb2.ExplainEventResponse:
        """See query.proto."""
        return await self._database.read(explain.read_explanation, request.event_id)

    async def GetSnapshot(  # noqa: N802
        self, request: query_pb2.GetSnapshotRequest, context: Context
    ) -> AsyncIterator[query_pb2.GetSnapshotResponse]:
        """See query.proto."""
        nids = await self._database.read(_ordered_state, request.snapshot_id)
        if nids is None:
            raise not_found("There is no such snapshot")
        position = request.offset
        while position < len(nids) or position == request.offset == 0:
            part = nids[position : position + PART_EVENTS]
            found = await self._database.read(state_answers.read_events, part, False)
            position += len(part)
            yield query_pb2.GetSnapshotResponse(state=found, cursor=position)
            if not part:
                break

    async def Export(  # noqa: N802
        self, request: query_pb2.ExportRequest, context: Context
    ) -> AsyncIterator[query_pb2.ExportResponse]:
        """See query.proto."""
        await self._server.processor.flush()
        through = await self._database.read(exports.read_complete_through)
        room_nids = None
        if request.room_ids:
            room_nids = await self._database.read(exports.read_room_nids, list(request.room_ids))
        after = request.after_sequence
        partition_count = self._server.context.partitions
        while True:
            page, last = await self._database.read(
                exports.read_page, after, through, room_nids, set(request.room_ids), partition_count
            )
            for sequence, message, subject in page:
                yield query_pb2.ExportResponse(sequence=sequence, message=message, subject=subject)
            if not last:
                break
            after = last
        yield query_pb2.ExportResponse(complete_through=max(through, request.after_sequence))


_CODES = {
    query_pb2.EventStatus.EVENT_STATUS_ACCEPTED: input_pb2.VerdictCode.VERDICT_CODE_ACCEPTED,
    query_pb2.EventStatus.EVENT_STATUS_SOFT_FAILED: input_pb2.VerdictCode.VERDICT_CODE_SOFT_FAILED,
    query_pb2.EventStatus.EVENT_STATUS_REJECTED: input_pb2.VerdictCode.VERDICT_CODE_REJECTED,
    query_pb2.EventStatus.EVENT_STATUS_WAITING: input_pb2.VerdictCode.VERDICT_CODE_WAITING,
    query_pb2.EventStatus.EVENT_STATUS_OUTLIER: input_pb2.VerdictCode.VERDICT_CODE_ACCEPTED,
}


def _ordered_state(conn: Any, snapshot_id: int) -> list[int] | None:
    """Event numbers of a snapshot, ordered by type and state key; None: there is none."""
    path = snapshots.load_path(conn, snapshot_id)
    if not path:
        return None
    state = snapshots.compose(path)
    keys = states.load_keys(conn, list(state))
    return [state[key_id] for key_id, _ in sorted(keys.items(), key=lambda item: item[1])]

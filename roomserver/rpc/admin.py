"""`AdminService`: large inputs and the operator's repairs."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from arbor.roomserver.v1 import query_pb2
from arbor.roomserver.v1.query_pb2_grpc import AdminServiceServicer
from matrixlib.room_versions import get_room_version
from roomserver import metrics
from roomserver.input import import_pages
from roomserver.input.import_pages import Import
from roomserver.storage import dead_letters, garbage, rooms, staging
from roomserver.storage.staging import ImportJob
from servicekit.database.raw import chunks
from servicekit.errors import invalid_param
from servicekit.log.faultpoints import fault_point
from servicekit.logging import get_logger

if TYPE_CHECKING:
    from roomserver.service import RoomServer

log = get_logger("roomserver.admin")


class AdminServicer(AdminServiceServicer):
    """See the module."""

    def __init__(self, server: "RoomServer") -> None:
        self._server = server
        self._database = server.database

    async def Import(  # noqa: N802 - the contract's name
        self, request_iterator: AsyncIterator[query_pb2.ImportRequest], context: Any
    ) -> query_pb2.ImportResponse:
        """See query.proto."""
        committer = self._server.processor.committer
        of: Import | None = None
        job: ImportJob | None = None
        async for part in request_iterator:
            version = get_room_version(part.room_version)
            if not part.import_id or not part.room_id or version is None:
                raise invalid_param("A part names an import, a room and a version that is known")
            if of is None:
                of = Import(part.import_id, part.room_id, version)
                await self._server.query.check_owner(part.room_id)
                job = await self._database.read(staging.load_job, part.import_id)
            if of != Import(part.import_id, part.room_id, version) or (job and job.room_id != part.room_id):
                raise invalid_param("The import is of another room")
            if job is not None and part.part <= job.last_part:
                continue
            for page in await asyncio.to_thread(import_pages.cut, of, part):
                job = await committer.import_page(page)
            fault_point("roomserver.import_part")
        if of is None or job is None:
            raise invalid_param("An import has parts")
        order = await self._database.read(import_pages.order_of_aside, of)
        for event_ids in chunks(order, staging.PAGE):
            job = await committer.import_aside(of, list(event_ids))
        return query_pb2.ImportResponse(last_part=job.last_part, events=job.events)

    async def ListDeadLetters(  # noqa: N802
        self, request: query_pb2.ListDeadLettersRequest, context: Any
    ) -> query_pb2.ListDeadLettersResponse:
        """See query.proto."""
        letters = await self._database.read(dead_letters.load_dead_letters, request.room_id)
        quarantined = await self._database.read(rooms.load_quarantined)
        return query_pb2.ListDeadLettersResponse(
            dead_letters=[
                query_pb2.DeadLetter(
                    id=letter.id,
                    stream=letter.stream,
                    sequence=letter.sequence,
                    room_id=letter.room_id,
                    error=letter.error,
                    trace=letter.trace,
                    created_ms=letter.created_ms,
                    data=letter.data,
                )
                for letter in letters
            ],
            quarantined_room_ids=quarantined,
        )

    async def ReplayDeadLetters(  # noqa: N802
        self, request: query_pb2.ReplayDeadLettersRequest, context: Any
    ) -> query_pb2.ReplayDeadLettersResponse:
        """See query.proto."""
        if request.room_id:
            room_ids = [request.room_id]
        else:
            room_ids = await self._database.read(_rooms_to_replay)
        applied = failed = 0
        if room_ids:
            applied, failed = await self._server.processor.replay(room_ids)
        log.info("dead_letters_replayed", rooms=len(room_ids), applied=applied, failed=failed)
        return query_pb2.ReplayDeadLettersResponse(applied=applied, failed=failed)

    async def CollectGarbage(  # noqa: N802
        self, request: query_pb2.CollectGarbageRequest, context: Any
    ) -> query_pb2.CollectGarbageResponse:
        """See query.proto."""
        collected = await self._server.processor.committer.collect_garbage(request.dry_run)
        metrics.note_sizes(*await self._database.read(garbage.measure))
        return query_pb2.CollectGarbageResponse(
            collected=[
                query_pb2.Collected(table=table, rows=rows) for table, rows in sorted(collected.items())
            ]
        )


def _rooms_to_replay(conn: Connection) -> list[str]:
    quarantined = rooms.load_quarantined(conn)
    return sorted({*quarantined, *(letter.room_id for letter in dead_letters.load_dead_letters(conn))})

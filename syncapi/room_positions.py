"""Reads of one room follow writes that were made at another edge.

A user whose requests meet another edge than the one that took the write would read an older room there. Such a
read asks the room's owner for the position of its last message (from the owner's memory) and waits until that is
applied here. Where no other edge can have written, nobody is asked: what this process wrote is waited for anyway.
What is asked while a question is under way goes out together as the next. When the owner does not answer, the read
is answered with what is here: an old answer is better than none.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from arbor.roomserver.v1 import query_pb2
from servicekit.errors import MatrixError
from servicekit.logging import get_logger

log = get_logger(__name__)

ASK_S = 1.0
WAIT_S = 5.0
# So long nobody is asked after no answer came.
PAUSE_S = 2.0


class RoomPositions:
    """See the module.

    Args:
        rooms: the RoomServer's query stub.
        wait_for: waits until a sequence is applied here.
        is_only_edge: says that whatever was acknowledged to clients went through this process, or is applied.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        rooms: Any,
        wait_for: Callable[[int, float], Awaitable[bool]],
        is_only_edge: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rooms = rooms
        self._wait_for = wait_for
        self._is_only_edge = is_only_edge
        self._clock = clock
        self._wanted: set[str] = set()
        self._next: asyncio.Future[dict[str, int]] | None = None
        self._asking = asyncio.Lock()
        self._quiet_until_s = 0.0

    async def wait(self, room_id: str) -> None:
        """Wait until what the room's owner has told is applied here, but not for ever."""
        if self._is_only_edge() or self._clock() < self._quiet_until_s:
            return
        sequence = (await self._ask(room_id)).get(room_id, 0)
        if sequence:
            await self._wait_for(sequence, WAIT_S)

    async def _ask(self, room_id: str) -> dict[str, int]:
        self._wanted.add(room_id)
        question = self._next
        if question is not None:
            return await asyncio.shield(question)
        question = self._next = asyncio.get_running_loop().create_future()
        answer: dict[str, int] = {}
        try:
            async with self._asking:
                room_ids, self._wanted, self._next = list(self._wanted), set(), None
                request = query_pb2.QueryRoomPositionRequest(room_ids=room_ids)
                try:
                    found = await self._rooms.QueryRoomPosition(request, timeout=ASK_S)
                except (grpc.RpcError, MatrixError) as error:
                    self._quiet_until_s = self._clock() + PAUSE_S
                    log.info("room_positions_unknown", error=str(error)[:200])
                else:
                    answer = dict(zip(room_ids, found.output_sequences, strict=True))
        finally:
            if self._next is question:
                self._next = None
            question.set_result(answer)
        return answer

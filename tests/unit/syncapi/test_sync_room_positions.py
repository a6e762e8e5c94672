"""Reads of one room ask the room's owner only where another edge can have written."""

import asyncio
from types import SimpleNamespace
from typing import Any

from arbor.roomserver.v1 import query_pb2
from syncapi.room_positions import RoomPositions

ROOM = "!room:here"


class Owner:
    """The RoomServer: counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    async def QueryRoomPosition(self, request: Any, **_: Any) -> Any:  # noqa: N802 - the contract's name
        """Answer 7 for every room."""
        self.asked.append(list(request.room_ids))
        return query_pb2.QueryRoomPositionResponse(output_sequences=[7] * len(request.room_ids))


def made(*, only: bool) -> SimpleNamespace:
    """The positions with what they ask and wait for."""
    owner, waited = Owner(), []

    async def wait_for(sequence: int, timeout_s: float) -> bool:
        waited.append(sequence)
        return True

    positions = RoomPositions(owner, wait_for, lambda: only)
    return SimpleNamespace(owner=owner, waited=waited, wait=positions.wait)


async def test_the_only_edge_asks_nobody() -> None:
    parts = made(only=True)
    await parts.wait(ROOM)
    assert (parts.owner.asked, parts.waited) == ([], [])


async def test_where_others_may_have_written_the_owner_is_asked() -> None:
    parts = made(only=False)
    await asyncio.gather(parts.wait(ROOM), parts.wait(ROOM))
    assert parts.owner.asked[0] == [ROOM]
    assert parts.waited == [7, 7]

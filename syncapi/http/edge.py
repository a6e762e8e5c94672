"""What the endpoints share: the caller, the user's own writes waited for, one hop to the database."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection

from servicekit.database import Database
from servicekit.errors import MatrixError, invalid_param
from servicekit.http import RateLimiter, Request
from syncapi import access
from syncapi.auth import Accounts, Caller, TokenCache
from syncapi.filters import Filter
from syncapi.partial_rooms import PartialRooms
from syncapi.presence import PresenceTeller
from syncapi.reads import ReadsFollowWrites
from syncapi.remote import RemoteHistory
from syncapi.room_positions import RoomPositions
from syncapi.storage import accounts
from syncapi.storage import events as event_storage
from syncapi.sync.engine import SyncEngine
from syncapi.tokens import SyncToken, TopologicalToken, parse_token

P = ParamSpec("P")
R = TypeVar("R")


class FilterSource:
    """Where a request's filter comes from; see `syncapi.filter_source`."""

    async def load(self, user_id: str, text: str | None) -> Filter:
        """Return the filter that a `filter` parameter names."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Edge:
    """The parts that endpoints use."""

    database: Database
    tokens: TokenCache
    reads: ReadsFollowWrites
    engine: SyncEngine
    filters: FilterSource
    accounts: Accounts
    presence: PresenceTeller
    remote: RemoteHistory
    room_positions: RoomPositions
    searches: RateLimiter
    partial_rooms: PartialRooms

    async def caller(self, request: Request) -> Caller:
        """Return who makes a request, once what was written is applied; also at another edge, for one room."""
        caller = await self.tokens.resolve(request)
        await self.reads.wait()
        room_id = request.path_params.get("room_id")
        if room_id is not None:
            await self.room_positions.wait(room_id)
        return caller

    async def members(self, caller: Caller, room_id: str) -> None:
        """Wait until the members of a room are here, where they come after a join with partial state.

        Raises:
            MatrixError: M_FORBIDDEN; 503, they do not come in time.
        """
        if self.partial_rooms.is_partial(room_id):
            await self.read(access.find_access, room_id, caller.user_id)
            await self.partial_rooms.require_whole(room_id)

    async def read(
        self, work: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run `work(connection, …)` in one snapshot."""
        return await self.reads.read(self.database, work, *args, **kwargs)


def not_found(what: str = "Not found") -> MatrixError:
    """Return a 404."""
    return MatrixError("M_NOT_FOUND", 404, what)


def place_of(connection: Connection, room_id: str, text: str, name: str) -> tuple[int, int]:
    """Return the (depth, position) that a token stands before.

    Raises:
        MatrixError: M_INVALID_PARAM, no token of ours.
    """
    token = parse_token(text, name)
    if isinstance(token, TopologicalToken):
        return token.depth, token.position
    assert isinstance(token, SyncToken)
    if token.output_sequence > accounts.load_position(connection)[1]:
        raise invalid_param(f"{name} is not a token of this server")
    return event_storage.load_depth_at(connection, room_id, token.position) + 1, 0

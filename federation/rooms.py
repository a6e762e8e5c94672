"""What we need to know of rooms, asked of the RoomServer, the little that every PDU needs kept in memory.

A `RoomView` (version, ACL, policy server, whether we take part) is good until OUTPUT says that the room changed in
a way that matters; the consumer calls `forget`.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

import grpc.aio

from arbor.log.v1 import common_pb2
from arbor.roomserver.v1 import query_pb2, query_pb2_grpc
from matrixlib.events import Event, EventFormatError, StateKey, parse_event
from matrixlib.policy_servers import POLICY_KEY, PolicyServer, policy_server_of
from matrixlib.room_versions import RoomVersion, get_room_version
from matrixlib.server_acl import ServerAcl
from servicekit.errors import forbidden, not_found
from servicekit.grpc import matrix_error_from

MAX_VIEWS = 20_000
QUERY_TIMEOUT_S = 10.0
LARGE_QUERY_TIMEOUT_S = 120.0
IMPORT_TIMEOUT_S = 600.0
ACL_KEY: StateKey = ("m.room.server_acl", "")
VIEW_KEYS: tuple[StateKey, ...] = (ACL_KEY, POLICY_KEY)
"""The state that a view is made of."""


@dataclass(frozen=True, slots=True)
class RoomView:
    """What every request about a room needs. `participating`: a local user is joined.

    `policy_server`: the one in use, whose signature every event needs.
    `speaks_as`: of several local server names the one with a user in the room; None: the first, or the only one.
    `partial`: the room's members are not all known yet, since a join with partial state is not complete.
    """

    room_id: str
    version: RoomVersion
    participating: bool
    acl: ServerAcl | None
    policy_server: PolicyServer | None = None
    speaks_as: str | None = None
    partial: bool = False

    def allows(self, server_name: str) -> bool:
        """Whether the room's ACL lets a server take part."""
        return self.acl is None or self.acl.allows(server_name)


@dataclass(frozen=True, slots=True)
class LatestState:
    """A room's heads and chosen state."""

    version: RoomVersion
    heads: tuple[str, ...]
    depth: int
    state: dict[StateKey, Event]
    output_sequence: int
    participating: bool
    partial: bool = False


class Rooms:
    """Questions to the RoomServer.

    Args:
        channel: to the RoomServer.
        local_names: our server names.
    """

    local_names: Sequence[str] = ()

    def __init__(self, channel: grpc.aio.Channel, local_names: Sequence[str] = ()) -> None:
        self.local_names = local_names
        self._stub: query_pb2_grpc.QueryServiceAsyncStub = query_pb2_grpc.QueryServiceStub(channel)
        self._admin: query_pb2_grpc.AdminServiceAsyncStub = query_pb2_grpc.AdminServiceStub(channel)
        self._views: OrderedDict[str, RoomView] = OrderedDict()
        # Rooms whose view is being asked for and which have not changed meanwhile.
        self._unchanged: set[str] = set()

    # -- views ---------------------------------------------------------------------------------------------

    def forget(self, room_id: str) -> None:
        """The room changed: ask again."""
        self._views.pop(room_id, None)
        self._unchanged.discard(room_id)

    async def view(self, room_id: str) -> RoomView | None:
        """Return what is known of a room; None: nothing."""
        known = self._views.get(room_id)
        if known is not None:
            return known
        self._unchanged.add(room_id)
        latest = await self.latest(room_id, VIEW_KEYS)
        if latest is None:
            self._unchanged.discard(room_id)
            return None
        policy_server = policy_server_of(latest.state.get(POLICY_KEY))
        several = len(self.local_names) > 1
        servers: Sequence[str] = ()
        if latest.participating and (policy_server is not None or several):
            servers = await self.servers(room_id)
        view = RoomView(
            room_id,
            latest.version,
            latest.participating,
            ServerAcl.of(latest.state.get(ACL_KEY)),
            policy_server if policy_server is not None and policy_server.name in servers else None,
            next((name for name in self.local_names if name in servers), None) if several else None,
            latest.partial,
        )
        if room_id in self._unchanged:
            self._unchanged.discard(room_id)
            self._views[room_id] = view
            if len(self._views) > MAX_VIEWS:
                self._views.popitem(last=False)
        return view

    async def require(self, room_id: str, origin: str) -> RoomView:
        """Return the view of a room that we are in, for a request of `origin`.

        Raises:
            MatrixError: 404 where we are not in the room, 403 where the ACL keeps the origin out.
        """
        view = await self.view(room_id)
        if view is None or not view.participating:
            raise not_found("Not in that room")
        if not view.allows(origin):
            raise forbidden("Server is banned from the room")
        return view

    async def require_whole(self, room_id: str, origin: str) -> RoomView:
        """As `require`, and the room's members are known (404 otherwise: another server can say more).

        The spec has no error for it, and one of 500 or more would have the other server leave us alone for a while.
        """
        view = await self.require(room_id, origin)
        if view.partial:
            raise not_found("The room's members are not all known here yet")
        return view

    async def require_member(self, room_id: str, origin: str, *, whole: bool = False) -> RoomView:
        """As `require`, or `require_whole`, and the origin has a joined user in the room (403 otherwise).

        In a partial room, it is among the servers that the resident server told.
        """
        view = await (self.require_whole if whole else self.require)(room_id, origin)
        if origin not in await self.servers(room_id):
            raise forbidden("Host not in room")
        return view

    # -- questions -----------------------------------------------------------------------------------------

    async def latest(
        self, room_id: str, keys: Iterable[StateKey] = (), *, all_state: bool = False, min_sequence: int = 0
    ) -> LatestState | None:
        """Return a room's heads and the chosen entries of its current state; None: unknown room."""
        request = query_pb2.QueryLatestRequest(
            room_id=room_id,
            state_keys=[common_pb2.StateKey(type=key[0], state_key=key[1]) for key in keys],
            all_state=all_state,
            min_sequence=min_sequence,
        )
        try:
            answer = await self._stub.QueryLatest(request, timeout=QUERY_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error
        version = get_room_version(answer.room_version)
        if not answer.exists or version is None:
            return None
        events = [_event(item, version) for item in answer.state]
        return LatestState(
            version,
            tuple(answer.forward_extremities),
            answer.depth,
            {event.key: event for event in events},
            answer.output_sequence,
            answer.participating,
            answer.partial,
        )

    async def servers(self, room_id: str) -> list[str]:
        """Return the servers with a joined user in a room, ours included."""
        rooms = await self.rooms([room_id], with_servers=True)
        return list(rooms[0].servers) if rooms else []

    async def rooms(
        self, room_ids: Sequence[str], *, with_servers: bool = False, with_local_users: bool = False
    ) -> list[query_pb2.Room]:
        """Return what is known of rooms; with no ids, of every room."""
        request = query_pb2.QueryRoomsRequest(
            room_ids=room_ids, with_servers=with_servers, with_local_users=with_local_users
        )
        try:
            answer = await self._stub.QueryRooms(request, timeout=LARGE_QUERY_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error
        return list(answer.rooms)

    async def rooms_of_users(self, user_ids: Sequence[str]) -> list[query_pb2.Room]:
        """Return the rooms that users are joined to, with their servers."""
        request = query_pb2.QueryRoomsRequest(joined_user_ids=user_ids, with_servers=True)
        try:
            answer = await self._stub.QueryRooms(request, timeout=QUERY_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error
        return list(answer.rooms)

    async def is_server_in_room(self, room_id: str, server_name: str) -> bool:
        """Whether a server is known to have a joined user in a room; of a partial room that is not known."""
        rooms = await self.rooms([room_id], with_servers=True)
        return bool(rooms) and not rooms[0].partial and server_name in rooms[0].servers

    async def memberships(
        self, room_id: str, user_ids: Sequence[str] = (), memberships: Sequence[str] = ()
    ) -> list[query_pb2.RoomMembership]:
        """Return present memberships in a room (or, without a room, of users everywhere)."""
        request = query_pb2.QueryMembershipsRequest(
            room_id=room_id, user_ids=user_ids, memberships=memberships
        )
        try:
            answer = await self._stub.QueryMemberships(request, timeout=QUERY_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error
        return list(answer.memberships)

    async def events(self, event_ids: Sequence[str], room_id: str = "") -> list[query_pb2.StoredEvent]:
        """Return those events that are known, in the order asked; with a room, only events of it."""
        found: list[query_pb2.StoredEvent] = []
        for start in range(0, len(event_ids), 1000):
            request = query_pb2.QueryEventsRequest(event_ids=event_ids[start : start + 1000], room_id=room_id)
            try:
                answer = await self._stub.QueryEvents(request, timeout=LARGE_QUERY_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                raise matrix_error_from(error) from error
            found.extend(answer.events)
        return found

    async def state_at(
        self,
        room_id: str,
        event_id: str,
        *,
        ids_only: bool = False,
        with_auth_chain: bool = False,
        after: bool = False,
        keys: Iterable[StateKey] = (),
        with_own_auth_chain: bool = False,
        omit_members: bool = False,
    ) -> AsyncIterator[query_pb2.QueryStateResponse]:
        """Stream the state at an event, before it unless `after`.

        Args:
            with_own_auth_chain: the auth chain is the event's own too.
            omit_members: leave out members but those that are needed at once.
        """
        request = query_pb2.QueryStateRequest(
            room_id=room_id,
            event_ids=[event_id],
            after=after,
            ids_only=ids_only,
            with_auth_chain=with_auth_chain,
            state_keys=[common_pb2.StateKey(type=key[0], state_key=key[1]) for key in keys],
            with_own_auth_chain=with_own_auth_chain,
            omit_members=omit_members,
        )
        try:
            async for part in self._stub.QueryState(request, timeout=LARGE_QUERY_TIMEOUT_S):
                yield part
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error

    async def auth_chain(self, event_ids: Sequence[str], *, ids_only: bool = False) -> list[common_pb2.Event]:
        """Return the auth chain of events, without them, each event after those that it refers to."""
        request = query_pb2.QueryAuthChainRequest(event_ids=event_ids, ids_only=ids_only)
        found: list[common_pb2.Event] = []
        try:
            async for part in self._stub.QueryAuthChain(request, timeout=LARGE_QUERY_TIMEOUT_S):
                found.extend(part.events)
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error
        return found

    async def missing_events(
        self, room_id: str, earliest: Sequence[str], latest: Sequence[str], limit: int, min_depth: int
    ) -> list[query_pb2.StoredEvent]:
        """Return events between two sets, oldest first."""
        request = query_pb2.QueryMissingEventsRequest(
            room_id=room_id,
            earliest_events=earliest,
            latest_events=latest,
            limit=limit,
            min_depth=max(min_depth, 0),
        )
        try:
            answer = await self._stub.QueryMissingEvents(request, timeout=QUERY_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error
        return list(answer.events)

    async def history(
        self,
        room_id: str,
        from_event_ids: Sequence[str],
        limit: int,
        *,
        nearest_to_ms: int = 0,
        backwards: bool = False,
    ) -> query_pb2.QueryHistoryResponse:
        """Return history backwards from events, newest first, or the event nearest to a time."""
        request = query_pb2.QueryHistoryRequest(
            room_id=room_id,
            from_event_ids=from_event_ids,
            limit=limit,
            nearest_to_ms=nearest_to_ms,
            backwards=backwards,
        )
        try:
            return await self._stub.QueryHistory(request, timeout=QUERY_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error

    async def visible_to_server(
        self, room_id: str, event_ids: Sequence[str], server_name: str, *, only_joined: bool = False
    ) -> frozenset[str]:
        """Return which of the events a server may see in full; `only_joined`: at which it was in the room."""
        if not event_ids:
            return frozenset()
        request = query_pb2.QueryVisibilityRequest(
            room_id=room_id, event_ids=event_ids, server_name=server_name, only_joined=only_joined
        )
        try:
            answer = await self._stub.QueryVisibility(request, timeout=QUERY_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error
        return frozenset(answer.visible_event_ids)

    async def import_parts(self, parts: AsyncIterator[query_pb2.ImportRequest]) -> None:
        """Stage a room's state and auth chain, to be made part of the room by an entry on INPUT."""
        try:
            await self._admin.Import(parts, timeout=IMPORT_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error

    async def outcome(
        self, room_id: str, event_id: str, input_sequence: int, timeout_s: float
    ) -> query_pb2.QueryOutcomeResponse:
        """Ask how an event was judged, once its entry has been."""
        request = query_pb2.QueryOutcomeRequest(
            room_id=room_id, event_id=event_id, input_sequence=input_sequence
        )
        try:
            return await self._stub.QueryOutcome(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise matrix_error_from(error) from error


def _event(item: common_pb2.Event, version: RoomVersion) -> Event:
    try:
        return parse_event(item.pdu_json, version, event_id=item.event_id, verify_size=False)
    except EventFormatError as error:  # our own database holds it: this cannot be mended here
        raise RuntimeError(f"the RoomServer gave {item.event_id}, which does not parse: {error}") from error

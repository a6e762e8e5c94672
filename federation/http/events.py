"""Events, state and history of rooms, for servers that are in them (server-server API, "Retrieving events",
"Backfilling and retrieving missing events", "Retrieving event authorisation information").

Each request is scoped to a room: the asking server is in it, the ACL lets it be, and the events it names are
of that room. What it may not see by the history visibility it gets redacted, and so what our users wrote before it came
and had erased. While the members of a room that we joined with partial state are not here, no state is served, and only
events that the server may see.
"""

import asyncio
from collections.abc import Callable, Sequence

import orjson

from arbor.roomserver.v1 import query_pb2
from federation.clock import NowMs
from federation.http.authentication import Caller
from federation.http.endpoints import Endpoint
from federation.local_users import LocalUsers
from federation.rooms import Rooms, RoomView
from matrixlib.canonical_json import encode_canonical, parse_json
from matrixlib.identifiers import server_name_of
from matrixlib.redaction import redact_pdu
from matrixlib.room_versions import RoomVersion, get_room_version
from servicekit.errors import bad_json, invalid_param, missing_param, not_found
from servicekit.http import Request, Response, json_response

MAX_BACKFILL = 100
MAX_BACKFILL_FROM = 50
MISSING_DEFAULT = 10
MAX_MISSING = 20
MAX_MISSING_IDS = 100

_SERVED = frozenset(
    {
        query_pb2.EVENT_STATUS_ACCEPTED,
        query_pb2.EVENT_STATUS_SOFT_FAILED,
        query_pb2.EVENT_STATUS_OUTLIER,
    }
)


class EventRoutes:
    """See the module."""

    ENDPOINTS = (
        Endpoint("GET", "/_matrix/federation/v1/event/{event_id}", "get_event"),
        Endpoint("GET", "/_matrix/federation/v1/state/{room_id}", "get_state"),
        Endpoint("GET", "/_matrix/federation/v1/state_ids/{room_id}", "get_state_ids"),
        Endpoint("GET", "/_matrix/federation/v1/event_auth/{room_id}/{event_id}", "get_event_auth"),
        Endpoint("GET", "/_matrix/federation/v1/backfill/{room_id}", "backfill"),
        Endpoint("POST", "/_matrix/federation/v1/get_missing_events/{room_id}", "get_missing_events"),
        Endpoint(
            "GET",
            "/_matrix/federation/v1/timestamp_to_event/{room_id}",
            "timestamp_to_event",
            aliases=("/_matrix/federation/unstable/org.matrix.msc3030/timestamp_to_event/{room_id}",),
        ),
    )

    def __init__(
        self, rooms: Rooms, users: LocalUsers, is_local: Callable[[str], bool], now_ms: NowMs
    ) -> None:
        self._rooms = rooms
        self._users = users
        self._is_local = is_local
        self._now_ms = now_ms

    async def get_event(self, request: Request, caller: Caller) -> Response:
        """GET /event/{eventId}."""
        found = await self._rooms.events([request.path_params["event_id"]])
        if not found or found[0].status not in _SERVED:
            raise not_found("Event not found")
        view = await self._rooms.require_member(found[0].room_id, caller.origin)
        bodies = await self._visible(view, found, caller.origin)
        if not bodies:
            raise not_found("Event not found")
        return json_response(self._transaction(caller, bodies))

    async def get_state(self, request: Request, caller: Caller) -> Response:
        """GET /state/{roomId}: the state before an event, whole."""
        room_id, event_id = await self._scoped_event(request, caller)
        state: list[bytes] = []
        chain: list[bytes] = []
        async for part in self._rooms.state_at(room_id, event_id, with_auth_chain=True):
            if part.unknown:
                raise not_found("The state before that event is not known")
            state.extend(item.pdu_json for item in part.state)
            chain.extend(item.pdu_json for item in part.auth_chain)
            await asyncio.sleep(0)
        return json_response(b'{"auth_chain":[' + b",".join(chain) + b'],"pdus":[' + b",".join(state) + b"]}")

    async def get_state_ids(self, request: Request, caller: Caller) -> Response:
        """GET /state_ids/{roomId}."""
        room_id, event_id = await self._scoped_event(request, caller)
        state: list[str] = []
        chain: list[str] = []
        async for part in self._rooms.state_at(room_id, event_id, ids_only=True, with_auth_chain=True):
            if part.unknown:
                raise not_found("The state before that event is not known")
            state.extend(item.event_id for item in part.state)
            chain.extend(item.event_id for item in part.auth_chain)
        return json_response({"pdu_ids": state, "auth_chain_ids": chain})

    async def get_event_auth(self, request: Request, caller: Caller) -> Response:
        """GET /event_auth/{roomId}/{eventId}."""
        room_id, event_id = request.path_params["room_id"], request.path_params["event_id"]
        await self._rooms.require_member(room_id, caller.origin, whole=True)
        await self._require_event(room_id, event_id)
        chain = await self._rooms.auth_chain([event_id])
        return json_response(b'{"auth_chain":[' + b",".join(item.pdu_json for item in chain) + b"]}")

    async def backfill(self, request: Request, caller: Caller) -> Response:
        """GET /backfill/{roomId}: history before events, those included, newest first."""
        room_id = request.path_params["room_id"]
        view = await self._rooms.require_member(room_id, caller.origin)
        wanted = request.query_all("v")[:MAX_BACKFILL_FROM]
        if not wanted:
            raise missing_param("The query parameter v is missing")
        if "limit" not in request.query:
            raise missing_param("The query parameter limit is missing")
        limit = request.query_int("limit", MAX_BACKFILL, minimum=1, maximum=MAX_BACKFILL)
        known = await self._rooms.events(wanted, room_id)
        history = await self._rooms.history(room_id, [item.event.event_id for item in known], limit)
        served = [item for item in history.events if item.status in _SERVED]
        return json_response(self._transaction(caller, await self._visible(view, served, caller.origin)))

    async def get_missing_events(self, request: Request, caller: Caller) -> Response:
        """POST /get_missing_events/{roomId}."""
        room_id = request.path_params["room_id"]
        view = await self._rooms.require_member(room_id, caller.origin)
        body = caller.content
        earliest, latest = _ids(body.get("earliest_events")), _ids(body.get("latest_events"))
        limit, min_depth = body.get("limit", MISSING_DEFAULT), body.get("min_depth", 0)
        if type(limit) is not int or type(min_depth) is not int:
            raise bad_json("limit and min_depth must be integers")
        # Only events of this room are walked from: an id of another room leads nowhere.
        known = await self._rooms.events(list({*earliest, *latest}), room_id)
        ids = {item.event.event_id for item in known}
        events = await self._rooms.missing_events(
            room_id,
            [event_id for event_id in earliest if event_id in ids],
            [event_id for event_id in latest if event_id in ids],
            min(max(limit, 0), MAX_MISSING),
            min(min_depth, 2**53 - 1),
        )
        served = [item for item in events if item.status in _SERVED and item.room_id == room_id]
        bodies = await self._visible(view, served, caller.origin)
        return json_response(b'{"events":[' + b",".join(bodies) + b"]}")

    async def timestamp_to_event(self, request: Request, caller: Caller) -> Response:
        """GET /timestamp_to_event/{roomId}."""
        room_id = request.path_params["room_id"]
        await self._rooms.require_member(room_id, caller.origin, whole=True)
        for name in ("ts", "dir"):
            if name not in request.query:
                raise missing_param(f"The query parameter {name} is missing")
        direction = request.query["dir"]
        if direction not in ("f", "b"):
            raise invalid_param("dir must be f or b")
        at_ms = request.query_int("ts", 0)
        found = await self._rooms.history(
            room_id, [], 1, nearest_to_ms=max(at_ms, 1), backwards=direction == "b"
        )
        ids = [item.event.event_id for item in found.events if item.status in _SERVED]
        visible = await self._rooms.visible_to_server(room_id, ids, caller.origin)
        for item in found.events:
            if item.event.event_id in visible:
                stamp = parse_json(item.event.pdu_json).get("origin_server_ts", 0)
                return json_response({"event_id": item.event.event_id, "origin_server_ts": stamp})
        raise not_found("There is no event in that direction")

    # -- inside --------------------------------------------------------------------------------------------

    async def _scoped_event(self, request: Request, caller: Caller) -> tuple[str, str]:
        room_id, event_id = request.path_params["room_id"], request.query.get("event_id")
        if not event_id:
            raise missing_param("The query parameter event_id is missing")
        await self._rooms.require_member(room_id, caller.origin, whole=True)
        await self._require_event(room_id, event_id)
        return room_id, event_id

    async def _require_event(self, room_id: str, event_id: str) -> None:
        found = await self._rooms.events([event_id], room_id)
        # One that waits has not been judged: nothing is known of what stands before it.
        if not found or found[0].room_id != room_id or found[0].status == query_pb2.EVENT_STATUS_WAITING:
            raise not_found("Event not found in that room")

    async def _visible(
        self, view: RoomView, events: Sequence[query_pb2.StoredEvent], server_name: str
    ) -> list[bytes]:
        """The events as JSON, redacted where the server may not see them.

        Of a partial room only those that it may certainly see: who else was in the room then, nobody knows here.
        """
        ids = [item.event.event_id for item in events]
        visible = await self._rooms.visible_to_server(view.room_id, ids, server_name)
        visible -= await self._erased(view, events, server_name)
        if view.partial:
            events = [item for item in events if item.event.event_id in visible]
        return [
            item.event.pdu_json
            if item.event.event_id in visible
            else _redacted(item.event.pdu_json, get_room_version(item.room_version) or view.version)
            for item in events
        ]

    async def _erased(
        self, view: RoomView, events: Sequence[query_pb2.StoredEvent], server_name: str
    ) -> frozenset[str]:
        """Which of the events a server was not there for, and their sender, one of our users, is erased.

        NOTSPEC: a server that came between the event and the erasure gets the redacted form, too.
        """
        senders = {item.event.event_id: parse_json(item.event.pdu_json).get("sender", "") for item in events}
        ours = {sender for sender in senders.values() if self._is_local(server_name_of(sender))}
        erased = await self._users.erased_among(ours)
        ids = [event_id for event_id, sender in senders.items() if sender in erased]
        return frozenset(ids) - await self._rooms.visible_to_server(
            view.room_id, ids, server_name, only_joined=True
        )

    def _transaction(self, caller: Caller, pdus: Sequence[bytes]) -> bytes:
        head = {"origin": caller.destination, "origin_server_ts": self._now_ms()}
        return orjson.dumps(head)[:-1] + b',"pdus":[' + b",".join(pdus) + b"]}"


def _redacted(pdu_json: bytes, version: RoomVersion) -> bytes:
    return encode_canonical(redact_pdu(parse_json(pdu_json), version))


def _ids(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise bad_json("earliest_events and latest_events must be arrays of event ids")
    return value[:MAX_MISSING_IDS]

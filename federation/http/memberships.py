"""Being joined, left and knocked on: make_* and send_* as the resident server.

(Server-server API, "Joining Rooms", "Restricted rooms", "Knocking upon a room", "Leaving Rooms".) A room that we
joined with partial state has other servers that can do it until its members are here.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from arbor.roomserver.v1 import query_pb2
from federation.clock import NowMs
from federation.http.authentication import Caller
from federation.http.countersigning import countersign
from federation.http.endpoints import Endpoint
from federation.http.restricted import RestrictedJoins
from federation.joining.stripped import STRIPPED_TYPES
from federation.policy import PolicySignatures
from federation.receipt.pdu_checks import PduChecker
from federation.rooms import LatestState, Rooms, RoomView
from federation.storage.outgoing import note_relayed
from federation.submit import Submitter, federation_entry, is_accepted, malformed, refusal_of
from matrixlib.event_auth import Refused, auth_types_for_event, check_event_auth
from matrixlib.event_builder import build_pdu, next_depth
from matrixlib.events import Event, EventFormatError, StateKey, parse_event
from matrixlib.identifiers import IdentifierError, parse_user_id, server_name_of
from matrixlib.room_versions import RoomVersion
from matrixlib.signing import SigningKey
from servicekit.database import Database
from servicekit.errors import MatrixError, forbidden, invalid_param, not_found
from servicekit.http import Request, Response, json_response

MAX_PREV_EVENTS = 10
_WAITING, _OUTLIER = query_pb2.EVENT_STATUS_WAITING, query_pb2.EVENT_STATUS_OUTLIER


class MembershipRoutes:
    """See the module.

    Args:
        keys: local server name -> its signing key.
        is_local: whether a server name is ours.
    """

    ENDPOINTS = (
        Endpoint("GET", "/_matrix/federation/v1/make_join/{room_id}/{user_id}", "make_join"),
        Endpoint("PUT", "/_matrix/federation/v1/send_join/{room_id}/{event_id}", "send_join_v1"),
        Endpoint("PUT", "/_matrix/federation/v2/send_join/{room_id}/{event_id}", "send_join"),
        Endpoint("GET", "/_matrix/federation/v1/make_leave/{room_id}/{user_id}", "make_leave"),
        Endpoint("PUT", "/_matrix/federation/v1/send_leave/{room_id}/{event_id}", "send_leave_v1"),
        Endpoint("PUT", "/_matrix/federation/v2/send_leave/{room_id}/{event_id}", "send_leave"),
        Endpoint("GET", "/_matrix/federation/v1/make_knock/{room_id}/{user_id}", "make_knock"),
        Endpoint("PUT", "/_matrix/federation/v1/send_knock/{room_id}/{event_id}", "send_knock"),
    )

    def __init__(
        self,
        rooms: Rooms,
        checker: PduChecker,
        policy: PolicySignatures,
        submitter: Submitter,
        database: Database,
        restricted: RestrictedJoins,
        keys: Mapping[str, SigningKey],
        is_local: Callable[[str], bool],
        now_ms: NowMs,
    ) -> None:
        self._rooms = rooms
        self._checker = checker
        self._policy = policy
        self._submitter = submitter
        self._database = database
        self._restricted = restricted
        self._keys = keys
        self._is_local = is_local
        self._now_ms = now_ms

    # -- templates -----------------------------------------------------------------------------------------

    async def make_join(self, request: Request, caller: Caller) -> Response:
        """GET /make_join: a template for the join event."""
        return await self._make(request, caller, "join")

    async def make_leave(self, request: Request, caller: Caller) -> Response:
        """GET /make_leave: a template for the leave event."""
        return await self._make(request, caller, "leave")

    async def make_knock(self, request: Request, caller: Caller) -> Response:
        """GET /make_knock: a template for the knock event."""
        return await self._make(request, caller, "knock")

    async def _make(self, request: Request, caller: Caller, membership: str) -> Response:
        room_id, user_id = request.path_params["room_id"], request.path_params["user_id"]
        _check_user(user_id, caller.origin)
        view = await self._rooms.require_whole(room_id, caller.origin)
        if membership != "leave":
            # "Defaults to [1]": a server that says nothing knows version 1 only.
            _check_version(view.version, request.query_all("ver") or ["1"])
        content: dict[str, Any] = {"membership": membership}
        if membership == "join":
            authoriser = await self._restricted.authorise(view, user_id)
            if authoriser is not None:
                content["join_authorised_via_users_server"] = authoriser
        latest = await self._latest(view, user_id, content)
        pdu = self._template(latest, room_id, user_id, content)
        self._check_template(pdu, latest)
        return json_response({"room_version": view.version.identifier, "event": pdu})

    async def _latest(self, view: RoomView, user_id: str, content: Mapping[str, Any]) -> LatestState:
        keys: set[StateKey] = set(
            auth_types_for_event(view.version, "m.room.member", user_id, user_id, content)
        )
        latest = await self._rooms.latest(view.room_id, keys | {("m.room.create", "")})
        if latest is None:
            raise not_found("Not in that room")
        return latest

    def _template(
        self, latest: LatestState, room_id: str, user_id: str, content: Mapping[str, Any]
    ) -> dict[str, Any]:
        version = latest.version
        wanted = auth_types_for_event(version, "m.room.member", user_id, user_id, content)
        auth = [latest.state[key].event_id for key in sorted(wanted) if key in latest.state]
        pdu = build_pdu(
            version,
            room_id=room_id,
            sender=user_id,
            type="m.room.member",
            content=content,
            state_key=user_id,
            prev_events=list(latest.heads[:MAX_PREV_EVENTS]),
            auth_event_ids=auth,
            depth=next_depth(version, [latest.depth]),
            origin_server_ts=self._now_ms(),
        )
        # In versions 1 and 2 the id is the joining server's to choose.
        pdu.pop("event_id", None)
        return {**pdu, "origin": server_name_of(user_id)}

    def _check_template(self, pdu: Mapping[str, Any], latest: LatestState) -> None:
        """The event would be allowed by the state we see; otherwise it is refused at once."""
        # The authorising server will have signed by then: that is us, in send_join.
        authoriser = pdu["content"].get("join_authorised_via_users_server", "")
        signatures = {server_name_of(authoriser): {"ed25519:template": ""}} if authoriser else {}
        draft = {**pdu, "hashes": {}, "signatures": signatures}
        if not latest.version.hashed_event_ids:
            draft["event_id"] = f"$template:{pdu['origin']}"
        event = parse_event(draft, latest.version)
        verdict = check_event_auth(event, latest.state)
        if isinstance(verdict, Refused):
            raise forbidden(verdict.reason)

    # -- the events themselves -----------------------------------------------------------------------------

    async def send_join_v1(self, request: Request, caller: Caller) -> Response:
        """PUT /v1/send_join: the older form of the answer."""
        body = await self._send_join(request, caller)
        return json_response(b"[200," + body + b"]")

    async def send_join(self, request: Request, caller: Caller) -> Response:
        """PUT /v2/send_join: take the join, give the room's state, without most members to who can do so."""
        return json_response(await self._send_join(request, caller, may_omit=True))

    async def _send_join(self, request: Request, caller: Caller, *, may_omit: bool = False) -> bytes:
        # "… the servers active in the room before the join".
        view = await self._rooms.require_whole(request.path_params["room_id"], caller.origin)
        servers = await self._rooms.servers(view.room_id)
        event = await self._take(request, caller, "join")
        omit_members = may_omit and request.query_bool("omit_members")
        state, chain = await self._state_before(event, omit_members=omit_members)
        return b"".join(
            (
                b'{"auth_chain":[',
                b",".join(chain),
                b'],"event":',
                event.pdu_json,
                b',"members_omitted":',
                b"true" if omit_members else b"false",
                b',"origin":',
                orjson.dumps(caller.destination),
                b',"servers_in_room":',
                orjson.dumps(sorted(servers)),
                b',"state":[',
                b",".join(state),
                b"]}",
            )
        )

    async def send_leave_v1(self, request: Request, caller: Caller) -> Response:
        """PUT /v1/send_leave: the older form of the answer."""
        await self._take(request, caller, "leave")
        return json_response(b"[200,{}]")

    async def send_leave(self, request: Request, caller: Caller) -> Response:
        """PUT /v2/send_leave: take the leave."""
        await self._take(request, caller, "leave")
        return json_response({})

    async def send_knock(self, request: Request, caller: Caller) -> Response:
        """PUT /send_knock: take the knock, tell a little of the room."""
        event = await self._take(request, caller, "knock")
        keys = [(kind, "") for kind in STRIPPED_TYPES]
        latest = await self._rooms.latest(event.room_id, keys)
        state = latest.state.values() if latest is not None else ()
        # Whole events, as the spec has it since v1.16; who reads stripped ones finds their keys in them.
        return json_response(b'{"knock_room_state":[' + b",".join(item.pdu_json for item in state) + b"]}")

    async def _take(self, request: Request, caller: Caller, membership: str) -> Event:
        room_id, event_id = request.path_params["room_id"], request.path_params["event_id"]
        view = await self._rooms.require_whole(room_id, caller.origin)
        event = self._parse(caller, view, membership)
        if event.event_id != event_id:
            raise invalid_param("The event is not the one that the path names")
        if membership == "join":
            event = await self._countersign(event, view)
        checked = await self._checker.check_one(event.pdu, view.version, room_id=room_id)
        if not isinstance(checked, Event):
            raise forbidden(f"The event does not pass the checks: {checked.reason}")
        await self._require_known(checked)
        checked = await self._policy.of_one(view, checked)
        # First the note, for the sender to find when OUTPUT tells the event: we pass it on to the others.
        await self._database.write(note_relayed, checked.event_id, caller.origin, self._now_ms())
        verdict = await self._submitter.submit(room_id, federation_entry(checked, caller.origin))
        if not is_accepted(verdict):
            raise refusal_of(verdict)
        return checked

    async def _require_known(self, event: Event) -> None:
        """The events that it names are here: it can be judged now.

        Otherwise it would wait in the room and might stand there later, though its server was told that it
        does not.
        """
        named = {*event.prev_event_ids, *event.auth_event_ids}
        found = await self._rooms.events(sorted(named), event.room_id)
        known = {item.event.event_id: item.status for item in found if item.status != _WAITING}
        outside = {event_id for event_id in event.prev_event_ids if known.get(event_id) == _OUTLIER}
        if named - known.keys() or outside:
            raise invalid_param("The event names events that are not known here")

    def _parse(self, caller: Caller, view: RoomView, membership: str) -> Event:
        try:
            event = parse_event(caller.content, view.version)
        except EventFormatError as error:
            raise malformed(caller.content, error) from None
        if event.room_id != view.room_id:
            raise invalid_param("The event is of another room")
        if event.type != "m.room.member" or event.membership != membership:
            raise invalid_param(f"Not a {membership} event")
        if event.state_key != event.sender:
            raise invalid_param("The event is about somebody else than its sender")
        if server_name_of(event.sender) != caller.origin:
            raise forbidden("The sender is not a user of the requesting server")
        if membership == "knock" and not view.version.knocking:
            raise forbidden("Rooms of this version cannot be knocked on")
        return event

    async def _countersign(self, event: Event, view: RoomView) -> Event:
        """For a restricted join by authority of a user of ours: check that once more, and sign."""
        authoriser = event.content.get("join_authorised_via_users_server")
        if authoriser is None or not view.version.restricted_joins:
            return event
        server = server_name_of(authoriser) if isinstance(authoriser, str) else ""
        if not self._is_local(server):
            return event  # the checks find out whether that server has signed
        await self._restricted.check_authoriser(view, event.sender, authoriser)
        return countersign(event, server, self._keys[server])

    async def _state_before(
        self, event: Event, *, omit_members: bool = False
    ) -> tuple[list[bytes], list[bytes]]:
        """The state before an event, and the auth chain of that and of the event, as JSON each."""
        state: list[bytes] = []
        chain: list[bytes] = []
        async for part in self._rooms.state_at(
            event.room_id,
            event.event_id,
            with_auth_chain=True,
            with_own_auth_chain=True,
            omit_members=omit_members,
        ):
            if part.unknown:
                raise MatrixError("M_UNKNOWN", 500, "The state before the event is not known")
            state.extend(item.pdu_json for item in part.state)
            chain.extend(item.pdu_json for item in part.auth_chain)
            await asyncio.sleep(0)
        return state, chain


def _check_user(user_id: str, origin: str) -> None:
    try:
        parse_user_id(user_id)
    except IdentifierError:
        raise invalid_param("Not a user id") from None
    if server_name_of(user_id) != origin:
        raise forbidden("The user is not of the requesting server")


def _check_version(version: RoomVersion, known: Sequence[str]) -> None:
    if version.identifier not in known:
        raise MatrixError(
            "M_INCOMPATIBLE_ROOM_VERSION",
            400,
            f"The room has version {version.identifier}",
            extra={"room_version": version.identifier},
        )

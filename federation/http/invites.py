"""Being invited: a server wants our signature on an invite of one of our users (server-server API, "Inviting
to a room"). Nothing is signed that is not exactly such an invite.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from arbor.log.v1 import input_pb2
from federation.http.authentication import Caller
from federation.http.countersigning import countersign
from federation.http.endpoints import Endpoint
from federation.joining.stripped import check_invite_state
from federation.local_users import LocalUsers
from federation.receipt.pdu_checks import PduChecker
from federation.rooms import Rooms
from federation.submit import Submitter, event_message, is_accepted, malformed, refusal_of
from matrixlib.events import Event, EventFormatError, parse_event
from matrixlib.identifiers import is_valid_user_id, server_name_of
from matrixlib.room_versions import RoomVersion, get_room_version
from matrixlib.signing import SigningKey
from servicekit.errors import MatrixError, forbidden, invalid_param, missing_param
from servicekit.http import Request, Response, json_response


class InviteRoutes:
    """See the module.

    Args:
        keys: local server name -> its signing key.
    """

    ENDPOINTS = (
        Endpoint("PUT", "/_matrix/federation/v1/invite/{room_id}/{event_id}", "invite_v1"),
        Endpoint("PUT", "/_matrix/federation/v2/invite/{room_id}/{event_id}", "invite"),
    )

    def __init__(
        self,
        rooms: Rooms,
        checker: PduChecker,
        submitter: Submitter,
        users: LocalUsers,
        keys: Mapping[str, SigningKey],
    ) -> None:
        self._rooms = rooms
        self._checker = checker
        self._submitter = submitter
        self._users = users
        self._keys = keys

    async def invite_v1(self, request: Request, caller: Caller) -> Response:
        """PUT /v1/invite: the event alone, its room of version 1 or 2."""
        unsigned = caller.content.get("unsigned")
        state = unsigned.get("invite_room_state") if isinstance(unsigned, dict) else None
        version = get_room_version("1")
        assert version is not None
        event = await self._invite(request, caller, caller.content, version, state)
        return json_response([200, {"event": event.pdu}])

    async def invite(self, request: Request, caller: Caller) -> Response:
        """PUT /v2/invite."""
        named = caller.content.get("room_version")
        if not isinstance(named, str):
            raise missing_param("room_version is missing")
        version = get_room_version(named)
        if version is None:
            raise MatrixError(
                "M_INCOMPATIBLE_ROOM_VERSION",
                400,
                "This server does not know rooms of that version",
                extra={"room_version": named[:32]},
            )
        state = caller.content.get("invite_room_state")
        event = await self._invite(request, caller, caller.content.get("event"), version, state)
        return json_response({"event": event.pdu})

    async def _invite(
        self, request: Request, caller: Caller, pdu: Any, version: RoomVersion, state: Any
    ) -> Event:
        room_id, event_id = request.path_params["room_id"], request.path_params["event_id"]
        event = self._parse(pdu, version, room_id, event_id, caller)
        target = event.state_key or ""
        view = await self._rooms.view(room_id)
        if view is not None and view.participating and not view.allows(caller.origin):
            raise forbidden("Server is banned from the room")
        # The sender's signature; ours is not there yet and is not demanded of an invite.
        checked = await self._checker.check_one(event.pdu, version, room_id=room_id)
        if not isinstance(checked, Event):
            # NOTSPEC: it names M_INVALID_PARAM, without demanding it; every server knows 403 for a wrong signature.
            raise forbidden(f"The invite does not pass the checks: {checked.reason}")
        takes_invites = await self._users.takes_invites(target)
        if takes_invites is None:
            raise MatrixError("M_NOT_FOUND", 404, "There is no such user")
        if not takes_invites:
            raise MatrixError("M_INVITE_BLOCKED", 403, "The user takes no invites")
        if await self._users.is_blocked(room_id):
            raise forbidden("This room has been blocked on this server")
        stripped = await check_invite_state(state, self._checker, version, room_id)
        server = server_name_of(target)
        signed = countersign(checked, server, self._keys[server])
        if view is None or not view.participating:
            await self._submit(signed, caller.origin, stripped)
        # Otherwise the event comes to us like every other one of the room.
        return signed

    def _parse(self, pdu: Any, version: RoomVersion, room_id: str, event_id: str, caller: Caller) -> Event:
        try:
            event = parse_event(pdu, version)
        except EventFormatError as error:
            raise malformed(pdu, error) from None
        if event.room_id != room_id or event.event_id != event_id:
            raise invalid_param("The event is not the one that the path names")
        if event.type != "m.room.member" or event.membership != "invite":
            raise invalid_param("Not an invite")
        if server_name_of(event.sender) != caller.origin:
            raise invalid_param("The sender is not a user of the requesting server")
        if not is_valid_user_id(event.state_key) or server_name_of(event.state_key or "") not in self._keys:
            raise invalid_param("The invited user is not of this server")
        return event

    async def _submit(self, event: Event, origin: str, stripped: Sequence[bytes]) -> None:
        entry = input_pb2.InputEntry(
            submit_events=input_pb2.SubmitEvents(
                origin=input_pb2.EVENT_ORIGIN_OUTLIER,
                room_version=event.room_version.identifier,
                events=[event_message(event)],
                origin_server=origin,
                stripped_state_json=stripped,
                outlier_membership_user_id=event.state_key or "",
            )
        )
        verdict = await self._submitter.submit(event.room_id, entry)
        if not is_accepted(verdict):
            raise refusal_of(verdict)

"""Third-party invites become invites (server-server API, "Third-party invites").

    identity server ── /3pid/onbind ──► the user's server ── /exchange_third_party_invite ──► the inviter's server
                                                                                                     │
                                              the user's server ◄── /invite, signed by both ─────────┘

The room's own `m.room.third_party_invite` event says whose signature counts. So nothing is believed because
of who asks: `/3pid/onbind` is open to everybody.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from federation.http.authentication import Caller
from federation.http.endpoints import Endpoint
from federation.local_users import LocalUsers
from federation.outbound.client import FederationClient, path_of
from federation.outbound.errors import RemoteError, RemoteRefused
from federation.rooms import Rooms
from matrixlib.identifiers import is_valid_user_id, parse_room_id, server_name_of
from servicekit.errors import MatrixError, bad_json, forbidden, invalid_param, missing_param, not_found
from servicekit.http import Request, Response, json_response
from servicekit.logging import get_logger

log = get_logger("federation.third_party")

MAX_INVITES = 50
MAX_AT_ONCE = 5
MAX_TEXT = 255
EXCHANGE_TIMEOUT_S = 60.0


class ThirdPartyRoutes:
    """See the module.

    Args:
        is_local: whether a server name is ours.
    """

    ENDPOINTS = (
        Endpoint("PUT", "/_matrix/federation/v1/exchange_third_party_invite/{room_id}", "exchange"),
        Endpoint("PUT", "/_matrix/federation/v1/3pid/onbind", "on_bind", signed=False),
        # Identity servers of today say POST.
        Endpoint("POST", "/_matrix/federation/v1/3pid/onbind", "on_bind", signed=False),
    )

    def __init__(
        self, client: FederationClient, rooms: Rooms, users: LocalUsers, is_local: Callable[[str], bool]
    ) -> None:
        self._client = client
        self._rooms = rooms
        self._users = users
        self._is_local = is_local
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)

    # -- the inviter's server ------------------------------------------------------------------------------

    async def exchange(self, request: Request, caller: Caller) -> Response:
        """PUT /exchange_third_party_invite/{roomId}."""
        room_id, body = request.path_params["room_id"], caller.content
        if body.get("room_id") != room_id:
            raise invalid_param("The event is not of the room that the path names")
        content = body.get("content")
        if not isinstance(content, dict):
            raise bad_json("content must be an object")
        if body.get("type") != "m.room.member" or content.get("membership") != "invite":
            raise invalid_param("Not an invite")
        sender, target = body.get("sender"), body.get("state_key")
        if not is_valid_user_id(sender) or not self._is_local(server_name_of(sender)):
            raise invalid_param("The sender is not a user of this server")
        if not is_valid_user_id(target) or server_name_of(target) != caller.origin:
            raise invalid_param("The invited user is not of the requesting server")
        invite = content.get("third_party_invite")
        signed = _signed(invite.get("signed") if isinstance(invite, dict) else None, target)
        if signed is None:
            raise invalid_param("third_party_invite is not signed for that user")
        await self._rooms.require_whole(room_id, caller.origin)
        await self._redeem(room_id, sender, target, signed)
        return json_response({})

    async def _redeem(self, room_id: str, sender: str, target: str, signed: dict[str, Any]) -> None:
        """Have a local user make the invite. Raises MatrixError."""
        key = ("m.room.third_party_invite", signed["token"])
        latest = await self._rooms.latest(room_id, [key])
        issued = latest.state.get(key) if latest is not None else None
        if issued is None or issued.sender != sender:
            raise forbidden("There is no such third-party invite of that user")
        name = issued.content.get("display_name")
        invite = {"display_name": name if isinstance(name, str) else target, "signed": signed}
        await self._users.redeem_third_party_invite(room_id, sender, target, invite)

    # -- the user's server ---------------------------------------------------------------------------------

    async def on_bind(self, request: Request) -> Response:
        """PUT /3pid/onbind. Answers 502 where an inviter's server is out of reach, to be asked again."""
        body = await request.json()
        for key in ("medium", "address", "mxid", "invites"):
            if key not in body:
                raise missing_param(f"{key} is missing")
        user_id, invites = body["mxid"], body["invites"]
        if not isinstance(invites, list):
            raise bad_json("invites must be an array")
        if len(invites) > MAX_INVITES:
            raise invalid_param(f"At most {MAX_INVITES} invites are taken at once")
        if not is_valid_user_id(user_id) or not self._is_local(server_name_of(user_id)):
            raise invalid_param("mxid is not a user of this server")
        if await self._users.profile(user_id) is None:
            raise not_found("There is no such user")
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._bind(user_id, invite)) for invite in invites]
        if not all(task.result() for task in tasks):
            raise MatrixError("M_UNKNOWN", 502, "Some inviter's server cannot be reached now")
        return json_response({})

    async def _bind(self, user_id: str, invite: Any) -> bool:
        """Deal with one invite; False: it could not be settled now."""
        given = invite if isinstance(invite, dict) else {}
        sender, room_id = given.get("sender"), given.get("room_id")
        signed = _signed(given.get("signed"), user_id)
        if signed is None or given.get("mxid") != user_id or not is_valid_user_id(sender):
            log.info("third_party_invite_ignored", user=user_id, reason="malformed")
            return True
        try:
            parse_room_id(room_id)
        except ValueError:
            log.info("third_party_invite_ignored", user=user_id, reason="no room id")
            return True
        assert isinstance(room_id, str)
        async with self._slots:
            try:
                if self._is_local(server_name_of(sender)):
                    await self._redeem(room_id, sender, user_id, signed)
                else:
                    await self._ask_to_exchange(room_id, sender, user_id, signed)
            except (MatrixError, RemoteError) as error:
                settled = _is_refusal(error)
                log.info(
                    "third_party_invite_failed",
                    user=user_id,
                    room=room_id,
                    settled=settled,
                    reason=str(error),
                )
                return settled
        return True

    async def _ask_to_exchange(self, room_id: str, sender: str, user_id: str, signed: dict[str, Any]) -> None:
        event = {
            "type": "m.room.member",
            "room_id": room_id,
            "sender": sender,
            "state_key": user_id,
            "content": {
                "membership": "invite",
                # The name that the inviter gave stands in the room, which we do not see.
                "third_party_invite": {"display_name": user_id, "signed": signed},
            },
        }
        await self._client.request(
            server_name_of(sender),
            "PUT",
            path_of("/_matrix/federation/v1/exchange_third_party_invite/{}", room_id),
            content=event,
            origin=server_name_of(user_id),
            timeout_s=EXCHANGE_TIMEOUT_S,
            ignore_backoff=True,
        )


def _signed(value: Any, user_id: str) -> dict[str, Any] | None:
    """The object that an identity server signed for a user, if it has the form of one."""
    if not isinstance(value, dict) or value.get("mxid") != user_id:
        return None
    token = value.get("token")
    if not isinstance(token, str) or not 0 < len(token.encode("utf-8", "replace")) <= MAX_TEXT:
        return None
    return value if isinstance(value.get("signatures"), dict) else None


def _is_refusal(error: MatrixError | RemoteError) -> bool:
    """Whether asking again would end the same way."""
    status = error.http_status if isinstance(error, MatrixError | RemoteRefused) else 503
    return 400 <= status < 500 and status != 429

"""Room membership: join, knock, invite, leave, kick, ban, unban, forget."""

from collections.abc import Sequence
from typing import Any

import msgspec

from clientapi.http.edge import EMPTY, Edge, check_alias, check_room_id, check_user_id, convert, room_id_of
from clientapi.rooms.parts import Rooms
from clientapi.rooms.third_party_invites import AddressInvite
from matrixlib.identifiers import server_name_of
from servicekit.errors import invalid_param, missing_param
from servicekit.http import Request, Response, Router, json_response


class ReasonBody(msgspec.Struct):
    """The optional body of leave, knock."""

    reason: str | None = None


class ThirdPartySigned(msgspec.Struct):
    """`third_party_signed` of join: what an identity server has signed."""

    sender: str
    mxid: str
    token: str
    signatures: dict[str, dict[str, str]]


class JoinBody(msgspec.Struct):
    """The optional body of join."""

    reason: str | None = None
    third_party_signed: ThirdPartySigned | None = None


class TargetBody(msgspec.Struct):
    """The body of invite, kick, ban, unban."""

    user_id: str
    reason: str | None = None


class AddressBody(msgspec.Struct):
    """The body of invite, with an address in place of a user; also in `invite_3pid` of createRoom."""

    id_server: str
    id_access_token: str
    medium: str
    address: str
    reason: str | None = None


class MembershipEndpoints:
    """`/join`, `/knock`, `/rooms/{roomId}/join` and so on."""

    def __init__(self, edge: Edge, rooms: Rooms) -> None:
        self._edge = edge
        self._rooms = rooms
        self._memberships = rooms.memberships

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("POST", "/_matrix/client/v3/join/{room_id_or_alias}", self.join_by_id_or_alias)
        router.add("POST", "/_matrix/client/v3/knock/{room_id_or_alias}", self.knock)
        room = "/_matrix/client/v3/rooms/{room_id}"
        router.add("POST", room + "/join", self.join)
        router.add("POST", room + "/leave", self.leave)
        router.add("POST", room + "/forget", self.forget)
        router.add("POST", room + "/invite", self.invite)
        router.add("POST", room + "/kick", self.kick)
        router.add("POST", room + "/ban", self.ban)
        router.add("POST", room + "/unban", self.unban)

    async def join(self, request: Request) -> Response:
        """Join a room by its id."""
        return await self._join(request, room_id_of(request), ())

    async def join_by_id_or_alias(self, request: Request) -> Response:
        """Join a room by id or alias."""
        # Who asks is asked first: what an alias points to is nobody's business without a token.
        await self._edge.authenticate(request)
        return await self._join(request, *await self._room_id(request))

    async def _join(self, request: Request, room_id: str, servers: Sequence[str]) -> Response:
        session = await self._edge.authenticate_unsuspended(request)
        self._edge.joins.check(session.user_id)
        via = [*_via(request), *servers]
        raw = await request.json(allow_empty=True)
        body = convert(raw, JoinBody)
        if body.third_party_signed is not None:
            # Whole, as it came: the signature covers keys that we do not know, too.
            await self._rooms.third_party_joins.redeem(session.user_id, room_id, raw["third_party_signed"])
        extra = {} if body.reason is None else {"reason": body.reason}
        await self._memberships.join(session, room_id, extra, via)
        return json_response({"room_id": room_id})

    async def knock(self, request: Request) -> Response:
        """Ask to be let into a room."""
        session = await self._edge.authenticate_writer(request)
        self._edge.joins.check(session.user_id)
        room_id, servers = await self._room_id(request)
        via = [*_via(request), *servers]
        await self._memberships.knock(session.user_id, room_id, await _reason(request), via)
        return json_response({"room_id": room_id})

    async def leave(self, request: Request) -> Response:
        """Leave a room or refuse an invite."""
        session = await self._edge.authenticate(request)
        await self._memberships.leave(session.user_id, room_id_of(request), await _reason(request))
        return EMPTY

    async def forget(self, request: Request) -> Response:
        """Forget a room."""
        session = await self._edge.authenticate(request)
        await request.json(allow_empty=True)
        await self._memberships.forget(session.user_id, room_id_of(request))
        return EMPTY

    async def invite(self, request: Request) -> Response:
        """Invite a user, or whoever has an address."""
        session = await self._edge.authenticate_writer(request)
        self._edge.invites.check(session.user_id)
        room_id = room_id_of(request)
        raw = await request.json()
        if "user_id" not in raw and ("medium" in raw or "address" in raw):
            wanted, extra = address_invite(raw), _extra(convert(raw, AddressBody).reason)
            await self._rooms.third_party_invites.invite(session.user_id, room_id, wanted, extra)
            return EMPTY
        target, extra = _target(raw)
        await self._memberships.invite(session.user_id, room_id, target, extra)
        return EMPTY

    async def kick(self, request: Request) -> Response:
        """Remove a user."""
        session = await self._edge.authenticate_writer(request)
        target, extra = _target(await request.json())
        await self._memberships.kick(session.user_id, room_id_of(request), target, extra)
        return EMPTY

    async def ban(self, request: Request) -> Response:
        """Ban a user."""
        session = await self._edge.authenticate_writer(request)
        target, extra = _target(await request.json())
        await self._memberships.ban(session.user_id, room_id_of(request), target, extra)
        return EMPTY

    async def unban(self, request: Request) -> Response:
        """Lift a user's ban."""
        session = await self._edge.authenticate_writer(request)
        target, extra = _target(await request.json())
        await self._memberships.unban(session.user_id, room_id_of(request), target, extra)
        return EMPTY

    async def _room_id(self, request: Request) -> tuple[str, Sequence[str]]:
        """Return the room that the path names, and servers that an alias's server gave for it."""
        name = request.path_params["room_id_or_alias"]
        if name.startswith("#"):
            alias = check_alias(name)
            if self._edge.config.is_local(server_name_of(alias)):
                return await self._rooms.aliases.resolve(alias), ()
            return await self._rooms.remote.resolve_alias(alias)
        if name.startswith("!"):
            return check_room_id(name), ()
        raise invalid_param("The path holds neither a room id nor an alias")


def _via(request: Request) -> list[str]:
    """Return the servers that the client names: `via`, and `server_name` as it was called before v1.12."""
    return [*request.query_all("via"), *request.query_all("server_name")]


def address_invite(raw: dict[str, Any]) -> AddressInvite:
    """Return whom a client wants to invite by an address.

    Raises:
        MatrixError: M_MISSING_PARAM, M_BAD_JSON, M_INVALID_PARAM.
    """
    for name in ("id_server", "id_access_token", "medium", "address"):
        if raw.get(name) is None:
            raise missing_param(f"Missing {name}")
    body = convert(raw, AddressBody)
    return AddressInvite.checked(body.id_server, body.id_access_token, body.medium, body.address)


def _extra(reason: str | None) -> dict[str, Any]:
    return {} if reason is None else {"reason": reason}


async def _reason(request: Request) -> dict[str, Any]:
    return _extra(convert(await request.json(allow_empty=True), ReasonBody).reason)


def _target(raw: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if raw.get("user_id") is None:
        raise missing_param("Missing user_id")
    body = convert(raw, TargetBody)
    return check_user_id(body.user_id), _extra(body.reason)

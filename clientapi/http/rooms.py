"""Writing into rooms: createRoom, send, state, redact, upgrade."""

from typing import Any

import msgspec

from clientapi.accounts.sessions import Session
from clientapi.http.edge import Edge, check_event_id, check_user_id, read_body, room_id_of, suspended
from clientapi.http.membership import address_invite
from clientapi.rooms.aliases import CANONICAL_ALIAS
from clientapi.rooms.create import PRESETS, NewRoom
from clientapi.rooms.membership import GUEST_ACCESS
from clientapi.rooms.parts import Rooms
from clientapi.rooms.requests import Draft, TransactionKey
from clientapi.rooms.sensible_state import check_sensible
from clientapi.rooms.successors import TOMBSTONE
from matrixlib.canonical_json import CanonicalJsonError, check_strict
from matrixlib.identifiers import MAX_ID_BYTES, IdentifierError, parse_room_alias
from servicekit.errors import MatrixError, bad_json, invalid_param, missing_param
from servicekit.http import Request, Response, Router, json_response

MAX_INVITEES = 1000
MAX_ADDRESSES = 10


class StateEvent(msgspec.Struct):
    """An entry of `initial_state`."""

    type: str
    content: dict[str, Any]
    state_key: str = ""


class CreateRoomBody(msgspec.Struct):
    """`POST /createRoom`."""

    visibility: str | None = None
    room_alias_name: str | None = None
    name: str | None = None
    topic: str | None = None
    invite: list[str] | None = None
    invite_3pid: list[dict[str, Any]] | None = None
    room_version: str | None = None
    creation_content: dict[str, Any] | None = None
    initial_state: list[StateEvent] | None = None
    preset: str | None = None
    is_direct: bool | None = None
    power_level_content_override: dict[str, Any] | None = None


class UpgradeBody(msgspec.Struct):
    """`POST /rooms/{roomId}/upgrade`."""

    new_version: str
    additional_creators: list[str] | None = None


class RoomEndpoints:
    """`/createRoom`, `/rooms/{roomId}/send`, `…/state`, `…/redact`, `…/upgrade`."""

    def __init__(self, edge: Edge, rooms: Rooms) -> None:
        self._edge = edge
        self._rooms = rooms

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("POST", "/_matrix/client/v3/createRoom", self.create_room)
        room = "/_matrix/client/v3/rooms/{room_id}"
        router.add("PUT", room + "/send/{event_type}/{txn_id}", self.send)
        router.add("POST", room + "/send/{event_type}", self.send)
        router.add("PUT", room + "/state/{event_type}", self.put_state)
        router.add("PUT", room + "/state/{event_type}/{state_key?}", self.put_state)
        router.add("PUT", room + "/redact/{event_id}/{txn_id}", self.redact)
        router.add("POST", room + "/redact/{event_id}", self.redact)
        router.add("POST", room + "/upgrade", self.upgrade)

    async def send(self, request: Request) -> Response:
        """Send a message event. A suspended account may redact its own events."""
        session = await self._edge.authenticate(request)
        self._edge.messages.check(session.user_id)
        params = request.path_params
        room_id = room_id_of(request)
        event_type = params["event_type"]
        if session.guest or (session.suspended and event_type != "m.room.redaction"):
            await self._check_guest_or_suspended(session, room_id)
        _refuse_delay(request)
        content = await request.json()
        if event_type == "m.room.redaction":
            # Room version 11 and later: the target stands in the content (v1.18).
            target = content.get("redacts")
            if target is None:
                raise missing_param("Missing redacts")
            rest = {key: value for key, value in content.items() if key != "redacts"}
            return await self._redact(
                request, session, room_id, check_event_id(target), rest, f"send/{event_type}"
            )
        _check_content(content)
        # Two types are two requests, also to a client that counts its transactions by type.
        key = _transaction(request, session, f"send/{event_type}", room_id)
        draft = Draft(event_type, content)
        if "m.relates_to" in content:
            return await self._send_related(session, room_id, draft, key)
        sent = await self._rooms.sender.send_draft(room_id, session.user_id, draft, key)
        return _event_id(sent.event_id)

    async def _send_related(
        self, session: Session, room_id: str, draft: Draft, key: TransactionKey | None
    ) -> Response:
        await self._rooms.thread_roots.check(room_id, draft.content)
        txn_id = "" if key is None else key.txn_id
        annotations = self._rooms.annotations
        kind = await annotations.check(session, room_id, draft.type, draft.content, txn_id)
        sent = await self._rooms.sender.send_draft(room_id, session.user_id, draft, key)
        if kind is not None:
            await annotations.note(kind, session, sent.event_id, txn_id)
        return _event_id(sent.event_id)

    async def put_state(self, request: Request) -> Response:
        """Set an entry of the room's state. A suspended account may leave in this way too."""
        session = await self._edge.authenticate(request)
        self._edge.messages.check(session.user_id)
        params = request.path_params
        room_id = room_id_of(request)
        event_type, state_key = params["event_type"], params.get("state_key", "")
        _refuse_delay(request)
        content = await request.json()
        _check_content(content)
        leaves = (event_type, state_key, content.get("membership")) == (
            "m.room.member",
            session.user_id,
            "leave",
        )
        if (session.guest or session.suspended) and not leaves:
            await self._check_guest_or_suspended(session, room_id)
        if event_type == "m.room.member":
            _check_member(content, state_key)
            if content["membership"] == "invite":
                self._edge.invites.check(session.user_id)
            sent = await self._rooms.member_state.put(session, room_id, state_key, content)
            return _event_id(sent.event_id)
        if (event_type, state_key) == CANONICAL_ALIAS:
            _head, state = await self._rooms.sender.view(room_id, frozenset({CANONICAL_ALIAS}))
            await self._rooms.aliases.check_canonical(room_id, content, state.get(CANONICAL_ALIAS))
        check_sensible(room_id, session.server_name, event_type, state_key, content)
        draft = Draft(event_type, content, state_key)
        sent = await self._rooms.sender.send_state(room_id, session.user_id, draft)
        if (event_type, state_key) == TOMBSTONE:
            await self._rooms.successors.follow_tombstone(room_id, content.get("replacement_room"))
        if (event_type, state_key) == GUEST_ACCESS:
            await self._rooms.guests.follow_change(room_id)
        return _event_id(sent.event_id)

    async def _check_guest_or_suspended(self, session: Session, room_id: str) -> None:
        if session.suspended:
            raise suspended()
        await self._rooms.guests.check_may_stay(session.user_id, room_id)

    async def redact(self, request: Request) -> Response:
        """Redact an event; a suspended account only its own."""
        session = await self._edge.authenticate(request)
        self._edge.redactions.check(session.user_id)
        room_id = room_id_of(request)
        content = await request.json(allow_empty=True)
        content.pop("redacts", None)
        if session.guest:
            await self._rooms.guests.check_may_stay(session.user_id, room_id)
        _check_content(content)
        reason = content.get("reason")
        if reason is not None and not isinstance(reason, str):
            raise bad_json("reason is not a string")
        target = check_event_id(request.path_params["event_id"])
        return await self._redact(request, session, room_id, target, content, "redact")

    async def _redact(
        self,
        request: Request,
        session: Session,
        room_id: str,
        target: str,
        content: dict[str, Any],
        endpoint: str,
    ) -> Response:
        key = _transaction(request, session, endpoint, room_id)
        sent = await self._rooms.redactions.redact(
            session.user_id, room_id, target, content, key, own_only=session.suspended
        )
        return _event_id(sent.event_id)

    async def create_room(self, request: Request) -> Response:
        """Make a room."""
        session = await self._edge.authenticate_writer(request)
        self._edge.room_creations.check(session.user_id)
        body = await read_body(request, CreateRoomBody, allow_empty=True)
        room = self._new_room(session, body)
        count = len(room.invitees) + len(room.third_party_invitees)
        self._edge.invites.check_many(session.user_id, count)
        room_id = await self._rooms.creator.create(room)
        if body.visibility == "public":
            self._rooms.public_rooms.forget()
        return json_response({"room_id": room_id})

    def _new_room(self, session: Session, body: CreateRoomBody) -> NewRoom:
        if body.visibility not in (None, "public", "private"):
            raise invalid_param("visibility must be public or private")
        preset = body.preset
        if preset is None:
            preset = "public_chat" if body.visibility == "public" else "private_chat"
        if preset not in PRESETS:
            raise invalid_param("Not a preset")
        invitees = tuple(dict.fromkeys(check_user_id(user) for user in body.invite or ()))
        addresses = tuple(address_invite(entry) for entry in body.invite_3pid or ())
        if len(addresses) > MAX_ADDRESSES:
            raise invalid_param(f"At most {MAX_ADDRESSES} addresses can be invited at once")
        if len(invitees) > MAX_INVITEES:
            raise invalid_param(f"At most {MAX_INVITEES} users can be invited at once")
        version = self._rooms.creator.room_version(body.room_version)
        alias = None
        if body.room_alias_name is not None:
            alias = _alias_of(body.room_alias_name, session.server_name)
        public = body.visibility == "public"
        aliases = [] if alias is None else [alias]
        if public:
            self._rooms.public_rooms.check_may_list(session.user_id, "", aliases)
        for content in (
            body.creation_content or {},
            body.power_level_content_override or {},
            *(event.content for event in body.initial_state or ()),
        ):
            _check_content(content)
        return NewRoom(
            creator=session.user_id,
            room_version=version,
            preset=preset,
            public=public,
            alias=alias,
            name=body.name,
            topic=body.topic,
            invitees=invitees,
            third_party_invitees=addresses,
            creation_content=body.creation_content or {},
            initial_state=tuple(
                Draft(event.type, event.content, event.state_key) for event in body.initial_state or ()
            ),
            is_direct=bool(body.is_direct),
            power_level_override=body.power_level_content_override or {},
        )

    async def upgrade(self, request: Request) -> Response:
        """Replace a room by one of another version."""
        session = await self._edge.authenticate_writer(request)
        self._edge.room_creations.check(session.user_id)
        room_id = room_id_of(request)
        body = await read_body(request, UpgradeBody)
        version = self._rooms.creator.room_version(body.new_version)
        creators = tuple(check_user_id(user) for user in body.additional_creators or ())
        new_room_id = await self._rooms.upgrades.upgrade(session.user_id, room_id, version, creators)
        return json_response({"replacement_room": new_room_id})


def _transaction(request: Request, session: Session, endpoint: str, room_id: str) -> TransactionKey | None:
    txn_id = request.path_params.get("txn_id")
    if txn_id is None:
        return None
    if len(txn_id.encode()) > MAX_ID_BYTES:
        raise invalid_param(f"A transaction id has at most {MAX_ID_BYTES} bytes")
    return TransactionKey(session.user_id, session.device_id, endpoint, room_id, txn_id)


def _event_id(event_id: str) -> Response:
    return json_response({"event_id": event_id})


def _check_content(content: dict[str, Any]) -> None:
    """What we mint is strict canonical JSON in every room version."""
    try:
        check_strict(content)
    except CanonicalJsonError as error:
        raise bad_json(str(error)) from None


def _check_member(content: dict[str, Any], state_key: str) -> None:
    if content.get("membership") not in ("join", "invite", "leave", "ban", "knock"):
        raise bad_json("membership is missing, or none that there is")
    check_user_id(state_key)
    if "join_authorised_via_users_server" in content:
        raise bad_json("join_authorised_via_users_server is for the server to set")


def _alias_of(localpart: str, server_name: str) -> str:
    if not localpart or ":" in localpart or "#" in localpart or any(char.isspace() for char in localpart):
        raise invalid_param("room_alias_name is the local part of an alias, without # : and spaces")
    try:
        return parse_room_alias(f"#{localpart}:{server_name}")
    except IdentifierError as error:
        raise invalid_param(str(error)) from None


def _refuse_delay(request: Request) -> None:
    # To ignore it would send at once what should be sent later (a call's end, say).
    if request.query_all("org.matrix.msc4140.delay"):
        raise MatrixError("M_UNRECOGNIZED", 400, "Delayed events are not served")

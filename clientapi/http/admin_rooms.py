"""The part of the Synapse-compatible admin API that is about rooms: listing, looking into, blocking them."""

from collections.abc import Callable
from typing import Any, Final, Literal, cast, get_args

import msgspec
from sqlalchemy import Connection

from arbor.roomserver.v1 import query_pb2
from clientapi.accounts.sessions import local_session
from clientapi.clock import Clock
from clientapi.http.admin_parameters import Page, local_user, page_of_query
from clientapi.http.edge import Edge, check_alias, check_event_id, check_room_id, read_body, room_id_of
from clientapi.rooms.parts import Rooms
from clientapi.rooms.queries import state_of
from clientapi.rooms.requests import Draft
from clientapi.rooms.successors import TOMBSTONE
from clientapi.storage import administration, directory, room_tasks, users
from matrixlib.client_event import client_event
from matrixlib.events import Event, StateKey
from matrixlib.identifiers import server_name_of
from matrixlib.power_levels import CREATE_KEY, POWER_LEVELS_KEY, PowerLevels, room_creators
from matrixlib.room_versions import get_room_version
from servicekit.errors import MatrixError, invalid_param, missing_param, not_found
from servicekit.http import Request, Response, Router, json_response

_ADMIN: Final = "/_synapse/admin/v1"
# Rooms whose state comes in one answer.
PIECE: Final = 200

Order = Literal[
    "name",
    "alphabetical",
    "canonical_alias",
    "joined_members",
    "size",
    "joined_local_members",
    "version",
    "creator",
    "encryption",
    "federatable",
    "public",
    "join_rules",
    "guest_access",
    "history_visibility",
    "state_events",
]
_OLD_ORDERS: Final = {"alphabetical": "name", "size": "joined_members"}
# The largest first, unless `dir` turns it round; everything else goes by the alphabet.
_DOWNWARDS: Final = ("joined_members", "joined_local_members", "state_events", "version")
# Known of a room without its state.
_CHEAP: Final = ("joined_members", "version", "state_events")

_LISTED: Final[dict[str, tuple[str, str]]] = {
    "name": ("m.room.name", "name"),
    "canonical_alias": ("m.room.canonical_alias", "alias"),
    "encryption": ("m.room.encryption", "algorithm"),
    "join_rules": ("m.room.join_rules", "join_rule"),
    "guest_access": ("m.room.guest_access", "guest_access"),
    "history_visibility": ("m.room.history_visibility", "history_visibility"),
    "room_type": ("m.room.create", "type"),
}
_DETAILED: Final[dict[str, tuple[str, str]]] = {
    "topic": ("m.room.topic", "topic"),
    "avatar": ("m.room.avatar", "url"),
    "replacement_room": ("m.room.tombstone", "replacement_room"),
}
_KEYS: Final[list[StateKey]] = [(type_, "") for type_, _ in _LISTED.values()]
_DETAILED_KEYS: Final[list[StateKey]] = [*_KEYS, *((type_, "") for type_, _ in _DETAILED.values())]


class BlockBody(msgspec.Struct):
    """`PUT /rooms/{roomId}/block`."""

    block: bool


class UserBody(msgspec.Struct):
    """`POST /join/{roomIdOrAlias}` and `POST /rooms/{roomId}/make_room_admin`."""

    user_id: str | None = None


class AdminRoomEndpoints:
    """`/rooms…`, `/join`, `/fetch_event`."""

    def __init__(self, edge: Edge, rooms: Rooms, clock: Clock) -> None:
        self._edge = edge
        self._rooms = rooms
        self._db = rooms.db
        self._queries = rooms.sender.queries
        self._clock = clock

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", _ADMIN + "/rooms", self.list_rooms)
        room = _ADMIN + "/rooms/{room_id}"
        router.add("GET", room, self.get_room)
        router.add("GET", room + "/members", self.get_members)
        router.add("GET", room + "/state", self.get_state)
        router.add("GET", room + "/block", self.get_block)
        router.add("PUT", room + "/block", self.put_block)
        router.add("POST", room + "/make_room_admin", self.make_room_admin)
        router.add("POST", _ADMIN + "/join/{room_id_or_alias}", self.join)
        router.add("GET", _ADMIN + "/fetch_event/{event_id}", self.fetch_event)

    # -- looking
    # ---------------------------------------------------------------------------------------------------

    async def list_rooms(self, request: Request) -> Response:
        """List rooms, a page at a time."""
        await self._edge.authenticate_admin(request)
        query = request.query
        page = page_of_query(request)
        order = cast("Order", query.get("order_by", "name"))
        if order not in get_args(Order):
            raise invalid_param(f"order_by must be one of {', '.join(get_args(Order))}")
        search = query.get("search_term")
        if search == "":
            raise invalid_param("search_term holds nothing")
        found, total = await self._page(order, search, page)
        answer: dict[str, Any] = {"rooms": found, "offset": page.start, "total_rooms": total}
        if found and page.start + len(found) < total:
            answer["next_batch"] = page.start + len(found)
        if page.start > 0:
            answer["prev_batch"] = max(page.start - page.limit, 0)
        return json_response(answer)

    async def _page(self, order: Order, search: str | None, page: Page) -> tuple[list[dict[str, Any]], int]:
        key = _OLD_ORDERS.get(order, order)
        wanted = slice(page.start, page.start + page.limit)
        known = await self._queries.rooms(None)
        if key in _CHEAP and search is None:
            known.sort(key=_cheap_sorter(key, page.backwards))
            return await self._entries([room.room_id for room in known[wanted]]), len(known)
        entries = await self._entries([room.room_id for room in known])
        if search is not None:
            entries = [entry for entry in entries if _fits(entry, search.casefold())]
        entries.sort(key=lambda entry: entry["room_id"])
        downwards = (key in _DOWNWARDS) is not page.backwards
        entries.sort(key=lambda entry: _sort_value(entry[key]), reverse=downwards)
        return entries[wanted], len(entries)

    async def _entries(self, room_ids: list[str]) -> list[dict[str, Any]]:
        public = set(await self._db.read(directory.load_published))
        entries: list[dict[str, Any]] = []
        for at in range(0, len(room_ids), PIECE):
            piece = room_ids[at : at + PIECE]
            found = await self._queries.rooms(piece, with_local_users=True, keys=_KEYS)
            entries.extend(_listed(room, state_of(room), room.room_id in public) for room in found)
        return entries

    async def get_room(self, request: Request) -> Response:
        """Return what is known of a room."""
        await self._edge.authenticate_admin(request)
        room = await self._existing(request, with_local_users=True, keys=_DETAILED_KEYS)
        state = state_of(room)
        public, devices, forgotten = await self._db.read(
            _load_details, room.room_id, list(room.local_user_ids)
        )
        answer = _listed(room, state, public)
        answer |= {name: _text(state, type_, key) for name, (type_, key) in _DETAILED.items()}
        answer |= {
            "joined_local_devices": devices,
            "tombstoned": TOMBSTONE in state,
            # All of ours who were there have left and want to hear no more of it.
            "forgotten": forgotten and not room.local_user_ids,
        }
        return json_response(answer)

    async def get_members(self, request: Request) -> Response:
        """List the joined users of a room."""
        await self._edge.authenticate_admin(request)
        room = await self._existing(request)
        await self._rooms.sender.until_whole(room.room_id)
        found = await self._queries.memberships([], room.room_id, ["join"])
        members = sorted(item.membership.user_id for item in found)
        return json_response({"members": members, "total": len(members)})

    async def get_state(self, request: Request) -> Response:
        """Return the whole current state of a room."""
        await self._edge.authenticate_admin(request)
        room = await self._existing(request)
        latest = await self._queries.latest(room.room_id, all_state=True)
        state = {} if latest is None else latest.state
        return json_response({"state": [client_event(event) for _, event in sorted(state.items())]})

    async def fetch_event(self, request: Request) -> Response:
        """Return an event as it goes to other servers."""
        await self._edge.authenticate_admin(request)
        event_id = check_event_id(request.path_params["event_id"])
        event = await self._queries.event("", event_id)
        if event is None:
            raise not_found("Event not found")
        return json_response({"event": {**event.pdu, "event_id": event.event_id}})

    # -- changing
    # --------------------------------------------------------------------------------------------------

    async def get_block(self, request: Request) -> Response:
        """Say whether a room is blocked, and by whom."""
        await self._edge.authenticate_admin(request)
        blocker = await self._db.read(room_tasks.load_blocker, room_id_of(request))
        return json_response({"block": False} if blocker is None else {"block": True, "user_id": blocker})

    async def put_block(self, request: Request) -> Response:
        """Block a room, which need not be known here, or take that back."""
        session = await self._edge.authenticate_admin(request)
        room_id = room_id_of(request)
        body = await read_body(request, BlockBody)
        if body.block:
            await self._db.write(room_tasks.store_blocked, room_id, session.user_id, self._clock())
        else:
            await self._db.write(room_tasks.delete_blocked, room_id)
        return json_response({"block": body.block})

    async def join(self, request: Request) -> Response:
        """Let a local user join a room; where they may not, the administrator invites them first."""
        session = await self._edge.authenticate_admin(request)
        body = await read_body(request, UserBody)
        if body.user_id is None:
            raise missing_param("Missing user_id")
        user_id = local_user(self._edge.config, body.user_id)
        if not await self._db.read(users.user_exists, user_id):
            raise not_found("User not found")
        name = request.path_params["room_id_or_alias"]
        if name.startswith("#"):
            room_id = await self._rooms.aliases.resolve(check_alias(name))
        else:
            room_id = check_room_id(name)
        via = [*request.query_all("via"), *request.query_all("server_name")]
        target = local_session(user_id)
        try:
            await self._rooms.memberships.join(target, room_id, {}, via)
        except MatrixError as error:
            if error.errcode != "M_FORBIDDEN":
                raise
            await self._rooms.memberships.invite(session.user_id, room_id, user_id, {})
            await self._rooms.memberships.join(target, room_id, {}, via)
        return json_response({"room_id": room_id})

    async def make_room_admin(self, request: Request) -> Response:
        """Give a user the highest power level that a local user of the room can give."""
        session = await self._edge.authenticate_admin(request)
        body = await read_body(request, UserBody, allow_empty=True)
        target = session.user_id
        if body.user_id is not None:
            target = local_user(self._edge.config, body.user_id)
        keys = (CREATE_KEY, POWER_LEVELS_KEY, ("m.room.join_rules", ""), ("m.room.member", target))
        room = await self._existing(request, with_local_users=True, keys=keys)
        state = state_of(room)
        version = get_room_version(room.room_version)
        if version is None or CREATE_KEY not in state:
            raise MatrixError("M_UNSUPPORTED_ROOM_VERSION", 400, "The room's version is not known here")
        levels = PowerLevels.of(version, state)
        needed = levels.required_level("m.room.power_levels", True)
        able = [user for user in room.local_user_ids if levels.user_level(user) >= needed]
        if not able:
            raise MatrixError("M_UNKNOWN", 400, "No local user of the room can change its power levels")
        giver = max(able, key=lambda user: (levels.user_level(user), user))
        content = dict(state[POWER_LEVELS_KEY].content) if POWER_LEVELS_KEY in state else {}
        listed = content.get("users")
        known = dict(listed) if isinstance(listed, dict) else {}
        creators = room_creators(state[CREATE_KEY]) if version.privileged_creators else frozenset()
        if target not in creators:
            # A creator stands above every number; what they give is the highest number that is in use.
            numbers = [level for level in known.values() if isinstance(level, int)]
            level = known.get(giver) if giver not in creators else max([100, *numbers])
            known[target] = level if isinstance(level, int) else 100
            draft = Draft("m.room.power_levels", {**content, "users": known}, "")
            await self._rooms.sender.send_draft(room.room_id, giver, draft)
        member, rules = state.get(("m.room.member", target)), state.get(("m.room.join_rules", ""))
        is_open = rules is not None and rules.content.get("join_rule") == "public"
        if (member is None or member.membership not in ("join", "invite")) and not is_open:
            await self._rooms.memberships.invite(giver, room.room_id, target, {})
        return json_response({})

    async def _existing(
        self, request: Request, *, with_local_users: bool = False, keys: Any = ()
    ) -> query_pb2.Room:
        room_id = room_id_of(request)
        found = await self._queries.rooms([room_id], with_local_users=with_local_users, keys=keys)
        if not found:
            raise not_found("Room not found")
        return found[0]


def _load_details(conn: Connection, room_id: str, local_users: list[str]) -> tuple[bool, int, bool]:
    """Return (is it in the directory, devices of these users, did anybody of ours forget it)."""
    devices = users.count_devices(conn, local_users)
    return directory.is_published(conn, room_id), devices, administration.is_forgotten_by_any(conn, room_id)


def _text(state: dict[StateKey, Event], type_: str, key: str) -> str | None:
    event = state.get((type_, ""))
    value = None if event is None else event.content.get(key)
    return value if isinstance(value, str) and value else None


def _listed(room: query_pb2.Room, state: dict[StateKey, Event], public: bool) -> dict[str, Any]:
    create = state.get(CREATE_KEY)
    entry: dict[str, Any] = {
        "room_id": room.room_id,
        "version": room.room_version,
        "creator": None if create is None else create.content.get("creator", create.sender),
        "federatable": create is None or create.content.get("m.federate") is not False,
        "public": public,
        "joined_members": room.counts.joined,
        "joined_local_members": len(room.local_user_ids),
        "state_events": room.counts.state,
    }
    return entry | {name: _text(state, type_, key) for name, (type_, key) in _LISTED.items()}


def _fits(entry: dict[str, Any], term: str) -> bool:
    localpart = (entry["canonical_alias"] or "").partition(":")[0]
    return (
        term in (entry["name"] or "").casefold()
        or term in localpart.casefold()
        or term == (entry["canonical_alias"] or "").casefold()
        or term == entry["room_id"].casefold()
        or term == server_name_of(entry["room_id"])
    )


def _cheap_sorter(key: str, backwards: bool) -> Callable[[query_pb2.Room], tuple[Any, str]]:
    sign = 1 if backwards else -1

    def by(room: query_pb2.Room) -> tuple[Any, str]:
        if key == "version":
            number = int(room.room_version) if room.room_version.isdigit() else 0
            return (sign * number, room.room_id)
        return (sign * (room.counts.joined if key == "joined_members" else room.counts.state), room.room_id)

    return by


def _sort_value(value: Any) -> tuple[bool, Any]:
    """Numbers by size, truth values false first, texts in any case of letters; what is not set comes last."""
    if isinstance(value, str):
        return (False, value.casefold())
    return (value is None, 0 if value is None else value)

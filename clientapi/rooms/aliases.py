"""Local aliases: making, resolving, deleting them, and what `m.room.canonical_alias` may say."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection

from clientapi.clock import Clock
from clientapi.rooms.remote import RemoteRooms
from clientapi.rooms.requests import AlreadyThere, Draft, Wish
from clientapi.rooms.send import RoomSender
from clientapi.storage import directory
from matrixlib.events import Event, StateKey
from matrixlib.identifiers import IdentifierError, parse_room_alias, server_name_of
from matrixlib.power_levels import CREATE_KEY, POWER_LEVELS_KEY, PowerLevels
from matrixlib.room_versions import RoomVersion
from servicekit.config import Config
from servicekit.database import Database
from servicekit.errors import MatrixError, bad_json, forbidden, invalid_param, not_found, too_much
from servicekit.logging import get_logger

log = get_logger("clientapi.rooms")

CANONICAL_ALIAS: Final = ("m.room.canonical_alias", "")
MAX_NEW_ALIASES: Final = 50
MAX_ALIASES_OF_USER: Final = 1000
MAX_ALIASES_OF_ROOM: Final = 200


class Aliases:
    """See the module."""

    def __init__(
        self, config: Config, db: Database, sender: RoomSender, remote: RemoteRooms, clock: Clock
    ) -> None:
        self._remote = remote
        self._config = config
        self._db = db
        self._sender = sender
        self._clock = clock

    async def resolve(self, alias: str) -> str:
        """Return the room that an alias points to. Raises MatrixError M_NOT_FOUND."""
        row = await self._db.read(directory.load_alias, alias)
        if row is None:
            raise not_found(f"The room alias {alias} is not known")
        return row.room_id

    async def make(self, alias: str, room_id: str, user_id: str, *, admin: bool) -> None:
        """Let an alias point to a room that the user is in.

        Raises:
            MatrixError: M_INVALID_PARAM for another server's alias, M_FORBIDDEN, M_RESOURCE_LIMIT_EXCEEDED,
            M_UNKNOWN (409) if it is taken.
        """
        self.check_local(alias)
        if not admin:
            await self._check_joined(room_id, user_id)
        await self._check_not_too_many(room_id, user_id)
        if not await self._db.write(directory.store_alias, alias, room_id, user_id, self._clock()):
            raise MatrixError("M_UNKNOWN", 409, f"The room alias {alias} is taken")

    async def _check_not_too_many(self, room_id: str, user_id: str) -> None:
        own, of_room = await self._db.read(directory.count_aliases, user_id, room_id)
        if own >= MAX_ALIASES_OF_USER:
            raise too_much(f"A user makes at most {MAX_ALIASES_OF_USER} aliases")
        if of_room >= MAX_ALIASES_OF_ROOM:
            raise too_much(f"A room has at most {MAX_ALIASES_OF_ROOM} aliases")

    async def reserve(self, alias: str, room_id: str, user_id: str) -> None:
        """Take an alias for a room that is about to be made.

        Raises:
            MatrixError: M_ROOM_IN_USE, M_RESOURCE_LIMIT_EXCEEDED.
        """
        await self._check_not_too_many(room_id, user_id)
        if await self._db.write(directory.store_alias, alias, room_id, user_id, self._clock()):
            return
        # A process that died between here and the room's making leaves an alias that points to nothing.
        row = await self._db.read(directory.load_alias, alias)
        if (
            row is not None
            and row.creator == user_id
            and await self._sender.queries.latest(row.room_id) is None
        ):
            await self._db.write(directory.delete_alias, alias, row.room_id)
            if await self._db.write(directory.store_alias, alias, room_id, user_id, self._clock()):
                return
        raise MatrixError("M_ROOM_IN_USE", 400, f"The room alias {alias} is taken")

    async def give_back(self, alias: str, room_id: str) -> None:
        """Undo `reserve`: the room was not made."""
        await self._db.write(directory.delete_alias, alias, room_id)

    async def delete(self, alias: str, user_id: str, *, admin: bool) -> None:
        """Delete an alias: its maker, who may change the canonical alias, and administrators may.

        Raises:
            MatrixError: M_NOT_FOUND, M_FORBIDDEN.
        """
        row = await self._db.read(directory.load_alias, alias)
        if row is None:
            raise not_found(f"The room alias {alias} is not known")
        if row.creator != user_id and not admin:
            await self.check_may_publish(row.room_id, user_id)
        await self._db.write(directory.delete_alias, alias)
        await self._forget_canonical(row.room_id, alias, user_id)

    async def list_for(self, room_id: str, user_id: str) -> list[str]:
        """Return a room's local aliases, to its members and to everybody if its history is open to all.

        Raises:
            MatrixError: M_FORBIDDEN.
        """
        visibility_key = ("m.room.history_visibility", "")
        try:
            _head, state = await self._sender.view(
                room_id, frozenset({("m.room.member", user_id), visibility_key})
            )
        except MatrixError as error:
            if error.errcode != "M_NOT_FOUND":
                raise
            state = {}
        member = state.get(("m.room.member", user_id))
        visibility = state.get(visibility_key)
        if (member is None or member.membership != "join") and (
            visibility is None or visibility.content.get("history_visibility") != "world_readable"
        ):
            raise forbidden("You are not in this room")
        return [row.alias for row in await self._db.read(directory.load_aliases, [], [room_id])]

    def check_local(self, alias: str) -> None:
        """Check that an alias is of a local server name. Raises MatrixError M_INVALID_PARAM."""
        if not self._config.is_local(server_name_of(alias)):
            raise invalid_param("This alias belongs to another server")

    async def check_may_publish(self, room_id: str, user_id: str) -> None:
        """Check that a user may change what a room is called outside: whoever may set the canonical alias.

        Raises:
            MatrixError: M_FORBIDDEN, M_NOT_FOUND.
        """
        member_key = ("m.room.member", user_id)
        head, state = await self._sender.view(room_id, frozenset({CREATE_KEY, POWER_LEVELS_KEY, member_key}))
        member = state.get(member_key)
        levels = PowerLevels.of(head.room_version, state)
        if (
            member is None
            or member.membership != "join"
            or levels.user_level(user_id) < levels.required_level("m.room.canonical_alias", True)
        ):
            raise forbidden("You may not change the aliases or the visibility of this room")

    async def check_canonical(self, room_id: str, content: Mapping[str, Any], old: Event | None) -> None:
        """Check the content of a new `m.room.canonical_alias`: aliases that are new there must point to the
        room.

        Raises:
            MatrixError: M_INVALID_PARAM, M_BAD_ALIAS.
        """
        wanted = _aliases_of(content)
        known = set(_aliases_of(old.content)) if old is not None else set()
        new = [alias for alias in wanted if alias not in known]
        if not new:
            return
        if len(new) > MAX_NEW_ALIASES:
            raise invalid_param(f"At most {MAX_NEW_ALIASES} aliases can be added at once")
        rooms = {row.alias: row.room_id for row in await self._db.read(directory.load_aliases, new, [])}
        elsewhere = [alias for alias in new if not self._config.is_local(server_name_of(alias))]
        told = await asyncio.gather(*(self._room_elsewhere(alias) for alias in elsewhere))
        rooms.update(zip(elsewhere, told, strict=True))
        for alias in new:
            if rooms.get(alias) != room_id:
                raise MatrixError("M_BAD_ALIAS", 400, f"The alias {alias} does not point to this room")

    async def _room_elsewhere(self, alias: str) -> str:
        """Return the room of another server's alias; empty: there is none, or nobody says."""
        try:
            room_id, _servers = await self._remote.resolve_alias(alias)
        except MatrixError as error:
            log.info("alias_not_resolved", alias=alias, error=str(error))
            return ""
        return room_id

    async def _check_joined(self, room_id: str, user_id: str) -> None:
        if not await self._sender.is_joined(room_id, user_id):
            raise forbidden("You are not in this room")

    async def _forget_canonical(self, room_id: str, alias: str, user_id: str) -> None:
        def decide(_version: RoomVersion, state: Mapping[StateKey, Event]) -> Draft | AlreadyThere:
            old = state.get(CANONICAL_ALIAS)
            if old is None or alias not in _lenient_aliases_of(old.content):
                return AlreadyThere("")
            content = dict(old.content)
            if content.get("alias") == alias:
                del content["alias"]
            others = content.get("alt_aliases")
            if isinstance(others, list):
                content["alt_aliases"] = [other for other in others if other != alias]
                if not content["alt_aliases"]:
                    del content["alt_aliases"]
            return Draft("m.room.canonical_alias", content, "")

        draft = Draft("m.room.canonical_alias", {}, "")
        try:
            await self._sender.send(room_id, Wish(user_id, draft, frozenset({CANONICAL_ALIAS}), decide))
        except MatrixError as error:
            # The alias is gone; that the room still names it is no reason to say otherwise.
            log.info("canonical_alias_stays", room_id=room_id, error=str(error))

    @staticmethod
    def move(conn: Connection, old_room_id: str, new_room_id: str) -> None:
        """Let every local alias of a room point to its successor."""
        names = [row.alias for row in directory.load_aliases(conn, [], [old_room_id])]
        directory.move_aliases(conn, old_room_id, new_room_id, names)


def _aliases_of(content: Mapping[str, Any]) -> list[str]:
    found: list[Any] = []
    alias = content.get("alias")
    if alias is not None and alias != "":
        found.append(alias)
    others = content.get("alt_aliases")
    if others is not None:
        if not isinstance(others, list):
            raise bad_json("alt_aliases is not a list")
        found.extend(others)
    for alias in found:
        try:
            parse_room_alias(alias)
        except IdentifierError as error:
            raise invalid_param(str(error)) from None
    return found


def _lenient_aliases_of(content: Mapping[str, Any]) -> list[str]:
    try:
        return _aliases_of(content)
    except MatrixError:
        return []

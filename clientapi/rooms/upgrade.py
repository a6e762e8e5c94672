"""Upgrading a room: a new one in another version, and a tombstone (spec, "Room Upgrades")."""

import asyncio
from typing import Any, Final

from sqlalchemy import Connection

from clientapi.rooms.aliases import Aliases
from clientapi.rooms.building import as_event
from clientapi.rooms.create import NewRoom, RoomCreator
from clientapi.rooms.queries import Latest
from clientapi.rooms.requests import Draft
from clientapi.rooms.send import RoomSender
from clientapi.rooms.successors import Successors
from clientapi.storage import directory
from matrixlib.event_auth import Refused, check_event_auth
from matrixlib.events import Event
from matrixlib.power_levels import POWER_LEVELS_KEY, room_creators
from matrixlib.room_versions import RoomVersion
from servicekit.database import Database
from servicekit.errors import MatrixError, forbidden, not_found
from servicekit.logging import get_logger

log = get_logger("clientapi.rooms")

# State that the new room begins with, where the old one had it.
TRANSFERRED: Final = (
    "m.room.server_acl",
    "m.room.encryption",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.guest_access",
    "m.room.history_visibility",
    "m.room.join_rules",
)
# What makes a space: without its rooms the new one would be none.
SPACE: Final = "m.space"
SPACE_CHILD: Final = "m.space.child"
# A new room is one entry of bounded size; so many bans and children go into it, the rest follows.
NUMEROUS_AT_ONCE: Final = 400
TOGETHER: Final = 64
CANONICAL_ALIAS: Final = ("m.room.canonical_alias", "")


class RoomUpgrades:
    """See the module."""

    def __init__(
        self, db: Database, sender: RoomSender, creator: RoomCreator, successors: Successors
    ) -> None:
        self._successors = successors
        self._db = db
        self._sender = sender
        self._creator = creator

    async def upgrade(
        self, user_id: str, room_id: str, version: RoomVersion, additional_creators: tuple[str, ...]
    ) -> str:
        """Replace a room and return its successor's id.

        Raises:
            MatrixError: M_FORBIDDEN for who is not in the room or may not send the tombstone; M_NOT_FOUND; as
            `RoomCreator.create`.
        """
        await self._sender.until_whole(room_id)  # who is banned stays out of the new one
        old = await self._sender.queries.latest(room_id, all_state=True)
        if old is None:
            raise not_found("There is no such room here")
        tombstone = {"body": "This room has been replaced", "replacement_room": ""}
        proposal = as_event(
            old.room_version,
            room_id,
            user_id,
            Draft("m.room.tombstone", tombstone, ""),
            old.forward_extremities,
        )
        verdict = check_event_auth(proposal, old.state)
        if isinstance(verdict, Refused):
            raise forbidden(f"You may not upgrade this room: {verdict.reason}")
        numerous = _numerous(old)
        new_room_id = await self._creator.create(
            self._successor(user_id, room_id, old, version, additional_creators, numerous[:NUMEROUS_AT_ONCE])
        )
        # Before anybody is told of the new room, so that nobody who is banned is in it first.
        await self._send_further(user_id, new_room_id, numerous[NUMEROUS_AT_ONCE:])
        tombstone["replacement_room"] = new_room_id
        await self._sender.send_draft(room_id, user_id, Draft("m.room.tombstone", tombstone, ""))
        await self._db.write(_move_directory, room_id, new_room_id, user_id)
        await self._move_canonical_alias(user_id, room_id, new_room_id, old)
        await self._close_old(user_id, room_id, old)
        await self._successors.follow_join(user_id, new_room_id)
        return new_room_id

    def _successor(
        self,
        user_id: str,
        room_id: str,
        old: Latest,
        version: RoomVersion,
        additional_creators: tuple[str, ...],
        numerous: list[Draft],
    ) -> NewRoom:
        create = old.state[("m.room.create", "")]
        predecessor: dict[str, Any] = {"room_id": room_id}
        if not version.privileged_creators and old.forward_extremities:
            predecessor["event_id"] = old.forward_extremities[0]
        creation: dict[str, Any] = {"predecessor": predecessor}
        for key in ("type", "m.federate"):
            if key in create.content:
                creation[key] = create.content[key]
        creators = {user_id}
        if version.privileged_creators and additional_creators:
            creation["additional_creators"] = list(additional_creators)
            creators |= set(additional_creators)
        initial = [
            Draft(type_, dict(old.state[(type_, "")].content), "")
            for type_ in TRANSFERRED
            if (type_, "") in old.state
        ]
        initial.append(Draft("m.room.power_levels", _power_levels(old, version, creators), ""))
        initial.extend(numerous)
        return NewRoom(
            creator=user_id,
            room_version=version,
            preset="private_chat",
            creation_content=creation,
            initial_state=tuple(initial),
        )

    async def _send_further(self, user_id: str, room_id: str, drafts: list[Draft]) -> None:
        for at in range(0, len(drafts), TOGETHER):
            await asyncio.gather(
                *(self._sender.send_draft(room_id, user_id, draft) for draft in drafts[at : at + TOGETHER])
            )

    async def _move_canonical_alias(self, user_id: str, room_id: str, new_room_id: str, old: Latest) -> None:
        event = old.state.get(CANONICAL_ALIAS)
        if event is None:
            return
        for target, content in ((room_id, {}), (new_room_id, dict(event.content))):
            await self._try_to_send(target, user_id, Draft("m.room.canonical_alias", content, ""))

    async def _close_old(self, user_id: str, room_id: str, old: Latest) -> None:
        """Keep people who did not notice from talking in the old room, as the specification asks for."""
        event = old.state.get(POWER_LEVELS_KEY)
        content = dict(event.content) if event is not None else {}
        default = content.get("users_default", 0)
        closed = max(50, default + 1) if isinstance(default, int) else 50
        changes = {
            name: closed
            for name, usual in (("invite", 0), ("events_default", 0))
            if not isinstance(content.get(name, usual), int) or content.get(name, usual) < closed
        }
        if changes:
            await self._try_to_send(
                room_id, user_id, Draft("m.room.power_levels", {**content, **changes}, "")
            )

    async def _try_to_send(self, room_id: str, user_id: str, draft: Draft) -> None:
        try:
            await self._sender.send_draft(room_id, user_id, draft)
        except MatrixError as error:
            # The upgrade is done; this part of it the user may not do.
            log.info("upgrade_part_refused", room_id=room_id, type=draft.type, error=str(error))


def _numerous(old: Latest) -> list[Draft]:
    """Return what is carried over and may be very much: who is banned, the rooms of a space."""
    is_space = old.state[("m.room.create", "")].content.get("type") == SPACE
    drafts = []
    for (type_, key), event in sorted(old.state.items()):
        banned = type_ == "m.room.member" and event.membership == "ban"
        # Without `via` it says that the room belongs to the space no longer.
        child = is_space and type_ == SPACE_CHILD and event.content.get("via")
        if banned or child:
            drafts.append(Draft(type_, {**event.content}, key))
    return drafts


def _power_levels(old: Latest, version: RoomVersion, creators: set[str]) -> dict[str, Any]:
    event: Event | None = old.state.get(POWER_LEVELS_KEY)
    content: dict[str, Any] = dict(event.content) if event is not None else {}
    listed = content.get("users")
    users = {user: _as_int(level) for user, level in listed.items()} if isinstance(listed, dict) else {}
    if version.privileged_creators:
        # Creators stand above every number and may not be listed.
        content["users"] = {user: level for user, level in users.items() if user not in creators}
        events = dict(content["events"]) if isinstance(content.get("events"), dict) else {}
        events["m.room.tombstone"] = max(150, _as_int(events.get("m.room.tombstone", 0)))
        content["events"] = events
    else:
        # Creators of the old room, who stood above every number, and whoever upgrades, keep the most.
        create = old.state[("m.room.create", "")]
        former = room_creators(create) if old.room_version.privileged_creators else frozenset[str]()
        most = max([100, *users.values()])
        content["users"] = {**users, **dict.fromkeys(sorted(former | creators), most)}
    return content


def _as_int(level: Any) -> int:
    try:
        return int(level)
    except (TypeError, ValueError):
        return 0


def _move_directory(conn: Connection, old_room_id: str, new_room_id: str, user_id: str) -> None:
    Aliases.move(conn, old_room_id, new_room_id)
    if directory.is_published(conn, old_room_id):
        directory.delete_published(conn, old_room_id)
        directory.store_published(conn, new_room_id, user_id, 0)

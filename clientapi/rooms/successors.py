"""What a user set for a room goes on in the room that replaces it: tags, push rules, `m.direct` ("Room Upgrades").

Believed only when both rooms say so: the new one names its predecessor, and the old one's tombstone names the new.
"""

from collections.abc import Sequence
from typing import Any, Final

import orjson
from sqlalchemy import Connection

from clientapi.accounts import push_rules
from clientapi.accounts.account_data import PUSH_RULES, AccountDataStore
from clientapi.rooms.send import RoomSender
from clientapi.storage import settings
from matrixlib.events import Event, StateKey
from matrixlib.identifiers import IdentifierError, parse_room_id
from matrixlib.power_levels import CREATE_KEY
from servicekit.database import Database
from servicekit.errors import MatrixError
from servicekit.logging import get_logger

log = get_logger("clientapi.rooms")

TOMBSTONE: Final[StateKey] = ("m.room.tombstone", "")


class Successors:
    """See the module."""

    def __init__(self, db: Database, account_data: AccountDataStore, sender: RoomSender) -> None:
        self._db = db
        self._account_data = account_data
        self._sender = sender

    async def follow_join(self, user_id: str, room_id: str, create: Event | None = None) -> None:
        """Take over what a user set for the predecessor of a room that they have just joined.

        Args:
            create: the room's create event; None: it is looked up.
        """
        try:
            if create is None:
                latest = await self._sender.queries.latest(room_id, [CREATE_KEY])
                create = None if latest is None else latest.state.get(CREATE_KEY)
            old_room_id = None if create is None else predecessor_of(create)
            if old_room_id is not None and await self._is_replaced_by(old_room_id, room_id):
                await self._take_over([user_id], old_room_id, room_id)
        except MatrixError as error:
            # The user has joined; the settings of a room are not worth an error.
            log.info("settings_not_taken_over", user_id=user_id, room_id=room_id, error=str(error))

    async def follow_tombstone(self, old_room_id: str, new_room_id: Any) -> None:
        """Do the same for local users who had joined the new room before the old one said that it is replaced."""
        try:
            new_room_id = parse_room_id(new_room_id)
            latest = await self._sender.queries.latest(new_room_id, [CREATE_KEY])
            if latest is None or predecessor_of(latest.state[CREATE_KEY]) != old_room_id:
                return
            rooms = await self._sender.queries.rooms([old_room_id, new_room_id], with_local_users=True)
            both = (
                set.intersection(*(set(room.local_user_ids) for room in rooms)) if len(rooms) == 2 else set()
            )
            if both:
                await self._take_over(sorted(both), old_room_id, new_room_id)
        except (IdentifierError, MatrixError) as error:
            log.info("settings_not_taken_over", room_id=old_room_id, error=str(error))

    async def _is_replaced_by(self, old_room_id: str, new_room_id: str) -> bool:
        old = await self._sender.queries.latest(old_room_id, [TOMBSTONE])
        tombstone = None if old is None else old.state.get(TOMBSTONE)
        return tombstone is not None and tombstone.content.get("replacement_room") == new_room_id

    async def _take_over(self, user_ids: Sequence[str], old_room_id: str, new_room_id: str) -> None:
        await self._db.write(self._store, user_ids, old_room_id, new_room_id)

    def _store(self, conn: Connection, user_ids: Sequence[str], old_room_id: str, new_room_id: str) -> None:
        for user_id in user_ids:
            self._store_tags(conn, user_id, old_room_id, new_room_id)
            self._store_direct(conn, user_id, old_room_id, new_room_id)
            self._store_push_rules(conn, user_id, old_room_id, new_room_id)

    def _store_tags(self, conn: Connection, user_id: str, old_room_id: str, new_room_id: str) -> None:
        tags = settings.load_account_data(conn, user_id, old_room_id, "m.tag")
        if tags is not None and settings.load_account_data(conn, user_id, new_room_id, "m.tag") is None:
            self._account_data.store(conn, user_id, new_room_id, "m.tag", tags)

    def _store_direct(self, conn: Connection, user_id: str, old_room_id: str, new_room_id: str) -> None:
        stored = settings.load_account_data(conn, user_id, "", "m.direct")
        direct = {} if stored is None else orjson.loads(stored)
        changed = False
        for rooms in direct.values():
            if isinstance(rooms, list) and old_room_id in rooms and new_room_id not in rooms:
                rooms.append(new_room_id)
                changed = True
        if changed:
            self._account_data.store(conn, user_id, "", "m.direct", orjson.dumps(direct))

    def _store_push_rules(self, conn: Connection, user_id: str, old_room_id: str, new_room_id: str) -> None:
        stored = settings.load_account_data(conn, user_id, "", PUSH_RULES)
        if stored is None:
            return
        ruleset = push_rules.load_ruleset(user_id, stored)
        if push_rules.copy_rules_of_room(ruleset, old_room_id, new_room_id):
            self._account_data.store(conn, user_id, "", PUSH_RULES, push_rules.dump_ruleset(ruleset))


def predecessor_of(create: Event) -> str | None:
    """Return the room that a create event says its room replaces."""
    predecessor = create.content.get("predecessor")
    room_id = predecessor.get("room_id") if isinstance(predecessor, dict) else None
    return room_id if isinstance(room_id, str) else None

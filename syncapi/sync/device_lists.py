"""Whose device lists the client must ask for again, and whose it may forget (end-to-end encryption)."""

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection

from syncapi.storage import accounts
from syncapi.storage.sql import rows, rows_in
from syncapi.storage.tables import MAX_POSITION


def _sharing(connection: Connection, room_ids: Sequence[str], users: Iterable[str]) -> set[str]:
    """Return those users who are joined to one of the rooms."""
    wanted = set(users)
    found: set[str] = set()
    for (user,) in rows_in(
        connection,
        "SELECT DISTINCT state_key FROM room_state WHERE room_id IN ? AND type = 'm.room.member'"
        f" AND until_position = {MAX_POSITION} AND membership = 'join'",
        room_ids,
    ):
        if user in wanted:
            found.add(user)
    return found


def load_device_lists(
    connection: Connection,
    user_id: str,
    joined: Sequence[str],
    newly_joined: Sequence[str],
    newly_left: Sequence[tuple[str, int]],
    *,
    since: int,
    through: int,
) -> tuple[list[str], list[str]]:
    """Return (changed, left) of the users with whom rooms are, or were, shared.

    Args:
        newly_left: rooms that the user left, with where.
    """
    changed: set[str] = set()
    updated = accounts.load_device_lists(connection, since, through)
    if updated:
        changed |= _sharing(connection, joined, updated) | ({user_id} & set(updated))
    # Who came into rooms that we were in, and all who are in rooms that we came into.
    came: set[str] = set()
    went: set[str] = set()
    for user, membership in rows_in(
        connection,
        "SELECT state_key, membership FROM room_state WHERE room_id IN ? AND type = 'm.room.member'"
        " AND since_position > ? AND since_position <= ? ORDER BY since_position",
        joined,
        after=(since, through),
    ):
        (came if membership == "join" else went).add(user)
        if membership != "join":
            came.discard(user)
        else:
            went.discard(user)
    changed |= came
    if newly_joined:
        changed |= {
            user
            for (user,) in rows_in(
                connection,
                "SELECT state_key FROM room_state WHERE room_id IN ? AND type = 'm.room.member'"
                f" AND until_position = {MAX_POSITION} AND membership = 'join'",
                newly_joined,
            )
        }
    for room_id, position in newly_left:
        # Who was there at leaving, not who came later.
        went |= {
            user
            for (user,) in rows(
                connection,
                "SELECT state_key FROM room_state WHERE room_id = ? AND type = 'm.room.member'"
                " AND since_position <= ? AND until_position > ? AND membership = 'join'",
                (room_id, position, position),
            )
        }
    left = went - _sharing(connection, joined, went) - {user_id} if went else set()
    return sorted(changed - {user_id} | (changed & set(updated))), sorted(left)

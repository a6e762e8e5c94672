"""Which user may read which part of a room.

    joined        everything, now
    was joined    what was there up to leaving
    else          nothing, unless the room is world-readable now; no word about whether the room exists

A room that the user forgot is as if never joined.
"""

from dataclasses import dataclass

import orjson
from sqlalchemy import Connection

from servicekit.errors import MatrixError, forbidden
from syncapi.storage import events as event_storage
from syncapi.storage import members, state
from syncapi.storage.tables import MAX_POSITION
from syncapi.visibility import Past

_NO_ACCESS = "You are not in this room, or it does not exist"


@dataclass(frozen=True, slots=True)
class Access:
    """What a user may read of a room.

    Args:
        past: the user's memberships, for deciding about events.
        at: state is read as of this position; None: now.
        through: events after this position do not exist for the user.
        joined: the user is joined now.
    """

    past: Past
    at: int | None
    through: int
    joined: bool


def no_access() -> MatrixError:
    """Return the refusal, the same for rooms that do not exist."""
    return forbidden(_NO_ACCESS)


def find_access(connection: Connection, room_id: str, user_id: str, *, peek: bool = True) -> Access:
    """Return what a user may read of a room.

    Args:
        peek: whether a world-readable room may be read from outside.

    Raises:
        MatrixError: M_FORBIDDEN.
    """
    row = members.load_user_room(connection, user_id, room_id)
    if row is not None and not row.forgotten and row.joined_until is not None:
        spans = state.load_member_history(connection, [room_id], user_id).get(room_id, [])
        if row.joined_until == MAX_POSITION:
            return Access(Past(user_id, spans), None, MAX_POSITION, True)
        if peek and is_world_readable(connection, room_id):
            return Access(Past(user_id, spans), None, MAX_POSITION, False)
        # An invite or a ban after leaving opens nothing; the user's own event is seen in /sync.
        depth = event_storage.load_depth_at(connection, room_id, row.joined_until)
        past = Past(user_id, spans, sees_until=row.joined_until, sees_depth=depth)
        return Access(past, row.joined_until, row.joined_until, False)
    if peek and is_world_readable(connection, room_id):
        return Access(Past(user_id), None, MAX_POSITION, False)
    raise no_access()


def is_world_readable(connection: Connection, room_id: str) -> bool:
    """Whether anybody may read the room now."""
    event = state.load_state_event(connection, room_id, "m.room.history_visibility", "")
    if event is None:
        return False
    content = orjson.loads(event.body + b"}")["content"]
    return bool(content.get("history_visibility") == "world_readable")

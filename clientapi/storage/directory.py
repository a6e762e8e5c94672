"""Local aliases and the rooms in the directory."""

from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, or_, select

from clientapi.storage.tables import aliases, published_rooms
from clientapi.storage.upsert import insert_or_ignore


@dataclass(frozen=True, slots=True)
class AliasRow:
    """A local alias."""

    alias: str
    room_id: str
    creator: str


def load_alias(conn: Connection, alias: str) -> AliasRow | None:
    """Return an alias, or None."""
    rows = load_aliases(conn, [alias], [])
    return rows[0] if rows else None


def load_aliases(conn: Connection, names: list[str], room_ids: list[str]) -> list[AliasRow]:
    """Return these aliases and all aliases of these rooms, in order of alias."""
    rows = conn.execute(
        select(aliases.c.alias, aliases.c.room_id, aliases.c.creator)
        .where(or_(aliases.c.alias.in_(names), aliases.c.room_id.in_(room_ids)))
        .order_by(aliases.c.alias)
    )
    return [AliasRow(*row) for row in rows]


def count_aliases(conn: Connection, creator: str, room_id: str) -> tuple[int, int]:
    """Return how many aliases a user has made, and how many a room has."""
    own = select(func.count()).select_from(aliases).where(aliases.c.creator == creator)
    of_room = select(func.count()).select_from(aliases).where(aliases.c.room_id == room_id)
    return conn.execute(own).scalar_one(), conn.execute(of_room).scalar_one()


def store_alias(conn: Connection, alias: str, room_id: str, creator: str, now_ms: int) -> bool:
    """Make an alias; False if it is taken."""
    return insert_or_ignore(
        conn, aliases, {"alias": alias, "room_id": room_id, "creator": creator, "created_ms": now_ms}
    )


def delete_alias(conn: Connection, alias: str, room_id: str | None = None) -> bool:
    """Delete an alias (only if it points to `room_id`, when that is given); False if there is none."""
    condition = aliases.c.alias == alias
    if room_id is not None:
        condition = condition & (aliases.c.room_id == room_id)
    return conn.execute(delete(aliases).where(condition)).rowcount == 1


def move_aliases(conn: Connection, old_room_id: str, new_room_id: str, names: list[str]) -> None:
    """Let aliases of an upgraded room point to its successor."""
    conn.execute(
        aliases.update()
        .where(aliases.c.room_id == old_room_id, aliases.c.alias.in_(names))
        .values(room_id=new_room_id)
    )


def delete_aliases_of(conn: Connection, room_id: str) -> None:
    """Delete every alias of a room."""
    conn.execute(delete(aliases).where(aliases.c.room_id == room_id))


def is_published(conn: Connection, room_id: str) -> bool:
    """Say whether a room stands in the directory."""
    return (
        conn.execute(select(published_rooms.c.room_id).where(published_rooms.c.room_id == room_id)).first()
        is not None
    )


def store_published(conn: Connection, room_id: str, publisher: str, now_ms: int) -> None:
    """Put a room into the directory."""
    insert_or_ignore(
        conn, published_rooms, {"room_id": room_id, "publisher": publisher, "published_ms": now_ms}
    )


def delete_published(conn: Connection, room_id: str) -> None:
    """Take a room out of the directory."""
    conn.execute(delete(published_rooms).where(published_rooms.c.room_id == room_id))


def load_published(conn: Connection) -> list[str]:
    """Return the ids of all rooms in the directory."""
    return list(conn.execute(select(published_rooms.c.room_id).order_by(published_rooms.c.room_id)).scalars())

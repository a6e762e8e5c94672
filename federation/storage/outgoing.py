"""What destinations have not been told yet, and which servers are in which rooms.

An event is for a server that is in its room at that position: joined before it, and not left before it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, and_, delete, func, insert, or_, select, update

from federation.storage.tables import (
    destination,
    outgoing_edu,
    outgoing_event,
    relayed_event,
    room_server,
)
from servicekit.database.raw import Sql

_NOTE_RELAYED = Sql(
    "INSERT INTO relayed_event (event_id, origin, created_ms) VALUES (?, ?, ?) ON CONFLICT (event_id) DO NOTHING"
)
_RELAYED = Sql("SELECT event_id, origin FROM relayed_event WHERE event_id IN ?")

UNKNOWN = ""
"""In place of a server's name: the servers of the room, or the EDU's destinations, are to be asked for."""


@dataclass(frozen=True, slots=True)
class OutgoingEvent:
    """An event to send. `exclude`: the server it came from; `also`: one told besides those in the room."""

    position: int
    room_id: str
    event_id: str
    pdu_json: bytes
    exclude: str = ""
    also: str = ""


@dataclass(frozen=True, slots=True)
class OutgoingEdu:
    """An EDU that must not be lost."""

    id: int
    edu_json: bytes
    created_ms: int


@dataclass(frozen=True, slots=True)
class Presence:
    """When a server is in a room: after `joined_position`, up to `left_position` (None: still)."""

    joined_position: int
    left_position: int | None

    def covers(self, position: int) -> bool:
        """Whether an event at a position is for the server."""
        return self.joined_position < position and (
            self.left_position is None or position <= self.left_position
        )


# -- relayed events ----------------------------------------------------------------------------------------


def note_relayed(conn: Connection, event_id: str, origin: str, now_ms: int) -> None:
    """Note that a server had us put its event into a room: we pass it on to the others."""
    _NOTE_RELAYED.change(conn, event_id, origin, now_ms)


def load_relayed(conn: Connection, event_ids: Sequence[str]) -> dict[str, str]:
    """Which of the events we pass on: event id -> the server it came from."""
    return dict(_RELAYED.rows(conn, list(event_ids))) if event_ids else {}


# -- servers of rooms --------------------------------------------------------------------------------------


def note_joined(conn: Connection, room_id: str, server_name: str, position: int) -> None:
    """A server is in a room from the event after a position on."""
    table = room_server
    where = and_(table.c.room_id == room_id, table.c.server_name == server_name)
    known = conn.execute(select(table.c.left_position).where(where)).first()
    if known is None:
        conn.execute(insert(table).values(room_id=room_id, server_name=server_name, joined_position=position))
    elif known.left_position is not None:
        conn.execute(update(table).where(where).values(joined_position=position, left_position=None))


def note_left(conn: Connection, room_id: str, server_name: str, position: int) -> None:
    """A server left a room by the event at a position, which is the last one it is told."""
    table = room_server
    conn.execute(
        update(table)
        .where(
            table.c.room_id == room_id,
            table.c.server_name == server_name,
            table.c.left_position.is_(None),
        )
        .values(left_position=position)
    )


def note_all_left(conn: Connection, room_id: str, position: int) -> None:
    """We are no longer in a room: nobody is told anything after a position.

    Where it was not known yet who is, it is still to be found out: they are told what was before.
    """
    table = room_server
    conn.execute(
        update(table)
        .where(table.c.room_id == room_id, table.c.left_position.is_(None))
        .values(left_position=position)
    )


def forget_room(conn: Connection, room_id: str) -> None:
    """A room was purged."""
    conn.execute(delete(room_server).where(room_server.c.room_id == room_id))
    conn.execute(delete(outgoing_event).where(outgoing_event.c.room_id == room_id))


def load_unknown_rooms(conn: Connection) -> dict[str, Presence]:
    """Rooms whose servers are to be asked for: room id -> from where, and up to where, they are told of it."""
    table = room_server
    rows = conn.execute(
        select(table.c.room_id, table.c.joined_position, table.c.left_position).where(
            table.c.server_name == UNKNOWN
        )
    )
    return {row.room_id: Presence(row.joined_position, row.left_position) for row in rows}


def load_a_server(conn: Connection, room_id: str) -> str | None:
    """Some other server that is in a room now; `UNKNOWN`: it has to be asked which are; None: there is none."""
    table = room_server
    where = and_(table.c.room_id == room_id, table.c.left_position.is_(None))
    # UNKNOWN comes first.
    name: str | None = conn.execute(
        select(table.c.server_name).where(where).order_by(table.c.server_name).limit(1)
    ).scalar()
    return name


def replace_servers(conn: Connection, room_id: str, servers: Iterable[str], stay: Presence) -> None:
    """Store the servers of a room as they were told; those known already keep their positions."""
    table = room_server
    wanted = set(servers)
    rows = conn.execute(
        select(table.c.server_name).where(
            table.c.room_id == room_id,
            or_(table.c.left_position.is_(None), table.c.left_position == stay.left_position),
        )
    )
    present = set(rows.scalars()) - {UNKNOWN}
    for server_name in present - wanted:
        note_left(conn, room_id, server_name, stay.joined_position)
    for server_name in sorted(wanted - present):
        note_joined(conn, room_id, server_name, stay.joined_position)
        if stay.left_position is not None:
            note_left(conn, room_id, server_name, stay.left_position)
    # Unless we are in the room anew meanwhile, and have to ask again.
    conn.execute(
        delete(table).where(
            table.c.room_id == room_id,
            table.c.server_name == UNKNOWN,
            table.c.joined_position == stay.joined_position,
        )
    )


def load_room_servers(conn: Connection, room_id: str) -> dict[str, Presence]:
    """The servers that are or were in a room."""
    table = room_server
    rows = conn.execute(
        select(table.c.server_name, table.c.joined_position, table.c.left_position).where(
            table.c.room_id == room_id
        )
    )
    return {row.server_name: Presence(row.joined_position, row.left_position) for row in rows}


# -- events ------------------------------------------------------------------------------------------------


def store_events(conn: Connection, events: Sequence[OutgoingEvent], now_ms: int) -> None:
    """Store events to send."""
    if events:
        conn.execute(
            insert(outgoing_event),
            [
                {
                    "position": event.position,
                    "room_id": event.room_id,
                    "event_id": event.event_id,
                    "pdu_json": event.pdu_json,
                    "exclude": event.exclude,
                    "also": event.also,
                    "created_ms": now_ms,
                }
                for event in events
            ],
        )


def load_pending(
    conn: Connection, server_name: str, after: int, through: int, limit: int
) -> list[OutgoingEvent]:
    """Events that a destination was not told yet, oldest first."""
    event = outgoing_event
    rows = conn.execute(
        _pending(select(event), server_name, after, through).order_by(event.c.position).limit(limit)
    )
    return [_event(row) for row in rows]


def load_newest_by_room(
    conn: Connection, server_name: str, after: int, through: int, limit: int
) -> list[OutgoingEvent]:
    """Of the rooms with something a destination was not told, the newest event each, oldest first."""
    event = outgoing_event
    newest = (
        _pending(select(func.max(event.c.position)), server_name, after, through)
        .group_by(event.c.room_id)
        .scalar_subquery()
    )
    rows = conn.execute(
        select(event).where(event.c.position.in_(newest)).order_by(event.c.position).limit(limit)
    )
    return [_event(row) for row in rows]


def count_pending_rooms(conn: Connection, server_name: str, after: int, through: int) -> tuple[int, int]:
    """(rooms, time of the oldest event) that a destination was not told; (0, 0): nothing."""
    event = outgoing_event
    columns = select(func.count(event.c.room_id.distinct()), func.min(event.c.created_ms))
    row = conn.execute(_pending(columns, server_name, after, through)).one()
    return int(row[0]), int(row[1] or 0)


def load_behind(conn: Connection) -> list[str]:
    """Destinations for which an event or a durable EDU is waiting."""
    event, server, known = outgoing_event, room_server, destination
    sent = func.coalesce(known.c.sent_position, 0)
    in_room = (
        select(server.c.server_name)
        .join(event, event.c.room_id == server.c.room_id)
        .outerjoin(known, known.c.server_name == server.c.server_name)
        .where(
            server.c.server_name != UNKNOWN,
            event.c.position > sent,
            event.c.position > server.c.joined_position,
            or_(server.c.left_position.is_(None), event.c.position <= server.c.left_position),
            event.c.exclude != server.c.server_name,
        )
        .distinct()
    )
    also = (
        select(event.c.also)
        .outerjoin(known, known.c.server_name == event.c.also)
        .where(event.c.also != "", event.c.position > sent)
        .distinct()
    )
    edus = select(outgoing_edu.c.server_name).where(outgoing_edu.c.server_name != UNKNOWN).distinct()
    names = {
        *conn.execute(in_room).scalars(),
        *conn.execute(also).scalars(),
        *conn.execute(edus).scalars(),
    }
    return sorted(names)


def prune_events(conn: Connection, before_ms: int) -> int:
    """Drop old events of rooms that have a newer one: who missed them is told the newest."""
    event = outgoing_event
    newer = event.alias("newer")
    result = conn.execute(
        delete(event).where(
            event.c.created_ms < before_ms,
            select(newer.c.position)
            .where(newer.c.room_id == event.c.room_id, newer.c.position > event.c.position)
            .exists(),
        )
    )
    conn.execute(delete(relayed_event).where(relayed_event.c.created_ms < before_ms))
    return result.rowcount


def _pending(query, server_name: str, after: int, through: int):  # type: ignore[no-untyped-def]
    event, server = outgoing_event, room_server
    here = and_(server.c.room_id == event.c.room_id, server.c.server_name == server_name)
    return (
        query.select_from(event.outerjoin(server, here))
        .where(event.c.position > after, event.c.position <= through, event.c.exclude != server_name)
        .where(
            or_(
                event.c.also == server_name,
                and_(
                    server.c.joined_position < event.c.position,
                    or_(server.c.left_position.is_(None), event.c.position <= server.c.left_position),
                ),
            )
        )
    )


def _event(row) -> OutgoingEvent:  # type: ignore[no-untyped-def]
    return OutgoingEvent(row.position, row.room_id, row.event_id, bytes(row.pdu_json), row.exclude, row.also)


# -- EDUs --------------------------------------------------------------------------------------------------


def store_edu(conn: Connection, server_name: str, source: str, edu_json: bytes, now_ms: int) -> None:
    """Store an EDU that must not be lost; made of the same source a second time, nothing happens."""
    table = outgoing_edu
    if conn.execute(select(table.c.id).where(table.c.source == source)).first() is None:
        conn.execute(
            insert(table).values(server_name=server_name, source=source, edu_json=edu_json, created_ms=now_ms)
        )


def load_edus(conn: Connection, server_name: str, limit: int) -> list[OutgoingEdu]:
    """The oldest EDUs that wait for a destination, in their order."""
    table = outgoing_edu
    rows = conn.execute(
        select(table.c.id, table.c.edu_json, table.c.created_ms)
        .where(table.c.server_name == server_name)
        .order_by(table.c.id)
        .limit(limit)
    )
    return [OutgoingEdu(row.id, bytes(row.edu_json), row.created_ms) for row in rows]


def count_edus(conn: Connection, server_name: str) -> int:
    """How many EDUs wait for a destination."""
    table = outgoing_edu
    query = select(func.count()).select_from(table).where(table.c.server_name == server_name)
    return int(conn.execute(query).scalar_one())


def delete_edus(conn: Connection, ids: Sequence[int]) -> None:
    """Drop EDUs that were delivered."""
    table = outgoing_edu
    for start in range(0, len(ids), 500):
        conn.execute(delete(table).where(table.c.id.in_(ids[start : start + 500])))


def spread_edu(conn: Connection, edu: OutgoingEdu, servers: Iterable[str], now_ms: int) -> None:
    """Put an EDU whose destinations are known by now into each one's queue."""
    for server_name in sorted(set(servers)):
        store_edu(conn, server_name, f"spread:{edu.id}:{server_name}", edu.edu_json, now_ms)
    delete_edus(conn, [edu.id])

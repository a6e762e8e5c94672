"""What destinations have not been told yet."""

from sqlalchemy import Connection, delete, insert, select

from federation.storage.tables import relayed_event


def note_relayed(conn: Connection, event_id: str, origin: str, now_ms: int) -> None:
    """Note that a server had us put its event into a room: we pass it on to the others."""
    table = relayed_event
    if conn.execute(select(table.c.event_id).where(table.c.event_id == event_id)).first() is None:
        conn.execute(insert(table).values(event_id=event_id, origin=origin, created_ms=now_ms))


def forget_relayed(conn: Connection, before_ms: int) -> None:
    """Drop notes about events that OUTPUT will not tell any more."""
    conn.execute(delete(relayed_event).where(relayed_event.c.created_ms < before_ms))

"""How each destination stands, and which servers are in which rooms."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, insert, select, update

from federation.storage.tables import destination


@dataclass(frozen=True, slots=True)
class DestinationRow:
    """A destination; times in milliseconds since 1970, 0 where there is none."""

    server_name: str
    failures: int = 0
    next_try_ms: int = 0
    last_error: str = ""
    last_success_ms: int = 0
    sent_position: int = 0


def load_destinations(conn: Connection) -> list[DestinationRow]:
    """Every destination."""
    table = destination
    rows = conn.execute(
        select(
            table.c.server_name,
            table.c.failures,
            table.c.next_try_ms,
            table.c.last_error,
            table.c.last_success_ms,
            table.c.sent_position,
        ).order_by(table.c.server_name)
    )
    return [DestinationRow(*row) for row in rows]


def store_destinations(conn: Connection, rows: Sequence[DestinationRow]) -> None:
    """Store destinations as they stand now."""
    table = destination
    known = _known(conn, [row.server_name for row in rows])
    columns = ("failures", "next_try_ms", "last_error", "last_success_ms", "sent_position")
    changed = [
        {"name": row.server_name, **{column: getattr(row, column) for column in columns}}
        for row in rows
        if row.server_name in known
    ]
    if changed:
        statement = update(table).where(table.c.server_name == bindparam("name"))
        conn.execute(statement.values({column: bindparam(column) for column in columns}), changed)
    made = [
        {"server_name": row.server_name, **{column: getattr(row, column) for column in columns}}
        for row in rows
        if row.server_name not in known
    ]
    if made:
        conn.execute(insert(table), made)


def _known(conn: Connection, names: Iterable[str]) -> set[str]:
    table = destination
    known: set[str] = set()
    ordered = list(names)
    for start in range(0, len(ordered), 500):
        chunk = ordered[start : start + 500]
        known.update(
            conn.execute(select(table.c.server_name).where(table.c.server_name.in_(chunk))).scalars()
        )
    return known

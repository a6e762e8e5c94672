"""Plain SQL through the driver's own cursor: reads here are many and small, and a compiled statement's
machinery would cost more than they do. Placeholders are `?` on both databases.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection

CHUNK = 900
"""How many values one IN list may hold."""


@lru_cache(maxsize=1024)
def _for_postgresql(sql: str) -> str:
    return sql.replace("%", "%%").replace("?", "%s")


def _adapted(connection: Connection, sql: str) -> str:
    return sql if connection.dialect.name == "sqlite" else _for_postgresql(sql)


def rows(connection: Connection, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Run a query and return its rows as tuples."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(_adapted(connection, sql), tuple(parameters))
        return list(cursor.fetchall())
    finally:
        cursor.close()


def row(connection: Connection, sql: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...] | None:
    """Run a query and return its first row, or None."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(_adapted(connection, sql), tuple(parameters))
        return cursor.fetchone()
    finally:
        cursor.close()


def run(connection: Connection, sql: str, parameters: Sequence[Any] = ()) -> int:
    """Run a statement and return how many rows it changed."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(_adapted(connection, sql), tuple(parameters))
        return int(cursor.rowcount)
    finally:
        cursor.close()


def run_many(connection: Connection, sql: str, parameters: Sequence[Sequence[Any]]) -> None:
    """Run a statement once for each tuple of parameters."""
    if not parameters:
        return
    cursor = connection.connection.cursor()
    try:
        cursor.executemany(_adapted(connection, sql), parameters)
    finally:
        cursor.close()


def placeholders(count: int) -> str:
    """Return `?,?,…`."""
    return ",".join("?" * count)


def chunks(values: Iterable[Any]) -> Iterator[list[Any]]:
    """Cut values into parts that one IN list may hold."""
    part: list[Any] = []
    for value in values:
        part.append(value)
        if len(part) == CHUNK:
            yield part
            part = []
    if part:
        yield part


def rows_in(
    connection: Connection,
    sql: str,
    values: Iterable[Any],
    before: Sequence[Any] = (),
    after: Sequence[Any] = (),
) -> list[tuple[Any, ...]]:
    """Run a query with one IN list, written `IN (@)`, over any number of values.

    `before` and `after` are the parameters that stand before and after the list.
    """
    found: list[tuple[Any, ...]] = []
    for part in chunks(values):
        found += rows(connection, sql.replace("@", placeholders(len(part))), (*before, *part, *after))
    return found

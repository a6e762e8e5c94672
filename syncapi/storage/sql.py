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


def _driver(connection: Connection) -> Any:
    # Not through the pool's proxies. Of the driver's own errors `servicekit.database` and `servicekit.log` know
    # which mean a lost connection, and which that a batch has to wait.
    return connection.connection.dbapi_connection


def _storable(parameters: Sequence[Any]) -> tuple[Any, ...]:
    """Return parameters as PostgreSQL takes them: its texts have no NUL, what users write may.

    The same text is changed the same way when it is looked for.
    """
    return tuple(
        value.replace("\0", "\ufffd") if isinstance(value, str) and "\0" in value else value
        for value in parameters
    )


def rows(connection: Connection, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Run a query and return its rows as tuples."""
    if connection.dialect.name != "sqlite":
        sql, parameters = _for_postgresql(sql), _storable(parameters)
    found: list[tuple[Any, ...]] = _driver(connection).execute(sql, tuple(parameters)).fetchall()
    return found


def row(connection: Connection, sql: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...] | None:
    """Run a query and return its first row, or None."""
    if connection.dialect.name != "sqlite":
        sql, parameters = _for_postgresql(sql), _storable(parameters)
    cursor = _driver(connection).execute(sql, tuple(parameters))
    found: tuple[Any, ...] | None = cursor.fetchone()
    cursor.close()
    return found


def run(connection: Connection, sql: str, parameters: Sequence[Any] = ()) -> int:
    """Run a statement and return how many rows it changed."""
    if connection.dialect.name != "sqlite":
        sql, parameters = _for_postgresql(sql), _storable(parameters)
    return int(_driver(connection).execute(sql, tuple(parameters)).rowcount)


def run_many(connection: Connection, sql: str, parameters: Sequence[Sequence[Any]]) -> None:
    """Run a statement once for each tuple of parameters."""
    if not parameters:
        return
    if len(parameters) == 1:
        run(connection, sql, parameters[0])
    elif connection.dialect.name == "sqlite":
        _driver(connection).executemany(sql, parameters)
    else:
        with _driver(connection).cursor() as cursor:
            cursor.executemany(_for_postgresql(sql), [_storable(values) for values in parameters])


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

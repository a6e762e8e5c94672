"""The SyncAPI's statements, given as texts: see `servicekit.database.raw`, which runs them.

Reads here are put together from parts, so a statement is known by its text.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection

from servicekit.database.raw import Sql

_statement = lru_cache(maxsize=1024)(Sql)


def rows(connection: Connection, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Run a query and return its rows as tuples. A list among the parameters belongs to an `IN ?`."""
    return _statement(sql).rows(connection, *parameters)


def row(connection: Connection, sql: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...] | None:
    """Run a query and return its first row, or None."""
    found: tuple[Any, ...] | None = _statement(sql).row(connection, *parameters)
    return found


def run(connection: Connection, sql: str, parameters: Sequence[Any] = ()) -> int:
    """Run a statement and return how many rows it changed."""
    return _statement(sql).change(connection, *parameters)


def run_many(connection: Connection, sql: str, parameters: Sequence[Sequence[Any]]) -> None:
    """Run a statement once for each tuple of parameters."""
    _statement(sql).many(connection, parameters)


def rows_in(
    connection: Connection,
    sql: str,
    values: Iterable[Any],
    before: Sequence[Any] = (),
    after: Sequence[Any] = (),
) -> list[tuple[Any, ...]]:
    """Run a query with an `IN ?` over any number of values; without any nothing is asked.

    `before` and `after` are the parameters that stand before and after the list.
    """
    listed = list(values)
    return _statement(sql).rows(connection, *before, listed, *after) if listed else []

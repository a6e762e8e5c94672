"""`INSERT … ON CONFLICT` for SQLite and PostgreSQL, which spell it the same way in different classes."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite


def upsert(conn: Connection, table: Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Insert a row, or give the row with this primary key these values."""
    statement = _insert(conn, table).values(**key, **values)
    conn.execute(statement.on_conflict_do_update(index_elements=list(key), set_=dict(values)))


def insert_or_ignore(conn: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless its key is taken. True if it was inserted."""
    key = next(iter(table.primary_key.columns))
    # The row count of an INSERT is not told by every driver; what it returns is.
    statement = _insert(conn, table).values(**values).on_conflict_do_nothing().returning(key)
    return conn.execute(statement).first() is not None


def _insert(conn: Connection, table: Table) -> "sqlite.Insert | postgresql.Insert":
    return postgresql.insert(table) if conn.dialect.name == "postgresql" else sqlite.insert(table)

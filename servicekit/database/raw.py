"""Statements written once for both databases, handed to the driver as they are.

    _MOVE = Sql("UPDATE place SET position = ? WHERE id IN ?")
    _MOVE.change(conn, 7, [1, 2])                # inside a unit of work, beside SQLAlchemy's own statements

SQLAlchemy's own compilation, execution context and result objects cost several times what SQLite needs for a
row; what is written or looked up for each event goes to the driver's connection inside SQLAlchemy's
transaction. Errors come out as SQLAlchemy's, so that nobody has to know.

`?` stands for a parameter, `IN ?` for a list of integers or texts as one parameter, so that the text of a
statement never depends on its values.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError


class Sql:
    """One statement."""

    __slots__ = ("_postgresql", "_sqlite")

    def __init__(self, text: str) -> None:
        self._sqlite = text.replace("IN ?", "IN (SELECT value FROM json_each(?))")
        self._postgresql = text.replace("IN ?", "= ANY(?)").replace("?", "%s")

    def rows(self, conn: Connection, *parameters: Any) -> list[Any]:
        """Run it and return all rows. A list parameter belongs to `IN ?`."""
        driver: Any = conn.connection.dbapi_connection
        try:
            if conn.dialect.name == "sqlite":
                values = [orjson.dumps(p).decode() if type(p) is list else p for p in parameters]
                found: list[Any] = driver.execute(self._sqlite, values).fetchall()
            else:
                with driver.cursor() as cursor:
                    cursor.execute(self._postgresql, parameters)
                    found = cursor.fetchall()
        except Exception as error:
            raise _converted(conn, self._postgresql, error) from error
        return found

    def row(self, conn: Connection, *parameters: Any) -> Any:
        """Run it and return the first row, or None."""
        rows = self.rows(conn, *parameters)
        return rows[0] if rows else None

    def change(self, conn: Connection, *parameters: Any) -> int:
        """Run it and return how many rows changed."""
        driver: Any = conn.connection.dbapi_connection
        try:
            if conn.dialect.name == "sqlite":
                values = [orjson.dumps(p).decode() if type(p) is list else p for p in parameters]
                return int(driver.execute(self._sqlite, values).rowcount)
            with driver.cursor() as cursor:
                cursor.execute(self._postgresql, parameters)
                return int(cursor.rowcount)
        except Exception as error:
            raise _converted(conn, self._postgresql, error) from error

    def many(self, conn: Connection, rows: Iterable[tuple[Any, ...]]) -> int:
        """Run it once for each row of parameters and return how many rows changed in all; nothing for
        none.
        """
        values = rows if isinstance(rows, list) else list(rows)
        if not values:
            return 0
        driver: Any = conn.connection.dbapi_connection
        try:
            if conn.dialect.name == "sqlite":
                if len(values) == 1:
                    return int(driver.execute(self._sqlite, values[0]).rowcount)
                return int(driver.executemany(self._sqlite, values).rowcount)
            with driver.cursor() as cursor:
                if len(values) == 1:
                    cursor.execute(self._postgresql, values[0])
                else:
                    cursor.executemany(self._postgresql, values)
                return int(cursor.rowcount)
        except Exception as error:
            raise _converted(conn, self._postgresql, error) from error


def _converted(conn: Connection, text: str, error: Exception) -> Exception:
    """The error as SQLAlchemy would have it; a lost connection is marked as such."""
    dialect = conn.dialect
    errors: Any = dialect.loaded_dbapi.Error
    if not isinstance(error, errors):
        return error
    lost = False
    if not conn.invalidated:
        driver: Any = conn.connection.dbapi_connection
        lost = dialect.is_disconnect(error, driver, None)
    if lost:
        conn.invalidate(error)
    converted: Exception = DBAPIError.instance(
        text, None, error, errors, connection_invalidated=lost, dialect=dialect
    )
    return converted


def chunks(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Cut a long list into parts."""
    for start in range(0, len(values), size):
        yield values[start : start + size]

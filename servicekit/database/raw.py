"""Statements written once for both databases, handed to the driver as they are.

    _MOVE = Sql("UPDATE place SET position = ? WHERE id IN ?")
    _MOVE.change(conn, 7, [1, 2])                # inside a unit of work, beside SQLAlchemy's own statements

SQLAlchemy's own compilation, execution context and result objects cost several times what SQLite needs for a
row; what is written or looked up for each event goes to the driver's connection inside SQLAlchemy's
transaction. Errors come out as SQLAlchemy's, so that nobody has to know.

`?` stands for a parameter, `IN ?` for a list of integers or texts as one parameter, so that the text of a
statement never depends on its values.

A NUL in a text, which users may write and PostgreSQL cannot hold, becomes U+FFFD when it is stored and when it is
looked for, on both databases.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import orjson
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError


class Sql:
    """One statement."""

    __slots__ = ("_postgresql", "_sqlite")

    def __init__(self, text: str) -> None:
        self._sqlite = text.replace("IN ?", "IN (SELECT value FROM json_each(?))")
        self._postgresql = text.replace("%", "%%").replace("IN ?", "= ANY(?)").replace("?", "%s")

    def rows(self, conn: Connection, *parameters: Any) -> list[Any]:
        """Run it and return all rows. A list parameter belongs to `IN ?`."""
        driver: Any = conn.connection.dbapi_connection
        try:
            if conn.dialect.name == "sqlite":
                found: list[Any] = driver.execute(self._sqlite, _for_sqlite(parameters)).fetchall()
            else:
                with driver.cursor() as cursor:
                    cursor.execute(self._postgresql, _for_postgresql(parameters))
                    found = cursor.fetchall()
        except Exception as error:
            raise _converted(conn, self._postgresql, error) from error
        return found

    def row(self, conn: Connection, *parameters: Any) -> Any:
        """Run it and return the first row, or None."""
        driver: Any = conn.connection.dbapi_connection
        try:
            if conn.dialect.name == "sqlite":
                cursor = driver.execute(self._sqlite, _for_sqlite(parameters))
                found = cursor.fetchone()
                cursor.close()
            else:
                with driver.cursor() as cursor:
                    cursor.execute(self._postgresql, _for_postgresql(parameters))
                    found = cursor.fetchone()
        except Exception as error:
            raise _converted(conn, self._postgresql, error) from error
        return found

    def change(self, conn: Connection, *parameters: Any) -> int:
        """Run it and return how many rows changed."""
        driver: Any = conn.connection.dbapi_connection
        try:
            if conn.dialect.name == "sqlite":
                return int(driver.execute(self._sqlite, _for_sqlite(parameters)).rowcount)
            with driver.cursor() as cursor:
                cursor.execute(self._postgresql, _for_postgresql(parameters))
                return int(cursor.rowcount)
        except Exception as error:
            raise _converted(conn, self._postgresql, error) from error

    def many(self, conn: Connection, rows: Iterable[Sequence[Any]]) -> int:
        """Run it once for each row of parameters and return how many rows changed in all; nothing for
        none.
        """
        values = rows if isinstance(rows, list) else list(rows)
        if not values:
            return 0
        if len(values) == 1:
            return self.change(conn, *values[0])
        driver: Any = conn.connection.dbapi_connection
        try:
            if conn.dialect.name == "sqlite":
                return int(driver.executemany(self._sqlite, list(map(_for_sqlite, values))).rowcount)
            with driver.cursor() as cursor:
                cursor.executemany(self._postgresql, list(map(_for_postgresql, values)))
                return int(cursor.rowcount)
        except Exception as error:
            raise _converted(conn, self._postgresql, error) from error


def _for_sqlite(parameters: Sequence[Any]) -> Sequence[Any]:
    if _are_plain(parameters):
        return parameters
    return [_FOR_SQLITE[type(value)](value) if type(value) in _FOR_SQLITE else value for value in parameters]


def _are_plain(parameters: Sequence[Any]) -> bool:
    """Whether a driver takes them as they are. Most rows are, and only looking costs a third of making a list anew."""
    for value in parameters:
        kind = type(value)
        if (kind is str and "\0" in value) or kind is list:
            return False
    return True


def _for_postgresql(parameters: Sequence[Any]) -> Sequence[Any]:
    if _are_plain(parameters):
        return parameters
    return [
        _FOR_POSTGRESQL[type(value)](value) if type(value) in _FOR_POSTGRESQL else value
        for value in parameters
    ]


def _storable(text: str) -> str:
    return text.replace("\0", "\ufffd") if "\0" in text else text


def _all_storable(values: list[Any]) -> list[Any]:
    return list(map(_storable, values)) if values and type(values[0]) is str else values


def _json_of(values: list[Any]) -> str:
    text = orjson.dumps(values).decode()
    # SQLite's json_each ends a text at its first NUL and would find what nobody looks for. Seen in the JSON, since
    # looking into each value costs more than all the rest.
    return orjson.dumps(_all_storable(values)).decode() if "\\u0000" in text else text


_FOR_SQLITE: Final[dict[type, Callable[[Any], Any]]] = {str: _storable, list: _json_of}
_FOR_POSTGRESQL: Final[dict[type, Callable[[Any], Any]]] = {str: _storable, list: _all_storable}


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

"""Statements written once for both databases, handed to the driver as they are.

SQLAlchemy's own compilation and parameter handling costs several times what SQLite needs for a row; what is
written or looked up for each event goes this way. `?` stands for a parameter, `IN ?` for a list of integers or
texts as one parameter, so that the text of a statement never depends on its values.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from sqlalchemy import Connection

Row = Sequence[Any]


class Sql:
    """One statement."""

    __slots__ = ("_postgresql", "_sqlite")

    def __init__(self, text: str) -> None:
        self._sqlite = text.replace("IN ?", "IN (SELECT value FROM json_each(?))")
        self._postgresql = text.replace("IN ?", "= ANY(?)").replace("?", "%s")

    def rows(self, conn: Connection, *parameters: Any) -> list[Any]:
        """Run it and return all rows. A list parameter belongs to `IN ?`."""
        if conn.dialect.name == "sqlite":
            values = tuple([orjson.dumps(p).decode() if type(p) is list else p for p in parameters])
            return list(conn.exec_driver_sql(self._sqlite, values))
        return list(conn.exec_driver_sql(self._postgresql, parameters))

    def row(self, conn: Connection, *parameters: Any) -> Any:
        """Run it and return the first row, or None."""
        rows = self.rows(conn, *parameters)
        return rows[0] if rows else None

    def change(self, conn: Connection, *parameters: Any) -> int:
        """Run it and return how many rows changed."""
        if conn.dialect.name == "sqlite":
            values = tuple([orjson.dumps(p).decode() if type(p) is list else p for p in parameters])
            return conn.exec_driver_sql(self._sqlite, values).rowcount
        return conn.exec_driver_sql(self._postgresql, parameters).rowcount

    def many(self, conn: Connection, rows: Iterable[tuple[Any, ...]]) -> int:
        """Run it once for each row of parameters and return how many rows changed in all; nothing for none."""
        values = rows if isinstance(rows, list) else list(rows)
        if not values:
            return 0
        text = self._sqlite if conn.dialect.name == "sqlite" else self._postgresql
        if len(values) == 1:
            return conn.exec_driver_sql(text, values[0]).rowcount
        return conn.exec_driver_sql(text, values).rowcount


def chunks(values: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    """Cut a long list into parts."""
    for start in range(0, len(values), size):
        yield values[start : start + size]

"""The RoomServer's statements: see `servicekit.database.raw`."""

from servicekit.database.raw import Sql, chunks

__all__ = ["Sql", "chunks"]

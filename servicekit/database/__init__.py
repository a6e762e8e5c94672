"""A service's own database: SQLite or PostgreSQL through synchronous SQLAlchemy Core on dedicated threads.

`Database` (in `threads`) runs units of work: functions that take a Connection first, are synchronous and
never commit. One thread writes, a few read, each with a connection of its own. `engine` makes engines whose
connections behave alike, `migrations` brings the schema to the head revision (Alembic) at start, `testing`
compares head with the tables.
"""

from servicekit.database.engine import Durability, create_engine, new_metadata
from servicekit.database.migrations import SchemaTooNewError
from servicekit.database.threads import Database, DatabaseClosedError, NestedAcquireError

__all__ = [
    "Database",
    "DatabaseClosedError",
    "Durability",
    "NestedAcquireError",
    "SchemaTooNewError",
    "create_engine",
    "new_metadata",
]

"""Schema revisions with Alembic: one shared environment, one folder of versions a service.

A service has `storage/migrations/versions/*.py` and a `MetaData`; nothing else. `migrate` runs at start, in
one transaction under a lock, so that of two processes that start together one migrates and the other finds it
done. New revision: `python -m servicekit.database.new_revision roomserver "add receipts"`.

Alembic is imported only when there is something to migrate: it is a fifth of a service's start, and a service
that was killed should be back soon.
"""

import importlib.util
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, MetaData, inspect
from sqlalchemy.engine import make_url

from servicekit.database.engine import create_engine

if TYPE_CHECKING:
    from alembic.config import Config as AlembicConfig

ENVIRONMENT = Path(__file__).parent / "alembic_env"
# Any number, the same everywhere: key of the advisory lock that keeps two migrations apart.
_LOCK_KEY = 0x6172626F72
# Alembic's `op` is one for the whole process: services that share one migrate one after the other.
_one_at_a_time = threading.Lock()


class SchemaTooNewError(Exception):
    """The database was migrated by a later version of the program, whose schema this one does not know."""


def versions_directory(migrations_package: str) -> Path:
    """Return the folder with a service's revisions."""
    spec = importlib.util.find_spec(migrations_package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {migrations_package}")
    return Path(spec.submodule_search_locations[0]) / "versions"


def alembic_config(migrations_package: str, metadata: MetaData, connection: Connection) -> "AlembicConfig":
    """Return Alembic's own configuration for a service and an open connection."""
    from alembic.config import Config as AlembicConfig

    config = AlembicConfig()
    config.set_main_option("script_location", str(ENVIRONMENT).replace("%", "%%"))
    config.set_main_option(
        "version_locations", str(versions_directory(migrations_package)).replace("%", "%%")
    )
    config.set_main_option("path_separator", "os")
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    config.attributes["connection"] = connection
    config.attributes["metadata"] = metadata
    return config


def migrate(url: str, metadata: MetaData, migrations_package: str) -> None:
    """Bring the schema at `url` to the head revision.

    Raises:
        SchemaTooNewError: the schema has a revision that this version of the program does not know.
    """
    engine = create_engine(url)
    try:
        with _one_at_a_time, engine.connect() as connection, connection.begin():
            _lock(connection, url)
            current = _current_revision(connection)
            known = _known_revisions(migrations_package)
            if current is not None and current not in known:
                raise SchemaTooNewError(
                    f"the database {make_url(url).render_as_string()} has schema revision {current}, which"
                    f" this version does not know (its last is {known[-1]});"
                    " install the version that made it"
                )
            if current != known[-1]:
                from alembic import command

                command.upgrade(alembic_config(migrations_package, metadata, connection), "head")
    finally:
        engine.dispose()


def _current_revision(connection: Connection) -> str | None:
    """Return the revision that the database is at; None: it has no tables yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return revision


def _known_revisions(migrations_package: str) -> list[str]:
    """Return the revisions of a service, oldest first: `new_revision` numbers them `0001`, `0002`, …"""
    return sorted(
        path.name.partition("_")[0] for path in versions_directory(migrations_package).glob("[0-9]*_*.py")
    )


def _lock(connection: Connection, url: str) -> None:
    if connection.dialect.name != "postgresql":
        return  # BEGIN IMMEDIATE has the lock already
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_KEY})")
    schema = re.search(r"-csearch_path=(\w+)", str(make_url(url).query.get("options", "")))
    if schema:
        connection.exec_driver_sql(f'CREATE SCHEMA IF NOT EXISTS "{schema[1]}"')

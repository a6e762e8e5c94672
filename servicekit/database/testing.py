"""For a service's tests: does the head revision make the tables that the code uses?"""

from pathlib import Path
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import MetaData

from servicekit.database.engine import create_engine
from servicekit.database.migrations import migrate


def schema_differences(metadata: MetaData, migrations_package: str, directory: Path) -> list[Any]:
    """Return what Alembic would still change after all migrations; a test asserts that it is empty.

    Args:
        metadata: the service's tables.
        migrations_package: such as `roomserver.storage.migrations`.
        directory: an empty directory for a scratch SQLite file.
    """
    url = f"sqlite:///{directory / 'head.db'}"
    migrate(url, metadata, migrations_package)
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            return list(compare_metadata(context, metadata))
    finally:
        engine.dispose()

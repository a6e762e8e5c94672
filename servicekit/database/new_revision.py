"""`python -m servicekit.database.new_revision SERVICE "message"`: write a migration from tables to head.

The tables are `SERVICE.storage.tables.metadata`; the revision is what they have beyond the revisions there
are. Read what it wrote: Alembic sees neither renames nor data.
"""

import importlib
import sys
import tempfile
from pathlib import Path

from alembic import command
from alembic.script import ScriptDirectory

from servicekit.database.engine import create_engine
from servicekit.database.migrations import alembic_config, migrate


def main(service: str, message: str) -> None:
    """Write the next revision of a service."""
    metadata = importlib.import_module(f"{service}.storage.tables").metadata
    package = f"{service}.storage.migrations"
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite:///{Path(directory) / 'head.db'}"
        migrate(url, metadata, package)
        engine = create_engine(url)
        with engine.connect() as connection, connection.begin():
            config = alembic_config(package, metadata, connection)
            number = len(list(ScriptDirectory.from_config(config).walk_revisions())) + 1
            command.revision(config, message, autogenerate=True, rev_id=f"{number:04d}")
        engine.dispose()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

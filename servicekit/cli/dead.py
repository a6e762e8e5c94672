"""`arbor log dead`: what services could not apply, out of their databases."""

import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from servicekit.cli.main import SERVICES
from servicekit.config import Config
from servicekit.database import create_engine, new_metadata
from servicekit.log.tables import add_log_tables


def dead_letters(config: Config, service: str) -> list[dict[str, Any]]:
    """Return a service's dead letters as rows; empty where it has no database or no such table."""
    table = add_log_tables(new_metadata()).dead_letter
    url = config.database_url(service)
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return []
    engine = create_engine(url, role="reader")
    try:
        with engine.connect() as connection, connection.begin():
            if not sa.inspect(connection).has_table(table.name):
                return []
            rows = connection.execute(sa.select(table).order_by(table.c.id))
            return [dict(row._mapping) for row in rows]
    finally:
        engine.dispose()


def print_dead(config: Config, service: str | None, *, trace: bool) -> int:
    """Print what could not be applied."""
    found = 0
    for name in [service] if service else SERVICES:
        for row in dead_letters(config, name):
            found += 1
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["created_ms"] / 1000))
            place = f"{row['stream']} {row['sequence']}"
            if row["entry_index"] >= 0:
                place += f"[{row['entry_index']}]"
            print(f"{name} {row['id']}  {when}  {place}  {row['about']}  {row['error']}")
            if trace:
                print(row["traceback"])
    if found:
        print(f"{found} dead; once the cause is mended: arbor log replay SERVICE [ROOM_OR_ID ...]")
    else:
        print("none")
    return 0

"""Engines whose connections behave alike on SQLite and PostgreSQL.

SQLite: WAL, foreign keys on, explicit BEGIN (IMMEDIATE for writers, deferred for readers), the database file
    readable by its owner only. PostgreSQL: psycopg 3, REPEATABLE READ for readers, so that a unit of reading
    sees one snapshot.
"""

import os
import sqlite3
from pathlib import Path
from typing import Any, Literal

import sqlalchemy
from sqlalchemy import Connection, Engine, MetaData, event
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

Durability = Literal["full", "relaxed"]
Role = Literal["writer", "reader"]

BUSY_TIMEOUT_MS = 30_000

_NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


def new_metadata() -> MetaData:
    """Return an empty MetaData whose constraints get names by rule, as migrations need them."""
    return MetaData(naming_convention=_NAMING_CONVENTION)


def create_engine(url: str, durability: Durability = "full", role: Role = "writer") -> Engine:
    """Return an engine without a pool: whoever connects keeps the connection.

    Args:
        url: `sqlite:///file` or `postgresql+psycopg://…`.
        durability: `full` syncs each commit; `relaxed` may lose the last commits, never the order, in a crash
            of the
            machine: for readers of the log, which heal by replay.
        role: a `reader`'s transactions are snapshots that cannot write.
    """
    if make_url(url).get_backend_name() == "sqlite":
        return _sqlite_engine(url, durability, role)
    return _postgresql_engine(url, durability, role)


def _sqlite_engine(url: str, durability: Durability, role: Role) -> Engine:
    file = make_url(url).database
    if file and file != ":memory:":
        _make_private(Path(file))
    engine = sqlalchemy.create_engine(url, poolclass=NullPool, connect_args={"check_same_thread": False})

    @event.listens_for(engine, "connect")
    def on_connect(connection: sqlite3.Connection, _record: Any) -> None:
        # We say BEGIN ourselves (below): the driver's own rules begin no transaction for reads and none for
        # DDL.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        if role == "writer":
            cursor.execute("PRAGMA journal_mode = WAL")
            # WAL with NORMAL syncs at checkpoints only; with FULL at each commit.
            cursor.execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}")
            cursor.execute("PRAGMA wal_autocheckpoint = 4000")
            cursor.execute("PRAGMA journal_size_limit = 67108864")
        else:
            cursor.execute("PRAGMA query_only = ON")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute(f"PRAGMA cache_size = {-65536 if role == 'writer' else -16384}")
        cursor.execute("PRAGMA mmap_size = 268435456")
        cursor.execute("PRAGMA temp_store = MEMORY")
        cursor.close()

    statement = "BEGIN IMMEDIATE" if role == "writer" else "BEGIN"

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        # Straight to the driver: it is what every unit of work begins with.
        driver: Any = connection.connection.driver_connection
        driver.execute(statement)

    return engine


def _make_private(file: Path) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite gives the -wal and -shm files the mode of the database file.
    os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))


def _postgresql_engine(url: str, durability: Durability, role: Role) -> Engine:
    # Named statements on the server break behind a transaction-pooling proxy; psycopg prepares after five
    # uses.
    engine = sqlalchemy.create_engine(
        url,
        poolclass=NullPool,
        isolation_level="REPEATABLE READ" if role == "reader" else "READ COMMITTED",
        connect_args={"application_name": "arbor", "connect_timeout": 10},
    )

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit = " + ("on" if durability == "full" else "off"))
            if role == "reader":
                cursor.execute("SET default_transaction_read_only = on")
        connection.commit()

    return engine

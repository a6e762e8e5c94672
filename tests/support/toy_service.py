"""A toy service on the log: the least that follows and publishes as a real one does.

Entries are JSON objects: {"room": "!a:x", "n": 3}. It keeps a row per entry and a count per room, so that an
entry applied twice, not at all or out of order shows. `"fail": true` raises while it is applied, `"kind":
"unknown"` stops the follower.
"""

from collections.abc import Sequence
from pathlib import Path

import orjson
from sqlalchemy import BigInteger, Column, Connection, Integer, Table, Text, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from servicekit.database import Database, new_metadata
from servicekit.log.errors import UndecodableEntry, UnknownEntryKind
from servicekit.log.reader import LogMessage
from servicekit.log.tables import add_log_tables, add_outbox_tables

metadata = new_metadata()
log_tables = add_log_tables(metadata)
outbox_tables = add_outbox_tables(metadata)
entries = Table(
    "toy_entry",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("room", Text, nullable=False),
    Column("n", Integer, nullable=False),
)
counts = Table(
    "toy_count",
    metadata,
    Column("room", Text, primary_key=True),
    Column("entries", Integer, nullable=False),
    Column("checksum", BigInteger, nullable=False),
)


def open_database(url: str) -> Database:
    """Open a fresh database with the toy's tables."""
    database = Database(url, metadata, "toy.migrations", durability="relaxed", name="toy")
    database.write_sync(metadata.create_all)
    return database


def toy_entry(room: str, n: int, **more: object) -> bytes:
    """Return an entry's data."""
    return orjson.dumps({"room": room, "n": n, **more})


class ToyHandler:
    """Applies entries; remembers the size of each call."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def apply_batch(self, conn: Connection, messages: Sequence[LogMessage]) -> list[int]:
        """Store the entries and count them; returns their numbers."""
        self.calls.append(len(messages))
        numbers = []
        for message in messages:
            try:
                entry = orjson.loads(message.data)
            except ValueError as error:
                raise UndecodableEntry(f"sequence {message.sequence}") from error
            if entry.get("kind") == "unknown":
                raise UnknownEntryKind(f"sequence {message.sequence}")
            values = {"sequence": message.sequence, "room": entry["room"], "n": entry["n"]}
            conn.execute(insert(entries).values(values))
            _count(conn, entry["room"], entry["n"])
            if entry.get("fail"):
                raise RuntimeError("this entry fails on purpose")
            numbers.append(entry["n"])
        return numbers


def _count(conn: Connection, room: str, n: int) -> None:
    dialect = sqlite if conn.dialect.name == "sqlite" else postgresql
    statement = dialect.insert(counts).values(room=room, entries=1, checksum=n)
    conn.execute(
        statement.on_conflict_do_update(
            index_elements=[counts.c.room],
            # Not commutative: an entry applied twice or in another order gives another number.
            set_={"entries": counts.c.entries + 1, "checksum": (counts.c.checksum * 31 + n) % 1_000_003},
        )
    )


def contents(conn: Connection, *, with_sequences: bool = True) -> dict[str, list[tuple[object, ...]]]:
    """Return all rows of the toy's own tables, in order."""
    columns = (
        [entries.c.sequence, entries.c.room, entries.c.n] if with_sequences else [entries.c.room, entries.c.n]
    )
    return {
        "entries": [tuple(row) for row in conn.execute(select(*columns).order_by(entries.c.sequence))],
        "counts": [tuple(row) for row in conn.execute(select(counts).order_by(counts.c.room))],
    }


def sqlite_url(directory: Path, name: str = "toy") -> str:
    """Return the URL of an SQLite file."""
    return f"sqlite:///{directory / f'{name}.db'}"

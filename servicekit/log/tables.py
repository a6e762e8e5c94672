"""The tables that following and publishing need, in the database of the service that does it.

metadata = new_metadata()
log_tables = add_log_tables(metadata)      # beside the service's own tables; its migrations make them
outbox_tables = add_outbox_tables(metadata)
"""

from dataclasses import dataclass

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

# SQLite numbers rows by itself only under the very type INTEGER.
_RowId = BigInteger().with_variant(Integer, "sqlite")


@dataclass(frozen=True, slots=True)
class LogTables:
    """What following needs."""

    position: Table
    output_no: Table
    dead_letter: Table


@dataclass(frozen=True, slots=True)
class OutboxTables:
    """What publishing needs."""

    outbox: Table
    progress: Table


def add_log_tables(metadata: MetaData) -> LogTables:
    """Add `log_position`, `log_output_no` and `dead_letter` to a service's tables."""
    position = Table(
        "log_position",
        metadata,
        Column(
            "stream", String(64), primary_key=True, comment="INPUT, OUTPUT, or a follower's own name for it"
        ),
        Column("epoch", String(32), nullable=False, comment="the stream's epoch that the position counts in"),
        Column("position", BigInteger, nullable=False, comment="the last sequence applied; 0: none"),
    )
    output_no = Table(
        "log_output_no",
        metadata,
        Column("writer", String(32), primary_key=True, comment="who numbers: roomserver, clientapi, ..."),
        Column("partition", Integer, primary_key=True),
        Column(
            "output_no", BigInteger, nullable=False, comment="the last number applied: drop it and lower ones"
        ),
    )
    dead_letter = Table(
        "dead_letter",
        metadata,
        Column("id", _RowId, primary_key=True, autoincrement=True),
        Column("stream", String(64), nullable=False),
        Column("epoch", String(32), nullable=False),
        Column("sequence", BigInteger, nullable=False, comment="of the message in the stream"),
        Column("entry_index", Integer, nullable=False, comment="of the entry in the message; -1: all of it"),
        Column("subject", Text, nullable=False),
        Column(
            "about", Text, nullable=False, comment="the room or user id in the subject; empty: none there"
        ),
        Column("data", LargeBinary, nullable=False),
        Column("headers", Text, nullable=False, comment="JSON object"),
        Column("error", Text, nullable=False, comment="type and text"),
        Column("traceback", Text, nullable=False),
        Column("created_ms", BigInteger, nullable=False),
        UniqueConstraint("stream", "epoch", "sequence", "entry_index"),
        Index("ix_dead_letter_about", "about"),
    )
    return LogTables(position, output_no, dead_letter)


def add_outbox_tables(metadata: MetaData) -> OutboxTables:
    """Add `outbox` and `outbox_progress` to a service's tables."""
    outbox = Table(
        "outbox",
        metadata,
        Column("partition", Integer, primary_key=True),
        Column(
            "output_no", BigInteger, primary_key=True, autoincrement=False, comment="without gaps, from 1"
        ),
        Column("epoch", BigInteger, nullable=False, comment="the owner's epoch when it was committed"),
        Column("subject", Text, nullable=False),
        Column("data", LargeBinary, nullable=False),
        Column("headers", Text, nullable=False, comment="JSON object of further headers; empty: none"),
    )
    progress = Table(
        "outbox_progress",
        metadata,
        Column("partition", Integer, primary_key=True),
        Column("last_no", BigInteger, nullable=False, comment="the last number given to a row; 0: none"),
        Column(
            "published_no", BigInteger, nullable=False, comment="the last number known as published; 0: none"
        ),
        Column("sequence", BigInteger, nullable=False, comment="its stream sequence; 0: none"),
    )
    return OutboxTables(outbox, progress)

"""What is to go from the log, remembered until it is gone."""

from collections.abc import Collection, Iterable
from typing import NamedTuple

import orjson
from sqlalchemy import Connection

from servicekit.database.raw import Sql

_INSERT = Sql(
    "INSERT INTO erasure (partition, output_no, room_id, event_ids, whole_room, input_sequence)"
    " VALUES (?, ?, ?, ?, ?, ?)"
)
_LOAD = Sql(
    "SELECT e.partition, e.output_no, e.room_id, e.event_ids, e.whole_room, e.input_sequence, m.sequence"
    " FROM erasure e LEFT JOIN output_message m ON m.partition = e.partition AND m.output_no = e.output_no"
    " WHERE e.partition IN ? AND (m.sequence IS NOT NULL OR NOT EXISTS (SELECT 1 FROM outbox o"
    " WHERE o.partition = e.partition AND o.output_no = e.output_no))"
    " ORDER BY e.partition, e.output_no LIMIT ?"
)
_ANY = Sql("SELECT 1 FROM erasure WHERE partition IN ? LIMIT 1")
_DELETE = Sql("DELETE FROM erasure WHERE partition = ? AND output_no = ?")


class Erasure(NamedTuple):
    """What is to go from the log.

    The message (partition, output_no) told of the cause; what must go was told before it, or in it.
    """

    partition: int
    output_no: int
    room_id: str
    event_ids: frozenset[str]
    """Events that were redacted; empty: all that the database no longer has."""
    whole_room: bool
    """The room was purged: its messages before that one go, whatever they are."""
    input_sequence: int
    """Up to here INPUT may hold what brought the events."""
    sequence: int = 0
    """Where the message stands on OUTPUT; 0: not known, or gone from there."""


def store_erasures(conn: Connection, erasures: Iterable[Erasure]) -> None:
    """Remember what is to go."""
    _INSERT.many(
        conn,
        [
            (
                e.partition,
                e.output_no,
                e.room_id,
                orjson.dumps(sorted(e.event_ids)),
                e.whole_room,
                e.input_sequence,
            )
            for e in erasures
        ],
    )


def load_erasures(conn: Connection, partitions: Collection[int], limit: int) -> list[Erasure]:
    """What is to go in some partitions, of that whose places on OUTPUT are known."""
    return [
        Erasure(row[0], row[1], row[2], frozenset(orjson.loads(row[3])), bool(row[4]), row[5], row[6] or 0)
        for row in _LOAD.rows(conn, sorted(partitions), limit)
    ]


def is_any_left(conn: Connection, partitions: Collection[int]) -> bool:
    """Whether anything is still to go in some partitions."""
    return _ANY.row(conn, sorted(partitions)) is not None


def delete_erasure(conn: Connection, partition: int, output_no: int) -> None:
    """It is gone."""
    _DELETE.change(conn, partition, output_no)

"""State at events as skip-deltas.

Snapshots form chains. Number n of a chain is stored as the difference to number n & (n - 1), so that any
state is put together from at most log2(n) + 1 rows:

    number     0   1   2   3   4   5   6   7   8
    based on   -   0   0   2   0   4   4   6   0
"""

import hashlib
from dataclasses import dataclass

from sqlalchemy import Connection

from roomserver.storage.packing import pack_pairs, unpack_pairs
from servicekit.database.raw import Sql

_PATH = Sql(
    "WITH RECURSIVE path(id, base_id, number, delta, room_nid) AS ("
    " SELECT id, base_id, number, delta, room_nid FROM snapshot WHERE id = ?"
    " UNION ALL SELECT s.id, s.base_id, s.number, s.delta, s.room_nid FROM snapshot s JOIN path p ON"
    " s.id = p.base_id"
    ") SELECT id, base_id, number, delta, room_nid FROM path"
)
_INSERT = Sql("INSERT INTO snapshot (id, room_nid, base_id, number, delta) VALUES (?, ?, ?, ?, ?)")
_RESOLVED = Sql("SELECT snapshot_id FROM resolved_snapshot WHERE room_nid = ? AND hash = ?")
_STORE_RESOLVED = Sql(
    "INSERT INTO resolved_snapshot (room_nid, hash, snapshot_id) VALUES (?, ?, ?) ON CONFLICT"
    " (room_nid, hash) DO NOTHING"
)
_STORE_TOLD = Sql(
    "INSERT INTO told_snapshot (snapshot_id, room_nid) VALUES (?, ?) ON CONFLICT (snapshot_id) DO NOTHING"
)


@dataclass(slots=True, frozen=True)
class Node:
    """One snapshot: the difference to its base as key number -> event number (0: removed)."""

    id: int
    base_id: int
    number: int
    delta: dict[int, int]
    room_nid: int


def load_path(conn: Connection, snapshot_id: int) -> list[Node]:
    """Return a snapshot, its base, the base's base and so on; empty: there is no such snapshot."""
    nodes = [
        Node(row[0], row[1], row[2], unpack_pairs(row[3]), row[4]) for row in _PATH.rows(conn, snapshot_id)
    ]
    nodes.sort(key=lambda node: -node.number)
    return nodes


def compose(path: list[Node]) -> dict[int, int]:
    """Return the whole state, key number -> event number, of a path."""
    state: dict[int, int] = {}
    for node in reversed(path):
        state.update(node.delta)
    if 0 in state.values():
        return {key: event for key, event in state.items() if event}
    return state


def load_state(conn: Connection, snapshot_id: int) -> dict[int, int]:
    """Return the whole state of a snapshot."""
    return compose(load_path(conn, snapshot_id))


def store_snapshots(conn: Connection, nodes: list[Node]) -> None:
    """Insert snapshots."""
    _INSERT.many(
        conn,
        [
            (node.id, node.room_nid, node.base_id, node.number, pack_pairs(node.delta.items()))
            for node in nodes
        ],
    )


def change_hash(parent_id: int, changes: dict[int, int]) -> bytes:
    """Return what stands for a state that differs so from a snapshot."""
    data = pack_pairs([(parent_id, 0), *sorted(changes.items())])
    return hashlib.blake2b(data, digest_size=16).digest()


def load_resolved(conn: Connection, room_nid: int, hash_: bytes) -> int:
    """Return the snapshot with a resolved state; 0: none."""
    row = _RESOLVED.row(conn, room_nid, hash_)
    return int(row[0]) if row else 0


def store_resolved(conn: Connection, rows: list[tuple[int, bytes, int]]) -> None:
    """Remember (room number, hash, snapshot)."""
    _STORE_RESOLVED.many(conn, rows)


def store_told(conn: Connection, snapshot_id: int, room_nid: int) -> None:
    """Keep a snapshot as long as its room: an export refers readers to it, whatever events do by then."""
    _STORE_TOLD.change(conn, snapshot_id, room_nid)

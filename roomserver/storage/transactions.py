"""Transaction keys: a repeated transaction never makes a second event (architecture, rule 9)."""

import hashlib
from base64 import b64encode

from sqlalchemy import Connection

from arbor.log.v1.common_pb2 import TransactionKey
from servicekit.database.raw import Sql

_LOAD = Sql(
    "SELECT t.hash, e.event_id, e.nid FROM transaction_key t JOIN event e ON e.nid = t.event_nid"
    " WHERE t.hash IN ?"
)
_STORE = Sql("INSERT INTO transaction_key (hash, event_nid, created_ms) VALUES (?, ?, ?)")


def hash_of(key: TransactionKey) -> str:
    """Return what a key is stored under: its parts, told apart by their lengths, hashed to 144 bits."""
    parts = [key.user_id, key.device_id, key.endpoint, key.room_id, key.txn_id]
    text = "\0".join([str(len(part)) for part in parts] + parts)
    return b64encode(hashlib.blake2b(text.encode(), digest_size=18).digest()).decode()


def load_transactions(conn: Connection, hashes: list[str]) -> dict[str, tuple[str, int]]:
    """hash -> (event id, event number), of those seen before."""
    return {row[0]: (row[1], row[2]) for row in _LOAD.rows(conn, hashes)} if hashes else {}


def store_transactions(conn: Connection, rows: list[tuple[str, int, int]]) -> None:
    """Remember (hash, event number, milliseconds since 1970)."""
    _STORE.many(conn, rows)

"""Remote signing keys."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select

from federation.storage.tables import remote_key, remote_key_response


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One key of another server; `expired_ms` None: in use. Times are milliseconds since 1970."""

    key_id: str
    public_bytes: bytes
    valid_until_ms: int
    expired_ms: int | None


@dataclass(frozen=True, slots=True)
class KeyResponse:
    """A server's own key answer as it signed it."""

    response_json: bytes
    fetched_ms: int
    valid_until_ms: int


def load_keys(conn: Connection, server_name: str) -> list[KeyRow]:
    """Every key that we ever saw of a server."""
    table = remote_key
    rows = conn.execute(
        select(table.c.key_id, table.c.public_key, table.c.valid_until_ms, table.c.expired_ms).where(
            table.c.server_name == server_name
        )
    )
    return [KeyRow(row.key_id, bytes(row.public_key), row.valid_until_ms, row.expired_ms) for row in rows]


def store_keys(conn: Connection, server_name: str, keys: Sequence[KeyRow], fetched_ms: int) -> None:
    """Store keys of a server, replacing those with the same ids. Keys it no longer tells are kept."""
    table = remote_key
    for key in keys:
        conn.execute(delete(table).where(table.c.server_name == server_name, table.c.key_id == key.key_id))
    if keys:
        conn.execute(
            insert(table),
            [
                {
                    "server_name": server_name,
                    "key_id": key.key_id,
                    "public_key": key.public_bytes,
                    "valid_until_ms": key.valid_until_ms,
                    "expired_ms": key.expired_ms,
                    "fetched_ms": fetched_ms,
                }
                for key in keys
            ],
        )


def load_response(conn: Connection, server_name: str) -> KeyResponse | None:
    """The last key answer of a server itself."""
    table = remote_key_response
    row = conn.execute(select(table).where(table.c.server_name == server_name)).first()
    return None if row is None else KeyResponse(bytes(row.response_json), row.fetched_ms, row.valid_until_ms)


def store_response(conn: Connection, server_name: str, response: KeyResponse) -> None:
    """Keep a server's key answer, instead of the one before."""
    table = remote_key_response
    conn.execute(delete(table).where(table.c.server_name == server_name))
    conn.execute(
        insert(table).values(
            server_name=server_name,
            response_json=response.response_json,
            fetched_ms=response.fetched_ms,
            valid_until_ms=response.valid_until_ms,
        )
    )

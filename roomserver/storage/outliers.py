"""Memberships of local users in rooms that we are not in: invites, knocks, and how they ended."""

from dataclasses import dataclass

import orjson
from sqlalchemy import Connection

from servicekit.database.raw import Sql

_LOAD = Sql(
    "SELECT room_id, user_id, room_version, membership, event_id, pdu, stripped FROM outlier_membership"
    " WHERE room_id = ? AND user_id = ?"
)
_STORE = Sql(
    "INSERT INTO outlier_membership (room_id, user_id, room_version, membership, event_id, pdu, stripped)"
    " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (room_id, user_id) DO UPDATE SET room_version ="
    " excluded.room_version,"
    " membership = excluded.membership, event_id = excluded.event_id, pdu = excluded.pdu, stripped ="
    " excluded.stripped"
)
_DELETE = Sql("DELETE FROM outlier_membership WHERE room_id = ?")
_DELETE_OF = Sql("DELETE FROM outlier_membership WHERE room_id = ? AND user_id = ?")


@dataclass(frozen=True, slots=True)
class Outlier:
    """One row; `membership` as a number."""

    room_id: str
    user_id: str
    room_version: str
    membership: int
    event_id: str
    pdu: bytes
    stripped: list[bytes]


def load_outlier(conn: Connection, room_id: str, user_id: str) -> Outlier | None:
    """The membership of a user, if there is one."""
    row = _LOAD.row(conn, room_id, user_id)
    if row is None:
        return None
    stripped = [text.encode() for text in orjson.loads(row[6])]
    return Outlier(row[0], row[1], row[2], row[3], row[4], row[5], stripped)


def store_outlier(conn: Connection, outlier: Outlier) -> None:
    """Write a membership."""
    stripped = orjson.dumps([item.decode() for item in outlier.stripped])
    _STORE.change(
        conn,
        outlier.room_id,
        outlier.user_id,
        outlier.room_version,
        outlier.membership,
        outlier.event_id,
        outlier.pdu,
        stripped,
    )


def delete_outliers(conn: Connection, room_id: str) -> None:
    """We are in the room: its own state says who is what."""
    _DELETE.change(conn, room_id)


def delete_outlier(conn: Connection, room_id: str, user_id: str) -> None:
    """The room's own state says what this user is; of others it may not say it yet."""
    _DELETE_OF.change(conn, room_id, user_id)

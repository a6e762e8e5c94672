"""What the log tells of local accounts: account data, devices, device lists; and the tables' own markers."""

from collections.abc import Iterable

from sqlalchemy import Connection

from syncapi.applied import AccountDataSet
from syncapi.storage.sql import row, rows, rows_in, run


def load_position(connection: Connection) -> tuple[str, int]:
    """Return the epoch and sequence up to which OUTPUT is applied, of this very snapshot."""
    found = row(connection, "SELECT epoch, position FROM log_position WHERE stream = 'OUTPUT'")
    return ("", 0) if found is None else (found[0], found[1])


def load_marker(connection: Connection, name: str) -> int:
    """Return a marker; 0: never set."""
    found = row(connection, "SELECT value FROM marker WHERE name = ?", (name,))
    return 0 if found is None else int(found[0])


def store_marker(connection: Connection, name: str, value: int) -> None:
    """Set a marker."""
    run(
        connection,
        "INSERT INTO marker (name, value) VALUES (?, ?)"
        " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (name, value),
    )


def store_account_data(connection: Connection, changed: AccountDataSet) -> None:
    """Set an account data entry, unless a later one is there."""
    run(
        connection,
        "INSERT INTO account_data (user_id, room_id, type, content, position) VALUES (?,?,?,?,?)"
        " ON CONFLICT (user_id, room_id, type) DO UPDATE SET content = excluded.content,"
        " position = excluded.position WHERE account_data.position <= excluded.position",
        tuple(changed),
    )


def load_account_data(connection: Connection, user_id: str, after: int, through: int) -> list[AccountDataSet]:
    """Return a user's account data that was set within after < position <= through."""
    return [
        AccountDataSet(*found)
        for found in rows(
            connection,
            "SELECT user_id, room_id, type, content, position FROM account_data WHERE user_id = ?"
            " AND position > ? AND position <= ? ORDER BY position, room_id, type",
            (user_id, after, through),
        )
    ]


def store_erased(connection: Connection, user_id: str, erased_ms: int) -> None:
    """Note when a user had their content erased."""
    run(
        connection,
        "INSERT INTO erased_user (user_id, erased_ms) VALUES (?, ?)"
        " ON CONFLICT (user_id) DO UPDATE SET erased_ms = excluded.erased_ms",
        (user_id, erased_ms),
    )


def load_erased(connection: Connection, user_ids: Iterable[str]) -> dict[str, int]:
    """Return which of these users had their content erased, and when."""
    return dict(
        rows_in(connection, "SELECT user_id, erased_ms FROM erased_user WHERE user_id IN ?", user_ids)
    )


def load_global(connection: Connection, type_: str) -> list[tuple[str, bytes]]:
    """Return (user, content) of all users who have that global account data."""
    return [
        (user, content)
        for user, content in rows(
            connection,
            "SELECT user_id, content FROM account_data"
            " WHERE room_id = '' AND type = ? AND content IS NOT NULL",
            (type_,),
        )
    ]


def store_device(connection: Connection, user_id: str, device_id: str, *, deleted: bool) -> None:
    """Add or remove a device."""
    if deleted:
        run(connection, "DELETE FROM device WHERE user_id = ? AND device_id = ?", (user_id, device_id))
    else:
        run(
            connection,
            "INSERT INTO device (user_id, device_id) VALUES (?, ?) ON CONFLICT DO NOTHING",
            (user_id, device_id),
        )


def load_devices(connection: Connection, user_id: str) -> list[str]:
    """Return a user's devices."""
    return [
        device_id
        for (device_id,) in rows(
            connection, "SELECT device_id FROM device WHERE user_id = ? ORDER BY device_id", (user_id,)
        )
    ]


def store_device_list(connection: Connection, user_id: str, position: int) -> None:
    """Note that a user's device list changed."""
    run(
        connection,
        "INSERT INTO device_list (user_id, position) VALUES (?, ?) ON CONFLICT (user_id) DO UPDATE SET"
        " position = excluded.position",
        (user_id, position),
    )


def load_device_lists(connection: Connection, after: int, through: int) -> list[str]:
    """Return the users whose device list changed within after < position <= through."""
    return [
        user
        for (user,) in rows(
            connection,
            "SELECT user_id FROM device_list WHERE position > ? AND position <= ? ORDER BY user_id",
            (after, through),
        )
    ]


def load_account_entry(connection: Connection, user_id: str, type_: str, room_id: str = "") -> bytes | None:
    """Return the content of one account data entry; None: there is none."""
    found = row(
        connection,
        "SELECT content FROM account_data WHERE user_id = ? AND room_id = ? AND type = ?",
        (user_id, room_id, type_),
    )
    return None if found is None else found[0]


def load_room_account_data(
    connection: Connection, user_id: str, room_id: str, through: int
) -> list[AccountDataSet]:
    """Return all of a user's account data of one room."""
    return [
        AccountDataSet(*found)
        for found in rows(
            connection,
            "SELECT user_id, room_id, type, content, position FROM account_data WHERE user_id = ?"
            " AND room_id = ? AND position <= ? ORDER BY position, type",
            (user_id, room_id, through),
        )
    ]


def load_markers(connection: Connection) -> dict[str, int]:
    """Return all markers that were ever set."""
    return dict(rows(connection, "SELECT name, value FROM marker"))


class CatchingUp(Exception):
    """After a rebuild the log is followed from an earlier place; until that is made up nothing is answered."""

    def __init__(self, sequence: int) -> None:
        super().__init__(f"waiting for OUTPUT {sequence}")
        self.sequence = sequence


def check_caught_up(connection: Connection) -> None:
    """Check that nothing is missing that clients have been told of.

    Raises:
        CatchingUp: not yet.
    """
    found = row(
        connection,
        "SELECT p.position, m.value FROM log_position p JOIN marker m ON m.name = 'read_floor'"
        " WHERE p.stream = 'OUTPUT' AND p.position < m.value",
    )
    if found is not None:
        raise CatchingUp(found[1])

"""Devices' inboxes (primary): a message stays until the device's next token says that it was received."""

from sqlalchemy import Connection

from syncapi.storage.sql import row, rows, run


def store_message(
    connection: Connection, user_id: str, device_id: str, position: int, message: bytes, message_id: str
) -> bool:
    """Put a message (JSON of type, sender, content) into an inbox; False: it is there already."""
    if message_id and row(
        connection,
        "SELECT 1 FROM to_device WHERE user_id = ? AND device_id = ? AND message_id = ?",
        (user_id, device_id, message_id),
    ):
        return False
    return bool(
        run(
            connection,
            "INSERT INTO to_device (user_id, device_id, position, message, message_id) VALUES (?,?,?,?,?)"
            " ON CONFLICT DO NOTHING",
            (user_id, device_id, position, message, message_id),
        )
    )


def load_messages(
    connection: Connection, user_id: str, device_id: str, through: int, limit: int
) -> list[tuple[int, bytes]]:
    """Return the oldest messages of an inbox: (position, JSON)."""
    return [
        (position, message)
        for position, message in rows(
            connection,
            "SELECT position, message FROM to_device WHERE user_id = ? AND device_id = ? AND position <= ?"
            " ORDER BY position LIMIT ?",
            (user_id, device_id, through, limit),
        )
    ]


def delete_received(connection: Connection, user_id: str, device_id: str, through: int) -> int:
    """Delete what the device has received; returns how many messages that was."""
    return run(
        connection,
        "DELETE FROM to_device WHERE user_id = ? AND device_id = ? AND position <= ?",
        (user_id, device_id, through),
    )


def delete_inbox(connection: Connection, user_id: str, device_id: str) -> None:
    """Delete a device's inbox with the device."""
    run(connection, "DELETE FROM to_device WHERE user_id = ? AND device_id = ?", (user_id, device_id))


def load_pending(connection: Connection) -> list[tuple[str, str]]:
    """Return the (user, device) whose inbox is not empty."""
    return [
        (user, device)
        for user, device in rows(connection, "SELECT DISTINCT user_id, device_id FROM to_device")
    ]

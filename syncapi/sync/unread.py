"""Notification counts: running totals of the room minus those where the user has read, plus exceptions."""

from syncapi.applied import RoomCounters, UserRoom


def unread_counts(room: RoomCounters, row: UserRoom) -> tuple[int, int]:
    """Return (notifications, highlights) that the user has not read."""
    notifications = room.notify_total - row.read_notify + row.extra_notify
    highlights = room.highlight_total - row.read_highlight + row.extra_highlight
    return max(notifications, 0), max(highlights, 0)


def render_unread(room: RoomCounters, row: UserRoom) -> bytes:
    """Return the value of `unread_notifications`."""
    notifications, highlights = unread_counts(room, row)
    return b'{"highlight_count":%d,"notification_count":%d}' % (highlights, notifications)

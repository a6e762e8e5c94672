"""Notification counts: running totals of the room minus those where the user has read, plus exceptions."""

import orjson

from syncapi.applied import NO_THREADS, RoomCounters, ThreadCounts, UserRoom


def unread_counts(room: RoomCounters, row: UserRoom, threads: ThreadCounts = NO_THREADS) -> tuple[int, int]:
    """Return (notifications, highlights) of the main timeline that the user has not read."""
    notifications = room.notify_total - row.read_notify + row.extra_notify - threads.inside[0]
    highlights = room.highlight_total - row.read_highlight + row.extra_highlight - threads.inside[1]
    return max(notifications, 0), max(highlights, 0)


def render_unread(
    room: RoomCounters, row: UserRoom, threads: ThreadCounts = NO_THREADS, *, by_thread: bool = False
) -> bytes:
    """Return the member `unread_notifications` of a room's object.

    Args:
        threads: what the user has not read of the room's threads.
        by_thread: threads are told apart, in `unread_thread_notifications`; else they are in the one count.
    """
    notifications, highlights = unread_counts(room, row, threads)
    apart = b""
    if threads.threads:
        if by_thread:
            listed = {
                thread_id: {"highlight_count": max(highlight, 0), "notification_count": notify}
                for thread_id, (notify, highlight) in threads.threads.items()
                if notify > 0
            }
            apart = b',"unread_thread_notifications":' + orjson.dumps(listed) if listed else b""
        else:
            notifications += sum(notify for notify, _ in threads.threads.values())
            highlights += sum(highlight for _, highlight in threads.threads.values())
    return b'"unread_notifications":{"highlight_count":%d,"notification_count":%d}%b' % (
        highlights,
        notifications,
        apart,
    )

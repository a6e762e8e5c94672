"""Threads' events and what a user has not read of them (client-server API, "Threading", "Receiving notifications").

    unthreaded receipt, or joining ──► everything up to there is read
    receipt of `main`              ──► the main timeline is read up to there
    receipt of a thread, own event in it ──► that thread is read up to there

A room's running totals count all of its events. So the main timeline's share is the total since the user's place
there, less what threads added since then (`ThreadCounts.inside`).
"""

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection

from syncapi.applied import ThreadCounts, ThreadEvent, UserRoom
from syncapi.storage.sql import row, rows, rows_in, run_many

MAX_COUNTED = 5_000
"""So many of a room's latest events in threads are looked at; what is older counts as read."""

_COLUMNS = "room_id, position, thread_id, sender, notify, highlight"


def store_thread_events(connection: Connection, values: Sequence[ThreadEvent]) -> None:
    """Insert events of threads."""
    run_many(
        connection,
        f"INSERT INTO thread_event ({_COLUMNS}) VALUES (?,?,?,?,?,?) ON CONFLICT DO NOTHING",
        values,
    )


def load_threaded_rooms(connection: Connection) -> list[str]:
    """Return the rooms that have threads."""
    return [
        room_id
        for (room_id,) in rows(
            connection,
            "SELECT room_id FROM room r WHERE EXISTS"
            " (SELECT 1 FROM thread_event t WHERE t.room_id = r.room_id)",
        )
    ]


def load_threaded_among(connection: Connection, room_ids: Iterable[str]) -> set[str]:
    """Return those of some rooms that have threads."""
    return {
        room_id
        for (room_id,) in rows_in(
            connection,
            "SELECT room_id FROM room r WHERE room_id IN ? AND EXISTS"
            " (SELECT 1 FROM thread_event t WHERE t.room_id = r.room_id)",
            room_ids,
        )
    }


def load_read_places(connection: Connection, place: UserRoom) -> dict[str, int]:
    """Return up to which position a user has read by receipts: thread -> position; "": of whatever thread."""
    found = {
        thread_id: int(position)
        for thread_id, position in rows(
            connection,
            "SELECT r.thread_id, max(e.position) FROM receipt r JOIN event e ON e.event_id = r.event_id"
            " WHERE r.room_id = ? AND r.user_id = ? AND r.receipt_type IN ('m.read', 'm.read.private')"
            " GROUP BY r.thread_id",
            (place.room_id, place.user_id),
        )
    }
    unthreaded = max(found.get("", 0), place.joined_since or 0)
    found[""] = unthreaded
    for thread_id, position in rows(
        connection,
        "SELECT thread_id, max(position) FROM thread_event WHERE room_id = ? AND sender = ? AND position > ?"
        " GROUP BY thread_id",
        (place.room_id, place.user_id, unthreaded),
    ):
        found[thread_id] = max(found.get(thread_id, 0), int(position))
    return found


def load_thread_counts(connection: Connection, place: UserRoom) -> ThreadCounts:
    """Return what a user has not read of a room's threads."""
    told = _sums(
        connection,
        "SELECT coalesce(sum(notify), 0), coalesce(sum(highlight), 0) FROM thread_event"
        " WHERE room_id = ? AND position > ?",
        (place.room_id, place.read_position),
    )
    extra = _sums(
        connection,
        "SELECT coalesce(sum(x.notify), 0), coalesce(sum(x.highlight), 0) FROM notification_exception x"
        " JOIN thread_event t ON t.room_id = x.room_id AND t.position = x.position"
        " WHERE x.user_id = ? AND x.room_id = ? AND x.position > ?",
        (place.user_id, place.room_id, place.read_position),
    )
    read = load_read_places(connection, place)
    threads: dict[str, tuple[int, int]] = {}
    for thread_id, position, notify, highlight in rows(
        connection,
        "SELECT t.thread_id, t.position, t.notify + coalesce(x.notify, 0),"
        " t.highlight + coalesce(x.highlight, 0) FROM thread_event t LEFT JOIN notification_exception x"
        " ON x.user_id = ? AND x.room_id = t.room_id AND x.position = t.position"
        " WHERE t.room_id = ? AND t.position > ? ORDER BY t.position DESC LIMIT ?",
        (place.user_id, place.room_id, read[""], MAX_COUNTED),
    ):
        if (notify or highlight) and position > read.get(thread_id, 0):
            known = threads.get(thread_id, (0, 0))
            threads[thread_id] = known[0] + notify, known[1] + highlight
    return ThreadCounts((told[0] + extra[0], told[1] + extra[1]), threads)


def _sums(connection: Connection, sql: str, parameters: Sequence[object]) -> tuple[int, int]:
    notify, highlight = row(connection, sql, parameters) or (0, 0)
    return int(notify), int(highlight)

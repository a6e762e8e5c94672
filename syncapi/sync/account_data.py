"""Account data, global and of rooms (client-server API, "Client Config")."""

from collections.abc import Iterable

import orjson

from syncapi.applied import AccountDataSet
from syncapi.filters import EventFilter


def render_account_data(
    entries: Iterable[AccountDataSet], filter_: EventFilter, *, deleted: bool
) -> list[bytes]:
    """Return the events for those entries that pass the filter.

    Args:
        deleted: tell of deleted entries too, as empty content: for who may have had them.
    """
    latest: dict[str, AccountDataSet] = {}
    for entry in entries:
        latest.pop(entry.type, None)
        latest[entry.type] = entry
    return [
        b'{"content":%b,"type":%b}' % (entry.content or b"{}", orjson.dumps(entry.type))
        for entry in latest.values()
        if (entry.content is not None or deleted) and filter_.passes(entry.type, "")
    ]


def by_room(entries: Iterable[AccountDataSet]) -> dict[str, list[AccountDataSet]]:
    """Group entries by room; under "" the global ones."""
    grouped: dict[str, list[AccountDataSet]] = {}
    for entry in entries:
        grouped.setdefault(entry.room_id, []).append(entry)
    return grouped

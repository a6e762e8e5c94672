"""Account data, global and of rooms (client-server API, "Client Config")."""

from collections.abc import Iterable

import orjson

from matrixlib.push_rules import default_ruleset
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


def with_push_rules(entries: Iterable[AccountDataSet], user_id: str) -> list[AccountDataSet]:
    """Add the predefined push rules to a user's global entries, if they never changed a rule.

    Clients read their rules from the first sync; nothing is stored of those who have the predefined ones.
    """
    entries = list(entries)
    if any(entry.type == "m.push_rules" and entry.content is not None for entry in entries):
        return entries
    content = orjson.dumps({"global": default_ruleset(user_id)})
    predefined = AccountDataSet(user_id, "", "m.push_rules", content, 0)
    return [predefined, *entries]


def by_room(entries: Iterable[AccountDataSet]) -> dict[str, list[AccountDataSet]]:
    """Group entries by room; under "" the global ones."""
    grouped: dict[str, list[AccountDataSet]] = {}
    for entry in entries:
        grouped.setdefault(entry.room_id, []).append(entry)
    return grouped

"""Joined rooms: one room's part of the answer, as bytes."""

from collections.abc import Iterable, Mapping

import orjson

from syncapi.applied import StoredEvent
from syncapi.sync.context import Reader
from syncapi.sync.timeline import Timeline
from syncapi.visibility import Past


def render_events(
    reader: Reader,
    past: Past,
    timeline: Timeline,
    state: Iterable[StoredEvent],
    *,
    state_key: bytes,
    members: Mapping[int, str] | None = None,
) -> bytes:
    """Return the members `timeline` and `state` (or `state_after`) of a room's object."""
    known = members or {}
    return b'"timeline":{"events":[%b],"limited":%b,"prev_batch":%b},"%b":{"events":[%b]}' % (
        reader.render_all(timeline.events, past, known),
        b"true" if timeline.limited else b"false",
        orjson.dumps(timeline.prev_batch),
        state_key,
        reader.render_all(state, past, known),
    )


def render_room(
    events: bytes,
    *,
    summary: bytes | None,
    unread: bytes,
    account_data: list[bytes],
    ephemeral: list[bytes],
) -> bytes:
    """Return a joined room's object from its parts. `unread`: members with the counts."""
    return b'{%b,"summary":%b,%b,"account_data":{"events":[%b]},"ephemeral":{"events":[%b]}}' % (
        events,
        summary or b"{}",
        unread,
        b",".join(account_data),
        b",".join(ephemeral),
    )

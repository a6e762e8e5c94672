"""A room's timeline: the last events that the reader may see and whose filter they pass.

since ----[ passed over ]----> first ---- events ---- last <= through
                              ^ prev_batch: what `/messages` goes on from
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection

from syncapi.applied import StoredEvent
from syncapi.filters import Filter
from syncapi.storage import events as event_storage
from syncapi.storage import relations
from syncapi.sync.context import Reader
from syncapi.tokens import TopologicalToken
from syncapi.visibility import Past, visible

MAX_SCANNED = 2000


@dataclass(slots=True)
class Timeline:
    """The events, oldest first. `start`: position before the first of them; `through` where there is none."""

    events: list[StoredEvent]
    limited: bool
    prev_batch: str
    start: int
    complete: bool = False
    """Every event between since and through is in `events`."""
    members: Mapping[int, str] = field(default_factory=dict)


def wanted(event: StoredEvent, filter_: Filter, ignored: frozenset[str]) -> bool:
    """Whether the reader wants an event in the timeline."""
    if ignored and event.sender in ignored and event.state_key is None:
        return False
    return filter_.timeline.passes(event.type, event.sender, event.flags)


def make_timeline(
    events: list[StoredEvent],
    *,
    limited: bool,
    complete: bool,
    empty_prev_batch: str,
    end_depth: int,
    through: int,
) -> Timeline:
    """Return the timeline of events, oldest first.

    Args:
        empty_prev_batch: of a timeline without events.
        end_depth: the greatest depth in the room: what was left out is paged through from behind it.
    """
    if not events:
        prev_batch = str(TopologicalToken(end_depth + 1, 0)) if limited else empty_prev_batch
        return Timeline([], limited, prev_batch, through, complete)
    first = events[0]
    # Everything of the depths that the room had reached before; on a fork that repeats events rather than
    # losing them.
    prev_batch = str(TopologicalToken(first.depth_before + 1, 0))
    return Timeline(events, limited, prev_batch, first.position - 1, complete)


def load_timeline(
    connection: Connection,
    reader: Reader,
    past: Past,
    room_id: str,
    *,
    after: int,
    through: int,
    empty_prev_batch: str,
    end_depth: int,
) -> Timeline:
    """Read a timeline from the database: the last wanted events with after < position <= through."""
    filter_ = reader.filter
    limit = filter_.timeline.capped_limit()
    if not filter_.timeline.passes_room(room_id):
        return Timeline([], False, empty_prev_batch, through)
    chosen: list[StoredEvent] = []
    scanned = 0
    dropped = False
    upper = through
    exhausted = False
    while len(chosen) <= limit and scanned < MAX_SCANNED:
        count = max(limit + 1 - len(chosen), 50 if scanned else limit + 1)
        found = event_storage.load_timeline(connection, room_id, after, upper, count)
        scanned += len(found)
        seen, _ = visible(connection, past, found)
        kept = [event for event in seen if wanted(event, filter_, reader.ignored)]
        kept = relations.keep_related(connection, kept, filter_.timeline)
        dropped = dropped or len(kept) < len(found)
        chosen += kept
        if len(found) < count:
            exhausted = True
            break
        upper = found[-1].position - 1
    limited = len(chosen) > limit or not exhausted
    events = chosen[:limit][::-1]
    return make_timeline(
        events,
        limited=limited,
        complete=not limited and not dropped,
        empty_prev_batch=empty_prev_batch,
        end_depth=end_depth,
        through=through,
    )

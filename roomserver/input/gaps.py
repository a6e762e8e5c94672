"""Gaps in the graph: prev events that are not here, and what happens when one comes after what follows it."""

from roomserver.input.batch import Batch
from roomserver.rooms import RoomWork
from roomserver.storage import events as event_rows
from roomserver.storage.events import EventRow
from servicekit.database.raw import Sql

_FOLLOWERS = Sql(
    "SELECT event_nid FROM missing_prev WHERE room_nid = ? AND prev_event_id = ? ORDER BY event_nid"
)


def find_followers(batch: Batch, work: RoomWork, event_id: str) -> list[EventRow]:
    """The events here that name a prev event which was missing until now."""
    nids = [row[0] for row in _FOLLOWERS.rows(batch.conn, work.row.nid, event_id)]
    missing = (work.row.nid, event_id)
    nids += [
        nid for room, prev_id, nid in batch.missing_prevs if (room, prev_id) == missing and nid not in nids
    ]
    if not nids:
        return []
    found = {row.nid: row for row in batch.rows if row.nid in set(nids)}
    found.update({nid: batch.updated[nid] for nid in nids if nid in batch.updated})
    for nid, row in event_rows.load_events_by_nid(
        batch.conn, [nid for nid in nids if nid not in found]
    ).items():
        found[nid] = batch.loaded_rows.setdefault(row.event_id, row)
    return [found[nid] for nid in nids if nid in found]


def note_missing(batch: Batch, work: RoomWork, row: EventRow, prev_ids: list[str]) -> None:
    """Remember that an event's prev events are not here."""
    for prev_id in prev_ids:
        batch.missing_prevs.append((work.row.nid, prev_id, row.nid))


def close(batch: Batch, work: RoomWork, row: EventRow, followers: list[EventRow]) -> None:
    """An event that was missing is here: what follows it is linked to it."""
    for follower in followers:
        if row.nid not in follower.prev:
            follower.prev = (*follower.prev, row.nid)
            batch.change_row(follower)
    batch.found_prevs.append((work.row.nid, row.event_id))
    missing = (work.row.nid, row.event_id)
    batch.missing_prevs = [item for item in batch.missing_prevs if item[:2] != missing]

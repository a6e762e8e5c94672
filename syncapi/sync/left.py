"""Rooms that the user has left, or was banned from: what happened up to that, and nothing later."""

from sqlalchemy import Connection

from syncapi.applied import StoredEvent, UserRoom
from syncapi.storage import events as event_storage
from syncapi.sync.context import Reader
from syncapi.sync.joined import render_events
from syncapi.sync.request import SyncRequest
from syncapi.sync.state import DatabaseSource, select_state
from syncapi.sync.timeline import load_timeline, make_timeline, wanted
from syncapi.visibility import Past


def render_left(
    connection: Connection,
    request: SyncRequest,
    reader: Reader,
    row: UserRoom,
    history: list[tuple[int, int, str]],
    *,
    since: int | None,
    told_since: int | None,
    account_data: list[bytes],
) -> bytes | None:
    """Return a left room's object; None: there is nothing of it for this user.

    Args:
        history: the user's memberships over time.
        since: what the client has of the room; None: it was not joined then.
        told_since: what the client has of everything else.
    """
    past = Past(reader.user_id, history, sees_until=row.position)
    # The state is that of the moment of leaving: what changed between leaving and a later ban is not shown.
    sight_ends = row.joined_until
    end_depth = event_storage.load_depth_at(connection, row.room_id, row.position)
    nothing_before = f"t1_{end_depth + 1}_0"
    chosen: list[StoredEvent] = []
    if sight_ends is None or (told_since is not None and sight_ends <= told_since):
        # Never there, or the client knows: there is only what ended an invite, a knock or a ban.
        own = event_storage.load_event(connection, row.event_id)
        timeline = make_timeline(
            [own] if own is not None and _passes(own, reader) else [],
            limited=False,
            complete=True,
            empty_prev_batch=nothing_before,
            end_depth=end_depth,
            through=row.position,
        )
    else:
        after = since if since is not None else max(told_since or 0, 0)
        if row.joined_since is not None and since is None and row.joined_since > after:
            after = 0 if told_since is None else row.joined_since - 1
        timeline = load_timeline(
            connection,
            reader,
            past,
            row.room_id,
            after=0 if told_since is None else after,
            through=row.position,
            empty_prev_batch=nothing_before,
            end_depth=end_depth,
        )
        chosen = select_state(
            DatabaseSource(connection),
            reader,
            row.room_id,
            timeline,
            since=since,
            through=sight_ends,
            state_after=request.use_state_after,
        )
    return b'{%b,"account_data":{"events":[%b]}}' % (
        render_events(reader, past, timeline, chosen, state_key=request.state_key),
        b",".join(account_data),
    )


def _passes(own: StoredEvent, reader: Reader) -> bool:
    filter_ = reader.filter.timeline
    return (
        filter_.limit != 0 and filter_.passes_room(own.room_id) and wanted(own, reader.filter, reader.ignored)
    )

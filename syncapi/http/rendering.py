"""Events in answers that are not grouped by room: with their `room_id`."""

from collections.abc import Iterable, Mapping

from sqlalchemy import Connection

from syncapi.applied import StoredEvent
from syncapi.auth import Caller
from syncapi.bundles import load_bundles
from syncapi.rendering import full_event
from syncapi.sync.context import transaction_id
from syncapi.visibility import Past, membership_at


def render_one(
    caller: Caller, event: StoredEvent, past: Past, members: Mapping[int, str], relations: bytes | None = None
) -> bytes:
    """Return one event."""
    return full_event(
        event.body,
        event.unsigned,
        membership_at(past, event, members),
        room_id=event.room_id,
        transaction_id=transaction_id(event, caller.user_id, caller.device_id),
        relations=relations,
    )


def render_list(
    connection: Connection,
    caller: Caller,
    events: Iterable[StoredEvent],
    past: Past,
    members: Mapping[int, str],
) -> bytes:
    """Return events as the inside of a JSON array, with what relates to them bundled."""
    listed = list(events)
    bundles = load_bundles(connection, [event for event in listed if event.state_key is None], past)
    return b",".join(
        [render_one(caller, event, past, members, bundles.get(event.event_id)) for event in listed]
    )

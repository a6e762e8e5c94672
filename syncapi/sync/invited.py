"""Invites and knocks: stripped state (client-server API, "Stripped state")."""

import orjson

from syncapi.applied import StoredEvent, UserRoom


def stripped(event: StoredEvent) -> bytes:
    """Return an event's stripped form."""
    value = orjson.loads(event.body + b"}")
    return orjson.dumps({key: value.get(key) for key in ("type", "state_key", "sender", "content")})


def render_stripped(row: UserRoom, own: StoredEvent | None) -> bytes:
    """Return the object of an invite or knock: its stripped state, the own membership event among it."""
    array = row.stripped_state or b"[]"
    events = orjson.loads(array)
    has_own = any(
        isinstance(event, dict)
        and event.get("type") == "m.room.member"
        and event.get("state_key") == row.user_id
        for event in events
    )
    items = [array[1:-1]] if events else []
    if own is not None and not has_own:
        items.append(stripped(own))
    name = b"knock_state" if row.membership == "knock" else b"invite_state"
    return b'{"%b":{"events":[%b]}}' % (name, b",".join(items))

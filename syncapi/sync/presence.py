"""Presence of those with whom the reader shares a room (client-server API, "Presence")."""

from syncapi.live import Live
from syncapi.sync.context import Reader
from syncapi.sync.request import SyncRequest
from syncapi.window import Window


def presence_events(window: Window, live: Live, request: SyncRequest, reader: Reader) -> list[bytes]:
    """Return the presence events that are new to the client."""
    if not live.presence or not reader.filter.presence.passes("m.presence", ""):
        return []
    view = window.users.get(reader.user_id)
    if view is None:
        return []
    epoch, sequence = (request.since.live_epoch, request.since.live_sequence) if request.since else (None, 0)
    if epoch == live.epoch and sequence >= live.sequence:
        return []
    clock_ms = live.clock_ms()
    return [
        told.render(user, clock_ms)
        for user, told in live.presence_since(epoch, sequence)
        if user not in reader.ignored
        and reader.filter.presence.passes("m.presence", user)
        and (user == reader.user_id or shares_room(window, reader.user_id, user))
    ]


def presence_in_room(window: Window, live: Live, user_id: str, room_id: str) -> list[bytes]:
    """Return the presence events of those who are joined to a room, if the reader is."""
    room, view = window.rooms.get(room_id), window.users.get(user_id)
    if room is None or view is None or user_id not in room.joined:
        return []
    clock_ms = live.clock_ms()
    return [
        told.render(user, clock_ms)
        for user, told in live.presence.items()
        if user in room.joined and user not in view.ignored
    ]


def shares_room(window: Window, one: str, other: str) -> bool:
    """Whether two local users are joined to a common room."""
    mine, theirs = window.users.get(one), window.users.get(other)
    return mine is not None and theirs is not None and not mine.joined.isdisjoint(theirs.joined)

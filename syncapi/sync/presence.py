"""Presence of those with whom the reader shares a room (client-server API, "Presence").

Which rooms local users are in the window knows; of users of other servers it was told with their presence.
"""

from collections.abc import Collection

from syncapi.live import Live
from syncapi.sync.context import Reader
from syncapi.sync.request import SyncRequest
from syncapi.window import Window


def presence_events(
    window: Window, live: Live, request: SyncRequest, reader: Reader, came: Collection[str] = ()
) -> list[bytes]:
    """Return the presence events that are new to the client.

    Args:
        came: users with whom the reader shares a room that may not have been shared before.
    """
    if not live.presence or not reader.filter.presence.passes("m.presence", ""):
        return []
    view = window.users.get(reader.user_id)
    if view is None:
        return []
    epoch, sequence = (request.since.live_epoch, request.since.live_sequence) if request.since else (None, 0)
    found = dict(live.presence_since(epoch, sequence))
    found |= {user: live.presence[user] for user in came if user in live.presence}
    clock_ms = live.clock_ms()
    return [
        told.render(user, clock_ms)
        for user, told in found.items()
        if user not in reader.ignored
        and reader.filter.presence.passes("m.presence", user)
        and (user == reader.user_id or shares_room(window, live, reader.user_id, user))
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
        if (user in room.joined or room_id in told.rooms) and user not in view.ignored
    ]


def shares_room(window: Window, live: Live, user_id: str, other: str) -> bool:
    """Whether a local user is joined to a room that another user, who may be remote, is in too."""
    mine, theirs = window.users.get(user_id), window.users.get(other)
    if mine is None:
        return False
    if theirs is not None and not mine.joined.isdisjoint(theirs.joined):
        return True
    told = live.presence.get(other)
    return told is not None and not mine.joined.isdisjoint(told.rooms)

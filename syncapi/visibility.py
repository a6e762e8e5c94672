"""Which events of a room a local user may see (client-server API, "Room History Visibility").

A user's past in a room is a list of spans of membership; an event in the timeline is looked up there by its
position, another one (back-filled) by what was told of local members with it.

Events of users who had their content erased are for those who were there, or came before the erasure; others get them
redacted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from matrixlib.room_versions import get_room_version
from syncapi.applied import StoredEvent
from syncapi.rendering import CONTENT_HAS_URL, MEMBERS_DIFFER, REDACTED, redacted_body
from syncapi.storage import accounts, rooms, state
from syncapi.storage import events as event_storage
from syncapi.storage.tables import MAX_POSITION

TIMELINE = 1


@dataclass(frozen=True, slots=True)
class Past:
    """A user's memberships in a room over time, and where the user's sight ends.

    Args:
        spans: (since, until, membership), oldest first.
        sees_until: nothing after that position is for this user, world-readable events apart.
        sees_depth: the same for events outside the timeline; None: no limit.
    """

    user_id: str
    spans: Sequence[tuple[int, int, str]] = ()
    sees_until: int = MAX_POSITION
    sees_depth: int | None = None

    def membership_at(self, position: int) -> str:
        """Return the membership after what happened up to a position."""
        return self.span_at(position)[2]

    def span_at(self, position: int) -> tuple[int, int, str]:
        """Return a stretch (since, until, membership) around a position in which the membership stays."""
        for span in reversed(self.spans):
            if span[0] <= position < span[1]:
                return span
        return position, position + 1, "leave"

    def joined_after(self, position: int) -> bool:
        """Whether the user is joined, or was, at any time after a position."""
        return any(membership == "join" and until > position for _, until, membership in self.spans)

    @property
    def ever_joined(self) -> bool:
        """Whether the user was ever joined."""
        return any(membership == "join" for _, _, membership in self.spans)


def always_joined(user_id: str) -> Past:
    """Return the past of a user who was joined all the time in question."""
    return Past(user_id, ((0, MAX_POSITION, "join"),))


def membership_at(past: Past, event: StoredEvent, members: Mapping[int, str]) -> str:
    """Return the reader's membership at an event, the event itself included (`unsigned.membership`)."""
    if event.placement == TIMELINE or event.position < 0:
        return past.membership_at(event.position)
    # What was told with it, else what was so when it came, if only differences were told.
    otherwise = past.membership_at(event.position) if event.flags & MEMBERS_DIFFER else "leave"
    return members.get(event.position, otherwise)


def may_see(past: Past, event: StoredEvent, members: Mapping[int, str]) -> bool:
    """Whether the reader may see an event.

    Args:
        members: the reader's membership at events outside the timeline: position -> membership.
    """
    user_id = past.user_id
    in_timeline = event.placement == TIMELINE
    after = membership_at(past, event, members)
    before = past.membership_at(event.position - 1) if in_timeline else after
    own = event.type == "m.room.member" and event.state_key == user_id
    if own and in_timeline and ("join" in (before, after) or after in ("leave", "ban", "invite", "knock")):
        return True
    visibilities = {event.visibility}
    if event.type == "m.room.history_visibility" and event.visibility_after:
        # A change of the visibility itself is seen if either value allows it.
        visibilities.add(event.visibility_after)
    if "world_readable" in visibilities:
        return True
    if before == "join" or after == "join":
        return True
    if "shared" in visibilities:
        if in_timeline:
            return past.joined_after(event.position)
        return past.ever_joined and (past.sees_depth is None or event.depth <= past.sees_depth)
    if "invited" in visibilities:
        return before == "invite" or after == "invite"
    return False


def visible(
    connection: Connection, past: Past, events: Iterable[StoredEvent]
) -> tuple[list[StoredEvent], Mapping[int, str]]:
    """Return those events that the reader may see, as the reader may see them, and the memberships of those
    outside the timeline.
    """
    listed = list(events)
    outside = [event.position for event in listed if event.placement != TIMELINE and event.position > 0]
    members = event_storage.load_members_at(connection, outside, past.user_id) if outside else {}
    seen = [event for event in listed if may_see(past, event, members)]
    missed = [event for event in seen if membership_at(past, event, members) != "join"]
    if missed:
        redacted = _redact_erased(connection, past, missed)
        seen = [redacted.get(event.event_id, event) for event in seen]
    return seen, members


def _redact_erased(
    connection: Connection, past: Past, missed: Sequence[StoredEvent]
) -> dict[str, StoredEvent]:
    """Return the redacted copies of events that the reader was not there for and whose sender is erased."""
    erased = accounts.load_erased(connection, {event.sender for event in missed} - {past.user_id})
    theirs = [event for event in missed if event.sender in erased and not event.flags & REDACTED]
    counters = rooms.load_rooms(connection, {event.room_id for event in theirs}) if theirs else {}
    redacted: dict[str, StoredEvent] = {}
    for event in theirs:
        came_ms = state.load_join_time(connection, event.room_id, past.user_id, event.position)
        if came_ms is not None and came_ms < erased[event.sender]:
            continue
        version = get_room_version(counters[event.room_id].version) if event.room_id in counters else None
        if version is not None:
            redacted[event.event_id] = event._replace(
                body=redacted_body(event.body, version),
                unsigned=None,
                flags=(event.flags & ~CONTENT_HAS_URL) | REDACTED,
            )
    return redacted

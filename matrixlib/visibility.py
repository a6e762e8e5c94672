"""Who may see an event (client-server API, "Room History Visibility"; server-server API, "Backfilling and
retrieving missing events").

Gather, then decide: ``deciding_keys`` says which entries of the state *before* the event are needed. What the
event itself changes is worked out here: for a history visibility event the settings before or after count,
for a user's own member event the memberships before or after.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from matrixlib.events import Event, StateKey
from matrixlib.identifiers import server_name_of

HISTORY_VISIBILITY_KEY: Final = ("m.room.history_visibility", "")
VISIBILITIES: Final = ("world_readable", "shared", "invited", "joined")


def deciding_keys(user_id: str) -> tuple[StateKey, StateKey]:
    """The state entries that decide whether a user may see an event: history visibility and membership."""
    return HISTORY_VISIBILITY_KEY, ("m.room.member", user_id)


def history_visibility_of(event: Event | None) -> str:
    """The setting of an `m.room.history_visibility` event.

    "By default if no `history_visibility` is set, or if the value is not understood, the visibility is
    assumed to be `shared`."
    """
    value: Any = event.content.get("history_visibility") if event is not None else None
    return value if isinstance(value, str) and value in VISIBILITIES else "shared"


def is_visible(
    event: Event, state_before: Mapping[StateKey, Event], user_id: str, *, joined_since: bool
) -> bool:
    """Whether a user may see an event.

    ``state_before`` needs only the entries of ``deciding_keys``. ``joined_since``: the user is joined now or
    has been at any time after the event.
    """
    member_key = ("m.room.member", user_id)
    settings = _settings(event, state_before)
    memberships = [_membership(state_before.get(member_key))]
    if event.state_key == user_id and event.type == "m.room.member":
        memberships.append(_membership(event))
    return any(
        may_see(setting, membership, joined_since=joined_since)
        for setting in settings
        for membership in memberships
    )


def may_see(history_visibility: str, membership: str, *, joined_since: bool) -> bool:
    """The rules for one setting and one membership at the event."""
    # 1. "If the `history_visibility` was set to `world_readable`, allow."
    if history_visibility == "world_readable":
        return True
    # 2. "If the user's `membership` was `join`, allow."
    if membership == "join":
        return True
    # 3. "If `history_visibility` was set to `shared`, and the user joined the room at any point after the
    # event was
    # sent, allow."
    if history_visibility == "shared" and joined_since:
        return True
    # 4. "If the user's `membership` was `invite`, and the `history_visibility` was set to `invited`, allow."
    # 5. "Otherwise, deny."
    return membership == "invite" and history_visibility == "invited"


def is_visible_to_server(event: Event, state_before: Mapping[StateKey, Event], server_name: str) -> bool:
    """Whether a server in the room may see an event's content; else it gets the redacted form.

    ``state_before`` needs the history visibility and, if that is `invited` or `joined`, the member events of
    the server's users. A server always sees its own users' events.
    """
    settings = _settings(event, state_before)
    # What is shared may be seen by any user who joins later, and the server takes part: it may see it.
    if "world_readable" in settings or "shared" in settings:
        return True
    if server_name_of(event.sender) == server_name:
        return True
    if event.type == "m.room.member" and server_name_of(event.state_key or "") == server_name:
        return True
    members = (
        entry
        for (event_type, user_id), entry in state_before.items()
        if event_type == "m.room.member" and server_name_of(user_id) == server_name
    )
    return _any_member_may_see(settings, members)


def had_server_joined(event: Event, state_before: Mapping[StateKey, Event], server_name: str) -> bool:
    """Whether an event is a server's own, or one at which it had a user joined.

    ``state_before`` needs the member events of the server's users.
    """
    if server_name_of(event.sender) == server_name:
        return True
    return any(
        member.membership == "join"
        for (event_type, user_id), member in state_before.items()
        if event_type == "m.room.member" and server_name_of(user_id) == server_name
    )


def server_needs_members(event: Event, state_before: Mapping[StateKey, Event]) -> bool:
    """Whether ``is_visible_to_server`` needs the server's member events, or the history visibility
    decides.
    """
    settings = _settings(event, state_before)
    return not ("world_readable" in settings or "shared" in settings)


def _any_member_may_see(settings: Iterable[str], members: Iterable[Event]) -> bool:
    allowed = {"join", "invite"} if "invited" in settings else {"join"}
    return any(member.membership in allowed for member in members)


def _settings(event: Event, state_before: Mapping[StateKey, Event]) -> set[str]:
    settings = {history_visibility_of(state_before.get(HISTORY_VISIBILITY_KEY))}
    # "For `m.room.history_visibility` events themselves, the user should be allowed to see the event if the
    # `history_visibility` before *or* after the event would allow them to see it."
    if event.type == "m.room.history_visibility" and event.state_key == "":
        settings.add(history_visibility_of(event))
    return settings


def _membership(event: Event | None) -> str:
    return (event.membership if event is not None else None) or "leave"

"""Who may see an event (client-server API, "Room History Visibility"; server-server API, "Backfilling")."""

from collections.abc import Mapping

from matrixlib.events import Event, StateKey


def deciding_keys(user_id: str) -> tuple[StateKey, StateKey]:
    """The state entries that decide whether a user may see an event: history visibility and membership."""
    return ("m.room.history_visibility", ""), ("m.room.member", user_id)


def is_visible(
    event: Event, state_before: Mapping[StateKey, Event], user_id: str, *, joined_since: bool
) -> bool:
    """Whether a user may see an event.

    ``state_before`` needs only the entries of ``deciding_keys``. ``joined_since``: the user is joined now or
    has been at any time after the event.
    """
    raise NotImplementedError


def is_visible_to_server(event: Event, state_before: Mapping[StateKey, Event], server_name: str) -> bool:
    """Whether a server may see an event; ``state_before`` needs the history visibility and the server's
    members.
    """
    raise NotImplementedError

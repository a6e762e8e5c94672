"""Our signature under another server's membership event: an invite of our user, a restricted join."""

from matrixlib.events import Event, EventTooLargeError, parse_event
from matrixlib.signing import SigningKey, sign_event
from servicekit.errors import MatrixError


def countersign(event: Event, server_name: str, key: SigningKey) -> Event:
    """Return the event with our signature added.

    Raises:
        MatrixError: 413 M_TOO_LARGE, with it the event is larger than an event may be.
    """
    version = event.room_version
    try:
        return parse_event(sign_event(event.pdu, version, server_name, key), version, event_id=event.event_id)
    except EventTooLargeError:
        raise MatrixError("M_TOO_LARGE", 413, "With this server's signature the event is too large") from None

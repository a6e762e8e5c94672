"""From verdicts to answers: the one table to hold against the specification."""

from arbor.log.v1 import input_pb2
from matrixlib.event_auth import Refused
from servicekit.errors import MatrixError, unavailable

# Words that stand in `Rejection.rule` instead of an auth rule's number.
_BY_RULE: dict[str, tuple[str, int]] = {
    "format": ("M_BAD_JSON", 400),
    "size": ("M_TOO_LARGE", 413),
    "unknown_room": ("M_NOT_FOUND", 404),
    "internal": ("M_UNKNOWN", 500),
}
_STATUS = {
    "M_FORBIDDEN": 403,
    "M_NOT_FOUND": 404,
    "M_TOO_LARGE": 413,
    "M_UNKNOWN": 500,
    "M_LIMIT_EXCEEDED": 429,
}
QUARANTINE_RETRY_MS = 60_000
PARTIAL_RETRY_MS = 2_000


def error_of_rejection(rejection: input_pb2.Rejection) -> MatrixError:
    """Return the answer to a request whose event was REJECTED or SOFT_FAILED."""
    if rejection.rule == "quarantined":
        return unavailable(
            "This room is out of order; the server's operator must mend it", QUARANTINE_RETRY_MS
        )
    if rejection.rule == "partial":
        return unavailable("The room's members are not all known yet", PARTIAL_RETRY_MS)
    errcode, status = _BY_RULE.get(rejection.rule, ("M_FORBIDDEN", 403))
    if rejection.errcode and rejection.rule not in _BY_RULE:
        errcode = rejection.errcode
        status = _STATUS.get(errcode, 400)
    return MatrixError(errcode, status, rejection.reason or "The event was refused")


def error_of_refusal(refused: Refused) -> MatrixError:
    """Return the answer to a request that the auth rules refuse."""
    return MatrixError("M_FORBIDDEN", 403, f"Not allowed: {refused.reason}")

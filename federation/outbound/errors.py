"""What can go wrong when another server is asked, and what of it a client may see.

RemoteError
 ├─ Unreachable        no address, no connection, a wrong certificate, or too slow: try later
 │   └─ BackingOff     it failed a short time ago and was not asked now
 ├─ RemoteRefused      it answered with an error
 └─ BadAnswer          it answered with something that is not what the endpoint answers
"""

from servicekit.errors import MatrixError

# What another server says is passed on to a client only if it is one of these; above all nothing that makes a
# client think its own session has ended (M_UNKNOWN_TOKEN, 401).
_PASSED_ON = {
    "M_FORBIDDEN": 403,
    "M_NOT_FOUND": 404,
    "M_INCOMPATIBLE_ROOM_VERSION": 400,
    "M_UNSUPPORTED_ROOM_VERSION": 400,
    "M_UNABLE_TO_AUTHORISE_JOIN": 400,
    "M_UNABLE_TO_GRANT_JOIN": 400,
    "M_INVALID_PARAM": 400,
    "M_MISSING_PARAM": 400,
    "M_BAD_STATE": 400,
    "M_INVITE_BLOCKED": 403,
    "M_LIMIT_EXCEEDED": 429,
    "M_TOO_LARGE": 413,
}
_MAX_TEXT = 300


class RemoteError(Exception):
    """Another server did not give what was asked."""

    def __init__(self, destination: str, reason: str) -> None:
        super().__init__(f"{destination}: {reason}")
        self.destination = destination
        self.reason = reason


class Unreachable(RemoteError):
    """No address, no connection, a wrong certificate, or no answer in time."""


class BackingOff(Unreachable):
    """The destination failed a short time ago. `next_try_ms` (since 1970) is when it is asked again."""

    def __init__(self, destination: str, next_try_ms: int) -> None:
        super().__init__(destination, "it failed lately and is not asked now")
        self.next_try_ms = next_try_ms


class RemoteRefused(RemoteError):
    """An answer other than 2xx. `errcode` is empty when there was none that is a string."""

    def __init__(
        self,
        destination: str,
        http_status: int,
        errcode: str,
        message: str,
        room_version: str = "",
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(destination, f"answered {http_status} {errcode} {message[:_MAX_TEXT]}".rstrip())
        self.http_status = http_status
        self.errcode = errcode
        self.message = message[:_MAX_TEXT]
        self.room_version = room_version
        self.retry_after_ms = retry_after_ms


class BadAnswer(RemoteError):
    """The answer is not JSON, too large, or lacks what the endpoint must give."""


def client_error(error: RemoteError) -> MatrixError:
    """Return the error to show to a client when another server did not give what the client asked for.

    Never a 401 and never an errcode about tokens: those would log the client out of *this* server.
    """
    if isinstance(error, RemoteRefused):
        status = _PASSED_ON.get(error.errcode)
        if status is not None:
            extra = {"room_version": error.room_version} if error.room_version else None
            return MatrixError(error.errcode, status, error.message or "Refused", extra=extra)
        if error.http_status == 404:
            return MatrixError("M_NOT_FOUND", 404, "The other server does not know it")
        return MatrixError("M_UNKNOWN", 502, "The other server refused the request")
    if isinstance(error, Unreachable):
        return MatrixError("M_UNKNOWN", 502, "The other server cannot be reached")
    return MatrixError("M_UNKNOWN", 502, "The other server gave an answer that cannot be used")

"""Errors that have a meaning in the Matrix protocol, as both HTTP and gRPC carry them.

`MatrixError` raised in an HTTP handler becomes the standard error response; raised in a gRPC method it
becomes a status with a typed detail, out of which `servicekit.grpc.errors` makes the same `MatrixError` at
the caller.
"""

from collections.abc import Mapping
from typing import Any


class MatrixError(Exception):
    """A refusal with an errcode of the specification.

    Args:
        errcode: such as `M_FORBIDDEN`.
        http_status: the status of the HTTP response.
        message: text for people; says nothing that the caller may not know.
        retry_after_ms: after which time another try makes sense.
        owner_address: with `NOT_OWNER` between services: where the owner of the partition is reached.
        extra: further keys of the JSON body, such as `soft_logout` (HTTP only).
    """

    def __init__(
        self,
        errcode: str,
        http_status: int,
        message: str,
        retry_after_ms: int | None = None,
        *,
        owner_address: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(errcode, http_status, message)
        self.errcode = errcode
        self.http_status = http_status
        self.message = message
        self.retry_after_ms = retry_after_ms
        self.owner_address = owner_address
        self.extra = extra

    def __str__(self) -> str:
        return f"{self.errcode} ({self.http_status}): {self.message}"

    def body(self) -> dict[str, Any]:
        """Return the JSON body of the standard error response."""
        body: dict[str, Any] = {"errcode": self.errcode, "error": self.message}
        if self.retry_after_ms is not None:
            body["retry_after_ms"] = self.retry_after_ms
        if self.extra:
            body.update(self.extra)
        return body


def missing_token() -> MatrixError:
    """Return the answer to a request without the access token it needs."""
    return MatrixError("M_MISSING_TOKEN", 401, "Missing access token")


def unknown_token(*, soft_logout: bool = False) -> MatrixError:
    """Return the answer to an access token that is not known, or no longer."""
    return MatrixError("M_UNKNOWN_TOKEN", 401, "Unknown access token", extra={"soft_logout": soft_logout})


def not_found(message: str = "Not found") -> MatrixError:
    """Return the answer where there is no such thing."""
    return MatrixError("M_NOT_FOUND", 404, message)


def forbidden(message: str = "Forbidden") -> MatrixError:
    """Return the answer where the caller may not."""
    return MatrixError("M_FORBIDDEN", 403, message)


def bad_json(message: str) -> MatrixError:
    """Return the answer to JSON that has not the form the endpoint takes."""
    return MatrixError("M_BAD_JSON", 400, message)


def invalid_param(message: str) -> MatrixError:
    """Return the answer to a parameter with a value that is not allowed."""
    return MatrixError("M_INVALID_PARAM", 400, message)


def missing_param(message: str) -> MatrixError:
    """Return the answer to a request without a parameter it needs."""
    return MatrixError("M_MISSING_PARAM", 400, message)


def too_much(message: str) -> MatrixError:
    """Return the answer to somebody who has as much of something as one may have."""
    return MatrixError("M_RESOURCE_LIMIT_EXCEEDED", 403, message)


def limit_exceeded(retry_after_ms: int) -> MatrixError:
    """Return the answer to requests that come too fast."""
    return MatrixError("M_LIMIT_EXCEEDED", 429, "Too many requests", retry_after_ms)


def unavailable(message: str = "Try again later", retry_after_ms: int = 1000) -> MatrixError:
    """Return the answer where a part of the server does not answer now; the request may be sent again."""
    return MatrixError("M_UNKNOWN", 503, message, retry_after_ms)

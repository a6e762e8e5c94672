"""`MatrixError` to a gRPC status with a typed detail, and back.

The status code is what gRPC's own machinery understands (is a retry sensible?), the detail
`arbor.errors.v1.MatrixErrorDetail` keeps what a Matrix client is told. A failed call without a detail
(deadline, service not there, bug) comes back as a 503 or 500 of our own.
"""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
import grpc.aio
import orjson
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.status_pb2 import Status

from arbor.errors.v1.errors_pb2 import MatrixErrorDetail
from servicekit.errors import MatrixError, unavailable

DETAILS_KEY = "grpc-status-details-bin"
Trailers = tuple[tuple[str, str | bytes], ...]

_CODES: dict[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.ABORTED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
NOT_OWNER = "ARBOR_NOT_OWNER"


def detail_of(error: MatrixError) -> MatrixErrorDetail:
    """Return an error as the contracts have it."""
    return MatrixErrorDetail(
        errcode=error.errcode,
        http_status=error.http_status,
        message=error.message,
        retry_after_ms=error.retry_after_ms,
        owner_address=error.owner_address or "",
        extra_json=orjson.dumps(error.extra).decode() if error.extra else "",
    )


def error_of(detail: MatrixErrorDetail) -> MatrixError:
    """Return the error that `detail_of` made this of."""
    return MatrixError(
        detail.errcode,
        detail.http_status,
        detail.message,
        detail.retry_after_ms if detail.HasField("retry_after_ms") else None,
        owner_address=detail.owner_address or None,
        extra=orjson.loads(detail.extra_json) if detail.extra_json else None,
    )


def status_of(error: MatrixError) -> tuple[grpc.StatusCode, str, Trailers]:
    """Return the status code, text and trailing metadata that carry an error."""
    code = _CODES.get(error.http_status, grpc.StatusCode.FAILED_PRECONDITION)
    packed = AnyMessage()
    packed.Pack(detail_of(error))
    status = Status(code=code.value[0], message=error.message, details=[packed])
    return code, error.message, ((DETAILS_KEY, status.SerializeToString()),)


async def abort_with(context: grpc.aio.ServicerContext[Any, Any], error: MatrixError) -> NoReturn:
    """End a call with an error. Raising the `MatrixError` inside a method does the same."""
    code, text, trailers = status_of(error)
    await context.abort(code, text, trailers)


def matrix_error_from(error: grpc.aio.AioRpcError) -> MatrixError:
    """Return what a failed call means to whoever made it."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            for packed in Status.FromString(value).details:
                detail = MatrixErrorDetail()
                if packed.Unpack(detail):
                    return error_of(detail)
    if error.code() in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
    ):
        return unavailable("A part of the server does not answer; try again")
    return MatrixError("M_UNKNOWN", 500, "Internal server error")

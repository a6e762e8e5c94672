"""Every kind of error goes across as a gRPC status and comes back as it was."""

import grpc
import grpc.aio
import pytest

from servicekit.errors import MatrixError
from servicekit.grpc.errors import matrix_error_from, status_of

KINDS = [
    MatrixError("M_FORBIDDEN", 403, "No"),
    MatrixError("M_UNKNOWN_TOKEN", 401, "Who?", extra={"soft_logout": True}),
    MatrixError("M_NOT_FOUND", 404, "Where?"),
    MatrixError("M_LIMIT_EXCEEDED", 429, "Slowly", 2500),
    MatrixError("M_LIMIT_EXCEEDED", 429, "Now", 0),
    MatrixError("M_BAD_JSON", 400, "What?"),
    MatrixError("M_TOO_LARGE", 413, "Too much"),
    MatrixError("M_ROOM_IN_USE", 400, "Taken"),
    MatrixError("M_UNSUPPORTED_ROOM_VERSION", 400, "Ünïcode ☃"),
    MatrixError("M_INCOMPATIBLE_ROOM_VERSION", 400, "Old", extra={"room_version": "12"}),
    MatrixError("M_UNKNOWN", 500, "Broken"),
    MatrixError("M_UNRECOGNIZED", 501, "Not yet"),
    MatrixError("M_UNKNOWN", 502, "Peer broken"),
    MatrixError("M_UNKNOWN", 503, "Later", 1000),
    MatrixError("M_UNKNOWN", 504, "Too late"),
    MatrixError("M_UNKNOWN", 418, "Teapot"),
    MatrixError("ARBOR_NOT_OWNER", 503, "Elsewhere", owner_address="unix:/run/other.sock"),
]


@pytest.mark.parametrize("error", KINDS, ids=lambda error: f"{error.errcode}-{error.http_status}")
def test_an_error_comes_back_as_it_was(error: MatrixError) -> None:
    code, text, trailers = status_of(error)
    assert code is not grpc.StatusCode.OK
    call_error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details=text)
    back = matrix_error_from(call_error)
    assert vars(back) == vars(error)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.UNAVAILABLE, 503),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 503),
        (grpc.StatusCode.INTERNAL, 500),
        (grpc.StatusCode.UNIMPLEMENTED, 500),
        (grpc.StatusCode.UNAUTHENTICATED, 500),
    ],
)
def test_a_failure_without_detail_tells_the_client_nothing_of_the_inside(
    code: grpc.StatusCode, status: int
) -> None:
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="socket /run/x")
    back = matrix_error_from(error)
    assert (back.errcode, back.http_status) == ("M_UNKNOWN", status)
    assert "socket" not in back.message
    assert (back.retry_after_ms is not None) == (status == 503)

"""gRPC between services: the same generated stubs over unix sockets, TLS or an in-process channel.

`server` serves a service's servicers, `channels.channel_to` gives the channel to another service,
`in_process` is the channel between services of one process, `methods` wraps every method the same way for
both (errors, deadlines, ids, metrics), `errors` carries `MatrixError` across, `credentials` says who may call
whom.
"""

from servicekit.errors import MatrixError
from servicekit.grpc.channels import channel_to
from servicekit.grpc.errors import abort_with, detail_of, error_of, matrix_error_from
from servicekit.grpc.server import GrpcServer

__all__ = [
    "GrpcServer",
    "MatrixError",
    "abort_with",
    "channel_to",
    "detail_of",
    "error_of",
    "matrix_error_from",
]

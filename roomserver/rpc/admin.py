"""`AdminService`: large inputs and the operator's repairs."""

from typing import TYPE_CHECKING

from arbor.roomserver.v1.query_pb2_grpc import AdminServiceServicer

if TYPE_CHECKING:
    from roomserver.service import RoomServer


class AdminServicer(AdminServiceServicer):
    """See the module."""

    def __init__(self, server: "RoomServer") -> None:
        self._server = server
        self._database = server.database

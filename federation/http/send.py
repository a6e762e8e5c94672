"""PUT /send: transactions."""

from federation.http.authentication import Caller
from federation.http.endpoints import Endpoint
from federation.receipt.transactions import TransactionReceiver
from servicekit.http import Request, Response, json_response


class SendRoutes:
    """See the module."""

    ENDPOINTS = (Endpoint("PUT", "/_matrix/federation/v1/send/{txn_id}", "send"),)

    def __init__(self, receiver: TransactionReceiver) -> None:
        self._receiver = receiver

    async def send(self, request: Request, caller: Caller) -> Response:
        """PUT /_matrix/federation/v1/send/{txnId}."""
        txn_id = request.path_params["txn_id"]
        return json_response(await self._receiver.receive(caller.origin, txn_id, caller.content))

"""Filters as requests name them: inline JSON, or the id of a stored one. A stored filter never changes."""

from collections import OrderedDict

import grpc.aio

from arbor.accounts.v1 import accounts_pb2
from servicekit.errors import MatrixError, invalid_param
from servicekit.grpc import matrix_error_from
from syncapi.auth import Accounts
from syncapi.filters import NO_FILTER, Filter, load_json, parse_filter
from syncapi.http.edge import FilterSource

CAPACITY = 10_000


class FilterCache(FilterSource):
    """Filters compiled lately."""

    def __init__(self, accounts: Accounts, capacity: int = CAPACITY) -> None:
        self._accounts = accounts
        self._capacity = capacity
        self._kept: OrderedDict[tuple[str, str], Filter] = OrderedDict()

    async def load(self, user_id: str, text: str | None) -> Filter:
        """Return the filter that a `filter` parameter names.

        Raises:
            MatrixError: it is not JSON, no filter, or not stored (400).
        """
        if text is None:
            return NO_FILTER
        inline = text.startswith("{")
        key = ("", text) if inline else (user_id, text)
        found = self._kept.get(key)
        if found is None:
            found = parse_filter(load_json(text) if inline else await self._fetch(user_id, text))
            self._kept[key] = found
            if len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        return found

    async def _fetch(self, user_id: str, filter_id: str) -> object:
        try:
            told = await self._accounts.QueryFilter(
                accounts_pb2.QueryFilterRequest(user_id=user_id, filter_id=filter_id)
            )
        except grpc.aio.AioRpcError as error:
            failure = matrix_error_from(error)
            if failure.http_status == 404:
                raise invalid_param("No such filter") from error
            raise failure from error
        except MatrixError as error:
            if error.http_status == 404:
                raise invalid_param("No such filter") from error
            raise
        return load_json(told.filter_json.decode())

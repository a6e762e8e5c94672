"""Our keys, and the keys of others that we vouch for (server-server API, "Retrieving server keys")."""

import asyncio
from collections.abc import Mapping
from typing import Any

from federation.clock import NowMs
from federation.http.endpoints import Endpoint
from federation.keys.published import OwnKeys
from federation.keys.ring import KeyRing
from matrixlib.canonical_json import CanonicalJsonError, parse_json
from matrixlib.identifiers import is_valid_server_name
from matrixlib.signing import sign_json
from servicekit.errors import bad_json, invalid_param
from servicekit.http import Request, Response, json_response

# What one request may make us fetch, and how long it may wait for it.
MAX_SERVERS = 100
NOTARY_TIMEOUT_S = 20.0


class KeyRoutes:
    """`/_matrix/key/v2`: anybody may ask, no signature is needed."""

    # A key id in the path is an older form of the same question.
    ENDPOINTS = (
        Endpoint("GET", "/_matrix/key/v2/server", "get_own", signed=False),
        Endpoint("GET", "/_matrix/key/v2/server/{key_id?}", "get_own", signed=False),
        Endpoint("GET", "/_matrix/key/v2/query/{server_name}", "get_remote", signed=False),
        Endpoint("GET", "/_matrix/key/v2/query/{server_name}/{key_id?}", "get_remote", signed=False),
        Endpoint("POST", "/_matrix/key/v2/query", "query_remote", signed=False),
    )

    def __init__(self, own: OwnKeys, ring: KeyRing, now_ms: NowMs) -> None:
        self._own = own
        self._ring = ring
        self._now_ms = now_ms
        self._default_name = next(iter(own.signing))

    async def get_own(self, request: Request) -> Response:
        """GET /_matrix/key/v2/server: of several local names, the one that the Host header asks for."""
        host = request.headers.get("Host", "")
        name = host if host in self._own.signing else host.rpartition(":")[0]
        if name not in self._own.signing:
            name = self._default_name
        return json_response(self._own.key_object(name, self._now_ms()))

    async def get_remote(self, request: Request) -> Response:
        """GET /_matrix/key/v2/query/{serverName}."""
        minimum = request.query_int("minimum_valid_until_ts", self._now_ms())
        return await self._answer({request.path_params["server_name"]: minimum})

    async def query_remote(self, request: Request) -> Response:
        """POST /_matrix/key/v2/query."""
        wanted = (await request.json()).get("server_keys")
        if not isinstance(wanted, dict):
            raise bad_json("server_keys must be an object")
        if len(wanted) > MAX_SERVERS:
            raise invalid_param(f"At most {MAX_SERVERS} servers can be asked for at once")
        return await self._answer({name: self._minimum(criteria) for name, criteria in wanted.items()})

    def _minimum(self, criteria: Any) -> int:
        values = [
            entry.get("minimum_valid_until_ts")
            for entry in (criteria.values() if isinstance(criteria, dict) else ())
            if isinstance(entry, dict)
        ]
        return max((value for value in values if type(value) is int), default=self._now_ms())

    async def _answer(self, wanted: Mapping[str, int]) -> Response:
        names = [name for name in wanted if is_valid_server_name(name)]
        results: list[dict[str, Any] | None] = [None] * len(names)

        async def find(index: int, name: str) -> None:
            results[index] = await self._key_object(name, wanted[name])

        try:
            async with asyncio.timeout(NOTARY_TIMEOUT_S), asyncio.TaskGroup() as group:
                for index, name in enumerate(names):
                    group.create_task(find(index, name))
        except TimeoutError:
            pass  # what came so far
        return json_response({"server_keys": [result for result in results if result is not None]})

    async def _key_object(self, server_name: str, minimum_valid_until_ms: int) -> dict[str, Any] | None:
        if server_name in self._own.signing:
            return self._own.key_object(server_name, self._now_ms())
        stored = await self._ring.key_response(server_name, minimum_valid_until_ms)
        if stored is None:
            return None
        try:
            value = parse_json(stored)
            return sign_json(value, self._default_name, self._own.signing[self._default_name])
        except CanonicalJsonError:
            return None

"""From a server name to where its requests go (spec v1.19, server-server API, "Resolving server names").

`Discovery.resolve` asks, in the spec's order, for what its `Lookups` give: a well-known answer and SRV
records. Addresses are not looked up here but when a connection is made: what is checked is what is dialled.
Answers are cached by their own rules, errors with a growing delay.
"""

import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from matrixlib.identifiers import is_valid_server_name, split_host_port

_V = TypeVar("_V")

DEFAULT_PORT = 8448
MAX_CACHED = 10_000
WELL_KNOWN_DEFAULT_S = 24 * 3600.0
WELL_KNOWN_MIN_S = 300.0
WELL_KNOWN_MAX_S = 48 * 3600.0
WELL_KNOWN_ERROR_S = 300.0
WELL_KNOWN_ERROR_MAX_S = 3600.0
SRV_S = 3600.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send requests: dial `host`:`port`, demand a certificate for `tls_name`, send `host_header`.

    `host` and `tls_name` are names or IP addresses without brackets.
    """

    host: str
    port: int
    tls_name: str
    host_header: str


@dataclass(frozen=True, slots=True)
class WellKnown:
    """What `/.well-known/matrix/server` said: `server` (None: nothing valid), and how long that holds."""

    server: str | None
    ttl_s: float | None


@dataclass(frozen=True, slots=True)
class SrvRecord:
    """One SRV record."""

    priority: int
    weight: int
    port: int
    host: str


class Lookups(Protocol):
    """The questions to the network. Neither raises: no answer is an empty one."""

    async def well_known(self, hostname: str) -> WellKnown:
        """Ask `https://<hostname>/.well-known/matrix/server`."""
        ...

    async def srv(self, name: str) -> Sequence[SrvRecord]:
        """Look an SRV record up."""
        ...


class Discovery:
    """Server names to targets, cached. `clock` gives seconds that only grow."""

    def __init__(
        self, lookups: Lookups, clock: Callable[[], float], random_source: random.Random | None = None
    ) -> None:
        self._lookups = lookups
        self._clock = clock
        self._random = random_source or random.SystemRandom()
        self._well_known: OrderedDict[str, tuple[str | None, float, int]] = OrderedDict()
        self._srv: OrderedDict[str, tuple[Sequence[SrvRecord], float]] = OrderedDict()

    async def resolve(self, server_name: str) -> list[Target]:
        """Return where requests for `server_name` go, in the order in which to try. Empty: it is no name."""
        if not is_valid_server_name(server_name):
            return []
        # 1. and 2. An IP literal, or a name with a port.
        direct = _direct(server_name)
        if direct is not None:
            return [direct]
        # 3. The well-known answer delegates to another name.
        delegated = await self._well_known_of(server_name)
        if delegated is not None:
            direct = _direct(delegated)
            return [direct] if direct is not None else await self._by_srv(delegated)
        # 4. to 6. SRV records of the name itself, or port 8448.
        return await self._by_srv(server_name)

    async def _by_srv(self, hostname: str) -> list[Target]:
        for service in ("_matrix-fed._tcp.", "_matrix._tcp."):
            records = await self._srv_of(service + hostname)
            if records:
                return [
                    Target(record.host.rstrip("."), record.port, hostname, hostname)
                    for record in self._in_order(records)
                    if record.host.rstrip(".")
                ]
        return [Target(hostname, DEFAULT_PORT, hostname, hostname)]

    async def _well_known_of(self, hostname: str) -> str | None:
        known = self._well_known.get(hostname)
        if known is not None and known[1] > self._clock():
            return known[0]
        answer = await self._lookups.well_known(hostname)
        failures = 0
        if answer.server is not None and is_valid_server_name(answer.server):
            server: str | None = answer.server
            ttl = WELL_KNOWN_DEFAULT_S if answer.ttl_s is None else answer.ttl_s
            ttl = min(max(ttl, WELL_KNOWN_MIN_S), WELL_KNOWN_MAX_S)
        else:
            server = None
            failures = (known[2] if known is not None else 0) + 1
            ttl = min(WELL_KNOWN_ERROR_S * 2 ** min(failures - 1, 8), WELL_KNOWN_ERROR_MAX_S)
        _keep(self._well_known, hostname, (server, self._clock() + ttl, failures))
        return server

    async def _srv_of(self, name: str) -> Sequence[SrvRecord]:
        known = self._srv.get(name)
        if known is not None and known[1] > self._clock():
            return known[0]
        records = await self._lookups.srv(name)
        _keep(self._srv, name, (records, self._clock() + SRV_S))
        return records

    def _in_order(self, records: Sequence[SrvRecord]) -> list[SrvRecord]:
        # RFC 2782: by priority, and within one at random by weight.
        return sorted(
            records, key=lambda record: (record.priority, -self._random.random() * (record.weight + 0.01))
        )


def _direct(server_name: str) -> Target | None:
    host, port = split_host_port(server_name)
    if host.startswith("["):
        bare = host[1:-1]
        return Target(bare, port or DEFAULT_PORT, bare, server_name)
    if host.replace(".", "").isdigit() and host.count(".") == 3:
        return Target(host, port or DEFAULT_PORT, host, server_name)
    return None if port is None else Target(host, port, host, server_name)


def _keep(cache: "OrderedDict[str, _V]", key: str, value: _V) -> None:
    cache[key] = value
    cache.move_to_end(key)
    if len(cache) > MAX_CACHED:
        cache.popitem(last=False)

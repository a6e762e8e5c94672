"""From a server name to where its requests go (spec v1.19, server-server API, "Resolving server names").

`matrixlib.server_discovery` decides what to ask next; here is who asks the network and keeps the answers, all
by their own rules. Addresses are not looked up here but when a connection is
made: what is checked is what is dialled.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol, TypeVar

from matrixlib.server_discovery import (
    WELL_KNOWN_DEFAULT_CACHE_S,
    WELL_KNOWN_ERROR_CACHE_S,
    WELL_KNOWN_MAX_CACHE_S,
    Answers,
    AskSrv,
    AskWellKnown,
    Destination,
    ServerDiscoveryError,
    SrvRecord,
    next_question,
)

_V = TypeVar("_V")

MAX_CACHED = 10_000
WELL_KNOWN_MIN_CACHE_S = 300.0
WELL_KNOWN_FIRST_ERROR_CACHE_S = 300.0
SRV_CACHE_S = 3600.0


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
    """What `/.well-known/matrix/server` said.

    `answer` is empty where nothing valid came; `ttl_s` is what its headers say, None: nothing.
    """

    answer: Mapping[str, Any]
    ttl_s: float | None


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

    def __init__(self, lookups: Lookups, clock: Callable[[], float]) -> None:
        self._lookups = lookups
        self._clock = clock
        # host -> (answer, good until, errors in a row)
        self._well_known: OrderedDict[str, tuple[Mapping[str, Any], float, int]] = OrderedDict()
        self._srv: OrderedDict[str, tuple[Sequence[SrvRecord], float]] = OrderedDict()
        # server name -> (what came of these, good until)
        self._resolved: OrderedDict[str, tuple[list[Target], float]] = OrderedDict()

    async def resolve(self, server_name: str) -> list[Target]:
        """Return where requests for `server_name` go, in the order in which to try. Empty: it is no name."""
        known = self._resolved.get(server_name)
        if known is not None and known[1] > self._clock():
            return known[0]
        answers = Answers()
        # As long as every answer that it stands on.
        good_until = inf
        while True:
            try:
                step = next_question(server_name, answers)
            except ServerDiscoveryError:
                return []
            match step:
                case AskWellKnown(host):
                    answers.well_known, until = await self._ask_well_known(host)
                    good_until = min(good_until, until)
                case AskSrv(name):
                    records, until = await self._ask_srv(name)
                    answers.srv[name] = list(records)
                    good_until = min(good_until, until)
                case Destination():
                    targets = [
                        Target(target.host, target.port, step.certificate_name, step.host_header)
                        for target in step.targets
                    ]
                    _keep(self._resolved, server_name, (targets, good_until))
                    return targets

    async def _ask_well_known(self, host: str) -> tuple[Mapping[str, Any], float]:
        """Return the answer and until when it is good."""
        known = self._well_known.get(host)
        if known is not None and known[1] > self._clock():
            return known[:2]
        given = await self._lookups.well_known(host)
        errors = 0
        if given.answer:
            ttl = WELL_KNOWN_DEFAULT_CACHE_S if given.ttl_s is None else given.ttl_s
            ttl = min(max(ttl, WELL_KNOWN_MIN_CACHE_S), WELL_KNOWN_MAX_CACHE_S)
        else:
            errors = (known[2] if known is not None else 0) + 1
            ttl = min(WELL_KNOWN_FIRST_ERROR_CACHE_S * 2 ** min(errors - 1, 8), WELL_KNOWN_ERROR_CACHE_S)
        until = self._clock() + ttl
        _keep(self._well_known, host, (given.answer, until, errors))
        return given.answer, until

    async def _ask_srv(self, name: str) -> tuple[Sequence[SrvRecord], float]:
        """Return the records and until when they are good."""
        known = self._srv.get(name)
        if known is not None and known[1] > self._clock():
            return known
        found = (await self._lookups.srv(name), self._clock() + SRV_CACHE_S)
        _keep(self._srv, name, found)
        return found


def _keep(cache: "OrderedDict[str, _V]", key: str, value: _V) -> None:
    cache[key] = value
    cache.move_to_end(key)
    if len(cache) > MAX_CACHED:
        cache.popitem(last=False)

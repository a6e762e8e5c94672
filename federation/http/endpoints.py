"""A table of endpoints, and the way of each request: signature, rate limit, handler."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from federation.http.authentication import Authenticator, Caller
from servicekit.config.schema import Resource
from servicekit.http import RateLimiter, Request, Response, Router

SignedHandler = Callable[[Request, Caller], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint of a group.

    `handler` names the method that answers: `(request, caller)` where `signed`, else `(request)`.
    """

    method: str
    pattern: str
    handler: str
    signed: bool = True
    resources: tuple[Resource, ...] | None = None
    aliases: tuple[str, ...] = ()


class Group(Protocol):
    """What answers the endpoints of a group."""

    ENDPOINTS: tuple[Endpoint, ...]


class Dispatcher:
    """Routes that exist before the service has started: what answers them is filled in by `start`.

    The listeners hold requests back until then.
    """

    def __init__(self, groups: Mapping[str, Iterable[Endpoint]], limiter: RateLimiter, max_body: int) -> None:
        self._groups = groups
        self._limiter = limiter
        self._max_body = max_body
        self._answering: Mapping[str, Any] = {}
        self._authenticator: Authenticator | None = None

    def start(self, authenticator: Authenticator, answering: Mapping[str, Any]) -> None:
        """Say what answers: group -> object with the handlers."""
        missing = set(self._groups) - set(answering)
        if missing:
            raise ValueError(f"nobody answers {sorted(missing)}")
        self._authenticator = authenticator
        self._answering = answering

    def add_routes(self, router: Router) -> None:
        """Add every endpoint."""
        for group, endpoints in self._groups.items():
            for endpoint in endpoints:
                router.add(
                    endpoint.method,
                    endpoint.pattern,
                    self._handler(group, endpoint),
                    resources=endpoint.resources,
                    aliases=endpoint.aliases,
                    max_body=self._max_body,
                )

    def _handler(self, group: str, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        name = endpoint.handler

        async def open_handler(request: Request) -> Response:
            self._limiter.check(request.remote)
            response: Response = await getattr(self._answering[group], name)(request)
            return response

        async def signed_handler(request: Request) -> Response:
            assert self._authenticator is not None
            caller = await self._authenticator.authenticate(request)
            self._limiter.check(caller.origin)
            response: Response = await getattr(self._answering[group], name)(request, caller)
            return response

        return signed_handler if endpoint.signed else open_handler

"""What a service has to offer to the process that runs it.

    create(config)            makes the object: quick, opens nothing that waits
    service.routes(router)    its HTTP routes
    service.servicers()       its gRPC servicers
    await service.start()     open databases and the log, migrate, load; then calls and requests may come
    await service.run()       followers, relays and the like, until it is cancelled
    await service.drain()     optional: let what waits answer now (long polls), the process is about to stop
    await service.stop()      close the log, then the database

The order at the end: no new requests, `drain`, requests in progress finish, `run` is cancelled, `stop`. A
`run` that raises ends the process, for half dead is worse than dead. `health()` is optional too: None, or why
it is not well.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from servicekit.config.schema import Config
    from servicekit.grpc.server import Servicer
    from servicekit.http.routing import Router


class ServiceFailed(Exception):
    """A service cannot run, for a reason that a person has to change; no use starting it again."""


class Service(Protocol):
    """See the module."""

    @property
    def name(self) -> str:
        """Name such as `roomserver`."""

    def routes(self, router: "Router") -> None:
        """Add the HTTP routes."""

    def servicers(self) -> "list[Servicer]":
        """Return pairs of the generated `add_…Servicer_to_server` and a servicer."""

    async def start(self) -> None:
        """Get ready to answer."""

    async def run(self) -> None:
        """Work in the background until cancelled."""

    async def stop(self) -> None:
        """Close everything."""


Factory = Callable[["Config"], Service]

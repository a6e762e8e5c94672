"""The life of a process that runs one or several services.

    create all -> listen (requests wait) -> start all, each with its gRPC server -> ready
        -> run all until SIGTERM, SIGINT or a failure
        -> no new requests -> drain -> requests finish -> run is cancelled -> stop all

The listeners answer from the first moment: what comes while services still start waits for a while, then gets
a 503. It waits for all of them, since services of one process ask each other.
"""

import asyncio
import contextvars
import ctypes
import gc
import importlib
import inspect
import os
import signal
import socket
from collections.abc import Mapping, Sequence

import uvloop

from servicekit import tracing
from servicekit.config.errors import ConfigError
from servicekit.config.schema import Config
from servicekit.grpc.channels import current_service
from servicekit.grpc.in_process import registry
from servicekit.grpc.server import GrpcServer
from servicekit.http.routing import Route, Router
from servicekit.http.server import HttpListener
from servicekit.logging import get_logger, setup_logging
from servicekit.service import exposition
from servicekit.service.groups import SERVICE_RESOURCES, listener_serves
from servicekit.service.listeners import bind_listener, tls_context
from servicekit.service.protocol import Factory, Service, ServiceFailed
from servicekit.service.sockets import SOCKET_SUFFIX, bind_process_socket

log = get_logger("service")

# How long a request waits for a process that starts.
START_WAIT_S = 10.0
HTTP_GRACE_S = 8.0
GRPC_GRACE_S = 3.0
STOP_TIMEOUT_S = 5.0
EXIT_CONFIG = 78  # EX_CONFIG: starting again will not help
ENV_PARENT = "ARBOR_INTERNAL_PARENT"
_PR_SET_PDEATHSIG = 1


def load_factory(service: str) -> Factory:
    """Return the factory of a service: `create` of `<service>.service`.

    Raises:
        ServiceFailed: there is no such package.
    """
    try:
        module = importlib.import_module(f"{service}.service")
    except ModuleNotFoundError as error:
        if error.name in (service, f"{service}.service"):
            raise ServiceFailed(f"the service {service} is not installed") from error
        raise
    factory: Factory = module.create
    return factory


def run_services(
    config: Config,
    factories: Mapping[str, Factory],
    *,
    process: str,
    sockets: Mapping[int, socket.socket] | None = None,
) -> int:
    """Run services in this process until it is told to stop; returns the exit status.

    Args:
        config: the deployment's.
        factories: service name -> factory.
        process: name of the process in logs and metrics.
        sockets: listeners handed down by the supervisor; None: bind those that serve these services.
    """
    die_with_parent()
    setup_logging(config.logging, process)
    tracing.setup_tracing(config.tracing, process)
    try:
        uvloop.run(_Process(config, factories, process, sockets).run())
    except Exception as failure:
        status = EXIT_CONFIG
        for error in _leaves(failure):
            if isinstance(error, ConfigError | ServiceFailed):
                log.error("cannot_run", reason=str(error))
            else:
                log.error("process_failed", exc_info=error)
                status = 1
        return status
    finally:
        tracing.shutdown_tracing()
    return 0


def _leaves(error: BaseException) -> list[BaseException]:
    """Return what a group of exceptions, of a TaskGroup say, holds in the end."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for inner in error.exceptions for leaf in _leaves(inner)]


def die_with_parent() -> None:
    """Get SIGTERM when the supervisor dies, however it dies. Does nothing without a supervisor."""
    parent = os.environ.get(ENV_PARENT)
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it died before we asked
        raise SystemExit(1)


class _Process:
    """See the module."""

    def __init__(
        self,
        config: Config,
        factories: Mapping[str, Factory],
        name: str,
        sockets: Mapping[int, socket.socket] | None,
    ) -> None:
        self._config = config
        self._factories = factories
        self._name = name
        self._sockets = sockets
        self._services: list[Service] = []
        self._contexts: dict[str, contextvars.Context] = {}
        self._starting: set[str] = set(factories)
        self._started = {name: asyncio.Event() for name in factories}
        self._stopping = asyncio.Event()
        self._grpc: list[GrpcServer] = []
        self._listeners: list[HttpListener] = []

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        registry.declare(self._factories)
        for name, factory in self._factories.items():
            context = contextvars.copy_context()
            context.run(current_service.set, name)
            self._contexts[name] = context
            self._services.append(context.run(factory, self._config))
        # Handlers run in the contexts of connections; what they call in the name of is the first service.
        current_service.set(self._services[0].name)
        await self._listen()
        try:
            async with asyncio.TaskGroup() as group:
                running = [
                    group.create_task(self._live(service), context=self._contexts[service.name])
                    for service in self._services
                ]
                group.create_task(self._announce())
                await self._stopping.wait()
                log.info("stopping")
                await self._drain()
                for task in running:
                    task.cancel()
        finally:
            await self._close()

    async def _listen(self) -> None:
        router = Router()
        for service in self._services:
            router.owner = service.name
            service.routes(router)
        router.owner = None
        exposition.add_routes(router, self._config, self._name, self._health)
        own = HttpListener(exposition.own_routes(self._health, self._services), self._config.http)
        await own.start(bind_process_socket(self._config, self._name))
        self._listeners.append(own)
        sockets = self._sockets if self._sockets is not None else self._bind()
        for number, sock in sockets.items():
            listener = self._config.listeners[number]
            http = HttpListener(
                router.restricted_to(listener.resources),
                self._config.http,
                trust_forwarded=listener.x_forwarded,
                ready=self._ready,
            )
            await http.start(sock, tls_context(listener, number))
            self._listeners.append(http)

    def _bind(self) -> dict[int, socket.socket]:
        bound = {}
        for number, listener in enumerate(self._config.listeners):
            alone = listener.resources == ("metrics",)
            if not alone and not any(listener_serves(listener, name) for name in self._factories):
                continue
            if not alone and len(self._factories) < _wanted_services(listener.resources):
                log.warning(
                    "listener_served_in_part",
                    listener=f"{listener.host}:{listener.port}",
                    hint="give each service a listener of its own and route by path in a proxy",
                )
            try:
                bound[number] = bind_listener(listener, number)
            except ConfigError:
                if not alone:
                    raise
                # Services on one machine share a file; the first has the metrics of all.
                log.info("metrics_listener_taken", listener=f"{listener.host}:{listener.port}")
        return bound

    async def _live(self, service: Service) -> None:
        await service.start()
        servicers = service.servicers()
        if servicers:
            server = GrpcServer(self._config, service.name, servicers)
            await server.start()
            self._grpc.append(server)
        self._starting.discard(service.name)
        self._started[service.name].set()
        await service.run()

    async def _announce(self) -> None:
        await self._all_started()
        for listener in self._listeners:
            listener.set_ready()
        # What is alive now lives as long as the process: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        log.info("ready", services=" ".join(self._factories))

    async def _all_started(self) -> None:
        for started in self._started.values():
            await started.wait()

    async def _ready(self, route: Route) -> bool:
        """Wait for the services, for a while, if a route is one of theirs."""
        if route.owner is None:
            return True
        try:
            async with asyncio.timeout(START_WAIT_S):
                await self._all_started()
        except TimeoutError:
            return False
        return True

    def _health(self) -> dict[str, str]:
        if self._stopping.is_set():
            return {self._name: "stopping"}
        troubles = dict.fromkeys(sorted(self._starting), "starting")
        for service in self._services:
            check = getattr(service, "health", None)
            trouble = check() if check is not None and service.name not in troubles else None
            if trouble:
                troubles[service.name] = trouble
        return troubles

    async def _drain(self) -> None:
        for listener in self._listeners:
            listener.stop_listening()
        for service in self._services:
            drain = getattr(service, "drain", None)
            outcome = drain() if drain is not None else None
            if inspect.isawaitable(outcome):
                await outcome
        await asyncio.gather(*(listener.stop(HTTP_GRACE_S) for listener in self._listeners))
        await asyncio.gather(*(server.stop(GRPC_GRACE_S) for server in self._grpc))

    async def _close(self) -> None:
        """Close what is open, also after a failure, when nothing was drained."""
        await asyncio.gather(*(listener.stop(0) for listener in self._listeners), return_exceptions=True)
        await asyncio.gather(*(server.stop(0) for server in self._grpc), return_exceptions=True)
        for service in reversed(self._services):
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await service.stop()
            except Exception as error:
                log.error("stop_failed", exc_info=error, service=service.name)
        self._config.socket_path(f"{self._name}{SOCKET_SUFFIX}").unlink(missing_ok=True)


def _wanted_services(resources: Sequence[str]) -> int:
    return sum(bool(own & frozenset(resources)) for own in SERVICE_RESOURCES.values())

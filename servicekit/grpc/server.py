"""Serving a service's methods: to this process always, to others on a unix socket or TLS port.

Callers show a token (`credentials`); one without a known one gets UNAUTHENTICATED before anything of the call
is read. Health and reflection are served too, behind the same check. A call without a deadline gets the
configured one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from servicekit.config.errors import ConfigError
from servicekit.config.schema import Config
from servicekit.grpc.channels import OPTIONS
from servicekit.grpc.credentials import AUTHORIZATION, CallerCheck
from servicekit.grpc.in_process import registry
from servicekit.grpc.methods import AddServicer, Collector

Servicer = tuple[AddServicer, Any]


class GrpcServer:
    """The methods of one service.

    Args:
        config: the deployment's.
        service: such as `roomserver`.
        servicers: pairs of the generated `add_…Servicer_to_server` and the servicer.
    """

    def __init__(self, config: Config, service: str, servicers: Iterable[Servicer]) -> None:
        self._config = config
        self._service = service
        self._collector = Collector()
        for add, servicer in servicers:
            add(servicer, self._collector)
        self._server: grpc.aio.Server | None = None
        self._health = health_aio.HealthServicer()
        self.address: str | None = None

    async def start(self) -> None:
        """Serve in this process and on the service's address.

        Raises:
            ConfigError: the address cannot be bound.
        """
        registry.publish(self._service, self._collector.services)
        options = [*OPTIONS, ("grpc.so_reuseport", 0)]
        server = grpc.aio.server(
            interceptors=[_Gate(CallerCheck(self._config, self._service), self._config.grpc.deadline)],
            options=options,
        )
        for name, handlers in self._collector.services.items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = [*self._collector.services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
        reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
        self.address = self._bind(server)
        self._server = server
        await server.start()
        if self.address.startswith("unix:"):
            # Nobody connects before `start`; the socket's directory is closed to others anyway.
            os.chmod(self.address.removeprefix("unix:"), 0o600)
        await self.set_serving(True)

    def _bind(self, server: grpc.aio.Server) -> str:
        address = self._config.grpc_listen_address(self._service)
        tls = self._config.grpc.tls
        try:
            if address.startswith("unix:"):
                path = Path(address.removeprefix("unix:"))
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                if path.parent.stat().st_uid != os.getuid():
                    raise ConfigError(f"{path.parent} belongs to somebody else", path="run_dir")
                path.unlink(missing_ok=True)
                server.add_insecure_port(address)
                return address
            if tls is None:
                port = server.add_insecure_port(address)
            else:
                credentials = grpc.ssl_server_credentials(
                    [(tls.private_key_path.read_bytes(), tls.certificate_path.read_bytes())],
                    tls.ca_path.read_bytes(),
                    require_client_auth=True,
                )
                port = server.add_secure_port(address, credentials)
        except (RuntimeError, OSError) as error:
            raise ConfigError(f"{self._service} cannot listen on {address}: {error}") from error
        return f"{address.rpartition(':')[0]}:{port}"

    async def set_serving(self, serving: bool) -> None:
        """Set what the health service answers, for the server and each service in it."""
        status = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ("", *self._collector.services):
            await self._health.set(name, status)

    async def stop(self, grace_s: float = 5.0) -> None:
        """Take no new calls, let those in progress finish for a while."""
        registry.withdraw(self._service)
        if self._server is not None:
            await self._server.stop(grace_s)
            if self.address is not None and self.address.startswith("unix:"):
                _remove(self.address.removeprefix("unix:"))
            self._server = None


class _Gate(grpc.aio.ServerInterceptor):
    """Lets in who may call, and gives a deadline to calls that have none."""

    def __init__(self, check: CallerCheck, deadline_s: float) -> None:
        self._check = check
        self._deadline_s = deadline_s
        self._refusal: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(_refuse)
        self._bounded: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        authorization = next(
            (value for key, value in details.invocation_metadata or () if key == AUTHORIZATION), None
        )
        if self._check.caller_of(authorization) is None:
            return self._refusal
        path = details.method
        if path in self._bounded:
            return self._bounded[path]
        handler = await continuation(details)
        if handler is not None and not handler.request_streaming and not handler.response_streaming:
            handler = self._with_deadline(handler)
        if handler is not None:
            self._bounded[path] = handler
        return handler

    def _with_deadline(self, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        behavior: Any = handler.unary_unary

        async def answer(request: Any, context: Any) -> Any:
            remaining = context.time_remaining()
            if remaining is not None:
                return await behavior(request, context)  # the caller's own deadline cancels it
            async with asyncio.timeout(self._deadline_s):
                return await behavior(request, context)

        return grpc.unary_unary_rpc_method_handler(
            answer, handler.request_deserializer, handler.response_serializer
        )


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)


async def _refuse(_request: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the call shows no token that is let in here")

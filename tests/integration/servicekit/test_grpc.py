"""The same calls in process and over a unix socket: results, errors, deadlines, streams, ids."""

import asyncio
import contextlib
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from arbor.accounts.v1.accounts_pb2 import (
    ExportRequest,
    ExportResponse,
    ResolveTokenRequest,
    ResolveTokenResponse,
)
from arbor.accounts.v1.accounts_pb2_grpc import (
    AccountsServiceServicer,
    AccountsServiceStub,
    add_AccountsServiceServicer_to_server,
)
from servicekit import tracing
from servicekit.config import Config, load_config
from servicekit.config.schema import Tracing
from servicekit.grpc import GrpcServer, MatrixError, channel_to, matrix_error_from
from servicekit.grpc.in_process import registry
from servicekit.logging import request_id


class Accounts(AccountsServiceServicer):
    """Does what the token says."""

    def __init__(self) -> None:
        self.seen_request_id: str | None = None
        self.remaining_s: float | None = None
        self.cancelled = asyncio.Event()
        self.exported = 0

    async def ResolveToken(self, request: ResolveTokenRequest, context: Any) -> ResolveTokenResponse:  # noqa: N802
        """Answer, refuse, fail or hang."""
        self.seen_request_id = request_id.get()
        self.remaining_s = context.time_remaining()
        match request.access_token:
            case "refuse":
                raise MatrixError("M_UNKNOWN_TOKEN", 401, "Unknown", extra={"soft_logout": True})
            case "abort":
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "plain")
            case "code":
                context.set_code(grpc.StatusCode.NOT_FOUND)
                context.set_details("set")
            case "crash":
                raise RuntimeError("inside")
            case "hang":
                try:
                    await asyncio.Event().wait()
                finally:
                    self.cancelled.set()
            case "call":
                raise grpc.aio.AioRpcError(
                    grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details="other"
                )
        return ResolveTokenResponse(user_id=f"@{request.access_token}:x")

    async def Export(self, request: ExportRequest, context: Any) -> AsyncIterator[ExportResponse]:  # noqa: N802
        """Give responses up to the sequence asked for, then refuse."""
        for _ in range(request.after_sequence):
            self.exported += 1
            yield ExportResponse()
        if request.after_sequence == 3:
            raise MatrixError("M_NOT_FOUND", 404, "Nothing more")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(None, {}, {"data_dir": str(tmp_path / "data")})


@pytest.fixture(params=["in_process", "socket"])
async def accounts(
    request: pytest.FixtureRequest, config: Config
) -> AsyncIterator[tuple[Accounts, AccountsServiceStub]]:
    servicer = Accounts()
    server = GrpcServer(config, "clientapi", [(add_AccountsServiceServicer_to_server, servicer)])
    await server.start()
    if request.param == "in_process":
        registry.declare(["clientapi"])
    channel = channel_to(config, "clientapi", caller="syncapi")
    yield servicer, AccountsServiceStub(channel)
    await channel.close()
    await server.stop(0)
    registry.clear()


async def resolve(stub: Any, token: str, **options: Any) -> ResolveTokenResponse:
    """Call ResolveToken."""
    response: ResolveTokenResponse = await stub.ResolveToken(
        ResolveTokenRequest(access_token=token), **options
    )
    return response


async def test_a_call_answers(accounts: tuple[Accounts, AccountsServiceStub]) -> None:
    assert (await resolve(accounts[1], "alice")).user_id == "@alice:x"


@pytest.mark.parametrize(
    ("token", "code", "errcode", "status"),
    [
        ("refuse", grpc.StatusCode.UNAUTHENTICATED, "M_UNKNOWN_TOKEN", 401),
        ("abort", grpc.StatusCode.FAILED_PRECONDITION, "M_UNKNOWN", 500),
        ("code", grpc.StatusCode.NOT_FOUND, "M_UNKNOWN", 500),
        ("crash", grpc.StatusCode.INTERNAL, "M_UNKNOWN", 500),
        ("call", grpc.StatusCode.UNAVAILABLE, "M_UNKNOWN", 503),
    ],
)
async def test_failures_have_the_same_code_and_meaning(
    accounts: tuple[Accounts, AccountsServiceStub],
    token: str,
    code: grpc.StatusCode,
    errcode: str,
    status: int,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await resolve(accounts[1], token)
    assert caught.value.code() is code
    error = matrix_error_from(caught.value)
    assert (error.errcode, error.http_status) == (errcode, status)
    assert "inside" not in str(caught.value.details())
    assert (error.extra == {"soft_logout": True}) == (token == "refuse")


async def test_a_deadline_ends_the_call_and_the_work(
    accounts: tuple[Accounts, AccountsServiceStub],
) -> None:
    servicer, stub = accounts
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await resolve(stub, "hang", timeout=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(5):
        await servicer.cancelled.wait()
    await resolve(stub, "x", timeout=30)
    assert servicer.remaining_s is not None
    assert 20 < servicer.remaining_s < 31


async def test_a_cancelled_caller_cancels_the_work(accounts: tuple[Accounts, AccountsServiceStub]) -> None:
    servicer, stub = accounts
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await resolve(stub, "hang")
    async with asyncio.timeout(5):
        await servicer.cancelled.wait()


async def gather(responses: Any, into: list[ExportResponse]) -> None:
    """Take responses to the end."""
    async for response in responses:
        into.append(response)  # noqa: PERF401 - what came before the error counts


async def test_streams_give_responses_then_their_error(
    accounts: tuple[Accounts, AccountsServiceStub],
) -> None:
    _, stub = accounts
    assert len([r async for r in stub.Export(ExportRequest(after_sequence=5))]) == 5
    given: list[ExportResponse] = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gather(stub.Export(ExportRequest(after_sequence=3)), given)
    assert len(given) == 3
    assert matrix_error_from(caught.value).errcode == "M_NOT_FOUND"
    call = stub.Export(ExportRequest(after_sequence=1))
    assert await call.read() == ExportResponse()
    assert await call.read() is grpc.aio.EOF


async def test_request_ids_and_traces_go_along(accounts: tuple[Accounts, AccountsServiceStub]) -> None:
    servicer, stub = accounts
    exporter = InMemorySpanExporter()
    tracing.setup_tracing(Tracing(enabled=True), "test", exporter)
    token = request_id.set("r-77")
    try:
        with tracing.span("request"):
            await resolve(stub, "x")
    finally:
        request_id.reset(token)
        tracing.shutdown_tracing()
    assert servicer.seen_request_id == "r-77"
    server_span, request_span = exporter.get_finished_spans()
    assert server_span.context is not None
    assert request_span.context is not None
    assert server_span.context.trace_id == request_span.context.trace_id


async def test_a_service_that_has_not_started_is_unavailable(config: Config) -> None:
    registry.declare(["clientapi"])
    try:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await resolve(AccountsServiceStub(channel_to(config, "clientapi", caller="syncapi")), "x")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        registry.clear()


async def test_health_and_reflection_are_served(config: Config) -> None:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    server = GrpcServer(config, "clientapi", [(add_AccountsServiceServicer_to_server, Accounts())])
    await server.start()
    async with channel_to(config, "clientapi", caller="syncapi") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        name = "arbor.accounts.v1.AccountsService"
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        await server.set_serving(False)
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)

        async def ask() -> AsyncIterator[Any]:
            yield reflection_pb2.ServerReflectionRequest(list_services="")

        async with contextlib.aclosing(aiter(reflection.ServerReflectionInfo(ask()))) as answers:
            listed = await anext(answers)
        assert name in [service.name for service in listed.list_services_response.service]
    await server.stop(0)
    registry.clear()


async def test_a_restarted_server_is_found_again(config: Config) -> None:
    channel = channel_to(config, "clientapi", caller="syncapi")
    stub = AccountsServiceStub(channel)
    for _ in range(2):
        server = GrpcServer(config, "clientapi", [(add_AccountsServiceServicer_to_server, Accounts())])
        await server.start()
        path = config.socket_path("clientapi")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (await resolve(stub, "x", timeout=10, wait_for_ready=True)).user_id == "@x:x"
        await server.stop(0)
        assert not path.exists()
    await channel.close()
    registry.clear()

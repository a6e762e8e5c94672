"""Row 39, gRPC: a private unix socket by default, closed to callers without a token or not on the list."""

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from arbor.accounts.v1.accounts_pb2 import ResolveTokenRequest, ResolveTokenResponse
from arbor.accounts.v1.accounts_pb2_grpc import (
    AccountsServiceServicer,
    AccountsServiceStub,
    add_AccountsServiceServicer_to_server,
)
from servicekit.config import Config, ConfigError, load_config
from servicekit.grpc import GrpcServer, channel_to
from servicekit.grpc.credentials import load_token, token_path
from servicekit.grpc.in_process import registry


class Accounts(AccountsServiceServicer):
    """Counts the calls that reach it."""

    calls = 0

    async def ResolveToken(self, request: ResolveTokenRequest, context: object) -> ResolveTokenResponse:  # noqa: N802
        """Count."""
        self.calls += 1
        return ResolveTokenResponse(user_id="@a:b")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(None, {}, {"data_dir": str(tmp_path / "data")})


@pytest.fixture
async def accounts(config: Config) -> AsyncIterator[Accounts]:
    servicer = Accounts()
    server = GrpcServer(config, "clientapi", [(add_AccountsServiceServicer_to_server, servicer)])
    await server.start()
    yield servicer
    await server.stop(0)
    registry.clear()


async def call(channel: grpc.aio.Channel, metadata: list[tuple[str, str]] | None = None) -> grpc.StatusCode:
    """Return the status of a call."""
    async with channel:
        try:
            await AccountsServiceStub(channel).ResolveToken(ResolveTokenRequest(), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def plain_channel(config: Config) -> grpc.aio.Channel:
    """Return a channel that adds no credentials of its own."""
    return grpc.aio.insecure_channel(
        config.grpc_address("clientapi"), options=[("grpc.default_authority", "localhost")]
    )


async def test_by_default_only_the_owner_reaches_the_socket(config: Config, accounts: Accounts) -> None:
    assert config.grpc_address("clientapi").startswith("unix:")
    path = config.socket_path("clientapi")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    tokens = list(config.secrets_dir.iterdir())
    assert tokens
    assert {stat.S_IMODE(token.stat().st_mode) for token in tokens} == {0o600}
    assert stat.S_IMODE(config.secrets_dir.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [("authorization", "")],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer wrong")],
        [("authorization", "Basic abc")],
        [("x-caller", "syncapi")],
    ],
)
async def test_a_call_without_a_known_token_reaches_nothing(
    config: Config, accounts: Accounts, metadata: list[tuple[str, str]]
) -> None:
    assert await call(plain_channel(config), metadata) is grpc.StatusCode.UNAUTHENTICATED
    assert accounts.calls == 0


async def test_a_service_answers_only_those_who_may_ask(config: Config, accounts: Accounts) -> None:
    assert await call(channel_to(config, "clientapi", caller="syncapi")) is grpc.StatusCode.OK
    # The RoomServer calls nobody: its token, though real, opens nothing here.
    assert await call(channel_to(config, "clientapi", caller="roomserver")) is grpc.StatusCode.UNAUTHENTICATED
    assert accounts.calls == 1


async def test_tokens_differ_and_are_not_taken_from_a_file_others_can_read(config: Config) -> None:
    assert load_token(config, "syncapi") != load_token(config, "federation")
    assert load_token(config, "syncapi") == load_token(config, "syncapi")
    token_path(config, "syncapi").chmod(0o644)
    with pytest.raises(ConfigError, match="others may use it"):
        load_token(config, "syncapi")


async def test_health_and_reflection_are_behind_the_same_check(config: Config, accounts: Accounts) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with plain_channel(config) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_an_address_that_leaves_the_machine_needs_tls() -> None:
    for address in ("0.0.0.0:9000", "10.0.0.5:9000", "[::]:9000"):
        with pytest.raises(ConfigError, match=r"grpc\.tls"):
            load_config(None, {}, {"grpc.addresses": {"roomserver": address}})

"""`arbor user create`: over the accounts service's socket, which only its own user can reach."""

import asyncio
import getpass
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from arbor.accounts.v1.accounts_pb2 import CreateUserRequest
from arbor.accounts.v1.accounts_pb2_grpc import AccountsServiceStub
from servicekit.cli.main import CommandError
from servicekit.config import Config
from servicekit.grpc import channel_to, matrix_error_from

if TYPE_CHECKING:
    from arbor.accounts.v1.accounts_pb2_grpc import AccountsServiceAsyncStub

WAIT_S = 20.0


def create_user(config: Config, name: str, password: str | None, *, admin: bool) -> int:
    """Make an account and print its user id."""
    if password is None:
        password = _ask_password()
    if len(password) < config.passwords.min_length:
        raise CommandError(f"the password is too short: at least {config.passwords.min_length} characters")
    print(asyncio.run(_create(config, name, password, admin)))
    return 0


def _ask_password() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise CommandError("the two differ")
    return password


async def _create(config: Config, name: str, password: str, admin: bool) -> str:
    async with accounts_service(config) as accounts:
        request = CreateUserRequest(username=name, password=password, admin=admin)
        # A server that has just been started is waited for.
        answer = await accounts.CreateUser(request, timeout=WAIT_S, wait_for_ready=True)
    return str(answer.user_id)


@asynccontextmanager
async def accounts_service(config: Config) -> AsyncIterator["AccountsServiceAsyncStub"]:
    """Speak with the accounts service of the server that runs; its refusals become a `CommandError`."""
    address = config.grpc_address("clientapi")
    if (
        address.startswith("unix:")
        and not _exists(address.removeprefix("unix:"))
        and not _exists(str(config.run_dir / "pids.json"))
    ):
        raise CommandError(
            f"no server runs with {config.data_dir}; start it with `arbor run`, or name its --config"
        )
    async with channel_to(config, "clientapi", caller="cli") as channel:
        try:
            yield AccountsServiceStub(channel)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE):
                raise CommandError(f"the server does not answer at {address}: {error.details()}") from error
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                raise CommandError(f"the server does not know the token in {config.secrets_dir}") from error
            raise CommandError(matrix_error_from(error).message) from error


def _exists(path: str) -> bool:
    return Path(path).exists()

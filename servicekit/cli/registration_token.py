"""`arbor registration-token`: over the accounts service's socket, which only its own user can reach."""

import asyncio
import time
from datetime import UTC, datetime

from arbor.accounts.v1.accounts_pb2 import (
    CreateRegistrationTokenRequest,
    DeleteRegistrationTokenRequest,
    ListRegistrationTokensRequest,
)
from servicekit.cli.main import CommandError
from servicekit.cli.user import WAIT_S, accounts_service
from servicekit.config import Config
from servicekit.config.units import parse_duration


def create_token(config: Config, token: str | None, uses: int | None, expires: str | None) -> int:
    """Make a token and print it. `expires`: how long it lasts, such as `7d`, or an ISO 8601 time."""
    if uses is not None and not 0 <= uses < 2**31:
        raise CommandError("--uses must be a whole number that is not negative")
    request = CreateRegistrationTokenRequest(
        token=token or "", uses_allowed=uses, expires_ms=0 if expires is None else _expiry_ms(expires)
    )

    async def create() -> str:
        async with accounts_service(config) as accounts:
            answer = await accounts.CreateRegistrationToken(request, timeout=WAIT_S, wait_for_ready=True)
        return str(answer.token.token)

    print(asyncio.run(create()))
    return 0


def list_tokens(config: Config) -> int:
    """Print one line a token: token, accounts made, allowed, expiry."""

    async def load() -> list[str]:
        async with accounts_service(config) as accounts:
            answer = await accounts.ListRegistrationTokens(
                ListRegistrationTokensRequest(), timeout=WAIT_S, wait_for_ready=True
            )
        lines = []
        for token in answer.tokens:
            allowed = str(token.uses_allowed) if token.HasField("uses_allowed") else "any"
            until = "never"
            if token.expires_ms:
                until = datetime.fromtimestamp(token.expires_ms / 1000, UTC).isoformat(timespec="seconds")
            lines.append(f"{token.token}  used {token.completed} of {allowed}  expires {until}")
        return lines

    for line in asyncio.run(load()):
        print(line)
    return 0


def delete_token(config: Config, token: str) -> int:
    """Delete a token."""

    async def delete() -> None:
        async with accounts_service(config) as accounts:
            request = DeleteRegistrationTokenRequest(token=token)
            await accounts.DeleteRegistrationToken(request, timeout=WAIT_S, wait_for_ready=True)

    asyncio.run(delete())
    return 0


def _expiry_ms(text: str) -> int:
    lasts_s = parse_duration(text)
    if lasts_s is not None:
        return int((time.time() + lasts_s) * 1000)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(
            f"--expires {text}: allowed: a duration such as 7d, or a time in ISO 8601"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)

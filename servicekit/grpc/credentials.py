"""Who calls, and whom it may call.

Each service has a token in a file of the secrets directory, `grpc-<service>.token`, mode 0600, made when
missing. A caller shows its own; a server knows by it who calls, and lets in those the table below names. On
one machine that stands behind the sockets' file modes; across machines the files are copied and TLS hides the
tokens.
"""

import hmac
import secrets
from pathlib import Path

from servicekit.config.schema import Config
from servicekit.config.secret_files import read_secret_file, write_secret_file

# server -> services that may call it. `cli` is the command line of the server's own user.
ALLOWED_CALLERS: dict[str, frozenset[str]] = {
    "roomserver": frozenset(
        {"clientapi", "syncapi", "federation", "mediaapi", "appservice", "roomserver", "cli"}
    ),
    "clientapi": frozenset({"syncapi", "federation", "mediaapi", "appservice", "cli"}),
    "federation": frozenset({"clientapi", "syncapi", "mediaapi", "appservice", "cli"}),
    "syncapi": frozenset({"clientapi", "appservice", "cli"}),
    "appservice": frozenset({"clientapi", "mediaapi", "cli"}),
}
AUTHORIZATION = "authorization"


def token_path(config: Config, service: str) -> Path:
    """Return the file with a service's token."""
    return config.secrets_dir / f"grpc-{service}.token"


def load_token(config: Config, service: str) -> str:
    """Return a service's token, made when missing.

    Raises:
        ConfigError: the file can be read by others, or not by us.
    """
    path = token_path(config, service)
    if not path.exists():
        write_secret_file(path, secrets.token_urlsafe(32).encode(), keep_existing=True)
    return read_secret_file(path).decode().strip()


class CallerCheck:
    """Which caller a call's metadata names, among those a server lets in."""

    def __init__(self, config: Config, service: str) -> None:
        allowed = ALLOWED_CALLERS.get(service, frozenset({"cli"}))
        self._callers = [
            (caller, f"Bearer {load_token(config, caller)}".encode()) for caller in sorted(allowed)
        ]

    def caller_of(self, authorization: str | bytes | None) -> str | None:
        """Return the caller's service name; None: not let in."""
        if authorization is None:
            return None
        given = authorization.encode() if isinstance(authorization, str) else authorization
        # Every token is compared, each in constant time, so that timing tells nothing.
        found = [caller for caller, expected in self._callers if hmac.compare_digest(given, expected)]
        return found[0] if found else None

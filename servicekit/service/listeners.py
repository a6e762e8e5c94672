"""Listening sockets: bound here, by the supervisor or by a single service.

Under the supervisor a listener's socket outlives the process that answers on it: its port stays when the
process is started anew, and connections of the moment between wait instead of being refused. Sockets are
handed down as numbers of open descriptors in one environment variable.
"""

import json
import os
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from servicekit.config.errors import ConfigError
from servicekit.config.schema import Config, Listener

ENV_SOCKETS = "ARBOR_INTERNAL_SOCKETS"
BACKLOG = 1024


def bind_listener(listener: Listener, number: int) -> socket.socket:
    """Return the listening socket of a listener.

    Args:
        listener: host and port.
        number: index in the configuration, for errors.

    Raises:
        ConfigError: the place is taken or cannot be bound.
    """
    path = f"listeners[{number}]"
    try:
        found = socket.getaddrinfo(
            listener.host, listener.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise ConfigError(f"the host {listener.host!r} is not known: {error.strerror}", path=path) from error
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(listener.host != "::"))
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"cannot listen on {listener.host}:{listener.port}: {error.strerror};"
            " choose another port, or 0 for a free one",
            path=path,
        ) from error
    return bound


def inherited_sockets(environment: Mapping[str, str]) -> dict[int, socket.socket]:
    """Return the sockets that the supervisor handed down: index of the listener -> socket."""
    numbers: dict[str, int] = json.loads(environment.get(ENV_SOCKETS, "{}"))
    return {int(index): socket.socket(fileno=descriptor) for index, descriptor in numbers.items()}


def describe_listeners(config: Config, sockets: Mapping[int, socket.socket]) -> list[dict[str, Any]]:
    """Return where the sockets really listen: host, port, resources, and whether it is TLS."""
    return [
        {
            "host": config.listeners[index].host,
            "port": sockets[index].getsockname()[1],
            "resources": list(config.listeners[index].resources),
            "tls": config.listeners[index].tls is not None,
        }
        for index in sorted(sockets)
    ]


def write_json_file(path: Path, value: Any) -> None:
    """Write a small file of the run directory, all or nothing, readable by its owner only."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.touch(mode=0o600)
    temporary.write_text(json.dumps(value, indent=1))
    temporary.replace(path)


def tls_context(listener: Listener, number: int) -> ssl.SSLContext | None:
    """Return the TLS context of a listener; None: it speaks plain HTTP.

    Raises:
        ConfigError: certificate or key cannot be used.
    """
    if listener.tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(listener.tls.certificate_path, listener.tls.private_key_path)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"certificate {listener.tls.certificate_path} and key {listener.tls.private_key_path}"
            f" cannot be used: {error}",
            path=f"listeners[{number}].tls",
        ) from error
    return context

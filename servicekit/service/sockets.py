"""The unix socket on which each process answers about itself, `<process>.http.sock` in the run directory."""

import socket
from pathlib import Path

from servicekit.config.schema import Config
from servicekit.grpc.in_process import registry

SOCKET_SUFFIX = ".http"


def bind_process_socket(config: Config, process: str) -> socket.socket:
    """Return the unix socket of a process, bound, mode 0600."""
    path = config.socket_path(f"{process}{SOCKET_SUFFIX}")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound.bind(str(path))
    path.chmod(0o600)
    return bound


def process_sockets(directory: Path) -> list[Path]:
    """Return the processes' sockets in a directory, those of dead ones too."""
    return sorted(directory.glob(f"*{SOCKET_SUFFIX}.sock"))


def is_only_edge(config: Config) -> bool:
    """Say whether no client can write but through this process.

    With the embedded nats-server all processes are of this machine and of one run directory, and each has its
    socket there before it serves anybody: a clientapi in this process is the only one unless another, started
    alone, has left its socket (also one that was killed, until it is removed).
    """
    return (
        config.nats.embedded
        and registry.serves("clientapi")
        and not config.socket_path(f"clientapi{SOCKET_SUFFIX}").exists()
    )

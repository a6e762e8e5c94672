"""The unix socket on which each process answers about itself, `<process>.http.sock` in the run directory."""

import socket
from pathlib import Path

from servicekit.config.schema import Config

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

"""A real nats-server for tests: on a free port, in a temporary directory, with our users and permissions.

with running_nats(tmp_path) as nats:      # or the fixture of tests/integration/log/conftest.py
    connection = await LogConnection.connect(nats.settings("roomserver"), "roomserver")
"""

import asyncio
import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from servicekit.log.settings import LogSettings
from servicekit.nats_server import EmbeddedNats, find_nats_binary, read_password, write_nats_files

MIB = 1024 * 1024


class NatsProcess:
    """One embedded server that tests may kill and start again; data, port and passwords stay."""

    def __init__(self, directory: Path) -> None:
        self.run_dir = directory / "run"
        self.store_dir = directory / "nats"
        self.files: EmbeddedNats = write_nats_files(
            self.run_dir,
            self.store_dir,
            host="127.0.0.1",
            port=0,
            max_bytes=256 * MIB,
            binary=find_nats_binary(),
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and return when it takes connections."""
        self._process = subprocess.Popen(self.files.argv, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            if self._process.poll() is not None:
                raise RuntimeError(f"nats-server ended at start: {self.files.log_path.read_text()[-2000:]}")
            try:
                socket.create_connection((self.files.host, self.files.port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL it."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in good order."""
        self._end(signal.SIGTERM)

    @property
    def pid(self) -> int:
        """Its process id while it runs."""
        assert self._process is not None
        return self._process.pid

    def settings(self, service: str, **changes: object) -> LogSettings:
        """Return how `service` connects."""
        values: dict[str, object] = {
            "urls": (self.files.url,),
            "user": service,
            "password": read_password(self.run_dir, service),
            "max_bytes": 256 * MIB,
        }
        return LogSettings(**(values | changes))  # type: ignore[arg-type]

    def _end(self, signal_number: int) -> None:
        if self._process is not None:
            self._process.send_signal(signal_number)
            self._process.wait(timeout=15)
            self._process = None


@contextlib.contextmanager
def running_nats(directory: Path) -> Iterator[NatsProcess]:
    """Run a server for the time of a `with` block."""
    server = NatsProcess(directory)
    server.start()
    try:
        yield server
    finally:
        server.kill()


async def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    """Return as soon as a condition holds; TimeoutError if it does not in time."""
    async with asyncio.timeout(timeout_s):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)

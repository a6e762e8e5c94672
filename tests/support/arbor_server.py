"""A real `arbor run` in a folder of its own: every port free, every path below the folder, limits off.

Beside what any homeserver offers, it knows its processes by the service they run, so that a test can kill or
stop one of them.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.support import processes
from tests.support.homeserver import SHARED_SECRET, Homeserver
from tests.support.ports import free_port

ARBOR = Path(sys.executable).parent / "arbor"


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, section by section."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


class ArborServer(Homeserver):
    """One `arbor run` with everything under `folder`."""

    name = "Arbor"

    def __init__(
        self,
        folder: Path,
        server_name: str = "arbor.test",
        *,
        config: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        """`config` is laid over the settings of the tests; `environment` over ours (`ARBOR_FAULT`, say)."""
        super().__init__(folder)
        self.server_name = server_name
        self.environment = environment or {}
        folder.mkdir(parents=True, exist_ok=True)
        self.data_dir = folder / "data"
        self.run_dir = self.data_dir / "run"
        self.config_path = folder / "homeserver.yaml"
        settings: dict[str, Any] = {
            "server_name": server_name,
            "data_dir": str(self.data_dir),
            "listeners": [
                {"host": "127.0.0.1", "port": 0, "resources": ["client", "federation", "media", "admin"]},
                {"host": "127.0.0.1", "port": 0, "resources": ["metrics"]},
            ],
            "registration": {
                "enabled": True,
                "require_verification": False,
                "shared_secret": SHARED_SECRET,
            },
            "passwords": {"hash_cost": "minimal"},
            "rate_limits": {"enabled": False},
            "logging": {"level": "warning"},
        }
        self.config_path.write_text(yaml.safe_dump(merge(settings, config or {})))

    def _command(self) -> tuple[list[str], dict[str, str]]:
        with contextlib.suppress(FileNotFoundError):
            (self.run_dir / "listeners.json").unlink()
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ARBOR_")}
        return [str(ARBOR), "run", "--config", str(self.config_path)], environment | self.environment

    def listeners(self) -> list[dict[str, Any]]:
        """What it listens on, as it wrote it down: `host`, `port`, `resources`; nothing while starting."""
        try:
            found: list[dict[str, Any]] = json.loads((self.run_dir / "listeners.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return []
        return found

    def url_of(self, resource: str) -> str | None:
        """The URL of the first listener that serves `resource`."""
        for listener in self.listeners():
            if resource in listener["resources"]:
                return f"http://{listener['host']}:{listener['port']}"
        return None

    def _find_base_url(self) -> str | None:
        return self.url_of("client")

    async def command(self, *arguments: str, timeout_s: float = 60) -> tuple[int, str]:
        """Run `arbor ARGUMENTS` with its configuration; returns the exit status and what it printed."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ARBOR_")}
        process = await asyncio.create_subprocess_exec(
            str(ARBOR),
            *arguments,
            "--config",
            str(self.config_path),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(timeout_s):
            output, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode()

    # -- its processes --

    def pids(self) -> dict[str, int]:
        """The living processes by what they run: `nats`, `roomserver`, `edge`, `federation`, ..."""
        written = json.loads((self.run_dir / "pids.json").read_text())
        return {name: pid for name, pid in written.items() if psutil.pid_exists(pid) and pid != self.pid}

    def kill(self, service: str) -> int:
        """SIGKILL the process that runs `service`; returns its pid."""
        pid = self.pids()[service]
        os.kill(pid, signal.SIGKILL)
        return pid

    def send_signal(self, service: str, number: signal.Signals) -> None:
        """Send a signal to the process that runs `service` (SIGSTOP and SIGCONT, to hold one)."""
        os.kill(self.pids()[service], number)

    async def wait_for_restart(self, service: str, old_pid: int, timeout_s: float = 30) -> int:
        """Wait until another process than `old_pid` runs `service`; returns its pid."""
        deadline = time.monotonic() + timeout_s
        while True:
            pid = self.pids().get(service)
            if pid is not None and pid != old_pid:
                return pid
            if time.monotonic() > deadline:
                raise TimeoutError(f"{service} was not started again:\n{self.output_tail()}")
            await asyncio.sleep(0.05)

    def disk_bytes(self) -> int:
        """What it has on disk, logs of the run excepted."""
        return processes.disk_bytes(self.data_dir)


class SecondEdge(Homeserver):
    """One more clientapi process of a running deployment: same log, RoomServer and accounts, its own port.

    It serves all of clientapi and nothing of syncapi, so read elsewhere. Its `cpu_seconds` are its own.
    """

    name = "Arbor's second edge"

    def __init__(self, deployment: ArborServer) -> None:
        folder = deployment.folder / "second-edge"
        super().__init__(folder)
        folder.mkdir(exist_ok=True)
        self.server_name = deployment.server_name
        self._port = free_port()
        self.config_path = folder / "homeserver.yaml"
        settings = yaml.safe_load(deployment.config_path.read_text())
        own = {
            "listeners": [{"host": "127.0.0.1", "port": self._port, "resources": ["client"]}],
            "grpc": {"listen": {"clientapi": f"unix:{folder / 'clientapi.sock'}"}},
        }
        self.config_path.write_text(yaml.safe_dump(settings | own))

    def _command(self) -> tuple[list[str], dict[str, str]]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ARBOR_")}
        return [str(ARBOR), "clientapi", "--config", str(self.config_path)], environment

    def _find_base_url(self) -> str | None:
        return f"http://127.0.0.1:{self._port}"

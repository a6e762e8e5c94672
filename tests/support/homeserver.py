"""What every homeserver under test offers the tests: where it listens, users, and what it costs."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path

import aiohttp

from tests.support import processes
from tests.support.matrix_client import MatrixClient

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 40.0
SHARED_SECRET = "a secret of the tests"


class Homeserver(ABC):
    """A homeserver running as a tree of processes under one folder of its own."""

    name: str
    server_name: str
    base_url: str
    # Seconds from the start of the process to the first answer.
    start_seconds: float

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    # -- what each server does its own way --

    @abstractmethod
    def _command(self) -> tuple[list[str], dict[str, str]]:
        """The command that starts it in the foreground, and its environment."""

    @abstractmethod
    def _find_base_url(self) -> str | None:
        """Where it listens, as soon as that is known."""

    # -- life --

    async def start(self) -> None:
        """Start it and wait for its first answer."""
        command, environment = self._command()
        started = time.monotonic()
        with (self.folder / "output.log").open("ab") as output:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            await self._wait_until_it_answers(started + START_TIMEOUT_S)
        except BaseException:
            await self.stop()
            raise
        self.start_seconds = time.monotonic() - started

    async def _wait_until_it_answers(self, deadline: float) -> None:
        timeout = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                if self._process is None or self._process.poll() is not None:
                    raise RuntimeError(f"{self.name} ended while starting:\n{self.output_tail()}")
                if url := self._find_base_url():
                    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                        async with session.get(f"{url}/_matrix/client/versions") as response:
                            if response.status == 200:
                                self.base_url = url
                                return
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self.name} does not answer:\n{self.output_tail()}")
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """End it with SIGTERM; whatever is left after the time limit is killed, and that is an error."""
        process, self._process = self._process, None
        if process is None:
            return
        members = list(processes.process_tree(process.pid))
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        overdue = False
        try:
            await asyncio.to_thread(process.wait, STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            overdue = True
        for member in members:
            if member.is_running() and member.pid != process.pid:
                overdue = True
            with contextlib.suppress(Exception):
                member.kill()
        process.wait()
        if overdue:
            raise RuntimeError(f"{self.name} left processes behind at SIGTERM:\n{self.output_tail()}")

    def kill_everything(self) -> None:
        """SIGKILL the whole tree at once, as a power failure would."""
        process, self._process = self._process, None
        if process is None:
            return
        # Held first, so that it neither restarts nor ends in good order what is being killed.
        os.kill(process.pid, signal.SIGSTOP)
        for member in reversed(list(processes.process_tree(process.pid))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(member.pid, signal.SIGKILL)
        process.wait()

    @property
    def pid(self) -> int:
        """The process that `start` started."""
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._process.pid

    def output_tail(self, lines: int = 60) -> str:
        """The last lines that it printed."""
        path = self.folder / "output.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    # -- use --

    async def register(
        self,
        session: aiohttp.ClientSession,
        name: str,
        password: str = "correct horse",
        *,
        admin: bool = False,
    ) -> MatrixClient:
        """Make a user; returns a client of theirs."""
        nobody = MatrixClient(session, self.base_url)
        return await nobody.register_with_secret(SHARED_SECRET, name, password, admin=admin)

    # -- cost --

    def cpu_seconds(self) -> float:
        """CPU time so far of all its processes, the log's included."""
        return processes.cpu_seconds(self.pid)

    def memory_bytes(self) -> int:
        """Memory of all its processes, shared pages counted once."""
        return processes.memory_bytes(self.pid)

    def rss_bytes(self) -> int:
        """Resident memory of all its processes, shared pages counted for each."""
        return processes.rss_bytes(self.pid)

    def disk_bytes(self) -> int:
        """What it has on disk."""
        return processes.disk_bytes(self.folder)

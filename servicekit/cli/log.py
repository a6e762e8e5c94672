"""`arbor log show|dead|replay`."""

import asyncio
import contextlib
import json
import time
from collections.abc import Sequence
from typing import Any

import aiohttp
import sqlalchemy as sa
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message

from arbor.log.v1.input_pb2 import InputMessage
from arbor.log.v1.live_pb2 import LiveMessage
from arbor.log.v1.output_pb2 import OutputMessage
from servicekit.cli.main import SERVICES, CommandError
from servicekit.config import Config
from servicekit.database import create_engine, new_metadata
from servicekit.log.connection import LogConnection
from servicekit.log.reader import LogMessage, LogReader
from servicekit.log.tables import add_log_tables
from servicekit.logging import quiet_logging
from servicekit.service.exposition import process_sockets

_MESSAGES: dict[str, type[Message]] = {
    "INPUT": InputMessage,
    "OUTPUT": OutputMessage,
    "LIVE": LiveMessage,
}
CONNECT_S = 10.0
IDLE_S = 1.0


def show(
    config: Config, stream: str, *, after: int | None, limit: int, about: str | None, follow: bool
) -> int:
    """Print entries of a stream, one JSON object a line."""
    quiet_logging()
    try:
        asyncio.run(_show(config, stream, after, limit, about, follow))
    except FileNotFoundError as error:
        raise CommandError(f"no server has run with {config.data_dir}") from error
    except TimeoutError as error:
        raise CommandError("NATS does not answer; does the server run?") from error
    return 0


async def _show(
    config: Config, stream: str, after: int | None, limit: int, about: str | None, follow: bool
) -> None:
    async with asyncio.timeout(CONNECT_S):
        connection = await LogConnection.connect(config, "operator")
        await connection.wait_for_streams([stream])
    try:
        info = await connection.load_stream(stream)
        if info is None:
            raise CommandError(f"there is no stream {stream}")
        last = info.last_sequence
        start = max(last - limit, info.first_sequence - 1) if after is None else after
        reader = LogReader(connection, stream, after=max(start, info.first_sequence - 1))
        shown = 0
        async with contextlib.aclosing(reader.batches(max_messages=min(limit, 200))) as batches:
            while follow or (reader.position < last and shown < limit):
                try:
                    async with asyncio.timeout(None if follow else IDLE_S):
                        batch = await anext(batches)
                except (TimeoutError, StopAsyncIteration):
                    break
                for message in batch.messages:
                    line = describe(stream, message)
                    if about is None or about in json.dumps(line):
                        print(json.dumps(line, ensure_ascii=False), flush=True)
                        shown += 1
    finally:
        await connection.close()


def describe(stream: str, message: LogMessage) -> dict[str, Any]:
    """Return a message of a stream as plain JSON values; events' JSON is shown as what it says."""
    line: dict[str, Any] = {
        "sequence": message.sequence,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(message.time_ms / 1000)),
        "subject": message.subject,
    }
    if message.headers:
        line["headers"] = message.headers
    decoded = _MESSAGES[stream]()
    try:
        decoded.ParseFromString(message.data)
    except DecodeError as error:
        line["undecodable"] = str(error)
        return line
    line["message"] = _readable(MessageToDict(decoded, preserving_proto_field_name=True))
    return line


def _readable(value: Any) -> Any:
    """Turn the Base64 of bytes that hold JSON into that JSON."""
    if isinstance(value, dict):
        return {key: _readable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_readable(item) for item in value]
    if isinstance(value, str) and value.startswith("ey"):  # Base64 of `{"`
        import base64
        import binascii

        with contextlib.suppress(ValueError, binascii.Error):
            return json.loads(base64.b64decode(value, validate=True))
    return value


def dead_letters(config: Config, service: str) -> list[dict[str, Any]]:
    """Return a service's dead letters as rows; empty where it has no database or no such table."""
    table = add_log_tables(new_metadata()).dead_letter
    url = config.database_url(service)
    if url.startswith("sqlite:///"):
        from pathlib import Path

        if not Path(url.removeprefix("sqlite:///")).exists():
            return []
    engine = create_engine(url, role="reader")
    try:
        with engine.connect() as connection, connection.begin():
            if not sa.inspect(connection).has_table(table.name):
                return []
            rows = connection.execute(sa.select(table).order_by(table.c.id))
            return [dict(row._mapping) for row in rows]
    finally:
        engine.dispose()


def print_dead(config: Config, service: str | None, *, trace: bool) -> int:
    """Print what could not be applied."""
    found = 0
    for name in [service] if service else SERVICES:
        for row in dead_letters(config, name):
            found += 1
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["created_ms"] / 1000))
            place = f"{row['stream']} {row['sequence']}"
            if row["entry_index"] >= 0:
                place += f"[{row['entry_index']}]"
            print(f"{name} {row['id']}  {when}  {place}  {row['about']}  {row['error']}")
            if trace:
                print(row["traceback"])
    if found:
        print(f"{found} dead; once the cause is mended: arbor log replay SERVICE [ID ...]")
    else:
        print("none")
    return 0


def replay(config: Config, service: str, ids: Sequence[int]) -> int:
    """Have a running service apply dead letters again."""
    answer = asyncio.run(_replay(config, service, ids))
    print(json.dumps(answer, indent=1, ensure_ascii=False))
    return 0


async def _replay(config: Config, service: str, ids: Sequence[int]) -> Any:
    for path in process_sockets(config.socket_path("x").parent):
        connector = aiohttp.UnixConnector(path=str(path))
        async with aiohttp.ClientSession(connector=connector) as session:
            with contextlib.suppress(aiohttp.ClientConnectorError):
                body = {"service": service, "ids": list(ids)}
                async with session.post("http://process/replay", json=body) as response:
                    answer = await response.json()
                    if response.status == 200:
                        return answer
                    if response.status != 404:
                        raise CommandError(str(answer.get("error")))
    raise CommandError(f"no process with {config.run_dir} runs {service}")

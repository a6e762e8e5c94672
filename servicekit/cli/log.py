"""`arbor log show`: entries of a stream as JSON lines."""

import asyncio
import base64
import binascii
import contextlib
import json
import time
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message

from arbor.log.v1.input_pb2 import InputMessage
from arbor.log.v1.live_pb2 import LiveMessage
from arbor.log.v1.output_pb2 import OutputMessage
from servicekit.cli.main import CommandError
from servicekit.config import Config
from servicekit.log.connection import LogConnection
from servicekit.log.reader import LogMessage, LogReader
from servicekit.logging import quiet_logging

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
        with contextlib.suppress(ValueError, binascii.Error):
            return json.loads(base64.b64decode(value, validate=True))
    return value

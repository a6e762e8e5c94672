"""A listener of ours on a free port, and a client that sends exactly the bytes it is told to."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson

from servicekit.config.schema import Http
from servicekit.http import HttpListener, Router


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: `headers` has lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return orjson.loads(self.body)

    @property
    def errcode(self) -> str | None:
        """The errcode of an error response."""
        value = self.json
        return value.get("errcode") if isinstance(value, dict) else None


@contextlib.asynccontextmanager
async def listening(router: Router, limits: Http | None = None, **options: Any) -> AsyncIterator[int]:
    """Serve a router on a free port of the loopback interface; gives the port."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    listener = HttpListener(router, limits, **options)
    await listener.start(sock)
    try:
        yield sock.getsockname()[1]
    finally:
        await listener.stop(0)


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the port, closed in the end whatever state it is in."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def raw_request(
    port: int,
    method: str,
    target: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    *,
    head: bytes | None = None,
) -> Answer:
    """Send a request with the target as it stands, nothing encoded or normalised; returns the answer.

    `head` replaces the whole head of the request, for malformed ones.
    """
    async with connected(port) as (reader, writer):
        lines = {"Host": "test", **(headers or {})}
        if body is not None:
            lines.setdefault("Content-Length", str(len(body)))
        text = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
        writer.write((head if head is not None else text.encode("utf-8", "surrogateescape")) + (body or b""))
        return await read_answer(reader, method)


async def read_answer(reader: asyncio.StreamReader, method: str = "GET") -> Answer:
    """Read one response."""
    async with asyncio.timeout(20):
        status = int((await reader.readline()).split()[1])
        headers: dict[str, str] = {}
        while line := (await reader.readline()).strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", "0"))
        body = b"" if method == "HEAD" or status == 204 else await reader.readexactly(length)
    return Answer(status, headers, body)

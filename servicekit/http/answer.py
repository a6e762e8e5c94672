"""An answer whose body is at hand, written in one go.

aiohttp's own response builds a map of headers, looks for compression and cookies and goes through three
coroutines: more work than most of our handlers do. This one has what aiohttp's protocol asks of a response
(`prepare`, `write_eof`, `keep_alive`) and makes the head from text.
"""

from functools import lru_cache
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time

_JOIN_BYTES = 65_536
"""Bodies up to this size are copied behind the head; larger ones go to the socket as they are."""


class Answer:
    """One response, complete.

    Args:
        status: of HTTP.
        headers: all but Content-Length, Date and Connection, which are added here.
        body: nothing is sent of it for HEAD, 204 and 304.

    Raises:
        ValueError: a header holds a line end.
    """

    __slots__ = ("_body", "_head", "keep_alive", "status")

    def __init__(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.status = status
        self.keep_alive: bool | None = None
        """What aiohttp looks at when it is written."""
        self._head = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if self._head.count("\n") != len(headers) or self._head.count("\r") != len(headers):
            raise ValueError("a header holds a line end")
        self._body = body

    def force_close(self) -> None:
        """Close the connection after it."""
        self.keep_alive = False

    async def prepare(self, request: web.BaseRequest) -> None:
        """Decide about the connection and write everything.

        Raises:
            ConnectionResetError: the client is gone.
        """
        if self.keep_alive is None:
            self.keep_alive = request.keep_alive
        version = request.version
        connection = ""
        if version >= (1, 1):
            if not self.keep_alive:
                connection = "Connection: close\r\n"
        elif self.keep_alive:
            connection = "Connection: keep-alive\r\n"
        body = self._body
        # Neither has a body, and its length says nothing (RFC 9110, 8.6).
        length = "" if self.status in (204, 304) else f"Content-Length: {len(body)}\r\n"
        head = (
            f"HTTP/{version.major}.{version.minor} {_reason(self.status)}\r\n{self._head}{length}"
            f"Date: {rfc822_formatted_time()}\r\n{connection}\r\n"
        ).encode()
        protocol: Any = request.protocol
        transport = protocol.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        if not length or request.method == "HEAD" or not body:
            transport.write(head)
        elif len(body) <= _JOIN_BYTES:
            transport.write(head + body)
        else:
            transport.writelines((head, body))
        if protocol._paused:
            # The client takes it slowly: the next request waits until it has.
            await protocol._drain_helper()

    async def write_eof(self) -> None:
        """Everything is written."""


@lru_cache(maxsize=64)
def _reason(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} "

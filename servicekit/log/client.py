"""The NATS client: nats-py with three changes.

* `raw_handlers`: a subscription's messages go as bytes, synchronously, to a function, without the header
  parsing, message object, queue and task of the normal path. Acks and log entries come this way.
* `send`: a command is handed to the flusher without awaiting.
* An error of the server or in the read loop means reconnecting, for ever; nothing closes the client but
  `close()`.

This uses inner names of nats-py; `tests/integration/log/test_connection.py` fails if a later version moves
them.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from nats import errors as nats_errors
from nats.aio.client import Client

RawHandler = Callable[[bytes, bytes, bytes, bytes | None], None]
"""Called with (subject, reply, data, header block or None). Must not raise, must not block."""

HEADER_START = b"NATS/1.0\r\n"


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """Return the wire form of headers.

    Raises:
        ValueError: a name or value holds a line end.
    """
    block = HEADER_START + "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
    if block.count(b"\n") != len(headers) + 1 or block.count(b"\r") != len(headers) + 1:
        raise ValueError("a header holds a line end")
    return block + b"\r\n"


def decode_headers(block: bytes | None) -> dict[str, str]:
    """Return the headers of a block from the wire, without the status line."""
    if not block:
        return {}
    headers = {}
    for line in block.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            headers[name.decode("utf-8", "replace")] = value.strip().decode("utf-8", "replace")
    return headers


def status_of(block: bytes | None) -> tuple[int, str]:
    """Return the status code and text in a header block; (0, "") where there is none."""
    if not block or not block.startswith(b"NATS/1.0 "):
        return 0, ""
    code, _, text = block[9 : block.index(b"\r\n")].partition(b" ")
    return (int(code), text.decode("utf-8", "replace").strip()) if code.isdigit() else (0, "")


class LogClient(Client):  # type: ignore[misc, unused-ignore] # nats-py is typed in part
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.raw_handlers: dict[int, RawHandler] = {}
        self.on_trouble: Callable[[BaseException], None] = lambda error: None

    async def subscribe_raw(self, subject: str, handler: RawHandler) -> int:
        """Subscribe; the subscription outlives reconnects. Returns its id for `unsubscribe_raw`."""
        subscription = await self.subscribe(subject)
        self.raw_handlers[subscription._id] = handler
        return int(subscription._id)

    def unsubscribe_raw(self, sid: int) -> None:
        """End a subscription made by `subscribe_raw`."""
        self.raw_handlers.pop(sid, None)
        subscription = self._subs.pop(sid, None)
        if subscription is not None:
            subscription._closed = True
            subscription._stop_processing()
            if self.is_connected:
                self.send(b"UNSUB %d\r\n" % sid)

    def send(self, command: bytes) -> None:
        """Hand a complete protocol command to the flusher. Only while connected."""
        self._pending.append(command)
        self._pending_data_size += len(command)
        assert self._flush_queue is not None, "only while connected"
        if self._flush_queue.empty():
            self._flush_queue.put_nowait(asyncio.get_running_loop().create_future())

    def drop_unsent(self) -> None:
        """Forget commands that were not written yet: after a lost connection their senders were told so."""
        self._pending = []
        self._pending_data_size = 0

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Any) -> None:
        handler = self.raw_handlers.get(sid)
        if handler is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        try:
            handler(subject, reply, data, headers)
        except Exception as error:
            self.on_trouble(error)

    async def _process_err(self, err_msg: str) -> None:
        error = nats_errors.Error(f"nats: {err_msg.strip(chr(39))}")
        if "permissions violation" in err_msg:
            await self._error_cb(error)
        else:
            await self._process_op_err(error)

    async def _read_loop(self) -> None:
        await super()._read_loop()
        # nats-py leaves the loop silently on an error it does not know: that would be half dead.
        if self.is_connected:
            await self._process_op_err(nats_errors.Error("nats: the read loop ended"))

    async def _attempt_reconnect(self) -> None:
        while True:
            try:
                await super()._attempt_reconnect()
            except Exception as error:
                self.on_trouble(error)
                await asyncio.sleep(0.2)
            else:
                return

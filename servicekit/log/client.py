"""The NATS client: nats-py with three changes.

* `raw_handlers`: a subscription's messages go as bytes, from the socket's callback, to a function, without the
  header parsing, message object, queue and tasks of the normal path. Acks and log entries come this way.
* `send`: what one turn of the loop sends is written at once, without awaiting and without a task of its own.
* An error of the server or in the read loop means reconnecting, for ever; nothing closes the client but
  `close()`.

This uses inner names of nats-py; `tests/integration/log/test_connection.py` fails if a later version moves
them.
"""

import asyncio
from collections.abc import Callable, Mapping

import orjson
from nats import errors as nats_errors
from nats.aio.client import Client

RawHandler = Callable[[bytes, bytes, bytes, bytes | None], None]
"""Called with (subject, reply, data, header block or None). Must not raise, must not block."""

WRITE_BUFFER_BYTES = 1024 * 1024
READ_BYTES = 256 * 1024
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
        self._write_scheduled = False
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
        """Write a complete protocol command together with what else is sent in this turn of the loop.

        Only while connected.
        """
        self._pending.append(command)
        self._pending_data_size += len(command)
        if not self._write_scheduled:
            self._write_scheduled = True
            asyncio.get_running_loop().call_soon(self._write_pending)

    def _write_pending(self) -> None:
        self._write_scheduled = False
        writer = getattr(self._transport, "_io_writer", None)
        if not self._pending or not self.is_connected or writer is None or self._flush_queue is None:
            return  # lost meanwhile: `drop_unsent`, or the flusher after reconnecting
        if writer.transport.get_write_buffer_size() > WRITE_BUFFER_BYTES:
            # The server does not keep up: the flusher waits until it does.
            if self._flush_queue.empty():
                self._flush_queue.put_nowait(asyncio.get_running_loop().create_future())
            return
        writer.write(b"".join(self._pending))
        self._pending = []
        self._pending_data_size = 0

    def drop_unsent(self) -> None:
        """Forget commands that were not written yet: after a lost connection their senders were told so."""
        self._pending = []
        self._pending_data_size = 0

    async def _process_err(self, err_msg: str) -> None:
        error = nats_errors.Error(f"nats: {err_msg.strip(chr(39))}")
        if "permissions violation" in err_msg:
            await self._error_cb(error)
        else:
            await self._process_op_err(error)

    async def _read_loop(self) -> None:
        rest = b""
        error: Exception
        try:
            self._tap_reader()
            while not (self.is_closed or self.is_reconnecting or self._transport is None):
                chunk = await self._transport.read(READ_BYTES)
                if not chunk:
                    raise nats_errors.UnexpectedEOF
                others: list[bytes] = []
                rest = self._take(rest + chunk if rest else chunk, others.append)
                for command in others:
                    await self._act(command)
            return
        except asyncio.CancelledError:
            return
        except Exception as caught:
            error = caught
        # Whatever it was: a client that does not read is half dead.
        await self._error_cb(error)
        await self._process_op_err(error)

    def _tap_reader(self) -> None:
        """Have messages handled where they come from the socket: only what needs a task goes on to the reader.

        Waking the task for each chunk costs more than all that is done with most of them.
        """
        reader = getattr(self._transport, "_io_reader", None)
        if reader is None:
            return  # not a plain socket
        pass_on = reader.feed_data
        rest = b""

        def feed(data: bytes) -> None:
            nonlocal rest
            rest = self._take(rest + data if rest else data, pass_on)

        buffered = bytes(reader._buffer)
        reader._buffer.clear()
        reader.feed_data = feed
        feed(buffered)

    def _take(self, buffer: bytes, pass_on: Callable[[bytes], object]) -> bytes:
        """Hand the messages in a buffer to their raw handlers and pass all other complete commands on; return what
        is left of it.
        """
        handlers = self.raw_handlers
        at = 0
        while True:
            end = buffer.find(b"\r\n", at)
            if end < 0:
                return buffer[at:]
            line = buffer[at:end]
            first = end + 2
            if line.startswith((b"MSG ", b"HMSG ")):
                sid, subject, reply, body, last = _frame(line, first)
                if len(buffer) < last + 2:
                    return buffer[at:]
                handler = handlers.get(sid)
                if handler is None:
                    pass_on(buffer[at : last + 2])
                else:
                    try:
                        handler(
                            subject, reply, buffer[body:last], buffer[first:body] if body > first else None
                        )
                    except Exception as error:  # one bad message must not end the reading
                        self.on_trouble(error)
                at = last + 2
            else:
                pass_on(buffer[at:first])
                at = first

    async def _act(self, command: bytes) -> None:
        """Act on a command that no raw handler takes."""
        end = command.index(b"\r\n")
        line = command[:end]
        if line.startswith((b"MSG ", b"HMSG ")):
            first = end + 2
            sid, subject, reply, body, last = _frame(line, first)
            headers = command[first:body] if body > first else None
            await self._process_msg(sid, subject, reply, command[body:last], headers)  # type: ignore[arg-type]
        elif line == b"PING":
            await self._process_ping()
        elif line == b"PONG":
            await self._process_pong()
        elif line.startswith(b"INFO "):
            await self._process_info(orjson.loads(line[5:]))
        elif line.startswith(b"-ERR"):
            await self._process_err(line[4:].strip().decode("utf-8", "replace").lower())
        elif line != b"+OK":
            raise nats_errors.ProtocolError(line[:100])

    async def _attempt_reconnect(self) -> None:
        while True:
            try:
                await super()._attempt_reconnect()
            except Exception as error:
                self.on_trouble(error)
                await asyncio.sleep(0.2)
            else:
                return


def _frame(line: bytes, first: int) -> tuple[int, bytes, bytes, int, int]:
    """Return (subscription, subject, reply, where the body begins, where it ends) of a message.

    `MSG <subject> <sid> [reply] <size>` or `HMSG <subject> <sid> [reply] <header size> <size>`, and what follows
    the line begins at `first`.
    """
    words = line.split()
    last = first + int(words[-1])
    if words[0] == b"HMSG":
        return int(words[2]), words[1], words[3] if len(words) == 6 else b"", first + int(words[-2]), last
    return int(words[2]), words[1], words[3] if len(words) == 5 else b"", first, last

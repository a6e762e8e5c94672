"""The asking side of verdicts: a writer waits for what the RoomServer decided about its entry.

    inbox = await VerdictInbox.open(connection, decode)
    with inbox.expect(request_id) as verdict:          # before publishing: the verdict may be quick
        await connection.publish(subject, entry(reply_to=inbox.subject, request_id=request_id))
        answer = await verdict.wait(deadline_s)

One core-NATS message brings the verdicts of a whole batch for this process. It may be lost (NATS restarts,
the RoomServer dies after its commit): then `VerdictTimeout`, and the caller asks for the outcome.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Generic, Self, TypeVar

from servicekit.log.connection import LogConnection
from servicekit.log.errors import VerdictTimeout
from servicekit.logging import get_logger

log = get_logger("servicekit.log")

V = TypeVar("V")
Decode = Callable[[bytes], Iterable[tuple[str, V]]]
"""Decodes a message into (request id, verdict) pairs."""


class ExpectedVerdict(Generic[V]):
    """A place for one verdict. Leave its `with` block when you no longer wait."""

    __slots__ = ("_expected", "_future", "request_id")

    def __init__(self, expected: "dict[str, asyncio.Future[V]]", request_id: str) -> None:
        self._expected = expected
        self.request_id = request_id
        self._future: asyncio.Future[V] = asyncio.get_running_loop().create_future()

    async def wait(self, timeout_s: float) -> V:
        """Return the verdict.

        Raises:
            VerdictTimeout: none came within `timeout_s`.
        """
        if not self._future.done():
            try:
                async with asyncio.timeout(timeout_s):
                    return await asyncio.shield(self._future)
            except TimeoutError as error:
                raise VerdictTimeout(f"no verdict on {self.request_id} within {timeout_s:g} s") from error
        return self._future.result()

    def __enter__(self) -> Self:
        if self.request_id in self._expected:
            raise ValueError(f"the request id {self.request_id} is in use")
        self._expected[self.request_id] = self._future
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._expected.pop(self.request_id, None)
        self._future.cancel()


class VerdictInbox(Generic[V]):
    """See the module. `subject` goes into each entry as the place to answer to."""

    def __init__(self, connection: LogConnection, decode: Decode[V]) -> None:
        self.subject = f"verdict.{connection.service}.{connection.instance}"
        self._connection = connection
        self._decode = decode
        self._expected: dict[str, asyncio.Future[V]] = {}
        self._sid: int | None = None

    @classmethod
    async def open(cls, connection: LogConnection, decode: Decode[V]) -> Self:
        """Subscribe; the subscription outlives reconnects."""
        self = cls(connection, decode)
        self._sid = await connection.nc.subscribe_raw(self.subject, self._on_message)
        return self

    def expect(self, request_id: str) -> ExpectedVerdict[V]:
        """Return a context manager that takes the verdict on `request_id`. Enter it before publishing."""
        return ExpectedVerdict(self._expected, request_id)

    async def wait(self, request_id: str, timeout_s: float) -> V:
        """Wait for one verdict; whoever publishes first and waits then may miss it: see `expect`.

        Raises:
            VerdictTimeout: none came within `timeout_s`.
        """
        with self.expect(request_id) as verdict:
            return await verdict.wait(timeout_s)

    def close(self) -> None:
        """Unsubscribe."""
        if self._sid is not None:
            self._connection.nc.unsubscribe_raw(self._sid)
            self._sid = None

    def _on_message(self, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        try:
            verdicts = list(self._decode(data))
        except Exception as error:
            # The writers run into their deadlines and ask for the outcome.
            log.error("verdicts_undecodable", error=f"{type(error).__name__}: {error}", size=len(data))
            return
        for request_id, verdict in verdicts:
            future = self._expected.get(request_id)
            if future is not None and not future.done():
                future.set_result(verdict)

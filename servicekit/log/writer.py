"""Writing to INPUT: messages for one subject that come while another is on its way there go together.

    writer = LogWriter(connection)
    sequence = await writer.publish(subject, InputMessage(room_id=…, entries=[…]).SerializeToString())

A stored message costs the NATS server a sync, whatever its size, so joining is what keeps many writers into
one room cheap; a lone one goes at once. The data of several protobuf messages one after the other *is* their
merge: their repeated fields joined in order. So only messages whose other fields are equal may be written to
one subject. Order within a subject is the order of the calls.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from functools import partial

from servicekit.log.connection import LogConnection
from servicekit.log.errors import LogError, LogUnavailable
from servicekit.log.publishing import PUBLISH_TIMEOUT_S

JOINED_MAX_BYTES = 512 * 1024
JOINED_MAX = 100


class _Waiting:
    """One call that waits for its turn."""

    __slots__ = ("data", "future", "headers")

    def __init__(self, data: bytes, headers: Mapping[str, str] | None) -> None:
        self.data = data
        self.headers = headers
        self.future: asyncio.Future[int] = asyncio.get_running_loop().create_future()


class LogWriter:
    """See the module."""

    def __init__(self, connection: LogConnection, *, timeout_s: float = PUBLISH_TIMEOUT_S) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        # A subject is a key while a message is on its way there.
        self._busy: dict[str, deque[_Waiting]] = {}

    async def publish(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> int:
        """Publish and return the stream sequence of the message that holds `data` once it is stored.

        Of joined messages the first one's `headers` are sent.

        Raises:
            LogUnavailable, PublishTimeout, PublishRefused: as `LogConnection.publish`, for all that were
            joined.
        """
        waiting = _Waiting(data, headers)
        queue = self._busy.get(subject)
        if queue is not None:
            queue.append(waiting)
        else:
            if not self._connection.connected:
                try:
                    async with asyncio.timeout(self._timeout_s):
                        await self._connection.wait_connected()
                except TimeoutError as error:
                    raise LogUnavailable("there is no connection to the log") from error
            queue = self._busy.get(subject)
            if queue is not None:
                queue.append(waiting)
            else:
                self._busy[subject] = deque()
                self._send(subject, [waiting])
        return await waiting.future

    def _send(self, subject: str, joined: list[_Waiting]) -> None:
        self._connection.publish_callback(
            subject,
            joined[0].data if len(joined) == 1 else b"".join([waiting.data for waiting in joined]),
            partial(self._on_done, subject, joined),
            headers=joined[0].headers,
            timeout_s=self._timeout_s,
        )

    def _on_done(self, subject: str, joined: list[_Waiting], sequence: int, error: LogError | None) -> None:
        for waiting in joined:
            if waiting.future.done():
                continue
            if error is None:
                waiting.future.set_result(sequence)
            else:
                waiting.future.set_exception(error)
        queue = self._busy[subject]
        if not queue:
            del self._busy[subject]
            return
        following = [queue.popleft()]
        size = len(following[0].data)
        while queue and len(following) < JOINED_MAX and size + len(queue[0].data) <= JOINED_MAX_BYTES:
            size += len(queue[0].data)
            following.append(queue.popleft())
        self._send(subject, following)

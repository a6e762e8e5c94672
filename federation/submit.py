"""Writing to INPUT and waiting for the RoomServer's verdicts.

What comes from other servers is judged one by one and may fork: one entry an event. What is built here
follows the rules for local writers. A verdict that is lost is asked for.
"""

import asyncio
import itertools
from collections.abc import Iterable, Sequence

from arbor.log.v1 import common_pb2, input_pb2
from federation.clock import NowMs
from federation.rooms import Rooms
from matrixlib.events import Event
from servicekit.errors import MatrixError, unavailable
from servicekit.log.connection import LogConnection
from servicekit.log.errors import LogError, VerdictTimeout
from servicekit.log.subjects import room_input_subject
from servicekit.log.verdicts import VerdictInbox

VERDICT_TIMEOUT_S = 20.0
OUTCOME_TIMEOUT_S = 5.0
# Room for the envelope below the 1 MiB that a message may have.
MAX_MESSAGE_BYTES = 900 * 1024
MAX_BUSY_TRIES = 5

Verdict = input_pb2.Verdict
VerdictCode = input_pb2.VerdictCode


def decode_verdicts(data: bytes) -> Iterable[tuple[str, Verdict]]:
    """Decode a message of verdicts into (request id, verdict) pairs."""
    return [(verdict.request_id, verdict) for verdict in input_pb2.Verdicts.FromString(data).verdicts]


def event_message(event: Event) -> common_pb2.Event:
    """An event as it goes into entries."""
    return common_pb2.Event(event_id=event.event_id, pdu_json=event.pdu_json)


def federation_entry(event: Event, origin_server: str) -> input_pb2.InputEntry:
    """The entry for one new event of another server."""
    return input_pb2.InputEntry(
        submit_events=input_pb2.SubmitEvents(
            origin=input_pb2.EVENT_ORIGIN_FEDERATION,
            room_version=event.room_version.identifier,
            events=[event_message(event)],
            origin_server=origin_server,
        )
    )


class Submitter:
    """See the module."""

    def __init__(
        self, connection: LogConnection, inbox: "VerdictInbox[Verdict]", rooms: Rooms, now_ms: NowMs
    ) -> None:
        self._connection = connection
        self._inbox = inbox
        self._rooms = rooms
        self._now_ms = now_ms
        self._numbers = itertools.count(1)

    async def submit(
        self, room_id: str, entry: input_pb2.InputEntry, timeout_s: float = VERDICT_TIMEOUT_S
    ) -> Verdict:
        """Write one entry and return its verdict.

        Raises:
            MatrixError: 503, there is no log or no verdict in time; it may be judged later.
        """
        verdicts = await self.submit_all(room_id, [entry], timeout_s)
        if verdicts[0] is None:
            raise unavailable("The room does not answer in time")
        return verdicts[0]

    async def submit_all(
        self, room_id: str, entries: Sequence[input_pb2.InputEntry], timeout_s: float = VERDICT_TIMEOUT_S
    ) -> list[Verdict | None]:
        """Write entries of one room, in order, and return their verdicts; None: none came in time.

        Raises:
            MatrixError: 503, the log does not take them; nothing of what is missing was stored.
        """
        verdicts: list[Verdict | None] = [None] * len(entries)
        todo = list(range(len(entries)))
        for attempt in range(MAX_BUSY_TRIES):
            await self._round(room_id, entries, todo, verdicts, timeout_s)
            busy = [
                index
                for index in todo
                if (verdict := verdicts[index]) is not None and verdict.code == input_pb2.VERDICT_CODE_BUSY
            ]
            if not busy or attempt == MAX_BUSY_TRIES - 1:
                break
            # Everything from the first refused one on, so that the order is kept.
            todo = [index for index in todo if index >= busy[0]]
            first = verdicts[busy[0]]
            await asyncio.sleep(min((first.retry_after_ms if first else 0) or 200, 5000) / 1000)
        return verdicts

    async def _round(
        self,
        room_id: str,
        entries: Sequence[input_pb2.InputEntry],
        todo: Sequence[int],
        verdicts: list[Verdict | None],
        timeout_s: float,
    ) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        subject = room_input_subject(room_id, self._connection.partitions)
        expected = []
        try:
            sequences: dict[int, int] = {}
            for chunk in _chunks(entries, todo):
                message = input_pb2.InputMessage(room_id=room_id)
                for index in chunk:
                    entry = message.entries.add()
                    entry.CopyFrom(entries[index])
                    entry.request_id = f"{self._connection.instance}.{next(self._numbers)}"
                    entry.reply_to = self._inbox.subject
                    entry.created_ms = self._now_ms()
                    place = self._inbox.expect(entry.request_id)
                    place.__enter__()
                    expected.append((index, place))
                try:
                    sequence = await self._connection.publish(subject, message.SerializeToString())
                except LogError as error:
                    raise unavailable(f"The log does not take the event: {error}") from error
                sequences.update(dict.fromkeys(chunk, sequence))
            for index, place in expected:
                try:
                    verdicts[index] = await place.wait(max(deadline - loop.time(), 0.001))
                except VerdictTimeout:
                    verdicts[index] = await self._ask(room_id, entries[index], sequences[index])
        finally:
            for _, place in expected:
                place.__exit__(None, None, None)

    async def _ask(self, room_id: str, entry: input_pb2.InputEntry, sequence: int) -> Verdict | None:
        """Ask for an outcome whose verdict did not come."""
        event_id = _last_event_id(entry)
        if not event_id:
            return None
        try:
            answer = await self._rooms.outcome(room_id, event_id, sequence, OUTCOME_TIMEOUT_S)
        except MatrixError:
            return None
        return answer.verdict if answer.known else None


def _last_event_id(entry: input_pb2.InputEntry) -> str:
    kind = entry.WhichOneof("kind")
    if kind == "submit_events" and entry.submit_events.events:
        return entry.submit_events.events[-1].event_id
    # That the join is in the room does not say that the room is complete: the entry is written again.
    if kind == "commit_import" and not entry.commit_import.completes:
        return entry.commit_import.join_event.event_id
    return ""


def _chunks(entries: Sequence[input_pb2.InputEntry], todo: Sequence[int]) -> Iterable[list[int]]:
    chunk: list[int] = []
    size = 0
    for index in todo:
        length = entries[index].ByteSize() + 200
        if chunk and size + length > MAX_MESSAGE_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(index)
        size += length
    if chunk:
        yield chunk


def refusal_of(verdict: Verdict) -> MatrixError:
    """Return the error that a verdict other than accepted stands for at an HTTP edge."""
    rejection = verdict.rejection
    if verdict.code == input_pb2.VERDICT_CODE_BUSY:
        return unavailable("The room is busy", int(verdict.retry_after_ms) or 1000)
    if rejection.errcode == "M_TOO_LARGE":
        return MatrixError("M_TOO_LARGE", 413, rejection.reason)
    return MatrixError("M_FORBIDDEN", 403, rejection.reason or "The event was refused")


def malformed(pdu: object, error: ValueError) -> MatrixError:
    """Return the error for what is no event of its room's version; one that nobody signed is forbidden."""
    if isinstance(pdu, dict) and "type" in pdu and "signatures" not in pdu:
        return MatrixError("M_FORBIDDEN", 403, "The event is not signed")
    return MatrixError("M_BAD_JSON", 400, f"Not an event of that room version: {error}")


def is_accepted(verdict: Verdict) -> bool:
    """Whether the event stands in the room, since now or since before."""
    return verdict.code in (input_pb2.VERDICT_CODE_ACCEPTED, input_pb2.VERDICT_CODE_DUPLICATE)

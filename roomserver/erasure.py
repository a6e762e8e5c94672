"""What was redacted or purged leaves the log at once: always what a purged room was told, the rest with
`log.secure_erase`.

Runs behind the verdicts, on whole messages: on OUTPUT those that carry the body of such an event, found by
what was kept of them for `Export`; on INPUT those already judged that brought it. A reader that had not come
so far misses the message (a missing sequence is normal to it); an export has it, with the redacted form.

What is to go is a row, stored with its cause and deleted when it is gone; whoever owns the partition does it.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection

from google.protobuf.message import DecodeError
from sqlalchemy import Connection

from arbor.log.v1.input_pb2 import InputMessage
from arbor.log.v1.output_pb2 import OutputMessage
from roomserver import metrics
from roomserver.storage import erasures, events, rooms
from roomserver.storage.erasures import Erasure
from servicekit.database import Database
from servicekit.database.raw import Sql
from servicekit.log.applying import is_transient
from servicekit.log.connection import LogConnection
from servicekit.log.errors import LogUnavailable
from servicekit.log.faultpoints import fault_point
from servicekit.log.reader import LogReader
from servicekit.log.subjects import INPUT, OUTPUT, room_input_subject, room_output_subject
from servicekit.logging import get_logger

log = get_logger("roomserver.erasure")

RETRY_S = 1.0
PLACE_S = 0.05
PAGE = 500
AT_ONCE = 100
SCAN_IDLE_S = 2.0

_MESSAGES = Sql(
    "SELECT sequence, skeleton FROM output_message WHERE room_nid = ? AND sequence > ? AND sequence >= ?"
    " ORDER BY sequence LIMIT ?"
)


class Eraser:
    """See the module. Belongs to one event loop.

    Args:
        connection: of the RoomServer, which may delete messages.
        database: its own.
        partition_count: of the streams.
        owned: gives the partitions that are ours.
        store_places: has stored where messages stand on OUTPUT, as far as is known.
    """

    def __init__(
        self,
        connection: LogConnection,
        database: Database,
        partition_count: int,
        owned: Callable[[], list[int]],
        store_places: Callable[[], Awaitable[None]],
    ) -> None:
        self._connection = connection
        self._database = database
        self._partition_count = partition_count
        self._owned = owned
        self._store_places = store_places
        self._wanted = asyncio.Event()

    def wake(self) -> None:
        """There may be something to do."""
        self._wanted.set()

    async def run(self) -> None:
        """Erase what is stored, for ever; waits as long as NATS or the database is away."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            pause_s = PLACE_S
            try:
                while await self._database.read(erasures.is_any_left, self._owned()):
                    if await self._erase_some():
                        pause_s = PLACE_S
                    else:
                        # The message that told of the cause is on its way.
                        await asyncio.sleep(pause_s)
                        pause_s = min(pause_s * 2, RETRY_S)
            except Exception as error:
                if not isinstance(error, LogUnavailable) and not is_transient(error):
                    raise
                log.warning("erasure_waits", error=str(error))
                await asyncio.sleep(RETRY_S)
                self._wanted.set()

    async def _erase_some(self) -> int:
        await self._store_places()
        ready = await self._database.read(erasures.load_erasures, self._owned(), AT_ONCE)
        for erasure in ready:
            await self._erase(erasure)
            fault_point("roomserver.after_erasure")
            await self._database.write(erasures.delete_erasure, erasure.partition, erasure.output_no)
        return len(ready)

    async def _erase(self, erasure: Erasure) -> None:
        if erasure.whole_room:
            await self._purge_subject(erasure)
        told = await self._find_told(erasure)
        brought = await self._find_brought(erasure)
        fault_point("roomserver.before_erasure")
        for stream, sequences in ((OUTPUT, told), (INPUT, brought)):
            for sequence in sequences:
                await self._delete(stream, sequence)
        log.info("erased_from_log", room_id=erasure.room_id, output=len(told), input=len(brought))

    async def _purge_subject(self, erasure: Erasure) -> None:
        """What was told of a purged room goes, all but the entry that says so."""
        if not erasure.sequence:
            return
        subject = room_output_subject(erasure.room_id, self._partition_count)
        answer = await self._connection.request_api(
            f"STREAM.PURGE.{OUTPUT}", {"filter": subject, "seq": erasure.sequence}
        )
        if "error" in answer:
            raise LogUnavailable(f"{subject} is not purged: {answer['error']}")

    async def _delete(self, stream: str, sequence: int) -> None:
        # Without `no_erase` the server overwrites the message on disk.
        answer = await self._connection.request_api(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence})
        if "error" in answer and answer["error"].get("err_code") not in (10037, 10043):
            found = await self._connection.request_api(f"STREAM.MSG.GET.{stream}", {"seq": sequence})
            if "error" not in found:
                raise LogUnavailable(f"{stream} {sequence} is not deleted: {answer['error']}")
        metrics.erased.labels(stream.lower()).inc()

    async def _find_told(self, erasure: Erasure) -> list[int]:
        """OUTPUT sequences, of those still on the log, of messages with a body that must go."""
        info = await self._connection.load_stream(OUTPUT)
        first = info.first_sequence if info is not None else 0
        found: list[int] = []
        after = 0
        while True:
            page, last = await self._database.read(_find_in_page, erasure, after, first)
            found += page
            if not last:
                return found
            after = last

    async def _find_brought(self, erasure: Erasure) -> list[int]:
        """INPUT sequences of judged messages that brought such an event."""
        info = await self._connection.load_stream(INPUT)
        if info is None:
            return []
        through = min(erasure.input_sequence, info.last_sequence)
        subject = room_input_subject(erasure.room_id, self._partition_count)
        reader = LogReader(self._connection, INPUT, [subject], after=info.first_sequence - 1)
        found: list[int] = []
        async with contextlib.aclosing(reader.batches()) as batches:
            while reader.position < through:
                try:
                    async with asyncio.timeout(SCAN_IDLE_S):
                        batch = await anext(batches)
                except (TimeoutError, StopAsyncIteration):
                    break
                for message in batch.messages:
                    brought = _brought_by(message.data) if message.sequence <= through else set()
                    if brought and await self._must_go(erasure, brought):
                        found.append(message.sequence)
        return found

    async def _must_go(self, erasure: Erasure, event_ids: set[str]) -> bool:
        if erasure.event_ids:
            return not erasure.event_ids.isdisjoint(event_ids)
        return await self._database.read(_is_any_gone, event_ids)


def _find_in_page(conn: Connection, erasure: Erasure, after: int, first: int) -> tuple[list[int], int]:
    """Sequences out of one page of a room's messages, and where to go on (0: that was all)."""
    room = rooms.load_rooms(conn, [erasure.room_id]).get(erasure.room_id)
    rows = _MESSAGES.rows(conn, room.nid, after, first, PAGE) if room is not None else []
    carried = {int(sequence): _carried_by(skeleton) for sequence, skeleton in rows}
    gone: Collection[str] = erasure.event_ids
    if not gone:
        every = {event_id for ids in carried.values() for event_id in ids}
        gone = every - events.load_known(conn, sorted(every)).keys()
    found = [sequence for sequence, ids in carried.items() if not ids.isdisjoint(gone)]
    return found, int(rows[-1][0]) if len(rows) == PAGE else 0


def _carried_by(skeleton: bytes) -> set[str]:
    """The events of which a message has the content as it was: told, in changes of state, as what was
    replaced.
    """
    carried: set[str] = set()
    for entry in OutputMessage.FromString(skeleton).entries:
        if not entry.HasField("room_event"):
            continue
        carried.add(entry.room_event.event_id)
        carried.update(change.event_id for change in entry.room_event.state_changes if change.event_id)
        if entry.room_event.prev_content_json:
            carried.add(entry.room_event.replaces_state)
    return carried


def _brought_by(data: bytes) -> set[str]:
    """The events that an INPUT message has the bodies of."""
    brought: set[str] = set()
    try:
        message = InputMessage.FromString(data)
    except DecodeError:
        return brought
    for entry in message.entries:
        if entry.HasField("submit_events"):
            submit = entry.submit_events
            brought.update(event.event_id for event in (*submit.events, *submit.outliers))
        elif entry.HasField("commit_import"):
            brought.add(entry.commit_import.join_event.event_id)
    return brought


def _is_any_gone(conn: Connection, event_ids: set[str]) -> bool:
    return len(events.load_known(conn, sorted(event_ids))) < len(event_ids)

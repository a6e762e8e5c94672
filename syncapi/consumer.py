"""Applies OUTPUT messages to the database: one unit of work a batch, on the writer thread, with executemany.

`Applier.apply(connection, messages)` writes everything and returns an `Applied` for the memory; `committed()`
is called when the transaction is safe. Rooms that are busy are kept as rows in memory between batches; after
a batch that failed they are read again.

A local user's message needs nothing of the database in a room that is kept: `hold` works out the same `Applied`
on the loop, and keeps the rows for the next unit of work to write (`write_held`), which comes with the next
other message, a second later, or when somebody wants to read. A crash before that reads the messages again.

What each kind of entry does is in `applying/`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from sqlalchemy import Connection

from arbor.log.v1 import output_pb2
from servicekit.log.errors import PositionTaken, UndecodableEntry, UnknownEntryKind
from servicekit.log.subjects import POSITION_FACTOR
from syncapi.applied import Applied, ReceiptMoved
from syncapi.applying import rooms, timeline, users
from syncapi.applying.batch import Batch, Kept, RoomCache, Rows, SnapshotEvents, SnapshotWanted
from syncapi.storage import accounts, dead_letters

__all__ = ["Applier", "OutputEnvelope", "SnapshotEvents", "SnapshotWanted"]

MAX_CACHED_ROOMS = 5_000
MAX_HELD = 500
"""Events whose rows are held at most."""


class OutputEnvelope(Protocol):
    """A message of the OUTPUT stream, as the log reader gives it."""

    @property
    def sequence(self) -> int:
        """Its stream sequence."""

    @property
    def data(self) -> bytes:
        """An `OutputMessage`."""


class Applier(Kept):
    """Turns OUTPUT messages into rows.

    Args:
        is_local: whether a user id is one of ours.
        raise_on_type: for tests: events of this type raise.
    """

    def __init__(self, is_local: Callable[[str], bool], raise_on_type: str = "") -> None:
        super().__init__(is_local, raise_on_type)
        self._clean = True
        self._held = Rows()
        self.may_hold = True
        """Unset while something else than the follower applies messages."""

    def forget(self) -> None:
        """Drop what is kept between batches."""
        super().forget()
        self._clean = True

    def begin_anew(self) -> None:
        """Drop that and what is held: its messages will be read again."""
        self.forget()
        self._held = Rows()

    def committed(self) -> None:
        """Say that what the last `apply` wrote is committed."""
        self._clean = True

    def load_quarantined(self, connection: Connection) -> frozenset[str]:
        """Return the rooms of which nothing is to be applied."""
        if not self._clean:
            self.forget()
        if self.quarantined is None:
            self.quarantined = dead_letters.load_quarantined(connection)
        return self.quarantined

    def apply(
        self,
        connection: Connection,
        messages: Iterable[OutputEnvelope],
        snapshots: SnapshotEvents | None = None,
    ) -> Applied:
        """Apply messages in order and return what changed.

        Raises:
            UndecodableEntry: an envelope does not decode.
            SnapshotWanted: a snapshot is missing in `snapshots`.
            UnknownEntryKind: an entry of a kind this version does not know, not marked skippable.
        """
        if not self._clean or len(self.rooms) > MAX_CACHED_ROOMS:
            self.forget()
        batch = Batch(self, connection, snapshots)
        self._clean = False
        _apply(batch, messages)
        return batch.applied

    def hold(self, messages: Sequence[OutputEnvelope]) -> Applied | None:
        """Apply messages in memory; None: they need the database, and nothing was done."""
        if not self._clean or not self.may_hold or len(self._held.event_rows.events) >= MAX_HELD:
            return None
        if self.quarantined is None or self.quarantined or self.generation is None:
            return None
        decoded = []
        for envelope in messages:
            try:
                message = output_pb2.OutputMessage.FromString(envelope.data)
            except Exception:
                return None  # reported where it is applied
            room = self.rooms.get(message.room_id)
            if room is None or envelope.sequence <= self.rooms_through:
                return None
            if not all(self._is_message(room, entry) for entry in message.entries):
                return None
            decoded.append((envelope.sequence, message))
        batch = Batch(self, None)
        self._clean = False
        try:
            for sequence, message in decoded:
                batch.applied.sequence = sequence
                for index, entry in enumerate(message.entries):
                    _entry(batch, message, entry, sequence * POSITION_FACTOR + index)
        except Exception:
            # Its rules want what is not kept yet, say. The rooms are read again, for some may be half done.
            return None
        self._clean = True
        batch.tell_rooms()
        self._held.add(batch)
        return batch.applied

    def _is_message(self, room: RoomCache, entry: output_pb2.OutputEntry) -> bool:
        """Whether an entry is a new local event that only adds to the timeline of a room that is kept."""
        event = entry.room_event
        if (
            entry.WhichOneof("kind") != "room_event"
            or not event.HasField("transaction_key")
            or event.placement != output_pb2.PLACEMENT_TIMELINE
            or event.HasField("state_key")
            or event.state_changes
            or event.participation_began
        ):
            return False
        sender = room.members.get(event.sender)
        # What was counted for the sender alone has to be summed up anew.
        return sender is not None and not (sender.extra_notify or sender.extra_highlight)

    def write_held(self, connection: Connection) -> None:
        """Write the rows that are held.

        Raises:
            PositionTaken: another process has made the tables anew.
        """
        if not self._held.event_rows.events:
            return
        if accounts.load_marker(connection, "generation") != self.generation:
            raise PositionTaken("the tables were made anew")
        self._held.write(connection)

    def held_written(self) -> None:
        """Say that the rows that were held are committed."""
        self._held = Rows()

    def read_receipts(self, connection: Connection, moved: Iterable[ReceiptMoved]) -> None:
        """Take receipts that are stored into account for unread counts, after a rebuild."""
        batch = Batch(self, connection)
        for receipt in moved:
            rooms.read_receipt(batch, receipt)
        batch.flush()


def _apply(batch: Batch, messages: Iterable[OutputEnvelope]) -> None:
    decoded: list[tuple[int, output_pb2.OutputMessage]] = []
    for envelope in messages:
        batch.applied.sequence = max(batch.applied.sequence, envelope.sequence)
        message = output_pb2.OutputMessage()
        try:
            message.ParseFromString(envelope.data)
        except Exception as error:
            raise UndecodableEntry(f"OUTPUT {envelope.sequence} is no OutputMessage") from error
        decoded.append((envelope.sequence, message))
    batch.writer.learn(_event_ids(decoded))
    for sequence, message in decoded:
        exported = sequence <= batch.applier.rooms_through and bool(message.room_id)
        for index, entry in enumerate(message.entries):
            if not exported or entry.HasField("receipt"):
                _entry(batch, message, entry, sequence * POSITION_FACTOR + index)
    batch.flush()


def _entry(
    batch: Batch, message: output_pb2.OutputMessage, entry: output_pb2.OutputEntry, position: int
) -> None:
    kind = entry.WhichOneof("kind")
    if kind is None:
        if entry.skippable:
            return
        raise UnknownEntryKind(f"OUTPUT entry {position} is of a kind that this version does not know")
    handler = _HANDLERS.get(kind)
    if handler is not None:
        handler(batch, message, getattr(entry, kind), position)


_HANDLERS: dict[str, Callable[[Batch, output_pb2.OutputMessage, Any, int], None]] = {
    "room_event": timeline.room_event,
    "state_rewritten": rooms.state_rewritten,
    "participation_ended": rooms.participation_ended,
    "room_purged": rooms.room_purged,
    "outlier_membership": rooms.outlier_membership,
    "event_redacted": rooms.event_redacted,
    "receipt": rooms.receipt,
    "account_data_changed": users.account_data,
    "room_forgotten": users.room_forgotten,
    "device_changed": users.device_changed,
    "account_changed": users.account_changed,
    "to_device": users.to_device_message,
    "device_list_changed": users.device_list,
}
"""`room_missing` is for others."""


def _event_ids(decoded: Iterable[tuple[int, output_pb2.OutputMessage]]) -> list[str]:
    ids = []
    for _, message in decoded:
        for entry in message.entries:
            kind = entry.WhichOneof("kind")
            if kind == "room_event":
                ids.append(entry.room_event.event_id)
                ids += [change.event_id for change in entry.room_event.state_changes if change.event_id]
            elif kind == "outlier_membership":
                ids.append(entry.outlier_membership.event.event_id)
    return ids

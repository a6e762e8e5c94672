"""Applies OUTPUT messages to the database: one unit of work a batch, on the writer thread, with executemany.

`Applier.apply(connection, messages)` writes everything and returns an `Applied` for the memory; `committed()`
is called when the transaction is safe. Rooms that are busy are kept as rows in memory between batches; after
a batch that failed they are read again.

What each kind of entry does is in `applying/`.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from sqlalchemy import Connection

from arbor.log.v1 import output_pb2
from servicekit.log.errors import UndecodableEntry, UnknownEntryKind
from servicekit.log.subjects import POSITION_FACTOR
from syncapi.applied import Applied, ReceiptMoved
from syncapi.applying import rooms, timeline, users
from syncapi.applying.batch import Batch, Kept, SnapshotEvents, SnapshotWanted
from syncapi.storage import dead_letters

__all__ = ["Applier", "OutputEnvelope", "SnapshotEvents", "SnapshotWanted"]

MAX_CACHED_ROOMS = 5_000


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

    def forget(self) -> None:
        """Drop what is kept between batches."""
        super().forget()
        self._clean = True

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
        batch = Batch(self, connection, snapshots or {})
        self._clean = False
        _apply(batch, messages)
        return batch.applied

    def read_receipts(self, connection: Connection, moved: Iterable[ReceiptMoved]) -> None:
        """Take receipts that are stored into account for unread counts, after a rebuild."""
        batch = Batch(self, connection, {})
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
        exported = sequence <= batch.rooms_through and bool(message.room_id)
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
"""`room_missing` and `participation_ended` are for others."""


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

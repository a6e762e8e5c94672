"""INPUT messages into requests. What does not decode stops the reader loudly (architecture, rule 10)."""

from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from arbor.log.v1 import input_pb2
from matrixlib.events import Event
from roomserver.storage.transactions import hash_of
from servicekit.log.errors import UndecodableEntry, UnknownEntryKind
from servicekit.log.reader import LogMessage

Origin = input_pb2.EventOrigin


@dataclass(slots=True)
class Request:
    """One entry of INPUT: where it stands, what it asks, and the verdict it gets."""

    room_id: str
    entry: input_pb2.InputEntry
    sequence: int
    index: int
    message: LogMessage
    kind: str
    transaction_hash: str = ""
    events: list[Event] = field(default_factory=list)
    """The parsed events of a local request."""


def decode_requests(message: LogMessage) -> list[Request]:
    """Take a message apart.

    Raises:
        UndecodableEntry: the envelope does not decode.
        UnknownEntryKind: a kind that we do not know, not marked skippable.
    """
    try:
        decoded = input_pb2.InputMessage.FromString(message.data)
    except DecodeError as error:
        raise UndecodableEntry(f"INPUT {message.sequence} does not decode: {error}") from error
    requests = []
    for index, entry in enumerate(decoded.entries):
        kind = entry.WhichOneof("kind")
        if kind is None:
            if entry.skippable:
                continue
            raise UnknownEntryKind(f"INPUT {message.sequence}, entry {index}: a kind that is not known here")
        request = Request(decoded.room_id, entry, message.sequence, index, message, kind)
        if entry.HasField("transaction_key"):
            request.transaction_hash = hash_of(entry.transaction_key)
        requests.append(request)
    return requests

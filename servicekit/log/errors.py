"""What can go wrong with the log.

LogError
 ├─ LogUnavailable          no connection, stream or leader: nothing was stored; try again
 ├─ PublishTimeout          no answer in time: it may be stored or not
 ├─ PublishRefused          the stream said no: nothing was stored (`fence`: it moved past what was expected)
 │   ├─ LogFull             the stream is at its size limit
 │   └─ MessageTooLarge     more than a message may have
 ├─ VerdictTimeout          no verdict in time: ask for the outcome
 ├─ NatsTooOld              the server is older than we can use
 ├─ StreamMismatch          a stream exists with settings that cannot be ours
 ├─ PositionLost            following cannot go on from the position: export first
 │   ├─ PositionTooOld      entries after it are no longer in the log
 │   ├─ PositionAhead       the log ends before it
 │   └─ EpochChanged        the stream was made anew, with entries of its own
 ├─ PositionTaken           somebody else moved our stored position
 ├─ OwnershipLost           another owner has published in the partition
 └─ StopFollowing           an entry must not be skipped: stop loudly
     ├─ UndecodableEntry    the envelope does not decode
     └─ UnknownEntryKind    a kind this version does not know, not marked skippable
"""


class LogError(Exception):
    """Base of the log's errors."""


class LogUnavailable(LogError):
    """No connection, no stream or no leader just now. Nothing was stored; try again."""


class PublishTimeout(LogError):
    """No ack within the deadline, or the connection broke first. The message may be stored or not."""


class PublishRefused(LogError):
    """The stream refused the message; nothing was stored.

    `fence`: the expected last sequence was not the one found, which is `actual` (None if unknown).
    """

    def __init__(self, reason: str, *, fence: bool = False, actual: int | None = None, code: int = 0) -> None:
        super().__init__(reason)
        self.fence = fence
        self.actual = actual
        self.code = code


class LogFull(PublishRefused):
    """The stream has reached its size limit: publishing fails rather than loses."""


class MessageTooLarge(PublishRefused):
    """The message is larger than the server or the stream takes."""


class VerdictTimeout(LogError):
    """No verdict came in time. It may be lost: ask for the outcome by transaction key or event id."""


class NatsTooOld(LogError):
    """The NATS server is older than the oldest version we can use."""


class StreamMismatch(LogError):
    """A stream exists whose settings cannot be used. Nothing was changed."""


class PositionLost(LogError):
    """Following cannot go on from the stored position without a hole: the reader must export first.

    `first_sequence` is the first sequence that the log still has, `epoch` the stream's epoch now.
    """

    def __init__(self, message: str, *, stream: str, after: int, first_sequence: int, epoch: str) -> None:
        super().__init__(message)
        self.stream = stream
        self.after = after
        self.first_sequence = first_sequence
        self.epoch = epoch


class PositionTooOld(PositionLost):
    """Entries after the position are no longer in the log."""


class PositionAhead(PositionLost):
    """The log ends before the position: its end was lost, or it is another log."""


class EpochChanged(PositionLost):
    """The stream was made anew, and entries of the old one after the position may never have been read."""


class PositionTaken(LogError):
    """The stored position is not where we left it: another process follows with the same database."""


class OwnershipLost(LogError):
    """Another owner has published in the partition: step down."""

    def __init__(self, partition: int, reason: str) -> None:
        super().__init__(f"partition {partition}: {reason}")
        self.partition = partition


class StopFollowing(LogError):
    """An entry that must not be skipped and cannot be applied: the reader stops loudly."""


class UndecodableEntry(StopFollowing):
    """An envelope does not decode."""


class UnknownEntryKind(StopFollowing):
    """A kind of entry that this version does not know, not marked skippable. Upgrade readers first."""

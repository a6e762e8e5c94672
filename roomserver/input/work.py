"""What goes into a transaction of judging, and what comes out of it."""

from dataclasses import dataclass, field

from roomserver.input.batch import Answer
from roomserver.input.decode import Request
from servicekit.log.outbox import OutboxEntry
from servicekit.log.reader import LogMessage


@dataclass(slots=True)
class Held:
    """A partition that is ours."""

    epoch: int
    position: int
    output_no: int


@dataclass(slots=True)
class Work:
    """What goes into a transaction."""

    messages: list[LogMessage]
    through: int
    input_epoch: str
    published: list[tuple[int, int, int]] = field(default_factory=list)
    """(sequence, partition, output_no) of messages whose place on OUTPUT is known since."""
    done: list[tuple[int, int, int]] = field(default_factory=list)
    """(partition, output_no, sequence): the outbox is published up to there."""
    requests: list[Request] | None = None
    """What the messages ask; None: not taken apart yet."""
    advance_all: bool = False
    """Move the positions of all partitions, not only of those that have messages here."""


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    entries: list[OutboxEntry]
    answers: list[Answer]
    known_sequences: dict[tuple[int, int], int]
    rooms: dict[str, tuple[int, int]]
    """room id -> (partition, last output_no)."""
    held: dict[int, Held]
    judged: int
    dead: int = 0
    erases: bool = False
    """Something is to go from the log: see `erasures`."""

"""Verdicts to the writers, after the commit: by writer, with what they refer to on OUTPUT."""

import time
from collections import OrderedDict
from collections.abc import Mapping

from arbor.log.v1 import input_pb2
from roomserver.input.batch import Answer
from roomserver.input.work import Outcome
from servicekit.log.connection import LogConnection

MAX_CONTENDED = 10_000
CONTENDED_S = 1.0
"""So long after a STALE the other writers of the room are told so."""
MAX_VERDICT_BYTES = 512 * 1024


class VerdictSender:
    """See the module."""

    def __init__(self, connection: LogConnection) -> None:
        self._connection = connection
        # room -> when a writer was last told STALE, and which; oldest first
        self._stale: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def _mark_contended(self, answers: list[Answer]) -> None:
        """Tell a writer whose chain was accepted that another one is waiting for its turn in that room."""
        now = time.monotonic()
        stale = self._stale
        for answer in answers:
            if answer.verdict.code == input_pb2.VERDICT_CODE_STALE and answer.reply_to:
                stale.pop(answer.room_id, None)
                stale[answer.room_id] = (now, answer.reply_to)
        while stale and (len(stale) > MAX_CONTENDED or next(iter(stale.values()))[0] < now - CONTENDED_S):
            del stale[next(iter(stale))]
        if stale:
            for answer in answers:
                last = stale.get(answer.room_id)
                if last is not None and last[1] != answer.reply_to:
                    answer.verdict.contended = True

    def send(self, outcome: Outcome, sequences: Mapping[tuple[int, int], int]) -> None:
        """Answer; `sequences`: (partition, output_no) -> where it stands on OUTPUT."""
        self._mark_contended(outcome.answers)
        by_writer: dict[str, list[input_pb2.Verdict]] = {}
        for answer in outcome.answers:
            if not answer.reply_to:
                continue
            answer.verdict.output_sequence = _sequence_for(answer, outcome, sequences)
            by_writer.setdefault(answer.reply_to, []).append(answer.verdict)
        for reply_to, verdicts in by_writer.items():
            part: list[input_pb2.Verdict] = []
            size = 0
            for verdict in verdicts:
                length = verdict.ByteSize()
                if part and size + length > MAX_VERDICT_BYTES:
                    self._connection.publish_core(
                        reply_to, input_pb2.Verdicts(verdicts=part).SerializeToString()
                    )
                    part, size = [], 0
                part.append(verdict)
                size += length
            self._connection.publish_core(reply_to, input_pb2.Verdicts(verdicts=part).SerializeToString())


def _sequence_for(answer: Answer, outcome: Outcome, sequences: Mapping[tuple[int, int], int]) -> int:
    if answer.row is not None:
        place = (answer.partition, answer.row.output_no)
    elif answer.room is not None:
        place = (answer.partition, answer.room.row.last_output_no)
    else:
        return 0
    return sequences.get(place) or outcome.known_sequences.get(place, 0)

"""The RoomServer's judge on a database of its own, without a log: INPUT messages in, verdicts and messages
out.

    bench = JudgeBench(url)
    verdict = bench.submit(local(room_id, [event], built_on=heads))[0]
    bench.output       # every OUTPUT message told so far, decoded, in order

Each message gets the next OUTPUT sequence at once, as if the relay were immediate.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

from arbor.log.v1 import common_pb2, input_pb2
from arbor.log.v1.output_pb2 import OutputEntry, OutputMessage
from arbor.roomserver.v1.query_pb2 import ImportRequest
from matrixlib.events import Event
from matrixlib.room_versions import get_room_version
from roomserver.input import import_pages
from roomserver.input.batch import Context
from roomserver.input.judge import BatchToSplit, Judge
from roomserver.input.work import Held, Outcome, Work
from roomserver.leases import Leases
from roomserver.memory import Memory
from roomserver.storage import partitions
from roomserver.storage.tables import metadata
from servicekit.database import Database
from servicekit.log.reader import LogMessage
from servicekit.log.subjects import partition_of, room_input_subject
from tests.support.rooms import key_of

PARTITIONS = 4
LOCAL_SERVERS = ("a.example",)


class JudgeBench:
    """See the module."""

    def __init__(
        self,
        url: str,
        *,
        owner: str = "one",
        local: Sequence[str] = LOCAL_SERVERS,
        database: Database | None = None,
        raise_on_type: str = "",
        now_ms: Any = None,
        relay: bool = True,
        keep_output: bool = True,
    ) -> None:
        self.database = database or Database(url, metadata, "roomserver.storage.migrations", reader_threads=1)
        if database is None:
            self.database.migrate()
        clock = itertools.count(1_700_000_000_000)
        self.now_ms = now_ms or (lambda: next(clock))
        context = Context(
            partitions=PARTITIONS,
            partition_of=partial(partition_of, partitions=PARTITIONS),
            is_local=lambda name: name in local,
            signing_keys={name: key_of(name) for name in local},
            raise_on_type=raise_on_type,
        )
        self.memory = Memory()
        self.judge = Judge(context, self.memory, self.now_ms)
        self.leases = Leases(owner, PARTITIONS, 1000, self.now_ms)
        self.database.write_sync(self.leases.prepare)
        taken = self.database.write_sync(self.leases.take, set())
        self.held = {t.row.id: Held(t.row.epoch, t.row.input_position, t.row.output_no) for t in taken}
        self.sequence = max((row.input_position for row in self.rows()), default=0)
        self.output_sequence = 0
        self.relay = relay
        self.keep_output = keep_output
        self.output: list[OutputMessage] = []
        self.raw: list[bytes] = []
        self.sequences: dict[tuple[int, int], int] = {}
        self._placed: list[tuple[int, int, int]] = []

    def rows(self) -> list[partitions.PartitionRow]:
        """The partition rows."""
        return self.database.read_sync(partitions.load_partitions)

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def messages(self, requests: Sequence[tuple[str, list[input_pb2.InputEntry]]]) -> list[LogMessage]:
        """Make INPUT messages with the next sequences."""
        made = []
        for room_id, entries in requests:
            self.sequence += 1
            data = input_pb2.InputMessage(room_id=room_id, entries=entries).SerializeToString()
            subject = room_input_subject(room_id, PARTITIONS)
            made.append(LogMessage(self.sequence, subject, data, None, b"1700000000000000000"))
        return made

    def submit(self, *requests: tuple[str, list[input_pb2.InputEntry]]) -> list[input_pb2.Verdict]:
        """Judge messages as one batch; returns the verdicts in order."""
        return self.judge_messages(self.messages(requests))

    def judge_messages(
        self, messages: list[LogMessage], *, through: int | None = None
    ) -> list[input_pb2.Verdict]:
        """Judge given messages as one batch, as the processor does."""
        last = through if through is not None else max(message.sequence for message in messages)
        work = Work(messages, last, "epoch", published=self._placed)
        work.done = [(partition, output_no, sequence) for sequence, partition, output_no in self._placed]
        try:
            outcome = self.database.write_sync(self.judge.apply, work, self.held)
        except BatchToSplit as split:
            return [verdict for part in split.parts for verdict in self.judge_messages(part)]
        except Exception as error:
            self.judge.failed()
            if type(error).__module__.startswith("servicekit"):
                raise
            outcome = self.database.write_sync(self.judge.apply_singly, work, self.held)
        self._placed = []
        self.judge.committed()
        self.held = outcome.held
        return self._relay(outcome)

    def _relay(self, outcome: Outcome) -> list[input_pb2.Verdict]:
        self.verdict_codes = [answer.verdict.code for answer in outcome.answers]
        for entry in outcome.entries:
            self.output_sequence += 1
            self.sequences[entry.partition, entry.output_no] = self.output_sequence
            if self.relay:
                self._placed.append((self.output_sequence, entry.partition, entry.output_no))
            if self.keep_output:
                self.raw.append(entry.data)
                self.output.append(OutputMessage.FromString(entry.data))
        for answer in outcome.answers:
            if answer.row is not None:
                place = (answer.partition, answer.row.output_no)
                answer.verdict.output_sequence = self.sequences.get(place, 0)
        return [answer.verdict for answer in outcome.answers]

    def stage(
        self,
        import_id: str,
        room_id: str,
        version: str,
        state: Sequence[Event],
        auth_chain: Sequence[Event] = (),
        part: int = 1,
    ) -> None:
        """Store a part of an import, as `Import` does with a call that has this part alone."""
        found = get_room_version(version)
        assert found is not None, version
        of = import_pages.Import(import_id, room_id, found)
        request = ImportRequest(part=part, state=map(message, state), auth_chain=map(message, auth_chain))
        for page in import_pages.cut(of, request):
            self._import(self.judge.import_page, page)
        order = self.database.read_sync(import_pages.order_of_aside, of)
        if order:
            self._import(self.judge.import_aside, of, order)

    def _import(self, work: Any, *args: Any) -> None:
        self.database.write_sync(work, self.held, *args)
        self.judge.committed()

    def settle(self) -> None:
        """Store where everything stands on OUTPUT."""
        self.judge_messages([], through=self.sequence)

    @property
    def entries(self) -> list[OutputEntry]:
        """All entries told so far."""
        return [entry for message in self.output for entry in message.entries]


_request_no = itertools.count(1)


def local(
    room_id: str,
    events: Sequence[Event],
    *,
    built_on: Sequence[str] | None = None,
    may_fork: bool = False,
    txn: str = "",
) -> tuple[str, list[input_pb2.InputEntry]]:
    """An entry of a local user."""
    entry = input_pb2.InputEntry(
        request_id=f"r{next(_request_no)}",
        reply_to="verdict.test",
        submit_events=input_pb2.SubmitEvents(
            origin=input_pb2.EventOrigin.EVENT_ORIGIN_LOCAL,
            room_version=events[0].room_version.identifier,
            events=[message(event) for event in events],
            built_on=list(events[0].prev_event_ids if built_on is None else built_on),
            may_fork=may_fork,
        ),
    )
    if txn:
        entry.transaction_key.CopyFrom(
            common_pb2.TransactionKey(
                user_id=events[-1].sender, device_id="DEV", endpoint="send", room_id=room_id, txn_id=txn
            )
        )
    return room_id, [entry]


def foreign(
    room_id: str,
    events: Sequence[Event],
    *,
    origin: int = input_pb2.EventOrigin.EVENT_ORIGIN_FEDERATION,
    origin_server: str = "b.example",
    **fields: Any,
) -> tuple[str, list[input_pb2.InputEntry]]:
    """An entry with another server's events."""
    first = events[0] if events else fields.get("outliers", [None])[0]
    version = fields.pop("room_version", None) or first.room_version.identifier
    return room_id, [
        input_pb2.InputEntry(
            request_id=f"r{next(_request_no)}",
            reply_to="verdict.test",
            submit_events=input_pb2.SubmitEvents(
                origin=origin,  # type: ignore[arg-type]
                room_version=version,
                events=[message(event) for event in events],
                origin_server=origin_server,
                outliers=[message(event) for event in fields.pop("outliers", [])],
                **fields,
            ),
        )
    ]


def message(event: Event) -> common_pb2.Event:
    """An event as the contract has it."""
    return common_pb2.Event(event_id=event.event_id, pdu_json=event.pdu_json)

"""Whatever is delivered again, crashes or lags: the database is that of one undisturbed pass.

Two kinds of repetition: the same sequences delivered again (crash, reopened consumer, a second follower that
lags behind), and the same numbered entry published again under a new sequence (a relay that was in doubt).
"""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from servicekit.database.engine import create_engine
from servicekit.log.applying import Applier, PositionRow
from servicekit.log.errors import PositionTaken
from servicekit.log.reader import Batch, LogMessage
from tests.support import toy_service as toy

WRITERS = [("roomserver", 1), ("roomserver", 2), ("clientapi", 1)]


class Crash(Exception):
    """The process ends before the commit."""


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[int, int, bool]]:
    """Return [(writer index, output_no, fails)] as a stream may hold it: in order, with rewinds to an earlier
    number.
    """
    fails = draw(st.sets(st.tuples(st.integers(0, 2), st.integers(1, 12)), max_size=3))
    published = [0, 0, 0]
    stream = []
    for _ in range(draw(st.integers(1, 30))):
        writer = draw(st.integers(0, 2))
        # A writer goes on with its next number, or (in doubt) begins again at an earlier one.
        start = published[writer] + 1 - draw(st.integers(0, min(published[writer], 3)))
        numbers = range(start, published[writer] + 2)
        stream.extend((writer, number, (writer, number) in fails) for number in numbers)
        published[writer] += 1
    return stream


def _message(sequence: int, item: tuple[int, int, bool]) -> LogMessage:
    writer, partition = WRITERS[item[0]]
    lines = [f"Arbor-Writer: {writer}", f"Arbor-Partition: {partition}", f"Arbor-Output-No: {item[1]}"]
    block = "\r\n".join(["NATS/1.0", *lines, "", ""])
    data = toy.toy_entry(f"!{item[0]}:x", item[1], fail=item[2])
    return LogMessage(sequence, "room.output.1.IWE6eA", data, block.encode(), b"0")


class Process:
    """A follower's loop without its network: what it holds in memory is lost in a crash."""

    def __init__(self, conn: Connection, stream: list[LogMessage]) -> None:
        self._conn = conn
        self._stream = stream
        self._applier = Applier(
            toy.ToyHandler(),
            PositionRow(toy.log_tables.position, "OUTPUT"),
            toy.log_tables,
            "OUTPUT",
            drop_duplicates=True,
            now_ms=lambda: 0,
        )
        self.restart()

    def restart(self) -> None:
        with self._conn.begin():
            _, self.position, self._stamps = self._applier.load(self._conn)

    def step(self, size: int, *, crash: bool) -> None:
        """Take up to `size` messages after the position and apply them."""
        messages = [m for m in self._stream if m.sequence > self.position][:size]
        if not messages:
            return
        batch = Batch(messages, messages[-1].sequence, "epoch")
        applied = None
        for apply in (self._applier.apply, self._applier.apply_singly):
            try:
                with self._conn.begin():
                    applied = apply(self._conn, batch, self.position, self._stamps)
                    if crash:
                        raise Crash
                break
            except (Crash, PositionTaken):
                self.restart()
                return
            except RuntimeError:
                continue
        assert applied is not None
        self.position, self._stamps = applied.position, applied.stamps


@settings(max_examples=60)
@given(
    streams(),
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(1, 8), st.sampled_from(["", "", "crash", "restart"])),
        max_size=40,
    ),
)
def test_the_database_is_that_of_one_pass(
    stream: list[tuple[int, int, bool]], script: list[tuple[int, int, str]]
) -> None:
    messages = [_message(sequence, item) for sequence, item in enumerate(stream, 1)]
    with tempfile.TemporaryDirectory() as directory:
        engine = create_engine(f"sqlite:///{Path(directory) / 'toy.db'}", "relaxed")
        with engine.connect() as conn:
            with conn.begin():
                toy.metadata.create_all(conn)
            # Two processes by mistake on one database: one of them is always behind.
            processes = [Process(conn, messages), Process(conn, messages)]
            for index, size, event in script:
                processes[index].step(size, crash=event == "crash")
                if event == "restart":
                    processes[index].restart()
            processes[0].restart()
            while processes[0].position < len(messages):
                processes[0].step(7, crash=False)
            with conn.begin():
                found = toy.contents(conn)
                dead = conn.execute(select(toy.log_tables.dead_letter.c.sequence)).scalars().all()
        engine.dispose()
    first = {item[:2]: sequence for sequence, item in reversed(list(enumerate(stream, 1)))}
    good = sorted((first[item[:2]], f"!{item[0]}:x", item[1]) for item in set(stream) if not item[2])
    assert found["entries"] == good
    assert sorted(dead) == sorted(first[item[:2]] for item in set(stream) if item[2])
    for writer in range(3):
        numbers = [n for _, room, n in good if room == f"!{writer}:x"]
        checksum = 0
        for position, number in enumerate(numbers):
            checksum = number if position == 0 else (checksum * 31 + number) % 1_000_003
        expected = [(f"!{writer}:x", len(numbers), checksum)] if numbers else []
        assert [row for row in found["counts"] if row[0] == f"!{writer}:x"] == expected

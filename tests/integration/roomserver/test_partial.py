"""Rooms joined with partial state: what is judged meanwhile, what waits, and how the state becomes whole."""

import pytest
from sqlalchemy import Connection, select

from arbor.log.v1.input_pb2 import CommitImport, EventOrigin, InputEntry, PurgeRoom, Verdict, VerdictCode
from arbor.log.v1.output_pb2 import OutputEntry, OutputMessage
from arbor.roomserver.v1 import query_pb2
from matrixlib.events import Event
from roomserver.input import partial
from roomserver.rpc import exports, reads
from roomserver.storage import garbage, snapshots
from roomserver.storage.outliers import load_outlier
from roomserver.storage.tables import metadata
from tests.support.judging import JudgeBench, foreign, local, message
from tests.support.rooms import BOB, CAROL, DAVE, Room

CODE = VerdictCode
ERIN = "@erin:a.example"
FRED = "@fred:a.example"
OUTLIER = EventOrigin.EVENT_ORIGIN_OUTLIER


class PartialRoom:
    """A room of Bob's that Erin, of ours, joins with partial state. `told` are the events of the state before."""

    def __init__(self, bench: JudgeBench, room: Room, join: Event) -> None:
        self.bench = bench
        self.room = room
        self.room_id = room.room_id or ""
        self.join = join
        self.told = [room.events[event_id] for event_id in room.before[join.event_id].values()]
        self.chain = [room.events[i] for i in room.order[: room.order.index(join.event_id)]]

    def commit(self, state: list[Event], import_id: str, **fields: object) -> Verdict:
        version = self.room.version.identifier
        self.bench.stage(import_id, self.room_id, version, state, self.chain, 1)
        return self.bench.submit((self.room_id, [self.entry(import_id, **fields)]))[0]

    def entry(self, import_id: str, **fields: object) -> InputEntry:
        return InputEntry(
            request_id=import_id,
            commit_import=CommitImport(
                import_id=import_id,
                room_version=self.room.version.identifier,
                join_event=message(self.join),
                **fields,  # type: ignore[arg-type]
            ),
        )

    def begin(self, servers: tuple[str, ...] = ("b.example", "c.example", "d.example")) -> None:
        kept = {ERIN, *(self.room.events[i].state_key for i in self.join.auth_event_ids)}
        state = [e for e in self.told if e.type != "m.room.member" or e.state_key in kept]
        verdict = self.commit(state, "partial", partial=True, servers_in_room=list(servers))
        assert verdict.code == CODE.VERDICT_CODE_ACCEPTED

    def complete(self) -> int:
        """Bring the whole state, as the job does: again as long as there is more to judge."""
        code = self.commit(self.told, "whole", completes=True).code
        while code == CODE.VERDICT_CODE_BUSY:
            code = self.bench.submit((self.room_id, [self.entry("whole", completes=True)]))[0].code
        return code

    def say(self, sender: str, body: str, *, built_on: list[str] | None = None) -> Event:
        return self.room.send(sender, "m.room.message", {"body": body}, prev=built_on)

    def submit_local(self, event: Event) -> Verdict:
        return self.bench.submit(local(self.room_id, [event]))[0]

    def submit_foreign(self, *events: Event) -> list[int]:
        return [v.code for v in self.bench.submit(*[foreign(self.room_id, [e]) for e in events])]

    def known(self) -> query_pb2.Room:
        request = query_pb2.QueryRoomsRequest(room_ids=[self.room_id], with_servers=True)
        return self.bench.database.read_sync(
            reads.read_rooms, request, lambda u: u.endswith(":a.example")
        ).rooms[0]

    def current(self) -> set[str]:
        request = query_pb2.QueryLatestRequest(room_id=self.room_id, all_state=True)
        return {e.event_id for e in self.bench.database.read_sync(reads.read_latest, request)[0].state}

    def before(self, event: Event) -> set[str]:
        def load(conn: Connection) -> set[str]:
            state = reads.read_state(conn, self.room_id, [event.event_id], False)[0][1] or {}
            table = metadata.tables["event"]
            rows = conn.execute(select(table.c.event_id).where(table.c.nid.in_(state.values())))
            return set(rows.scalars())

        return self.bench.database.read_sync(load)

    def rewrites(self) -> list[OutputEntry]:
        return [entry for entry in self.bench.entries if entry.HasField("state_rewritten")]


def joined(bench: JudgeBench, version: str = "10") -> PartialRoom:
    room = Room(version, creator=BOB).with_members(CAROL, DAVE)
    room.member(DAVE, "ban", by=BOB)
    room.send(BOB, "m.room.topic", {"topic": "far"}, state_key="")
    return PartialRoom(bench, room, room.member(ERIN, "join"))


@pytest.mark.parametrize("version", ["10", "12"])
def test_own_events_are_judged_meanwhile_and_have_the_whole_state_afterwards(
    bench: JudgeBench, version: str
) -> None:
    far = joined(bench, version)
    far.begin()
    known = far.known()
    assert known.partial
    assert known.participating
    assert list(known.servers) == ["a.example", "b.example", "c.example", "d.example"]
    (told,) = far.rewrites()
    assert told.state_rewritten.partial
    assert told.state_rewritten.participation_began
    first = far.say(ERIN, "one")
    assert far.submit_local(first).code == CODE.VERDICT_CODE_ACCEPTED
    profile = far.room.member(ERIN, "join", content={"displayname": "E"})
    assert far.submit_local(profile).code == CODE.VERDICT_CODE_ACCEPTED
    last = far.say(ERIN, "two")
    assert far.submit_local(last).code == CODE.VERDICT_CODE_ACCEPTED
    carol = far.room.after[far.join.event_id]["m.room.member", CAROL]
    assert carol not in far.current()
    assert carol not in far.before(last)

    assert far.complete() == CODE.VERDICT_CODE_ACCEPTED
    known = far.known()
    assert not known.partial
    assert list(known.servers) == ["a.example", "b.example", "c.example"]
    assert known.counts.joined == 3
    for event in (far.join, first, profile, last):
        assert far.before(event) == set(far.room.before[event.event_id].values())
    assert far.current() == set(far.room.after[last.event_id].values())
    whole = far.rewrites()[1].state_rewritten
    assert not whole.partial
    assert not whole.participation_began
    assert whole.participation == told.state_rewritten.participation
    snapshot = bench.database.read_sync(snapshots.load_state, whole.snapshot_id)
    assert len(snapshot) == whole.entries == len(far.current())
    # Said again, as after a lost verdict, it changes nothing.
    assert far.complete() == CODE.VERDICT_CODE_DUPLICATE
    assert len(far.rewrites()) == 2


def test_what_others_send_waits_and_is_judged_in_order_by_the_whole_state(bench: JudgeBench) -> None:
    far = joined(bench)
    far.begin()
    mine = far.say(ERIN, "mine")
    assert far.submit_local(mine).code == CODE.VERDICT_CODE_ACCEPTED
    said = [far.say(CAROL, f"from Carol {n}") for n in range(3)]
    banned = far.room.send(DAVE, "m.room.message", {"body": "I am banned"})
    assert banned.event_id in far.room.rejected
    kicked = far.room.member(CAROL, "leave", by=BOB)
    told = len(bench.entries)
    waiting = [kicked, banned, *reversed(said)]
    assert far.submit_foreign(*waiting) == [CODE.VERDICT_CODE_WAITING] * 5
    assert far.submit_foreign(said[0]) == [CODE.VERDICT_CODE_WAITING]
    assert len(bench.entries) == told, "nobody is asked to fetch what waits for the state alone"

    assert far.complete() == CODE.VERDICT_CODE_ACCEPTED
    after = bench.entries[told:]
    assert after[0].HasField("state_rewritten")
    assert [entry.room_event.event_id for entry in after[1:]] == [
        *[event.event_id for event in said],
        kicked.event_id,
    ]
    assert far.current() == {e.event_id for e in far.room.state.values()}
    assert "c.example" not in far.known().servers


def test_much_that_waits_is_judged_a_page_at_a_time(
    bench: JudgeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial, "JUDGED_AT_ONCE", 4)
    far = joined(bench)
    far.begin()
    said = [far.say(CAROL, str(n)) for n in range(10)]
    far.submit_foreign(*said)
    assert far.commit(far.told, "whole", completes=True).code == CODE.VERDICT_CODE_BUSY
    assert not far.known().partial
    assert far.complete() in (CODE.VERDICT_CODE_ACCEPTED, CODE.VERDICT_CODE_DUPLICATE)
    told = [entry.room_event.event_id for entry in bench.entries if entry.HasField("room_event")]
    assert told[-10:] == [event.event_id for event in said]


def test_memberships_of_others_wait_for_the_members(bench: JudgeBench) -> None:
    far = joined(bench)
    far.begin()
    for event in (
        far.room.member(FRED, "invite", by=ERIN, prev=[far.join.event_id]),
        far.room.member(FRED, "join", prev=[far.join.event_id]),
        far.room.member(FRED, "leave", by=ERIN, prev=[far.join.event_id]),
    ):
        verdict = far.submit_local(event)
        assert verdict.code == CODE.VERDICT_CODE_REJECTED
        assert verdict.rejection.rule == "partial"
    old = far.chain[-1]
    history = foreign(far.room_id, [old], origin=EventOrigin.EVENT_ORIGIN_HISTORY)
    assert bench.submit(history)[0].rejection.rule == "partial"
    assert far.complete() == CODE.VERDICT_CODE_ACCEPTED
    invite = far.room.member(FRED, "join", prev=[far.join.event_id])
    assert far.submit_local(invite).code == CODE.VERDICT_CODE_ACCEPTED


def test_leaving_ends_it_and_joining_again_begins_anew(bench: JudgeBench) -> None:
    far = joined(bench)
    far.begin()
    assert far.submit_foreign(far.say(CAROL, "unheard")) == [CODE.VERDICT_CODE_WAITING]
    leave = far.room.member(ERIN, "leave", prev=[far.join.event_id])
    assert far.submit_local(leave).code == CODE.VERDICT_CODE_ACCEPTED
    known = far.known()
    assert not known.partial
    assert not known.participating
    assert bench.entries[-1].HasField("participation_ended")
    assert far.complete() == CODE.VERDICT_CODE_REJECTED

    again = PartialRoom(bench, far.room, far.room.member(ERIN, "join"))
    assert again.commit(again.told, "again", partial=True, servers_in_room=["b.example"]).code == (
        CODE.VERDICT_CODE_ACCEPTED
    )
    # What the first stay asked for comes late: it is of no use to the second.
    assert far.complete() == CODE.VERDICT_CODE_REJECTED
    assert again.known().partial
    assert again.complete() == CODE.VERDICT_CODE_ACCEPTED
    told = {entry.room_event.event_id for entry in bench.entries if entry.HasField("room_event")}
    assert told == {far.join.event_id, leave.event_id, again.join.event_id}


def test_the_second_answer_adds_members_and_changes_nothing_else(bench: JudgeBench) -> None:
    far = joined(bench)
    far.begin()
    other = far.room.send(
        BOB, "m.room.topic", {"topic": "another"}, state_key="", prev=[far.chain[-1].event_id]
    )
    banned = far.room.member(ERIN, "ban", by=BOB, prev=[far.chain[-1].event_id])
    topic = next(event for event in far.told if event.type == "m.room.topic")
    far.told.remove(topic)
    far.told += [other, banned]
    assert far.complete() == CODE.VERDICT_CODE_ACCEPTED
    current = far.current()
    assert topic.event_id in current
    assert other.event_id not in current
    assert far.join.event_id in current
    assert banned.event_id not in far.before(far.join)
    assert far.submit_local(far.say(ERIN, "still here", built_on=[far.join.event_id])).code == (
        CODE.VERDICT_CODE_ACCEPTED
    )


def test_invites_that_others_have_stay_until_the_members_are_here(bench: JudgeBench) -> None:
    far = joined(bench)
    invite = far.room.member(FRED, "invite", by=BOB, prev=[far.chain[-1].event_id])
    bench.submit(foreign(far.room_id, [invite], origin=OUTLIER, outlier_membership_user_id=FRED))
    far.begin()
    assert bench.database.read_sync(load_outlier, far.room_id, FRED) is not None
    far.told.append(invite)
    assert far.complete() == CODE.VERDICT_CODE_ACCEPTED
    assert bench.database.read_sync(load_outlier, far.room_id, FRED) is None
    assert invite.event_id in far.current()


def test_local_forks_keep_their_states(bench: JudgeBench) -> None:
    far = joined(bench)
    far.begin()
    first = far.room.member(ERIN, "join", content={"displayname": "1"}, prev=[far.join.event_id])
    second = far.room.member(ERIN, "join", content={"displayname": "2"}, prev=[far.join.event_id])
    assert far.submit_local(first).code == CODE.VERDICT_CODE_ACCEPTED
    forked = bench.submit(local(far.room_id, [second], may_fork=True))[0]
    assert forked.code == CODE.VERDICT_CODE_ACCEPTED
    both = far.say(ERIN, "on both")
    assert set(both.prev_event_ids) == {first.event_id, second.event_id}
    assert far.submit_local(both).code == CODE.VERDICT_CODE_ACCEPTED
    assert far.complete() == CODE.VERDICT_CODE_ACCEPTED
    for event in (first, second, both):
        assert far.before(event) == set(far.room.before[event.event_id].values())


def test_an_export_tells_the_same_and_its_snapshots_are_kept(bench: JudgeBench) -> None:
    far = joined(bench)
    far.begin()
    far.submit_local(far.say(ERIN, "meanwhile"))
    far.complete()
    far.submit_local(far.say(ERIN, "afterwards", built_on=list(far.room.heads)))
    bench.settle()
    held = set(bench.held)
    bench.database.write_sync(garbage.collect, bench.now_ms(), held, dry_run=False)
    page, _ = bench.database.read_sync(exports.read_page, 0, bench.output_sequence, None, set(), 4)
    exported = [OutputMessage.FromString(data) for _, data, _ in page]
    assert [m.SerializeToString(deterministic=True) for m in exported] == [
        m.SerializeToString(deterministic=True) for m in bench.output
    ]
    for entry in far.rewrites():
        told = entry.state_rewritten
        assert len(bench.database.read_sync(snapshots.load_state, told.snapshot_id)) == told.entries


def test_a_partial_room_can_be_purged(bench: JudgeBench) -> None:
    far = joined(bench)
    far.begin()
    far.submit_foreign(far.say(CAROL, "waits"))
    entry = InputEntry(request_id="purge", purge_room=PurgeRoom())
    assert bench.submit((far.room_id, [entry]))[0].code == CODE.VERDICT_CODE_ACCEPTED

    def count(conn: Connection) -> int:
        tables = ("told_snapshot", "waiting_event", "waiting_for", "event")
        return sum(len(conn.execute(select(metadata.tables[name])).all()) for name in tables)

    assert bench.database.read_sync(count) == 0
    assert far.complete() == CODE.VERDICT_CODE_REJECTED


def test_history_is_not_purged_before_the_room_is_whole(bench: JudgeBench) -> None:
    far = joined(bench)
    far.begin()
    first, second = far.say(ERIN, "one"), far.say(ERIN, "two")
    for event in (first, second):
        assert far.submit_local(event).code == CODE.VERDICT_CODE_ACCEPTED

    def purge() -> Verdict:
        asked = PurgeRoom(before_event_id=second.event_id, delete_local_events=True)
        return bench.submit((far.room_id, [InputEntry(request_id="purge", purge_room=asked)]))[0]

    assert purge().rejection.rule == "partial"
    assert far.complete() == CODE.VERDICT_CODE_ACCEPTED
    assert purge().code == CODE.VERDICT_CODE_ACCEPTED
    assert far.before(second) == set(far.room.before[second.event_id].values())


def test_servers_that_were_told_are_checked(bench: JudgeBench) -> None:
    far = joined(bench)
    far.begin(("b.example", "not a server", "a.example", "b.example", ""))
    assert list(far.known().servers) == ["a.example", "b.example"]


def test_only_a_join_can_be_partial(bench: JudgeBench) -> None:
    for fields in ({"partial": True}, {"completes": True}):
        commit = CommitImport(import_id="none", room_version="10", **fields)  # type: ignore[arg-type]
        entry = InputEntry(request_id="r", commit_import=commit)
        verdict = bench.submit(("!room:b.example", [entry]))[0]
        assert verdict.code == CODE.VERDICT_CODE_REJECTED

"""Events of other servers: the four states of an event, what waits, redactions, history, imports."""

from typing import Any

import orjson
import pytest
from sqlalchemy import Connection, func, select

from arbor.log.v1.input_pb2 import CommitImport, EventOrigin, InputEntry, PurgeRoom, ReplayRoom, VerdictCode
from arbor.log.v1.output_pb2 import OutputMessage, Placement
from arbor.roomserver.v1 import query_pb2
from matrixlib.events import Event
from roomserver import metrics
from roomserver.rpc import explain, exports, reads
from roomserver.storage import events as event_rows
from roomserver.storage import garbage, waiting
from roomserver.storage.tables import metadata
from tests.support.judging import JudgeBench, foreign, local, message
from tests.support.rooms import ALICE, BOB, CAROL, DAVE, Room

CODE = VerdictCode
ERIN = "@erin:a.example"
HISTORY = EventOrigin.EVENT_ORIGIN_HISTORY
OUTLIER = EventOrigin.EVENT_ORIGIN_OUTLIER


def begin(bench: JudgeBench, version: str = "10", content: dict[str, Any] | None = None) -> tuple[Room, str]:
    """A room of ours with Bob of another server in it."""
    room = Room(version, content=content)
    room_id = room.room_id or ""
    bench.submit(local(room_id, [room.events[i] for i in room.order]))
    assert bench.submit(foreign(room_id, [room.member(BOB, "join")]))[0].code == CODE.VERDICT_CODE_ACCEPTED
    return room, room_id


def stored(bench: JudgeBench, event_id: str) -> query_pb2.StoredEvent:
    return bench.database.read_sync(reads.read_stored, [event_id])[0]


def judged_again(bench: JudgeBench, request: tuple[str, list[InputEntry]]) -> tuple[int, str]:
    """The verdict on an entry that was judged before."""
    verdict = bench.submit(request)[0]
    return verdict.code, verdict.rejection.rule


def current_ids(bench: JudgeBench, room_id: str) -> set[str]:
    request = query_pb2.QueryLatestRequest(room_id=room_id, all_state=True)
    return {event.event_id for event in bench.database.read_sync(reads.read_latest, request)[0].state}


def test_what_is_missing_is_waited_for(bench: JudgeBench) -> None:
    room, room_id = begin(bench)
    first = room.send(BOB, "m.room.message", {"body": "1"})
    second = room.send(BOB, "m.room.message", {"body": "2"})
    third = room.send(BOB, "m.room.message", {"body": "3"})
    verdicts = bench.submit(foreign(room_id, [third]), foreign(room_id, [second]))
    assert [verdict.code for verdict in verdicts] == [CODE.VERDICT_CODE_WAITING] * 2
    assert list(verdicts[0].missing_event_ids) == [second.event_id]
    assert bench.entries[-2].room_missing.waiting_event_id == third.event_id
    assert stored(bench, third.event_id).status == query_pb2.EventStatus.EVENT_STATUS_WAITING
    again = bench.submit(foreign(room_id, [third]))[0]
    assert again.code == CODE.VERDICT_CODE_WAITING
    told = len(bench.entries)
    assert bench.submit(foreign(room_id, [first]))[0].code == CODE.VERDICT_CODE_ACCEPTED
    assert [entry.room_event.event_id for entry in bench.entries[told:]] == [
        first.event_id,
        second.event_id,
        third.event_id,
    ]
    assert bench.submit(foreign(room_id, [third]))[0].code == CODE.VERDICT_CODE_DUPLICATE


@pytest.mark.timeout(30)
def test_events_that_are_here_do_not_wake_each_other_for_ever(bench: JudgeBench) -> None:
    room, room_id = begin(bench)
    here = [room.send(BOB, "m.room.message", {"body": str(n)}) for n in range(2)]
    bench.submit(*[foreign(room_id, [event]) for event in here])
    third = room.send(BOB, "m.room.message", {"body": "third"})

    def wait(conn: Connection) -> None:
        # As it is when an event that waits comes another way, by an import say.
        for event, missing in zip(
            here, ([here[1].event_id, third.event_id], [here[0].event_id]), strict=True
        ):
            item = waiting.WaitingEvent(
                event.event_id, room_id, HISTORY, "b.example", "10", event.pdu_json, 1
            )
            waiting.store_waiting(conn, item, missing)

    bench.database.write_sync(wait)
    bench.memory.clear()
    assert bench.submit(foreign(room_id, [third]))[0].code == CODE.VERDICT_CODE_ACCEPTED
    left = [event.event_id for event in here]
    assert bench.database.read_sync(waiting.load_waiting, left) == {}


def test_history_that_waited_is_history_when_it_is_judged_again(bench: JudgeBench) -> None:
    room, room_id = begin(bench)
    join = room.heads
    seen = room.send(BOB, "m.room.message", {"body": "seen"})
    assert bench.submit(foreign(room_id, [seen]))[0].code == CODE.VERDICT_CODE_ACCEPTED
    older = room.send(BOB, "m.room.message", {"body": "older"}, prev=join)

    def wait(conn: Connection) -> None:
        # As it is when what it waited for came while nothing in the room was judged.
        item = waiting.WaitingEvent(older.event_id, room_id, HISTORY, "b.example", "10", older.pdu_json, 1)
        waiting.store_waiting(conn, item, [seen.event_id])

    bench.database.write_sync(wait)
    bench.memory.clear()
    replay = InputEntry(request_id="replay", replay_room=ReplayRoom())
    assert bench.submit((room_id, [replay]))[-1].code == CODE.VERDICT_CODE_ACCEPTED
    told = bench.entries[-1].room_event
    assert (told.event_id, told.placement) == (older.event_id, Placement.PLACEMENT_HISTORY)
    latest = bench.database.read_sync(reads.read_latest, query_pb2.QueryLatestRequest(room_id=room_id))[0]
    assert list(latest.forward_extremities) == [seen.event_id]
    assert bench.database.read_sync(waiting.load_waiting, [older.event_id]) == {}


@pytest.mark.parametrize("origin", [EventOrigin.EVENT_ORIGIN_FEDERATION, HISTORY])
def test_an_outlier_that_comes_along_wakes_what_waits_for_it(bench: JudgeBench, origin: Any) -> None:
    room, room_id = begin(bench)
    join = room.heads
    renamed = room.member(BOB, "join", content={"displayname": "Bob"})
    cited = [room.create.event_id, room.state[("m.room.power_levels", "")].event_id, renamed.event_id]
    waiter = room.send(BOB, "m.room.message", {"body": "waits"}, prev=join, auth=cited)
    assert bench.submit(foreign(room_id, [waiter], origin=origin))[0].code == CODE.VERDICT_CODE_WAITING
    other = room.send(BOB, "m.room.message", {"body": "other"}, prev=join)
    verdict = bench.submit(foreign(room_id, [other], origin=origin, outliers=[renamed]))[0]
    assert verdict.code == CODE.VERDICT_CODE_ACCEPTED
    assert bench.submit(foreign(room_id, [waiter], origin=origin))[0].code == CODE.VERDICT_CODE_DUPLICATE
    assert waiter.event_id in [entry.room_event.event_id for entry in bench.entries]
    assert bench.database.read_sync(waiting.load_waiting, [waiter.event_id]) == {}


def test_a_rejected_event_is_in_no_state(bench: JudgeBench) -> None:
    room, room_id = begin(bench)
    bad = room.send(BOB, "m.room.power_levels", {"users": {BOB: 100}}, state_key="")
    verdict = bench.submit(foreign(room_id, [bad]))[0]
    assert verdict.code == CODE.VERDICT_CODE_REJECTED
    assert verdict.rejection.rule
    assert judged_again(bench, foreign(room_id, [bad])) == (verdict.code, verdict.rejection.rule)
    after = room.send(BOB, "m.room.message", {"body": "x"}, prev=[bad.event_id])
    assert bench.submit(foreign(room_id, [after]))[0].code == CODE.VERDICT_CODE_ACCEPTED
    assert bad.event_id not in current_ids(bench, room_id)
    assert stored(bench, bad.event_id).rejection.rule == verdict.rejection.rule
    # Named as an auth event it spoils what names it.
    cites = room.send(
        BOB, "m.room.message", {"body": "y"}, auth=[room.create.event_id, bad.event_id], prev=[after.event_id]
    )
    assert bench.submit(foreign(room_id, [cites]))[0].code == CODE.VERDICT_CODE_REJECTED
    explained = bench.database.read_sync(explain.read_explanation, bad.event_id)
    assert explained.decision.rule == verdict.rejection.rule
    assert {event.event_id for event in explained.checked_against} >= {room.create.event_id}


@pytest.mark.parametrize("origin", [OUTLIER, HISTORY])
def test_what_was_refused_is_refused_again(bench: JudgeBench, origin: Any) -> None:
    room, room_id = begin(bench)
    bad = room.send(BOB, "m.room.power_levels", {"users": {BOB: 100}}, state_key="")
    verdict = bench.submit(foreign(room_id, [bad], origin=origin))[0]
    assert verdict.code == CODE.VERDICT_CODE_REJECTED
    for again in (origin, EventOrigin.EVENT_ORIGIN_FEDERATION):
        request = foreign(room_id, [bad], origin=again)
        assert judged_again(bench, request) == (verdict.code, verdict.rejection.rule)


def test_a_join_that_was_refused_is_not_imported(bench: JudgeBench) -> None:
    room = Room(creator=BOB).with_members(CAROL)
    room_id = room.room_id or ""
    assert imported(bench, room, room.member(ERIN, "join")) == CODE.VERDICT_CODE_ACCEPTED
    ban = room.member(DAVE, "ban", by=BOB)
    assert bench.submit(foreign(room_id, [ban]))[0].code == CODE.VERDICT_CODE_ACCEPTED
    refused = room.member(DAVE, "join")
    assert bench.submit(foreign(room_id, [refused]))[0].code == CODE.VERDICT_CODE_REJECTED
    assert imported(bench, room, refused, "import-2") == CODE.VERDICT_CODE_REJECTED


def test_a_soft_failed_event_is_shown_to_nobody(bench: JudgeBench) -> None:
    room, room_id = begin(bench)
    before = room.heads
    ban = room.member(BOB, "ban", by=ALICE)
    bench.submit(local(room_id, [ban]))
    late = room.send(BOB, "m.room.message", {"body": "late"}, prev=before)
    told = len(bench.entries)
    verdict = bench.submit(foreign(room_id, [late]))[0]
    assert verdict.code == CODE.VERDICT_CODE_SOFT_FAILED
    assert verdict.rejection.errcode == "M_FORBIDDEN"
    assert judged_again(bench, foreign(room_id, [late])) == (verdict.code, verdict.rejection.rule)
    assert len(bench.entries) == told
    latest = bench.database.read_sync(reads.read_latest, query_pb2.QueryLatestRequest(room_id=room_id))[0]
    assert list(latest.forward_extremities) == [ban.event_id]


@pytest.mark.parametrize("first", ["target", "redaction"])
def test_redactions_take_effect_whatever_comes_first(bench: JudgeBench, first: str) -> None:
    room, room_id = begin(bench)
    heads = room.heads
    target = room.send(BOB, "m.room.message", {"body": "secret"})
    redaction = room.send(BOB, "m.room.redaction", {}, redacts=target.event_id, prev=heads)
    order = [target, redaction] if first == "target" else [redaction, target]
    verdicts = bench.submit(*[foreign(room_id, [event]) for event in order])
    assert {verdict.code for verdict in verdicts} == {CODE.VERDICT_CODE_ACCEPTED}
    found = stored(bench, target.event_id)
    assert orjson.loads(found.event.pdu_json)["content"] == {}
    assert found.redacted_because.event_id == redaction.event_id
    told = bench.entries[-1].event_redacted
    assert (told.redacted_event_id, told.redaction.event_id) == (target.event_id, redaction.event_id)


def test_a_redaction_needs_the_level_or_the_domain(bench: JudgeBench) -> None:
    room, room_id = begin(bench)
    target = room.send(ALICE, "m.room.message", {"body": "mine"})
    redaction = room.send(BOB, "m.room.redaction", {}, redacts=target.event_id)
    bench.submit(local(room_id, [target]), foreign(room_id, [redaction]))
    assert orjson.loads(stored(bench, target.event_id).event.pdu_json)["content"] == {"body": "mine"}


def test_a_wrong_hash_leaves_the_redacted_form(bench: JudgeBench) -> None:
    room, room_id = begin(bench)
    event = room.send(BOB, "m.room.message", {"body": "x"})
    request = foreign(room_id, [event])
    sent = request[1][0].submit_events.events[0]
    sent.pdu_json = event.pdu_json.replace(b'"body":"x"', b'"body":"y"')
    assert bench.submit(request)[0].code == CODE.VERDICT_CODE_ACCEPTED
    assert orjson.loads(stored(bench, event.event_id).event.pdu_json)["content"] == {}


def test_heads_that_pile_up_are_joined(bench: JudgeBench) -> None:
    room, room_id = begin(bench)
    heads = room.heads
    forks = [room.send(BOB, "m.room.message", {"body": str(n)}, prev=heads) for n in range(12)]
    bench.submit(*[foreign(room_id, [event]) for event in forks])
    told = bench.entries[-1].room_event
    assert told.placement == Placement.PLACEMENT_HIDDEN
    assert told.sender == ALICE
    assert set(told.prev_event_ids) == {event.event_id for event in forks}
    assert list(told.forward_extremities) == [told.event_id]


def test_rooms_with_many_heads_are_measured(bench: JudgeBench) -> None:
    counts = {}
    for number in (1, 4, 2):
        room, room_id = begin(bench, "12", {"number": number})
        heads = room.heads
        forks = [room.send(BOB, "m.room.message", {"body": str(n)}, prev=heads) for n in range(number)]
        bench.submit(*[foreign(room_id, [event]) for event in forks])
        counts[room_id] = number
        rows, most = bench.database.read_sync(garbage.measure)
        assert most == {room_id: count for room_id, count in counts.items() if count > 1}
        metrics.note_sizes(rows, most)
    assert rows["room"] == 3
    assert list(most.values()) == [4, 2], "those with most come first"
    (told,) = metrics.room_heads.collect()
    assert {sample.labels["room_id"]: sample.value for sample in told.samples} == most


def test_state_that_another_server_told(bench: JudgeBench) -> None:
    room, room_id = begin(bench)
    gap = room.send(BOB, "m.room.message", {"body": "never seen"})
    after = room.send(BOB, "m.room.message", {"body": "after the gap"})
    state = list(room.before[after.event_id].values())
    verdict = bench.submit(foreign(room_id, [after], state_before_event_ids=state))[0]
    assert verdict.code == CODE.VERDICT_CODE_ACCEPTED
    assert list(bench.entries[-1].room_event.missing_prev_event_ids) == [gap.event_id]
    # The gap is filled from behind, and never shown in a timeline.
    verdict = bench.submit(foreign(room_id, [gap], origin=HISTORY))[0]
    assert verdict.code == CODE.VERDICT_CODE_ACCEPTED
    told = bench.entries[-1].room_event
    assert told.placement == Placement.PLACEMENT_HISTORY
    # Everybody of ours was there already, as now: there is nothing to say.
    assert told.visibility.local_members_differ
    assert not told.visibility.local_members


def test_history_says_who_of_us_was_there(bench: JudgeBench) -> None:
    room, room_id = begin(bench)
    gap = room.send(BOB, "m.room.message", {"body": "never seen"})
    erin, frank = "@erin:a.example", "@frank:a.example"
    room.member(erin, "join")
    invite = room.member(frank, "invite", by=BOB)
    older = room.send(BOB, "m.room.message", {"body": "an older one"})
    seen = room.send(BOB, "m.room.message", {"body": "seen"})
    changes = [room.member(erin, "leave"), room.member(frank, "join")]
    state = sorted(room.before[seen.event_id].values())
    outliers = [room.events[event_id] for event_id in room.order if event_id in state]
    request = foreign(room_id, [seen], outliers=outliers, state_before_event_ids=state)
    assert bench.submit(request)[0].code == CODE.VERDICT_CODE_ACCEPTED
    for change in changes:
        assert bench.submit(foreign(room_id, [change]))[0].code == CODE.VERDICT_CODE_ACCEPTED
    assert bench.submit(foreign(room_id, [older], origin=HISTORY))[0].code == CODE.VERDICT_CODE_ACCEPTED
    told = bench.entries[-1].room_event
    assert told.event_id == older.event_id
    assert told.visibility.local_members_differ
    members = {m.user_id: (m.membership, m.event_id) for m in told.visibility.local_members}
    assert members.keys() == {erin, frank}
    assert members[erin][0] == "join"
    assert members[frank] == ("invite", invite.event_id)
    # Before either of them was there.
    for event_id in reversed(room.order[room.order.index(gap.event_id) : room.order.index(older.event_id)]):
        request = foreign(room_id, [room.events[event_id]], origin=HISTORY)
        assert bench.submit(request)[0].code == CODE.VERDICT_CODE_ACCEPTED
    told = bench.entries[-1].room_event
    assert told.event_id == gap.event_id
    assert {m.user_id: m.membership for m in told.visibility.local_members} == {erin: "leave", frank: "leave"}


def test_an_invite_to_a_room_that_we_are_not_in(bench: JudgeBench) -> None:
    room = Room("10", creator=BOB)
    room_id = room.room_id or ""
    invite = room.member(ERIN, "invite", by=BOB)
    request = foreign(
        room_id,
        [invite],
        origin=OUTLIER,
        outlier_membership_user_id=ERIN,
        stripped_state_json=[b'{"type":"m.room.name"}'],
    )
    verdict = bench.submit(request)[0]
    assert (verdict.code, verdict.output_sequence) == (CODE.VERDICT_CODE_ACCEPTED, 1)
    told = bench.entries[-1].outlier_membership
    assert (told.user_id, told.membership, told.stripped_state_json[0]) == (
        ERIN,
        "invite",
        b'{"type":"m.room.name"}',
    )
    found = bench.database.read_sync(
        reads.read_memberships, query_pb2.QueryMembershipsRequest(user_ids=[ERIN])
    )
    assert [(m.room_id, m.membership.membership, m.outlier) for m in found.memberships] == [
        (room_id, "invite", True)
    ]
    bench.settle()
    exported = export(bench)
    assert exported == bench.raw


def export(bench: JudgeBench) -> list[bytes]:
    """Everything told, made anew from the database."""
    through = bench.database.read_sync(exports.read_complete_through)
    page, _ = bench.database.read_sync(exports.read_page, 0, through, None, set(), 4)
    return [item[1] for item in page]


def imported(bench: JudgeBench, room: Room, join: Event, import_id: str = "import-1") -> int:
    """Stage a room's state before a join, and commit it with the join; returns the verdict's code."""
    room_id = room.room_id or ""
    state = set(room.before[join.event_id].values())
    chain = set(room.order) - state - {join.event_id}
    parts = [
        ([], [room.events[i] for i in room.order if i in chain]),
        ([room.events[i] for i in sorted(state)], []),
    ]
    for number, (state_part, chain_part) in enumerate(parts, 1):
        for _ in range(2):  # a part may come twice
            bench.stage(import_id, room_id, room.version.identifier, state_part, chain_part, number)
    entry = InputEntry(
        request_id="import",
        commit_import=CommitImport(
            import_id=import_id, room_version=room.version.identifier, join_event=message(join)
        ),
    )
    return bench.submit((room_id, [entry]))[0].code


@pytest.mark.parametrize("version", ["10", "12"])
def test_a_remote_room_is_joined_left_and_joined_again(bench: JudgeBench, version: str) -> None:
    room = Room(version, creator=BOB).with_members(CAROL)
    room.send(BOB, "m.room.topic", {"topic": "far"}, state_key="")
    join = room.member(ERIN, "join")
    room_id = room.room_id or ""
    assert imported(bench, room, join) == CODE.VERDICT_CODE_ACCEPTED
    rewritten, joined = bench.entries[-2].state_rewritten, bench.entries[-1].room_event
    assert (rewritten.participation, rewritten.participation_began) == (1, True)
    assert rewritten.entries == len(room.before[join.event_id])
    assert joined.event_id == join.event_id
    assert list(joined.servers_joined) == ["a.example"]
    assert joined.member_counts.joined == 3
    assert current_ids(bench, room_id) == set(room.after[join.event_id].values())
    assert imported(bench, room, join) == CODE.VERDICT_CODE_DUPLICATE

    said = room.send(BOB, "m.room.message", {"body": "hi"})
    assert bench.submit(foreign(room_id, [said]))[0].code == CODE.VERDICT_CODE_ACCEPTED
    leave = room.member(ERIN, "leave")
    bench.submit(local(room_id, [leave]))
    assert bench.entries[-1].participation_ended.participation == 1
    unseen = room.send(BOB, "m.room.topic", {"topic": "changed meanwhile"}, state_key="")
    assert bench.submit(foreign(room_id, [unseen]))[0].rejection.rule == "not_participating"

    again = room.member(ERIN, "join")
    assert imported(bench, room, again, "import-2") == CODE.VERDICT_CODE_ACCEPTED
    assert bench.entries[-2].state_rewritten.participation == 2
    assert current_ids(bench, room_id) == set(room.after[again.event_id].values())
    bench.settle()
    for ours, theirs in zip(export(bench), bench.raw, strict=True):
        assert OutputMessage.FromString(ours) == OutputMessage.FromString(theirs)


def test_a_room_is_purged(bench: JudgeBench) -> None:
    room, room_id = begin(bench)
    purge = InputEntry(request_id="p", purge_room=PurgeRoom())
    assert bench.submit((room_id, [purge]))[0].code == CODE.VERDICT_CODE_ACCEPTED
    assert bench.entries[-1].HasField("room_purged")
    found = bench.database.read_sync(event_rows.load_events_by_id, room.order)
    assert found == {}
    bench.settle()
    assert [OutputMessage.FromString(item).entries[0].HasField("room_purged") for item in export(bench)] == [
        True
    ]


def rows_left(bench: JudgeBench) -> dict[str, int]:
    """Tables that still have rows, but those that know of no room."""
    known = {
        "partition",
        "id_block",
        "meta",
        "state_key",
        "outbox",
        "outbox_progress",
        "output_message",
        "erasure",
    }

    def count(conn: Connection) -> dict[str, int]:
        return {
            table.name: conn.execute(select(func.count()).select_from(table)).scalar_one()
            for table in metadata.sorted_tables
            if table.name not in known
        }

    return {table: rows for table, rows in bench.database.read_sync(count).items() if rows}


def test_of_a_purged_room_nothing_is_left_and_it_can_be_joined_again(bench: JudgeBench) -> None:
    room = Room("12", creator=BOB).with_members(CAROL)
    join = room.member(ERIN, "join")
    room_id = room.room_id or ""
    assert imported(bench, room, join) == CODE.VERDICT_CODE_ACCEPTED
    base = room.heads
    forks = [room.send(BOB, f"org.example.{n}", {}, state_key="", prev=base) for n in range(3)]
    waits = room.send(
        BOB, "m.room.message", {}, prev=[room.send(BOB, "m.room.message", {"body": "gap"}).event_id]
    )
    early = room.send(BOB, "m.room.redaction", {"redacts": "$" + "A" * 43})
    rejected = room.send(DAVE, "m.room.topic", {}, state_key="", prev=[forks[0].event_id])
    request = local(room_id, [room.send(ERIN, "m.room.message", {}, prev=[forks[0].event_id])], txn="t")
    bench.submit(*[foreign(room_id, [event]) for event in (*forks, waits, early, rejected)], request)
    assert {"waiting_event", "waiting_for", "auth_chain_link", "resolved_snapshot"} <= rows_left(bench).keys()
    purge = InputEntry(request_id="p", purge_room=PurgeRoom())
    assert bench.submit((room_id, [purge]))[0].code == CODE.VERDICT_CODE_ACCEPTED
    assert rows_left(bench) == {}
    assert bench.submit(foreign(room_id, [forks[0]]))[0].rejection.rule == "unknown_room"
    again = room.member(ERIN, "join", content={"displayname": "again"}, prev=base)
    assert imported(bench, room, again, "import-2") == CODE.VERDICT_CODE_ACCEPTED
    assert bench.entries[-2].state_rewritten.participation_began
    assert current_ids(bench, room_id) == set(room.after[again.event_id].values())
    more = room.send(BOB, "m.room.message", {"body": "goes on"}, prev=[again.event_id])
    assert bench.submit(foreign(room_id, [more]))[0].code == CODE.VERDICT_CODE_ACCEPTED


def test_history_is_purged_and_positions_stay(bench: JudgeBench) -> None:
    room, room_id = begin(bench)
    old = [room.send(BOB, "m.room.message", {"body": str(n)}) for n in range(4)]
    bench.submit(*[foreign(room_id, [event]) for event in old])
    purge = InputEntry(request_id="p", purge_room=PurgeRoom(before_event_id=old[2].event_id))
    assert bench.submit((room_id, [purge]))[0].code == CODE.VERDICT_CODE_ACCEPTED
    kept = bench.database.read_sync(event_rows.load_events_by_id, [event.event_id for event in old])
    assert set(kept) == {old[2].event_id, old[3].event_id}
    bench.settle()
    entries = OutputMessage.FromString(export(bench)[2]).entries
    assert [entry.room_event.event_id for entry in entries] == ["", "", old[2].event_id, old[3].event_id]
    more = room.send(BOB, "m.room.message", {"body": "goes on"})
    assert bench.submit(foreign(room_id, [more]))[0].code == CODE.VERDICT_CODE_ACCEPTED

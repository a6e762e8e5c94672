"""Local entries: accepted whole or refused whole, on the heads of the moment."""

import orjson
import pytest

from arbor.log.v1.input_pb2 import VerdictCode
from arbor.log.v1.output_pb2 import Placement
from matrixlib.events import Event
from tests.support.judging import JudgeBench, local
from tests.support.rooms import ALICE, Room

ACCEPTED = VerdictCode.VERDICT_CODE_ACCEPTED
CAROL = "@carol:a.example"


def created(bench: JudgeBench, version: str = "10") -> Room:
    """A room that the judge has accepted."""
    room = Room(version)
    events = [room.events[event_id] for event_id in room.order]
    assert room.room_id is not None
    verdicts = bench.submit(local(room.room_id, events, txn="create"))
    assert [verdict.code for verdict in verdicts] == [ACCEPTED], verdicts
    return room


def say(room: Room, text: str, **kwargs: object) -> Event:
    return room.send(ALICE, "m.room.message", {"body": text}, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", ["1", "3", "6", "10", "11", "12"])
def test_a_room_is_made_and_told(bench: JudgeBench, version: str) -> None:
    room = created(bench, version)
    told = [entry.room_event for entry in bench.entries]
    assert [event.event_id for event in told] == room.order
    assert told[0].participation_began
    assert told[0].participation == 1
    assert [len(event.state_changes) for event in told] == [1] * len(told)
    assert told[1].servers_joined == ["a.example"]
    assert (told[1].member_counts.joined, told[1].member_counts.invited) == (1, 0)
    assert all(event.placement == Placement.PLACEMENT_TIMELINE for event in told)
    assert told[-1].forward_extremities == room.heads
    assert orjson.loads(told[0].pdu_json)["type"] == "m.room.create"


def test_messages_follow_each_other_in_one_batch(bench: JudgeBench) -> None:
    room = created(bench)
    events = [say(room, str(number)) for number in range(5)]
    verdicts = bench.submit(*[local(room.room_id or "", [event], txn=event.event_id) for event in events])
    assert [verdict.code for verdict in verdicts] == [ACCEPTED] * 5
    assert len({verdict.output_sequence for verdict in verdicts}) == 1  # one message a room and commit
    assert [entry.room_event.event_id for entry in bench.output[-1].entries] == [e.event_id for e in events]
    assert bench.output[-1].entries[-1].room_event.transaction_key.txn_id == events[-1].event_id


def test_a_transaction_makes_one_event(bench: JudgeBench) -> None:
    room = created(bench)
    heads = room.heads
    first = say(room, "one")
    again = say(room, "two", prev=heads)
    verdicts = bench.submit(
        local(room.room_id or "", [first], txn="t"), local(room.room_id or "", [again], txn="t")
    )
    assert [v.code for v in verdicts] == [ACCEPTED, VerdictCode.VERDICT_CODE_DUPLICATE]
    assert verdicts[1].event_id == first.event_id
    later = bench.submit(local(room.room_id or "", [again], txn="t"))[0]
    assert (later.code, later.event_id) == (VerdictCode.VERDICT_CODE_DUPLICATE, first.event_id)
    assert later.output_sequence == verdicts[0].output_sequence


def test_stale_heads_come_with_what_changed(bench: JudgeBench) -> None:
    room = created(bench)
    heads = room.heads
    levels = room.send(
        ALICE, "m.room.power_levels", {"users": {ALICE: 100}, "events_default": 1}, state_key=""
    )
    late = say(room, "late", prev=heads)
    verdicts = bench.submit(local(room.room_id or "", [levels]), local(room.room_id or "", [late]))
    stale = verdicts[1].stale
    assert verdicts[1].code == VerdictCode.VERDICT_CODE_STALE
    assert list(stale.forward_extremities) == [levels.event_id]
    assert stale.depth == levels.depth
    assert [event.event_id for event in stale.changed_auth_state] == [levels.event_id]
    forked = bench.submit(local(room.room_id or "", [late], may_fork=True))[0]
    assert forked.code == ACCEPTED
    assert set(bench.entries[-1].room_event.forward_extremities) == {levels.event_id, late.event_id}


def test_a_refused_entry_leaves_nothing(bench: JudgeBench) -> None:
    room = created(bench)
    good = room.send(ALICE, "m.room.topic", {"topic": "x"}, state_key="")
    bad = room.send(CAROL, "m.room.message", {"body": "not a member"})
    told = len(bench.entries)
    verdict = bench.submit(local(room.room_id or "", [good, bad]))[0]
    assert verdict.code == VerdictCode.VERDICT_CODE_REJECTED
    assert (verdict.rejection.event_index, verdict.rejection.errcode) == (1, "M_FORBIDDEN")
    assert len(bench.entries) == told
    # The topic is not there: the next event, built on the heads before, is not stale.
    other = room.send(ALICE, "m.room.message", {"body": "x"}, prev=list(good.prev_event_ids))
    assert bench.submit(local(room.room_id or "", [other]))[0].code == ACCEPTED


def test_a_refused_creation_leaves_no_room(bench: JudgeBench) -> None:
    room = Room("10")
    bad = room.send(CAROL, "m.room.topic", {"topic": "x"}, state_key="")
    events = [room.events[event_id] for event_id in room.order]
    if bad.event_id not in room.order:
        events.append(bad)
    verdict = bench.submit(local(room.room_id or "", events))[0]
    assert verdict.code == VerdictCode.VERDICT_CODE_REJECTED
    unknown = bench.submit(local(room.room_id or "", [say(room, "x")]))[0]
    assert unknown.rejection.rule == "unknown_room"
    assert bench.entries == []


def test_an_invite_carries_stripped_state(bench: JudgeBench) -> None:
    room = created(bench)
    invite = room.member(CAROL, "invite", by=ALICE)
    join = room.member(CAROL, "join")
    assert [
        v.code for v in bench.submit(local(room.room_id or "", [invite]), local(room.room_id or "", [join]))
    ] == [
        ACCEPTED,
        ACCEPTED,
    ]
    told = bench.output[-1].entries[0].room_event
    types = [orjson.loads(item)["type"] for item in told.stripped_state_json]
    assert "m.room.create" in types
    assert "m.room.member" in types
    joined = bench.output[-1].entries[1].room_event
    assert joined.replaces_state == invite.event_id
    assert orjson.loads(joined.prev_content_json)["membership"] == "invite"
    assert joined.member_counts.joined == 2
    assert list(joined.servers_joined) == []


def test_the_last_leave_ends_the_participation(bench: JudgeBench) -> None:
    room = created(bench)
    leave = room.member(ALICE, "leave")
    bench.submit(local(room.room_id or "", [leave]))
    assert bench.output[-1].entries[0].room_event.servers_left == ["a.example"]
    assert bench.output[-1].entries[1].participation_ended.participation == 1


@pytest.mark.parametrize("how", ["id", "body", "foreign"])
def test_forged_events_are_refused(bench: JudgeBench, how: str) -> None:
    room = created(bench)
    event = say(room, "x")
    request = local(room.room_id or "", [event])
    submitted = request[1][0].submit_events.events[0]
    if how == "id":
        submitted.event_id = "$" + "A" * 43
    elif how == "body":
        submitted.pdu_json = event.pdu_json.replace(b'"x"', b'"y"')
    else:
        foreign = room.send("@bob:b.example", "m.room.message", {"body": "x"}, prev=room.heads)
        request = local(room.room_id or "", [foreign])
    assert bench.submit(request)[0].rejection.rule == "format"


def test_a_fork_does_not_undo_what_was_decided(bench: JudgeBench) -> None:
    room = created(bench)
    room_id = room.room_id or ""
    join = room.member(CAROL, "join")
    early = room.send(CAROL, "m.room.message", {"body": "early"})
    assert [v.code for v in bench.submit(local(room_id, [join]), local(room_id, [early]))] == [ACCEPTED] * 2
    ban = room.member(CAROL, "ban", by=ALICE)
    # What was found for the early one, with the same auth events at the same state, does not hold for this one.
    late = room.send(CAROL, "m.room.message", {"body": "late"}, prev=[early.event_id])
    assert late.auth_links == early.auth_links
    verdicts = bench.submit(local(room_id, [ban]), local(room_id, [late], may_fork=True))
    assert verdicts[1].code == VerdictCode.VERDICT_CODE_REJECTED
    assert verdicts[1].rejection.errcode == "M_FORBIDDEN"

"""A room's policy server: what it has not signed is refused where it is ours, soft-failed where it is not."""

import orjson
import pytest

from arbor.log.v1.input_pb2 import CommitImport, EventOrigin, InputEntry, Verdict, VerdictCode
from arbor.roomserver.v1 import query_pb2
from matrixlib.events import Event, parse_event
from matrixlib.policy_servers import POLICY_KEY
from roomserver.input import merge
from roomserver.rpc import reads
from tests.support.judging import JudgeBench, foreign, local, message
from tests.support.policy import OTHER_KEY, POLICY_TYPE, policy_content, recommended
from tests.support.rooms import ALICE, BOB, CAROL, Room

CODE = VerdictCode
PS = "c.example"


def begin(bench: JudgeBench, *members: str, version: str = "10", name: str = PS) -> Room:
    """A room of Alice's with a policy, and these users of other servers."""
    room = Room(version)
    bench.submit(local(room.room_id or "", [room.events[id_] for id_ in room.order]))
    for user in members:
        assert receive(bench, room.member(user, "join")).code == CODE.VERDICT_CODE_ACCEPTED
    policy = room.send(ALICE, POLICY_TYPE, policy_content(name), state_key="")
    assert send(bench, policy).code == CODE.VERDICT_CODE_ACCEPTED
    return room


def send(bench: JudgeBench, *events: Event) -> Verdict:
    return bench.submit(local(events[0].room_id, events))[0]


def receive(bench: JudgeBench, event: Event) -> Verdict:
    return bench.submit(foreign(event.room_id, [event]))[0]


def status_of(bench: JudgeBench, event: Event) -> int:
    return bench.database.read_sync(reads.read_stored, [event.event_id])[0].status


def told(bench: JudgeBench) -> list[str]:
    return [entry.room_event.event_id for entry in bench.entries if entry.HasField("room_event")]


def latest(bench: JudgeBench, room: Room) -> query_pb2.QueryLatestResponse:
    request = query_pb2.QueryLatestRequest(room_id=room.room_id or "", all_state=True)
    return bench.database.read_sync(reads.read_latest, request)[0]


@pytest.mark.parametrize("version", ["1", "10", "12"])
def test_what_is_signed_is_taken(bench: JudgeBench, version: str) -> None:
    room = begin(bench, BOB, CAROL, version=version)
    for event in (
        room.send(ALICE, "m.room.message", {"body": "1"}),
        room.send(ALICE, "m.room.topic", {"topic": "2"}, state_key=""),
    ):
        assert send(bench, recommended(event, PS)).code == CODE.VERDICT_CODE_ACCEPTED
    heard = recommended(room.send(BOB, "m.room.message", {"body": "3"}), PS)
    assert receive(bench, heard).code == CODE.VERDICT_CODE_ACCEPTED
    # The signature stays with the event, for whoever gets it from us.
    stored = bench.database.read_sync(reads.read_stored, [heard.event_id])[0]
    assert orjson.loads(stored.event.pdu_json)["signatures"].keys() >= {"b.example", PS}


def test_what_is_not_signed_is_refused_or_hidden(bench: JudgeBench) -> None:
    room = begin(bench, BOB, CAROL)
    heads = room.heads
    ours = room.send(ALICE, "m.room.message", {"body": "ours"})
    verdict = send(bench, ours)
    assert (verdict.code, verdict.rejection.rule) == (CODE.VERDICT_CODE_REJECTED, "policy")
    assert verdict.rejection.errcode == "M_FORBIDDEN"
    assert bench.database.read_sync(reads.read_stored, [ours.event_id]) == []

    room.heads = heads
    theirs = room.send(BOB, "m.room.message", {"body": "theirs"})
    verdict = receive(bench, theirs)
    assert (verdict.code, verdict.rejection.rule) == (CODE.VERDICT_CODE_SOFT_FAILED, "policy")
    assert status_of(bench, theirs) == query_pb2.EVENT_STATUS_SOFT_FAILED
    assert theirs.event_id not in told(bench)
    assert list(latest(bench, room).forward_extremities) == heads
    # Once soft-failed, it stays so: a signature that comes later changes nothing.
    assert receive(bench, recommended(theirs, PS)).code == CODE.VERDICT_CODE_SOFT_FAILED
    assert status_of(bench, theirs) == query_pb2.EVENT_STATUS_SOFT_FAILED
    # What comes after it goes on.
    after = recommended(room.send(BOB, "m.room.message", {"body": "after"}), PS)
    assert after.prev_event_ids == (theirs.event_id,)
    assert receive(bench, after).code == CODE.VERDICT_CODE_ACCEPTED
    assert told(bench)[-1] == after.event_id


def test_one_signature_is_not_good_for_the_next_message(bench: JudgeBench) -> None:
    room = begin(bench, BOB, CAROL)
    signed = recommended(room.send(ALICE, "m.room.message", {"body": "signed"}), PS)
    assert send(bench, signed).code == CODE.VERDICT_CODE_ACCEPTED
    # Of the same sender and type, with the same auth events, at the same state.
    unsigned = room.send(ALICE, "m.room.message", {"body": "unsigned"})
    verdict = send(bench, unsigned)
    assert (verdict.code, verdict.rejection.rule) == (CODE.VERDICT_CODE_REJECTED, "policy")


def test_a_hidden_state_event_is_not_in_the_state(bench: JudgeBench) -> None:
    room = begin(bench, BOB, CAROL)
    levels = {"users": {ALICE: 100, BOB: 100}}
    signed = recommended(room.send(ALICE, "m.room.power_levels", levels, state_key=""), PS)
    assert send(bench, signed).code == CODE.VERDICT_CODE_ACCEPTED
    name = room.send(BOB, "m.room.name", {"name": "x"}, state_key="")
    assert receive(bench, name).code == CODE.VERDICT_CODE_SOFT_FAILED
    assert name.event_id not in [event.event_id for event in latest(bench, room).state]


@pytest.mark.parametrize("sign", ["by another key", "by another server", "another event"])
def test_wrong_signatures_do_not_count(bench: JudgeBench, sign: str) -> None:
    room = begin(bench, BOB, CAROL)
    if sign == "by another key":
        policy = room.send(ALICE, POLICY_TYPE, policy_content(PS, OTHER_KEY), state_key="")
        assert send(bench, policy).code == CODE.VERDICT_CODE_ACCEPTED
    event = room.send(BOB, "m.room.message", {"body": "x"})
    match sign:
        case "by another key":
            event = recommended(event, PS)
        case "by another server":
            event = recommended(event, "b.example")
        case _:
            other = recommended(room.send(BOB, "m.room.message", {"body": "y"}), PS)
            signatures = {**event.pdu["signatures"], PS: other.pdu["signatures"][PS]}
            event = parse_event({**event.pdu, "signatures": signatures}, room.version)
    assert receive(bench, event).code == CODE.VERDICT_CODE_SOFT_FAILED


def test_a_server_without_a_joined_user_is_no_policy_server(bench: JudgeBench) -> None:
    room = begin(bench, BOB)
    assert send(bench, room.send(ALICE, "m.room.message", {"body": "1"})).code == CODE.VERDICT_CODE_ACCEPTED
    invite = room.member(CAROL, "invite", by=ALICE)
    assert send(bench, invite).code == CODE.VERDICT_CODE_ACCEPTED
    assert send(bench, room.send(ALICE, "m.room.message", {"body": "2"})).code == CODE.VERDICT_CODE_ACCEPTED
    # It comes, and it goes.
    assert receive(bench, room.member(CAROL, "join")).code == CODE.VERDICT_CODE_ACCEPTED
    heads = room.heads
    refused = room.send(ALICE, "m.room.message", {"body": "3"})
    assert send(bench, refused).code == CODE.VERDICT_CODE_REJECTED
    room.heads = heads
    leave = recommended(room.member(CAROL, "leave"), PS)
    assert receive(bench, leave).code == CODE.VERDICT_CODE_ACCEPTED
    assert send(bench, room.send(ALICE, "m.room.message", {"body": "4"})).code == CODE.VERDICT_CODE_ACCEPTED


def test_the_policy_changes_without_its_server(bench: JudgeBench) -> None:
    room = begin(bench, BOB, CAROL)
    heads = room.heads
    for state_key, event_type in (("x", POLICY_TYPE), (None, POLICY_TYPE), ("", "m.room.name")):
        event = room.send(ALICE, event_type, {}, state_key=state_key)
        assert send(bench, event).code == CODE.VERDICT_CODE_REJECTED
        room.heads = heads
    gone = room.send(ALICE, POLICY_TYPE, {}, state_key="")
    free = room.send(ALICE, "m.room.message", {"body": "free"})
    assert send(bench, gone, free).code == CODE.VERDICT_CODE_ACCEPTED
    # One entry: what comes after the new policy needs its signature.
    back = room.send(ALICE, POLICY_TYPE, policy_content(PS), state_key="")
    bound = room.send(ALICE, "m.room.message", {"body": "bound"})
    verdict = send(bench, back, bound)
    assert (verdict.code, verdict.rejection.event_index) == (CODE.VERDICT_CODE_REJECTED, 1)
    assert send(bench, back, recommended(bound, PS)).code == CODE.VERDICT_CODE_ACCEPTED


def test_a_redacted_policy_is_none(bench: JudgeBench) -> None:
    room = begin(bench, BOB, CAROL)
    policy = room.state[POLICY_KEY]
    redaction = room.send(ALICE, "m.room.redaction", {}, redacts=policy.event_id)
    assert send(bench, recommended(redaction, PS)).code == CODE.VERDICT_CODE_ACCEPTED
    assert send(bench, room.send(ALICE, "m.room.message", {"body": "x"})).code == CODE.VERDICT_CODE_ACCEPTED


def test_our_own_server_can_be_named_and_must_sign(bench: JudgeBench) -> None:
    room = begin(bench, BOB, name="a.example")
    heads = room.heads
    assert send(bench, room.send(ALICE, "m.room.message", {"body": "x"})).code == CODE.VERDICT_CODE_REJECTED
    room.heads = heads
    event = recommended(room.send(ALICE, "m.room.message", {"body": "x"}), "a.example")
    assert send(bench, event).code == CODE.VERDICT_CODE_ACCEPTED


def test_what_waited_is_judged_by_the_policy_too(bench: JudgeBench) -> None:
    room = begin(bench, BOB, CAROL)
    first = recommended(room.send(BOB, "m.room.message", {"body": "1"}), PS)
    second = room.send(BOB, "m.room.message", {"body": "2"})
    third = recommended(room.send(BOB, "m.room.message", {"body": "3"}), PS)
    for event in (third, second):
        assert receive(bench, event).code == CODE.VERDICT_CODE_WAITING
    assert receive(bench, first).code == CODE.VERDICT_CODE_ACCEPTED
    assert [status_of(bench, event) for event in (first, second, third)] == [
        query_pb2.EVENT_STATUS_ACCEPTED,
        query_pb2.EVENT_STATUS_SOFT_FAILED,
        query_pb2.EVENT_STATUS_ACCEPTED,
    ]


def test_what_waited_when_the_policy_came_is_judged_with_the_signature_that_it_got_since(
    bench: JudgeBench,
) -> None:
    room = Room("10")
    bench.submit(local(room.room_id or "", [room.events[id_] for id_ in room.order]))
    for user in (BOB, CAROL):
        assert receive(bench, room.member(user, "join")).code == CODE.VERDICT_CODE_ACCEPTED
    heads = room.heads
    first = room.send(BOB, "m.room.message", {"body": "1"})
    second = room.send(BOB, "m.room.message", {"body": "2"})
    third = room.send(BOB, "m.room.message", {"body": "3"}, prev=[first.event_id])
    for event in (second, third):
        assert receive(bench, event).code == CODE.VERDICT_CODE_WAITING
    policy = room.send(ALICE, POLICY_TYPE, policy_content(PS), state_key="", prev=heads)
    assert send(bench, policy).code == CODE.VERDICT_CODE_ACCEPTED
    waited = len(bench.entries)
    # One comes again, signed; a copy without changes nothing of that.
    for event in (recommended(second, PS), second):
        assert receive(bench, event).code == CODE.VERDICT_CODE_WAITING
    assert len(bench.entries) == waited, "what it waits for is known"
    assert receive(bench, recommended(first, PS)).code == CODE.VERDICT_CODE_ACCEPTED
    assert status_of(bench, second) == query_pb2.EVENT_STATUS_ACCEPTED
    assert status_of(bench, third) == query_pb2.EVENT_STATUS_SOFT_FAILED


def test_old_history_is_not_asked_for_signatures(bench: JudgeBench) -> None:
    room = Room("10")
    room_id = room.room_id or ""
    bench.submit(local(room_id, [room.events[id_] for id_ in room.order]))
    heads = room.heads
    past = room.send(ALICE, "m.room.message", {"body": "past"}, prev=heads)
    room.heads = heads
    assert receive(bench, room.member(CAROL, "join")).code == CODE.VERDICT_CODE_ACCEPTED
    policy = room.send(ALICE, POLICY_TYPE, policy_content(PS), state_key="")
    assert send(bench, policy).code == CODE.VERDICT_CODE_ACCEPTED
    verdict = bench.submit(foreign(room_id, [past], origin=EventOrigin.EVENT_ORIGIN_HISTORY))[0]
    assert verdict.code == CODE.VERDICT_CODE_ACCEPTED


def test_stale_writers_hear_of_the_policy(bench: JudgeBench) -> None:
    room = begin(bench, BOB, CAROL)
    heads = room.heads
    event = recommended(room.send(BOB, "m.room.message", {"body": "1"}), PS)
    assert receive(bench, event).code == CODE.VERDICT_CODE_ACCEPTED
    late = room.send(ALICE, "m.room.message", {"body": "2"}, prev=heads)
    verdict = send(bench, late)
    assert verdict.code == CODE.VERDICT_CODE_STALE
    assert [item.event_id for item in verdict.stale.changed_auth_state] == [room.state[POLICY_KEY].event_id]


def test_no_merge_event_is_made_that_nobody_has_signed(bench: JudgeBench) -> None:
    room = begin(bench, BOB, CAROL)
    heads = room.heads
    for number in range(merge.MERGE_FROM + 2):
        event = room.send(BOB, "m.room.message", {"body": str(number)}, prev=heads)
        assert receive(bench, recommended(event, PS)).code == CODE.VERDICT_CODE_ACCEPTED
    assert len(latest(bench, room).forward_extremities) == merge.MERGE_FROM + 2


def test_an_import_wants_the_joins_signature(bench: JudgeBench) -> None:
    room = Room("10", creator=BOB).with_members(CAROL)
    room.send(BOB, POLICY_TYPE, policy_content(PS), state_key="")
    room_id = room.room_id or ""
    state = list(room.state.values())
    join = room.member(ALICE, "join")
    for number, event in enumerate((join, recommended(join, PS))):
        verdict = import_room(bench, f"import{number}", room_id, state, event)
        expected = CODE.VERDICT_CODE_ACCEPTED if number else CODE.VERDICT_CODE_REJECTED
        assert verdict.code == expected, verdict


def import_room(bench: JudgeBench, import_id: str, room_id: str, state: list[Event], join: Event) -> Verdict:
    bench.stage(import_id, room_id, "10", state, [], 1)
    commit = CommitImport(import_id=import_id, room_version="10", join_event=message(join))
    return bench.submit((room_id, [InputEntry(request_id=import_id, reply_to="v", commit_import=commit)]))[0]

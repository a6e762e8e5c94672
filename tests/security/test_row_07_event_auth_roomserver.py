"""Row 7: events that name as auth events what cannot be one are refused, alone, and the room goes on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from arbor.log.v1.input_pb2 import CommitImport, EventOrigin, InputEntry, VerdictCode
from arbor.roomserver.v1 import query_pb2
from matrixlib.room_versions import ROOM_VERSIONS
from roomserver.rpc import explain, graph, reads
from roomserver.storage import events, rooms
from tests.support.judging import JudgeBench, foreign, local, message
from tests.support.rooms import ALICE, BOB, CAROL, Room, sign_for_all

CODE = VerdictCode
HISTORY = EventOrigin.EVENT_ORIGIN_HISTORY


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[JudgeBench]:
    made = JudgeBench(f"sqlite:///{tmp_path / 'r.db'}", local=("a.example", "c.example"))
    yield made
    made.close()


def begin(bench: JudgeBench, version: str, creator: str = ALICE, other: str = BOB) -> tuple[Room, str]:
    room = Room(version, creator=creator)
    room_id = room.room_id or ""
    bench.submit(local(room_id, [room.events[i] for i in room.order]))
    bench.submit(foreign(room_id, [room.member(other, "join")]))
    return room, room_id


def goes_on(bench: JudgeBench, room: Room, room_id: str, prev: list[str]) -> None:
    row = bench.database.read_sync(rooms.load_rooms, [room_id])[room_id]
    assert not row.quarantined_ms
    event = room.send(BOB, "m.room.message", {"body": "goes on"}, prev=prev)
    assert bench.submit(foreign(room_id, [event]))[0].code == CODE.VERDICT_CODE_ACCEPTED


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_a_message_as_auth_event(bench: JudgeBench, version: str) -> None:
    room, room_id = begin(bench, version)
    said = room.send(BOB, "m.room.message", {"body": "said"})
    assert bench.submit(foreign(room_id, [said]))[0].code == CODE.VERDICT_CODE_ACCEPTED
    state = room.before[said.event_id]
    auth = sorted({state["m.room.power_levels", ""], state["m.room.member", BOB], said.event_id})
    if not room.version.room_id_is_create_hash:
        auth.append(room.create.event_id)
    odd = room.send(BOB, "org.example", {}, state_key="", auth=auth)
    verdict = bench.submit(foreign(room_id, [odd]))[0]
    assert verdict.code == CODE.VERDICT_CODE_REJECTED
    assert verdict.rejection.rule == room.version.rule("auth_events.selection")
    answer = bench.database.read_sync(explain.read_explanation, odd.event_id)
    assert answer.check == explain.AUTH_EVENTS
    assert {event.event_id for event in answer.checked_against} >= set(auth)
    goes_on(bench, room, room_id, [said.event_id])


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_a_message_as_auth_event_of_history(bench: JudgeBench, version: str) -> None:
    room, room_id = begin(bench, version)
    said = room.send(BOB, "m.room.message", {"body": "said"})
    assert bench.submit(foreign(room_id, [said]))[0].code == CODE.VERDICT_CODE_ACCEPTED
    state = room.before[said.event_id]
    auth = sorted({state["m.room.power_levels", ""], state["m.room.member", BOB], said.event_id})
    if not room.version.room_id_is_create_hash:
        auth.append(room.create.event_id)
    # Nothing is known of the state before it but what follows from the event after it.
    gap = room.send(BOB, "m.room.message", {"body": "gap"}, prev=[said.event_id])
    odd = room.send(BOB, "org.example", {}, state_key="", auth=auth, prev=[gap.event_id])
    after = room.send(BOB, "m.room.message", {"body": "after"}, prev=[odd.event_id])
    request = foreign(room_id, [after], state_before_event_ids=list(state.values()))
    assert bench.submit(request)[0].code == CODE.VERDICT_CODE_ACCEPTED
    assert bench.submit(foreign(room_id, [odd], origin=HISTORY))[0].code == CODE.VERDICT_CODE_REJECTED
    goes_on(bench, room, room_id, [after.event_id])


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_an_auth_event_of_another_room(bench: JudgeBench, version: str) -> None:
    """`auth_events` rule: "... which does not match that of the event being authorised, reject"."""
    room, room_id = begin(bench, version)
    # Its room has another version: its events do not even parse as events of this one.
    other, other_id = begin(bench, "11" if version in ("1", "2", "12") else "1", CAROL)
    member = other.before[other.heads[0]]["m.room.member", CAROL]
    assert other_id != room_id
    state = room.state_before(room.heads)
    auth = sorted({state["m.room.power_levels", ""], state["m.room.member", BOB]})
    if not room.version.room_id_is_create_hash:
        auth.append(room.create.event_id)
    odd = room.send(BOB, "m.room.message", {"body": "odd"}, auth=auth)
    pdu = {**odd.pdu, "auth_events": [*odd.pdu["auth_events"], reference(room, member)]}
    del pdu["hashes"], pdu["signatures"]
    forged = sign_for_all(pdu, room.version)
    verdict = bench.submit(foreign(room_id, [forged]))[0]
    assert verdict.code == CODE.VERDICT_CODE_REJECTED
    assert verdict.rejection.rule == room.version.rule("auth_events.room_id")
    for origin in (HISTORY, EventOrigin.EVENT_ORIGIN_OUTLIER):
        bench.submit(foreign(room_id, [forged], origin=origin))
    goes_on(bench, room, room_id, list(odd.prev_event_ids))


@pytest.mark.parametrize("version", ["11", "12"])
def test_an_auth_event_of_another_room_in_an_import(bench: JudgeBench, version: str) -> None:
    other, _ = begin(bench, "1", CAROL)
    room = Room(version, creator=BOB)
    room_id = room.room_id or ""
    topic = room.send(BOB, "m.room.topic", {"topic": "odd"}, state_key="")
    pdu = {**topic.pdu, "auth_events": [*topic.pdu["auth_events"], other.heads[0]]}
    del pdu["hashes"], pdu["signatures"]
    odd = sign_for_all(pdu, room.version)
    join = room.member(ALICE, "join")
    state = [room.events[i] for i in room.before[join.event_id].values() if i != topic.event_id]
    bench.stage("i", room_id, version, [*state, odd])
    commit = CommitImport(import_id="i", room_version=version, join_event=message(join))
    verdict = bench.submit((room_id, [InputEntry(commit_import=commit)]))[0]
    assert verdict.code == CODE.VERDICT_CODE_ACCEPTED, verdict
    assert bench.database.read_sync(events.load_events_by_id, [odd.event_id]) == {}
    goes_on(bench, room, room_id, [join.event_id])


def reference(room: Room, event_id: str) -> object:
    return [event_id, {"sha256": "x"}] if room.version.references_carry_hashes else event_id


@pytest.mark.parametrize("version", ["3", "11", "12"])
def test_history_does_not_lead_into_another_room(bench: JudgeBench, version: str) -> None:
    """Who may walk through one room's history must not come out in another's."""
    other, other_id = begin(bench, version, CAROL)
    secret = other.send(CAROL, "m.room.message", {"body": "of another room"})
    assert bench.submit(local(other_id, [secret]))[0].code == CODE.VERDICT_CODE_ACCEPTED
    room, room_id = begin(bench, version)
    base = room.heads[0]
    gap = room.send(BOB, "m.room.message", {"body": "gap"})
    pdu = {**gap.pdu, "prev_events": [reference(room, base), reference(room, secret.event_id)]}
    del pdu["hashes"], pdu["signatures"]
    bridge = sign_for_all(pdu, room.version)
    after = sign_for_all(
        {
            **{key: value for key, value in gap.pdu.items() if key not in ("hashes", "signatures")},
            **({"event_id": "$after:b.example"} if "event_id" in gap.pdu else {}),
            "prev_events": [reference(room, bridge.event_id)],
            "depth": gap.depth + 1,
        },
        room.version,
    )
    state = list(room.before[gap.event_id].values())
    request = foreign(room_id, [after], state_before_event_ids=state)
    assert bench.submit(request)[0].code == CODE.VERDICT_CODE_ACCEPTED
    request = foreign(room_id, [bridge], origin=HISTORY, state_before_event_ids=state)
    assert bench.submit(request)[0].code == CODE.VERDICT_CODE_ACCEPTED
    walked = bench.database.read_sync(
        graph.read_history,
        query_pb2.QueryHistoryRequest(room_id=room_id, from_event_ids=[after.event_id], limit=100),
    )
    found = {item.event.event_id for item in walked.events}
    assert {after.event_id, bridge.event_id, base} <= found
    assert not found & set(other.order)
    missing = query_pb2.QueryMissingEventsRequest(
        room_id=room_id, earliest_events=[base], latest_events=[after.event_id], limit=100
    )
    between = bench.database.read_sync(graph.read_missing, missing)
    assert [item.event.event_id for item in between.events] == [bridge.event_id]
    row = bench.database.read_sync(events.load_events_by_id, [bridge.event_id])[bridge.event_id]
    rows = bench.database.read_sync(events.load_events_by_nid, row.prev)
    assert {item.room_nid for item in rows.values()} == {row.room_nid}


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_a_second_create_event_that_cites_a_message(bench: JudgeBench, version: str) -> None:
    """Create events have no rules for their auth events; nothing is looked up among those either."""
    room, room_id = begin(bench, version)
    said = room.send(BOB, "m.room.message", {"body": "said"})
    assert bench.submit(foreign(room_id, [said]))[0].code == CODE.VERDICT_CODE_ACCEPTED
    pdu = {**said.pdu, "type": "m.room.create", "state_key": "again", "content": {"creator": BOB}}
    pdu["auth_events"] = [reference(room, said.event_id)]
    if "event_id" in pdu:
        pdu["event_id"] = "$again:b.example"
    del pdu["hashes"], pdu["signatures"]
    again = sign_for_all(pdu, room.version)
    for origin in (EventOrigin.EVENT_ORIGIN_FEDERATION, HISTORY, EventOrigin.EVENT_ORIGIN_OUTLIER):
        verdict = bench.submit(foreign(room_id, [again], origin=origin))[0]
        assert verdict.code in (CODE.VERDICT_CODE_REJECTED, CODE.VERDICT_CODE_DUPLICATE)
        assert verdict.rejection.rule != "internal"
    goes_on(bench, room, room_id, [said.event_id])


@pytest.mark.parametrize("version", ["3", "11", "12"])
def test_a_gap_in_another_room_does_not_keep_an_event_out_of_its_own(bench: JudgeBench, version: str) -> None:
    """An event that somebody names as a missing prev event elsewhere is a head of its room all the same."""
    room, room_id = begin(bench, version)
    topic = room.send(ALICE, "m.room.topic", {"topic": "new"}, state_key="")
    other, other_id = begin(bench, version, CAROL)
    said = other.send(BOB, "m.room.message", {"body": "x"})
    pdu = {**said.pdu, "prev_events": [reference(other, topic.event_id)]}
    del pdu["hashes"], pdu["signatures"]
    claims = sign_for_all(pdu, other.version)
    state = list(other.before[said.event_id].values())
    verdicts = bench.submit(
        foreign(other_id, [claims], state_before_event_ids=state),
        foreign(room_id, [topic], origin_server="a.example"),
    )
    assert verdicts[1].code == CODE.VERDICT_CODE_ACCEPTED
    request = query_pb2.QueryLatestRequest(room_id=room_id, all_state=True)
    latest = bench.database.read_sync(reads.read_latest, request)[0]
    assert list(latest.forward_extremities) == [topic.event_id]
    assert topic.event_id in {event.event_id for event in latest.state}
    rows = bench.database.read_sync(events.load_events_by_id, [claims.event_id, topic.event_id])
    assert rows[topic.event_id].nid not in rows[claims.event_id].prev

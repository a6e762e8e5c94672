"""The query service's walks: state, auth chains, history, missing events, visibility, snapshots, imports."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from arbor.log.v1.input_pb2 import CommitImport, EventOrigin, InputEntry, VerdictCode
from arbor.roomserver.v1 import query_pb2
from servicekit.grpc.errors import matrix_error_from
from tests.support.judging import foreign, local, message
from tests.support.nats import NatsProcess, running_nats
from tests.support.rooms import ALICE, BOB, CAROL, Room
from tests.support.running_roomserver import World, running_roomserver

CODE = VerdictCode
ERIN = "@erin:a.example"


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsProcess]:
    with running_nats(tmp_path) as server:
        yield server


@pytest.fixture
async def world(tmp_path: Path, nats: NatsProcess) -> AsyncIterator[World]:
    async with running_roomserver(tmp_path, nats) as made:
        yield made


async def forked(world: World) -> tuple[Room, str]:
    """A room with Bob of another server, and a fork that the last event joins."""
    room = Room("10")
    room_id = room.room_id or ""
    await world.submit(local(room_id, [room.events[i] for i in room.order]))
    await world.submit(foreign(room_id, [room.member(BOB, "join")]))
    base = room.heads
    left = room.send(ALICE, "m.room.topic", {"topic": "left"}, state_key="")
    right = room.send(ALICE, "m.room.topic", {"topic": "right"}, state_key="", prev=base)
    assert (await world.submit(local(room_id, [left]))).code == CODE.VERDICT_CODE_ACCEPTED
    assert (await world.submit(local(room_id, [right], may_fork=True))).code == CODE.VERDICT_CODE_ACCEPTED
    merge = room.send(BOB, "m.room.message", {"body": "merge"})
    assert (await world.submit(foreign(room_id, [merge]))).code == CODE.VERDICT_CODE_ACCEPTED
    return room, room_id


async def test_state_and_auth_chain_at_events(world: World) -> None:
    room, room_id = await forked(world)
    last = room.order[-1]
    request = query_pb2.QueryStateRequest(room_id=room_id, event_ids=[last, "$unknown"], with_auth_chain=True)
    parts = [part async for part in world.query.QueryState(request)]
    state = {event.event_id for part in parts if part.event_id == last for event in part.state}
    assert state == set(room.before[last].values())
    chain = {event.event_id for part in parts for event in part.auth_chain}
    assert room.create.event_id in chain
    assert [(part.event_id, part.unknown) for part in parts if part.last] == [
        (last, False),
        ("$unknown", True),
    ]
    ids = query_pb2.QueryAuthChainRequest(event_ids=[last], ids_only=True)
    found = [event.event_id async for part in world.query.QueryAuthChain(ids) for event in part.events]
    assert found[0] == room.create.event_id
    assert set(found) >= set(room.events[last].auth_event_ids)


async def test_history_and_missing_events(world: World) -> None:
    room, room_id = await forked(world)
    history = await world.query.QueryHistory(
        query_pb2.QueryHistoryRequest(room_id=room_id, from_event_ids=room.heads, limit=100)
    )
    ids = [item.event.event_id for item in history.events]
    assert ids[0] == room.order[-1]
    assert set(ids) == set(room.order)
    assert [item.depth for item in history.events] == sorted((i.depth for i in history.events), reverse=True)
    missing = await world.query.QueryMissingEvents(
        query_pb2.QueryMissingEventsRequest(
            room_id=room_id, earliest_events=[room.order[-4]], latest_events=room.heads, limit=10
        )
    )
    assert {item.event.event_id for item in missing.events} == set(room.order[-3:-1])
    nearest = await world.query.QueryHistory(
        query_pb2.QueryHistoryRequest(
            room_id=room_id, nearest_to_ms=room.events[room.order[2]].origin_server_ts - 1
        )
    )
    assert [item.event.event_id for item in nearest.events] == [room.order[2]]


async def test_who_may_see(world: World) -> None:
    room, room_id = await forked(world)
    hide = room.send(ALICE, "m.room.history_visibility", {"history_visibility": "joined"}, state_key="")
    secret = room.send(ALICE, "m.room.message", {"body": "for members"})
    for event in (hide, secret):
        assert (await world.submit(local(room_id, [event]))).code == CODE.VERDICT_CODE_ACCEPTED
    await world.submit(foreign(room_id, [room.member(CAROL, "join")], origin_server="c.example"))

    async def visible(**who: str) -> list[str]:
        request = query_pb2.QueryVisibilityRequest(
            room_id=room_id, event_ids=[room.order[0], secret.event_id], **who
        )
        return list((await world.query.QueryVisibility(request)).visible_event_ids)

    assert await visible(user_id=ALICE) == [room.order[0], secret.event_id]
    assert await visible(user_id=CAROL) == [room.order[0]]
    assert await visible(server_name="b.example") == [room.order[0], secret.event_id]
    assert await visible(server_name="c.example") == [room.order[0]]


async def test_a_resolution_is_explained(world: World) -> None:
    room, _ = await forked(world)
    answer = await world.query.ExplainEvent(query_pb2.ExplainEventRequest(event_id=room.order[-1]))
    assert answer.known
    topic = room.before[room.order[-1]]["m.room.topic", ""]
    assert any(line.startswith("m.room.topic|") and topic in line for line in answer.resolution)
    unknown = await world.query.ExplainEvent(query_pb2.ExplainEventRequest(event_id="$unknown"))
    assert not unknown.known


@pytest.mark.parametrize("named", [False, True], ids=["without a name", "with a name"])
async def test_most_members_are_left_out_of_a_state(world: World, named: bool) -> None:
    room = Room("11")
    room_id = room.room_id or ""
    if named:
        room.send(ALICE, "m.room.name", {"name": "A room"}, state_key="")
    await world.submit(local(room_id, [room.events[i] for i in room.order]))
    for number in range(8):
        user = f"@user{number}:b.example"
        await world.submit(foreign(room_id, [room.member(user, "join")]))
    again = room.member("@user7:b.example", "join", content={"displayname": "Seven"})
    assert (await world.submit(foreign(room_id, [again]))).code == CODE.VERDICT_CODE_ACCEPTED
    request = query_pb2.QueryStateRequest(
        room_id=room_id,
        event_ids=[again.event_id],
        omit_members=True,
        with_auth_chain=True,
        with_own_auth_chain=True,
    )
    answers = [part async for part in world.query.QueryState(request)]
    told = [room.events[event.event_id] for part in answers for event in part.state]
    chain = {event.event_id for part in answers for event in part.auth_chain}
    state = room.before[again.event_id]
    assert {event.event_id for event in told if event.type != "m.room.member"} == {
        event_id for (type_, _), event_id in state.items() if type_ != "m.room.member"
    }
    # What the event is judged by; where nothing names the room, the first five others too.
    members = {event.state_key for event in told if event.type == "m.room.member"}
    heroes = {ALICE, *(f"@user{number}:b.example" for number in range(4))}
    assert members == ({"@user7:b.example"} if named else {"@user7:b.example", *heroes})
    needed = {link for event in (again, *told) for link in event.auth_links}
    assert needed <= chain | {event.event_id for event in told}
    assert not chain & {event.event_id for event in told}


async def test_an_import_streams_in_and_its_snapshot_out(world: World) -> None:
    room = Room("12", creator=BOB).with_members(*[f"@user{n}:b.example" for n in range(60)])
    join = room.member(ERIN, "join")
    room_id = room.room_id or ""
    state = [room.events[i] for i in room.before[join.event_id].values()]

    async def parts(first: int, last: int) -> AsyncIterator[query_pb2.ImportRequest]:
        for number in range(first, last + 1):
            chosen = state[(number - 1) * 25 : number * 25]
            yield query_pb2.ImportRequest(
                import_id="i",
                room_id=room_id,
                room_version="12",
                state=[message(event) for event in chosen],
                part=number,
            )

    assert (await world.admin.Import(parts(1, 1))).last_part == 1
    done = await world.admin.Import(parts(1, 3))  # again, from the beginning: what is there is skipped
    assert (done.last_part, done.events) == (3, len(state))
    commit = InputEntry(
        request_id="commit",
        commit_import=CommitImport(import_id="i", room_version="12", join_event=message(join)),
    )
    verdict = await world.submit((room_id, [commit]))
    assert verdict.code == CODE.VERDICT_CODE_ACCEPTED
    (_, told) = (await world.output(1))[0]
    rewritten = told.entries[0].state_rewritten
    request = query_pb2.GetSnapshotRequest(snapshot_id=rewritten.snapshot_id)
    snapshot = [event.event_id async for part in world.query.GetSnapshot(request) for event in part.state]
    assert len(snapshot) == rewritten.entries
    assert set(snapshot) == {event.event_id for event in state}
    again = query_pb2.GetSnapshotRequest(snapshot_id=rewritten.snapshot_id, offset=50)
    rest = [event.event_id async for part in world.query.GetSnapshot(again) for event in part.state]
    assert rest == snapshot[50:]
    with pytest.raises(Exception) as missing:  # noqa: PT011 - the status is checked below
        [part async for part in world.query.GetSnapshot(query_pb2.GetSnapshotRequest(snapshot_id=999))]
    assert matrix_error_from(missing.value).errcode == "M_NOT_FOUND"  # type: ignore[arg-type]


async def test_a_backfilled_stretch_comes_in_entries_of_one_event(world: World) -> None:
    room = Room("10", creator=BOB)
    room.send(BOB, "m.room.topic", {"topic": "old"}, state_key="")
    old = [room.send(BOB, "m.room.message", {"body": str(n)}) for n in range(4)]
    changed = room.send(BOB, "m.room.topic", {"topic": "new"}, state_key="")
    join = room.member(ERIN, "join")
    room_id = room.room_id or ""
    await import_room(world, room, join.event_id)
    history = EventOrigin.EVENT_ORIGIN_HISTORY
    verdicts = [await world.submit(foreign(room_id, [event], origin=history)) for event in [*old, changed]]
    assert verdicts[-1].code == CODE.VERDICT_CODE_ACCEPTED
    stored = await world.query.QueryEvents(
        query_pb2.QueryEventsRequest(event_ids=[event.event_id for event in old])
    )
    assert [item.status for item in stored.events] == [query_pb2.EventStatus.EVENT_STATUS_ACCEPTED] * 4
    back = await world.query.QueryHistory(
        query_pb2.QueryHistoryRequest(room_id=room_id, from_event_ids=[join.event_id], limit=10)
    )
    assert [item.event.event_id for item in back.events] == [
        join.event_id,
        changed.event_id,
        *[event.event_id for event in reversed(old)],
    ]
    assert list(back.backward_extremities) == [old[0].event_id]


async def import_room(world: World, room: Room, join_id: str) -> None:
    join = room.events[join_id]
    room_id = room.room_id or ""

    async def parts() -> AsyncIterator[query_pb2.ImportRequest]:
        yield query_pb2.ImportRequest(
            import_id="h",
            room_id=room_id,
            room_version=room.version.identifier,
            state=[message(room.events[i]) for i in room.before[join_id].values()],
            part=1,
        )

    await world.admin.Import(parts())
    commit = InputEntry(
        request_id="commit-h",
        commit_import=CommitImport(
            import_id="h", room_version=room.version.identifier, join_event=message(join)
        ),
    )
    assert (await world.submit((room_id, [commit]))).code == CODE.VERDICT_CODE_ACCEPTED

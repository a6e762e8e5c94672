"""An import's events are stored page by page; other rooms go on between, and before the commit nobody sees any."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from arbor.log.v1.input_pb2 import CommitImport, InputEntry, PurgeRoom, Verdict, VerdictCode
from arbor.roomserver.v1 import query_pb2
from matrixlib.events import Event
from roomserver.input.decode import Request
from roomserver.input.import_pages import Page
from roomserver.input.work import Work
from roomserver.rpc import graph, reads
from roomserver.storage import events, garbage, staging
from roomserver.storage.staging import ImportJob
from servicekit.errors import MatrixError
from servicekit.log.errors import OwnershipLost
from tests.support.judging import JudgeBench, foreign, local, message
from tests.support.nats import NatsProcess, running_nats
from tests.support.rooms import ALICE, BOB, Room, sign_for_all
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


def far_room(members: int) -> tuple[Room, list[Event], Event]:
    """A room of another server, its state as an import needs it, and the join on top."""
    room = Room("11", creator=BOB).with_members(*[f"@user{n}:b.example" for n in range(members)])
    join = room.member(ERIN, "join")
    return room, [room.events[i] for i in room.before[join.event_id].values()], join


def citing_nobody(room: Room) -> Event:
    """A state event with an auth event that nobody has."""
    pdu = {**room.send(BOB, "m.room.name", {"name": "x"}, state_key="").pdu, "auth_events": ["$nobody"]}
    del pdu["hashes"], pdu["signatures"]
    return sign_for_all(pdu, room.version)


def commit(room: Room, join: Event, import_id: str = "i") -> tuple[str, list[InputEntry]]:
    asked = CommitImport(import_id=import_id, room_version="11", join_event=message(join))
    return room.room_id or "", [InputEntry(request_id=f"commit-{import_id}", commit_import=asked)]


def verdict_of(bench: JudgeBench, request: tuple[str, list[InputEntry]]) -> Verdict:
    return bench.submit(request)[0]


def state_of(bench: JudgeBench, room_id: str) -> set[str]:
    request = query_pb2.QueryLatestRequest(room_id=room_id, all_state=True)
    return {item.event_id for item in bench.database.read_sync(reads.read_latest, request)[0].state}


def rows(bench: JudgeBench, table: str) -> int:
    return bench.database.read_sync(garbage.count_rows)[table]


# -- beside a RoomServer that runs


async def test_other_rooms_are_judged_while_a_large_room_is_imported(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Room("12")
    other_id = other.room_id or ""
    await world.submit(local(other_id, [other.events[i] for i in other.order]))
    room, state, join = far_room(staging.PAGE * 3)
    room_id = room.room_id or ""
    committer = world.server.processor.committer
    store, stored, go_on = committer.import_page, list[Page](), asyncio.Semaphore(0)

    async def gated(page: Page) -> ImportJob:
        await go_on.acquire()
        stored.append(page)
        return await store(page)

    monkeypatch.setattr(committer, "import_page", gated)

    async def one_part() -> AsyncIterator[query_pb2.ImportRequest]:
        yield query_pb2.ImportRequest(
            import_id="i",
            room_id=room_id,
            room_version="11",
            state=[message(event) for event in state],
            part=1,
        )

    async def importing() -> query_pb2.ImportResponse:
        return await world.admin.Import(one_part())

    async with asyncio.TaskGroup() as group:
        task = group.create_task(importing())
        for number in range(3):
            go_on.release()
            said = other.send(ALICE, "m.room.message", {"body": str(number)})
            assert (await world.submit(local(other_id, [said]))).code == CODE.VERDICT_CODE_ACCEPTED
            assert not task.done()
            # Nothing of the room is to be seen.
            latest = await world.query.QueryLatest(query_pb2.QueryLatestRequest(room_id=room_id))
            assert not latest.exists
            asked = query_pb2.QueryEventsRequest(event_ids=[event.event_id for event in state[:10]])
            assert list((await world.query.QueryEvents(asked)).events) == []
            everything = await world.query.QueryRooms(query_pb2.QueryRoomsRequest())
            assert [found.room_id for found in everything.rooms] == [other_id]
        for _ in range(10):
            go_on.release()
    assert task.result().events == len(state)
    assert len(stored) > 3
    assert max(len(page.staged) for page in stored) <= staging.PAGE
    known = await world.server.database.read(events.load_known, [event.event_id for event in state])
    assert len(known) == len(state), "all events are stored before the commit"
    assert (await world.submit(commit(room, join))).code == CODE.VERDICT_CODE_ACCEPTED
    latest = await world.query.QueryLatest(query_pb2.QueryLatestRequest(room_id=room_id, all_state=True))
    assert {item.event_id for item in latest.state} == set(room.after[join.event_id].values())


async def test_parts_follow_each_other(world: World) -> None:
    room, state, _ = far_room(0)

    async def parts(
        *numbers: int, room_id: str = room.room_id or ""
    ) -> AsyncIterator[query_pb2.ImportRequest]:
        for number in numbers:
            yield query_pb2.ImportRequest(
                import_id="i",
                room_id=room_id,
                room_version="11",
                state=[message(state[number])],
                part=number,
            )

    for wrong in (parts(2), parts(1, 3), parts(1, room_id="!another:b.example"), parts()):
        with pytest.raises(Exception):  # noqa: B017, PT011 - a status of gRPC's
            await world.admin.Import(wrong)
    assert (await world.admin.Import(parts(1, 2))).last_part == 2


# -- the judge alone, on both databases


def test_an_import_goes_on_after_a_crash_between_two_pages(database_url: str) -> None:
    room, state, join = far_room(30)
    bench = JudgeBench(database_url)
    bench.stage("i", room.room_id or "", "11", state[:20])
    bench.close()
    again = JudgeBench(database_url)
    for part, chosen in ((1, state[:20]), (2, state[15:])):  # what is stored may come in another part, too
        again.stage("i", room.room_id or "", "11", chosen, part=part)
    assert verdict_of(again, commit(room, join)).code == CODE.VERDICT_CODE_ACCEPTED
    assert state_of(again, room.room_id or "") == set(room.after[join.event_id].values())
    assert rows(again, "event") == len(state) + 1
    assert rows(again, "import_page") == rows(again, "import_event") == 0
    assert verdict_of(again, commit(room, join)).code == CODE.VERDICT_CODE_DUPLICATE
    again.close()


def test_events_may_come_before_their_auth_events(bench: JudgeBench) -> None:
    room, state, join = far_room(20)
    backwards = list(reversed(state))
    for part, start in enumerate(range(0, len(backwards), 4), 1):
        bench.stage("i", room.room_id or "", "11", backwards[start : start + 4], part=part)
    assert verdict_of(bench, commit(room, join)).code == CODE.VERDICT_CODE_ACCEPTED
    assert state_of(bench, room.room_id or "") == set(room.after[join.event_id].values())


def test_events_whose_auth_events_never_come_are_left_out(bench: JudgeBench) -> None:
    room, state, join = far_room(3)
    lonely = citing_nobody(room)
    bench.stage("i", room.room_id or "", "11", [*state, lonely])
    assert rows(bench, "import_event") == 1
    assert verdict_of(bench, commit(room, join)).code == CODE.VERDICT_CODE_ACCEPTED
    assert state_of(bench, room.room_id or "") == {event.event_id for event in (*state, join)}
    assert rows(bench, "import_event") == 0


def test_two_imports_of_one_room(bench: JudgeBench) -> None:
    room, state, join = far_room(5)
    bench.stage("one", room.room_id or "", "11", state[:4])
    bench.stage("two", room.room_id or "", "11", state)
    assert verdict_of(bench, commit(room, join, "two")).code == CODE.VERDICT_CODE_ACCEPTED
    bench.stage("one", room.room_id or "", "11", state[4:], part=2)
    other = room.member("@frank:a.example", "join")
    assert verdict_of(bench, commit(room, other, "one")).rejection.rule == "participating"
    assert state_of(bench, room.room_id or "") == set(room.after[join.event_id].values())


def test_a_room_has_one_version(bench: JudgeBench) -> None:
    room, state, _ = far_room(1)
    bench.stage("one", room.room_id or "", "11", state)
    with pytest.raises(MatrixError):
        bench.stage("two", room.room_id or "", "10", state)


def test_an_import_without_a_create_event(bench: JudgeBench) -> None:
    room, state, join = far_room(1)
    bench.stage("i", room.room_id or "", "11", state[1:], [state[0]])
    assert verdict_of(bench, commit(room, join)).rejection.errcode == "M_BAD_STATE"
    assert bench.submit(foreign(room.room_id or "", [join]))[0].rejection.rule == "unknown_room"


def test_a_page_of_whoever_lost_the_partition_is_not_stored(database_url: str) -> None:
    room, state, _ = far_room(3)
    first = JudgeBench(database_url, owner="one", now_ms=lambda: 1_000_000)
    first.stage("i", room.room_id or "", "11", state[:2])
    second = JudgeBench(database_url, owner="two", now_ms=lambda: 1_010_000)
    with pytest.raises(OwnershipLost):
        first.stage("i", room.room_id or "", "11", state[2:], part=2)
    assert rows(second, "event") == 2
    second.close()
    first.close()


def test_what_is_never_committed_is_collected(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "IMPORT_PAGE", 10)
    clock = [1_000_000]
    bench = JudgeBench(database_url, now_ms=lambda: clock[0])
    gone, gone_state, gone_join = far_room(25)
    stays = Room("11", creator="@carol:c.example")
    join = stays.member(ERIN, "join")
    state = [stays.events[i] for i in stays.before[join.event_id].values()]
    lonely = citing_nobody(gone)
    for import_id in ("one", "two"):
        bench.stage(import_id, gone.room_id or "", "11", [*gone_state, lonely])
    for import_id in ("committed", "left over"):
        bench.stage(import_id, stays.room_id or "", "11", state)
    assert verdict_of(bench, commit(stays, join, "committed")).code == CODE.VERDICT_CODE_ACCEPTED
    assert bench.database.write_sync(garbage.collect_import_page, clock[0]) == (False, {})

    before_ms = clock[0] + 1
    counted = bench.database.read_sync(garbage.count_imports, before_ms)
    assert counted == {"import_job": 3, "import_page": 3, "import_event": 2, "event": len(gone_state)}
    collected = dict.fromkeys(counted, 0)
    more = True
    while more:
        more, page = bench.database.write_sync(garbage.collect_import_page, before_ms)
        assert page.get("event", 0) <= 10
        for table, number in page.items():
            collected[table] += number
    assert collected == counted
    assert rows(bench, "event") == len(state) + 1
    assert rows(bench, "auth_chain") == len(state) + 1
    assert state_of(bench, stays.room_id or "") == {event.event_id for event in (*state, join)}
    # The room can be joined later.
    bench.stage("three", gone.room_id or "", "11", gone_state)
    assert verdict_of(bench, commit(gone, gone_join, "three")).code == CODE.VERDICT_CODE_ACCEPTED
    bench.close()


def test_an_import_that_is_taken_up_while_it_is_collected(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "IMPORT_PAGE", 10)
    clock = [1_000_000]
    bench = JudgeBench(database_url, now_ms=lambda: clock[0])
    room, state, join = far_room(25)
    bench.stage("i", room.room_id or "", "11", state)
    assert bench.database.write_sync(garbage.collect_import_page, clock[0] + 1)[0]
    assert rows(bench, "event") == len(state) - 10
    clock[0] += 10
    bench.stage("i", room.room_id or "", "11", state)
    assert bench.database.write_sync(garbage.collect_import_page, clock[0]) == (False, {})
    assert verdict_of(bench, commit(room, join)).code == CODE.VERDICT_CODE_ACCEPTED
    assert state_of(bench, room.room_id or "") == set(room.after[join.event_id].values())
    bench.close()


def test_a_purge_takes_what_is_staged_too(bench: JudgeBench) -> None:
    room, state, join = far_room(3)
    room_id = room.room_id or ""
    bench.stage("one", room_id, "11", state)
    assert verdict_of(bench, commit(room, join, "one")).code == CODE.VERDICT_CODE_ACCEPTED
    bench.submit(local(room_id, [room.member(ERIN, "leave")]))
    bench.stage("two", room_id, "11", state)
    purge = InputEntry(request_id="purge", purge_room=PurgeRoom())
    assert bench.submit((room_id, [purge]))[0].code == CODE.VERDICT_CODE_ACCEPTED
    assert rows(bench, "event") == rows(bench, "import_page") == 0
    again = room.member(ERIN, "join")
    assert verdict_of(bench, commit(room, again, "two")).rejection.errcode == "M_NOT_FOUND"


def test_a_commit_among_others_is_judged_alone_and_they_are_not(
    bench: JudgeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Room("12")
    other_id = other.room_id or ""
    bench.submit(local(other_id, [other.events[i] for i in other.order]))
    room, state, join = far_room(3)
    bench.stage("i", room.room_id or "", "11", state)
    alone: list[str] = []
    apply_one = bench.judge._apply_one

    def noting(conn: Any, request: Request, *rest: Any) -> Any:
        alone.append(request.kind)
        return apply_one(conn, request, *rest)

    monkeypatch.setattr(bench.judge, "_apply_one", noting)
    said = [other.send(ALICE, "m.room.message", {"body": str(number)}) for number in range(4)]
    verdicts = bench.submit(
        local(other_id, said[:1]),
        local(other_id, said[1:2]),
        commit(room, join),
        local(other_id, said[2:3]),
        local(other_id, said[3:]),
    )
    assert {verdict.code for verdict in verdicts} == {CODE.VERDICT_CODE_ACCEPTED}
    assert len(verdicts) == 5
    assert alone == ["commit_import"]
    assert bench.memory.rooms.get(other_id) is not None, "other rooms stay in memory"
    later = room.send(BOB, "m.room.message", {"body": "after the join"})
    assert bench.submit(foreign(room.room_id or "", [later]))[0].code == CODE.VERDICT_CODE_ACCEPTED


async def test_a_running_server_takes_a_commit_among_others(world: World) -> None:
    rooms = [Room("12", creator=f"@maker{number}:a.example") for number in range(5)]
    for made in rooms:
        await world.submit(local(made.room_id or "", [made.events[i] for i in made.order]))
    far, state, join = far_room(3)

    async def parts() -> AsyncIterator[query_pb2.ImportRequest]:
        yield query_pb2.ImportRequest(
            import_id="i", room_id=far.room_id or "", room_version="11", state=map(message, state), part=1
        )

    await world.admin.Import(parts())
    asked = [
        local(made.room_id or "", [made.send(made.creator, "m.room.message", {"body": str(number)})])
        for number in range(10)
        for made in rooms
    ]
    asked.insert(25, commit(far, join))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(world.submit(request)) for request in asked]
    assert {task.result().code for task in tasks} == {CODE.VERDICT_CODE_ACCEPTED}


def test_what_is_redacted_alone_leaves_the_memory(bench: JudgeBench) -> None:
    room = Room("11")
    room_id = room.room_id or ""
    bench.submit(local(room_id, [room.events[i] for i in room.order]))
    topic = room.send(ALICE, "m.room.topic", {"topic": "secret"}, state_key="")
    bench.submit(local(room_id, [topic]))
    nid = bench.database.read_sync(events.load_known, [topic.event_id])[topic.event_id]
    assert bench.memory.events.get(nid) is not None
    redaction = room.send(ALICE, "m.room.redaction", {"redacts": topic.event_id})
    work = Work(bench.messages([local(room_id, [redaction])]), bench.sequence, "epoch")
    bench.held = bench.database.write_sync(bench.judge.apply_singly, work, bench.held).held
    bench.judge.committed()
    assert bench.memory.events.get(nid) is None
    assert bench.submit(local(room_id, [room.send(ALICE, "m.room.message", {"body": "x"})]))[0].code == (
        CODE.VERDICT_CODE_ACCEPTED
    )


def test_the_auth_chain_of_what_is_not_committed_is_nobodys(bench: JudgeBench) -> None:
    room, state, join = far_room(1)
    bench.stage("i", room.room_id or "", "11", state)
    asked = [state[-1].event_id]
    assert bench.database.read_sync(graph.read_auth_chain, asked) == []
    assert verdict_of(bench, commit(room, join)).code == CODE.VERDICT_CODE_ACCEPTED
    assert len(bench.database.read_sync(graph.read_auth_chain, asked)) > 1


def test_an_event_has_a_greater_number_than_what_it_cites_though_that_was_judged_alone(
    bench: JudgeBench,
) -> None:
    own = Room("11")
    bench.submit(local(own.room_id or "", [own.events[i] for i in own.order]))
    room, state, join = far_room(3)
    bench.stage("i", room.room_id or "", "11", state)
    assert bench.submit(commit(room, join))[0].code == CODE.VERDICT_CODE_ACCEPTED
    said = room.send(ERIN, "m.room.message", {"body": "here"})
    assert bench.submit(local(room.room_id or "", [said]))[0].code == CODE.VERDICT_CODE_ACCEPTED
    numbers = bench.database.read_sync(events.load_known, [join.event_id, said.event_id])
    assert numbers[said.event_id] > numbers[join.event_id]

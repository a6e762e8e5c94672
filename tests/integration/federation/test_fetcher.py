"""Events that are missing, fetched from a scripted server, and what happens when it has none to give."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from arbor.log.v1.input_pb2 import EVENT_ORIGIN_OUTLIER, InputEntry
from federation.receipt.fetcher import NothingHelped
from federation.storage import fetching
from federation.storage.fetching import Wanted
from matrixlib.events import Event
from tests.support.evil_peer import Answer, Asked, EvilPeer
from tests.support.federation import until
from tests.support.federation_alone import FederationAlone
from tests.support.rooms import Room
from tests.support.tls_ca import TestCa

World = tuple[EvilPeer, FederationAlone, Room, list[Event]]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """The peer has five events that we lack; the last one of them came to us and waits."""
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        eve = f"@eve:{peer.server_name}"
        room = Room("10", creator=us.user("owner")).with_members(eve)
        us.rooms.of[room.create.room_id] = room
        heads = list(room.heads)
        missing = [room.send(eve, "m.room.message", {"body": f"{number}"}) for number in range(5)]
        for event in missing:
            del room.events[event.event_id], room.before[event.event_id], room.after[event.event_id]
        room.heads = heads
        us.rooms.outliers[missing[-1].event_id] = missing[-1]
        us.rooms.waiting.add(missing[-1].event_id)
        yield peer, us, room, missing


def wanted(peer: EvilPeer, missing: list[Event]) -> Wanted:
    last = missing[-1]
    return Wanted(last.event_id, last.room_id, last.prev_event_ids, peer.server_name, 0)


async def test_the_gap_is_filled_in_order(world: World) -> None:
    peer, us, room, missing = world
    pdus = [event.pdu for event in missing[:-1]]
    peer.answer("get_missing_events", lambda _: {"events": [*reversed(pdus)]})
    assert await us.parts.fetcher.fetch(wanted(peer, missing))
    assert all(event.event_id in room.events for event in missing)
    (request,) = peer.asked("get_missing_events")
    assert request.content["latest_events"] == [missing[-1].event_id]
    assert len(request.content["earliest_events"]) == 1


async def test_where_a_gap_remains_the_state_is_asked_for(world: World) -> None:
    peer, us, room, missing = world
    eve = f"@eve:{peer.server_name}"
    # Of the state before the third event there is one that we do not know.
    unknown = room.member(eve, "join", content={"displayname": "Eve"})
    state = dict(room.state_before([unknown.event_id]))
    known = {event_id: room.events[event_id] for event_id in state.values()}
    del room.events[unknown.event_id]
    room.heads = list(unknown.prev_event_ids)
    peer.answer("get_missing_events", lambda _: {"events": [event.pdu for event in missing[2:-1]]})
    peer.answer("state_ids", lambda _: {"pdu_ids": list(known), "auth_chain_ids": []})

    def event(request: Asked) -> Any:
        return {"pdus": [known[request.path.rsplit("/", 1)[1].replace("%24", "$")].pdu]}

    peer.answer("event", event)
    us.input.inputs.clear()
    with pytest.raises(NothingHelped):
        # The stand-in for the RoomServer keeps no event whose prev events it lacks.
        await us.parts.fetcher.fetch(wanted(peer, missing))
    assert [request.query["event_id"] for request in peer.asked("state_ids")] == [missing[2].event_id]
    assert len(peer.asked("event")) == 1, "only what we did not know"
    entries = [entry.submit_events for entry in us.input.inputs]
    assert [item.event_id for item in entries[0].events] == [unknown.event_id]
    assert [item.event_id for item in entries[1].events] == [missing[2].event_id]
    assert set(entries[1].state_before_event_ids) == set(known)
    assert [item.event_id for item in entries[2].events] == [missing[3].event_id]


async def test_a_large_state_comes_piece_by_piece(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    peer, us, room, missing = world
    large = [
        room.member(f"@user{number}:{peer.server_name}", "join", content={"displayname": "x" * 40_000})
        for number in range(30)
    ]
    state = room.state_before([large[-1].event_id]).values()
    known = {event_id: room.events[event_id] for event_id in state}
    for event in large:
        del room.events[event.event_id]
    room.heads = list(large[0].prev_event_ids)
    peer.answer("get_missing_events", lambda _: {"events": [event.pdu for event in missing[2:-1]]})
    peer.answer("state_ids", lambda _: {"pdu_ids": list(known), "auth_chain_ids": []})

    def event_of(request: Asked) -> Any:
        return {"pdus": [known[request.path.rsplit("/", 1)[1].replace("%24", "$")].pdu]}

    peer.answer("event", event_of)
    written: list[int] = []
    submit_all = us.input.submit_all

    async def noting(room_id: str, entries: Sequence[InputEntry], timeout_s: float = 1.0) -> Any:
        if entries[0].submit_events.origin == EVENT_ORIGIN_OUTLIER:
            written.append(sum(entry.ByteSize() for entry in entries))
        return await submit_all(room_id, entries, timeout_s)

    monkeypatch.setattr(us.input, "submit_all", noting)
    with pytest.raises(NothingHelped):
        await us.parts.fetcher.fetch(wanted(peer, missing))
    assert set(us.rooms.outliers) >= {event.event_id for event in large[:-1]}
    assert len(written) >= 3
    # The next piece is written when the one before is judged.
    assert max(written) < 600_000


@pytest.mark.parametrize(
    "answer",
    [
        Answer(500),
        Answer(404, b'{"errcode":"M_NOT_FOUND"}'),
        Answer(body=b"[]"),
        Answer(body=b'{"events":7}'),
        Answer(body=b'{"events":[7,null,{}]}'),
        Answer(body=b"{"),
    ],
)
async def test_what_does_not_help_is_tried_again_later(world: World, answer: Answer) -> None:
    peer, us, room, missing = world
    for endpoint in ("get_missing_events", "state_ids", "state", "event"):
        peer.answer(endpoint, lambda _: answer)
    item = wanted(peer, missing)
    await us.database.write(
        fetching.store_wanted,
        item.waiting_event_id,
        item.room_id,
        list(item.missing_event_ids),
        item.origin,
        1,
    )
    async with us.running(us.parts.fetcher.run):

        async def tried() -> bool:
            due = await us.database.read(fetching.load_due, 2**60, 10)
            return bool(due and due[0].attempts)

        await until(tried, "a try")
    assert missing[-1].event_id not in room.events
    assert (await us.database.read(fetching.next_due_ms) or 0) > 1_000_000


async def test_a_claim_of_endless_missing_events_ends(world: World) -> None:
    peer, us, room, missing = world
    ids = [f"${number:043d}" for number in range(100_000)]
    peer.answer("get_missing_events", lambda _: {"events": []})
    peer.answer("state_ids", lambda _: {"pdu_ids": ids, "auth_chain_ids": ids})
    peer.answer("state", lambda _: {"pdus": [], "auth_chain": []})
    with pytest.raises(NothingHelped):
        await us.parts.fetcher.fetch(wanted(peer, missing))
    assert len(peer.asked("event")) == 0, "they are not asked for one by one"
    assert len(peer.asked("state")) == 1
    assert missing[0].event_id not in room.events

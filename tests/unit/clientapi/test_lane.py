"""The room's lane: chains, pipelining, stale views, lost acks and verdicts, servers that are away."""

import asyncio
from typing import Any

import pytest

from arbor.log.v1 import input_pb2
from clientapi.rooms import input_writer, lane
from matrixlib.event_auth import auth_types_for_event
from matrixlib.event_builder import build_event
from matrixlib.events import Event
from matrixlib.signing import generate_signing_key
from servicekit.positions import UserPositions, user_positions
from tests.support.clientapi_alone import Client, World
from tests.support.fake_roomserver import FakeRoom

FOREIGN_KEY = generate_signing_key("f")


async def make_room(world: World, user: Client, **body: Any) -> FakeRoom:
    answer = await user.ok("POST", "/createRoom", body)
    return world.roomserver.rooms[answer["room_id"]]


def foreign_event(
    room: FakeRoom, sender: str, type_: str, content: dict[str, Any], state_key: str | None
) -> Event:
    keys = auth_types_for_event(room.version, type_, sender, state_key, content)
    return build_event(
        room.version,
        room_id=room.room_id,
        sender=sender,
        type=type_,
        content=content,
        state_key=state_key,
        prev_events=list(room.extremities),
        auth_event_ids=[room.state[key].event_id for key in keys if key in room.state],
        depth=room.depth + 1,
        origin_server_ts=1,
        server_name="there.example",
        signing_key=FOREIGN_KEY,
    )


async def send_many(user: Client, room: FakeRoom, count: int, prefix: str = "t") -> list[tuple[int, Any]]:
    path = f"/rooms/{room.room_id}/send/m.room.message"
    return list(
        await asyncio.gather(
            *(user("PUT", f"{path}/{prefix}{number}", {"body": str(number)}) for number in range(count))
        )
    )


async def test_what_comes_together_goes_out_together_as_a_chain(world: World) -> None:
    alice = await world.user()
    room = await make_room(world, alice)
    asked = world.roomserver.queries
    answers = await send_many(alice, room, 64)
    assert [status for status, _ in answers] == [200] * 64
    assert len({answer["event_id"] for _, answer in answers}) == 64
    messages = world.roomserver.batches[1:]
    assert sum(len(message.entries) for message in messages) == 64
    assert len(messages) < 64
    assert len(room.extremities) == 1
    assert world.roomserver.stale == 0
    assert world.roomserver.queries == asked
    # A chain: every event but the first follows the one before it.
    for before, after in zip(room.order, room.order[1:], strict=False):
        assert room.events[after].prev_event_ids == (before,)


async def test_a_transaction_in_progress_is_awaited_not_repeated(world: World) -> None:
    alice = await world.user()
    room = await make_room(world, alice)
    path = f"/rooms/{room.room_id}/send/m.room.message/same"
    answers = await asyncio.gather(*(alice("PUT", path, {"body": "x"}) for _ in range(20)))
    assert {answer["event_id"] for _, answer in answers} == {room.order[-1]}
    assert [room.events[event_id].type for event_id in room.order].count("m.room.message") == 1


async def test_the_same_txn_id_of_another_device_room_or_endpoint_is_another_transaction(
    world: World,
) -> None:
    alice = await world.user("alice")
    room, other = await make_room(world, alice), await make_room(world, alice)
    second = world.client()
    login = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}}
    second.token = (await second.ok("POST", "/login", {**login, "password": "correct horse"}))["access_token"]
    ids = [
        (await client.ok("PUT", f"/rooms/{where.room_id}/send/m.room.message/t", {"body": "x"}))["event_id"]
        for client, where in ((alice, room), (second, room), (alice, other))
    ]
    redaction = await alice.ok("PUT", f"/rooms/{room.room_id}/redact/{ids[0]}/t", {})
    assert len({*ids, redaction["event_id"]}) == 4


async def test_a_foreign_event_makes_the_chain_stale_and_it_is_rebuilt_in_order(world: World) -> None:
    alice = await world.user()
    room = await make_room(world, alice)
    seen = 0

    def intrude(message: input_pb2.InputMessage) -> None:
        nonlocal seen
        if seen == 0 and message.room_id == room.room_id:
            seen += 1
            world.roomserver.insert(foreign_event(room, alice.user_id, "m.room.topic", {"topic": "new"}, ""))

    world.roomserver.before_judging = intrude
    rebuilds = _value(lane._rebuilds)
    answers = await send_many(alice, room, 10)
    assert [status for status, _ in answers] == [200] * 10
    bodies = [
        room.events[e].content.get("body") for e in room.order if room.events[e].type == "m.room.message"
    ]
    assert len(bodies) == len(set(bodies)) == 10
    assert len(room.extremities) == 1
    assert 1 <= _value(lane._rebuilds) - rebuilds <= 10


async def test_changed_auth_state_of_a_stale_verdict_decides(world: World) -> None:
    alice, bob = await world.user(), await world.user()
    room = await make_room(world, alice, preset="public_chat")
    await bob.ok("POST", f"/join/{room.room_id}")
    await bob.ok("PUT", f"/rooms/{room.room_id}/send/m.room.message/t0", {"body": "x"})
    kick = foreign_event(room, alice.user_id, "m.room.member", {"membership": "ban"}, bob.user_id)
    world.roomserver.insert(kick)
    assert await bob.fails("PUT", f"/rooms/{room.room_id}/send/m.room.message/t1", {"body": "x"}) == (
        403,
        "M_FORBIDDEN",
    )
    assert len(room.extremities) == 1


async def test_a_refusal_from_an_old_view_is_checked_once_with_the_roomserver(world: World) -> None:
    alice, bob = await world.user(), await world.user()
    room = await make_room(world, alice)
    path = f"/rooms/{room.room_id}/send/m.room.message"
    assert await bob.fails("PUT", path + "/t0", {"body": "x"}) == (403, "M_FORBIDDEN")
    join = {"membership": "join"}
    rules = foreign_event(room, alice.user_id, "m.room.join_rules", {"join_rule": "public"}, "")
    world.roomserver.insert(rules)
    world.roomserver.insert(foreign_event(room, bob.user_id, "m.room.member", join, bob.user_id))
    await bob.ok("PUT", path + "/t1", {"body": "x"})


async def test_from_the_third_try_the_room_may_fork(world: World) -> None:
    alice = await world.user()
    room = await make_room(world, alice)
    tries: list[bool] = []

    def intrude(message: input_pb2.InputMessage) -> None:
        tries.append(message.entries[0].submit_events.may_fork)
        world.roomserver.insert(foreign_event(room, alice.user_id, "m.room.message", {"body": "f"}, None))

    world.roomserver.before_judging = intrude
    await alice.ok("PUT", f"/rooms/{room.room_id}/send/m.room.message/t", {"body": "x"})
    assert tries == [False, False, True]
    assert len(room.extremities) == 2
    world.roomserver.before_judging = lambda message: None
    await alice.ok("PUT", f"/rooms/{room.room_id}/send/m.room.message/t2", {"body": "x"})
    assert len(room.extremities) == 1


async def test_a_lost_verdict_is_asked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_writer, "VERDICT_TIMEOUT_S", 0.05)
    alice = await world.user()
    room = await make_room(world, alice)
    world.roomserver.lose_verdicts = True
    answers = await send_many(alice, room, 5)
    assert [status for status, _ in answers] == [200] * 5
    assert room.order[-5:] == [answer["event_id"] for _, answer in answers] or len(set(room.order)) == len(
        room.order
    )


async def test_a_lost_ack_is_no_second_event(world: World) -> None:
    alice = await world.user()
    room = await make_room(world, alice)
    world.log.lose_acks = True
    answers = await send_many(alice, room, 5)
    assert [status for status, _ in answers] == [200] * 5
    assert [room.events[e].type for e in room.order].count("m.room.message") == 5


async def test_while_the_roomserver_is_away_nothing_hangs_and_the_retry_finds_the_first_event(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_writer, "VERDICT_TIMEOUT_S", 0.05)
    monkeypatch.setattr(lane, "REQUEST_DEADLINE_S", 0.3)
    alice = await world.user()
    room = await make_room(world, alice)
    world.roomserver.away = True
    status, answer = await alice("PUT", f"/rooms/{room.room_id}/send/m.room.message/t", {"body": "x"})
    assert (status, answer["errcode"]) == (503, "M_UNKNOWN")
    assert answer["retry_after_ms"] > 0
    world.roomserver.come_back()
    retried = await alice.ok("PUT", f"/rooms/{room.room_id}/send/m.room.message/t", {"body": "x"})
    assert [e for e in room.order if room.events[e].type == "m.room.message"] == [retried["event_id"]]
    await alice.ok("PUT", f"/rooms/{room.room_id}/send/m.room.message/t2", {"body": "y"})
    assert len(room.extremities) == 1


async def test_without_the_log_the_answer_is_503_and_sending_goes_on_when_it_is_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await world.user()
    room = await make_room(world, alice)
    world.log.disconnect()
    monkeypatch.setattr(lane, "REQUEST_DEADLINE_S", 0.2)
    status, answer = await alice("PUT", f"/rooms/{room.room_id}/send/m.room.message/t", {"body": "x"})
    assert (status, answer["errcode"]) == (503, "M_UNKNOWN")
    monkeypatch.setattr(lane, "REQUEST_DEADLINE_S", 15.0)
    waiting = asyncio.gather(send_many(alice, room, 5))
    await asyncio.sleep(0)
    world.log.reconnect()
    assert [status for status, _ in (await waiting)[0]] == [200] * 5


async def test_the_writers_position_is_noted_for_its_reads(world: World) -> None:
    alice = await world.user("posy")
    room = await make_room(world, alice)
    assert user_positions.last(alice.user_id) == room.output_sequence
    await alice.ok("PUT", f"/rooms/{room.room_id}/send/m.room.message/t", {"body": "x"})
    assert user_positions.last(alice.user_id) == room.output_sequence


def _value(counter: Any) -> float:
    value: float = counter._value.get()
    return value


async def test_reads_wait_for_a_join_that_is_there_already(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = await world.user(), await world.user()
    room = await make_room(world, alice, preset="public_chat")
    first = await bob.ok("POST", f"/rooms/{room.room_id}/join", {})
    # As if another process had brought the join: this one knows of no verdict.
    positions = UserPositions()
    monkeypatch.setattr("clientapi.rooms.send.user_positions", positions)
    assert await bob.ok("POST", f"/rooms/{room.room_id}/join", {}) == first
    assert positions.last(bob.user_id) == room.output_sequence > 0

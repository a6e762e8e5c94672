"""A lane in a room with a policy server: what is signed when, refusals, views that change while it is asked."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from arbor.federation.v1 import federation_pb2 as pb
from arbor.federation.v1 import federation_pb2_grpc
from arbor.log.v1 import common_pb2
from matrixlib.events import Event, parse_event
from matrixlib.policy_servers import is_signed, policy_server_of
from matrixlib.room_versions import get_room_version
from servicekit.errors import MatrixError, unavailable
from servicekit.grpc import detail_of
from tests.support.clientapi_alone import Client, World, lone_clientapi
from tests.support.fake_roomserver import FakeRoom
from tests.support.federation import until
from tests.support.policy import POLICY_TYPE, policy_content, recommended
from tests.unit.clientapi.test_lane import foreign_event, make_room, send_many

PS = "policy.example"
BOT = f"@bot:{PS}"
Decision = MatrixError | str | None
SPAM = MatrixError("M_FORBIDDEN", 400, "spam")


class FakeFederation(federation_pb2_grpc.FederationServiceServicer):
    """Signs what it is asked for, unless `decide` gives an error, or `unsigned`.

    `calls` are what each call asked for: the events' bodies, or their types.
    """

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.decide: Callable[[Event], Decision] = lambda event: None
        self.before: Callable[[], Awaitable[None]] | None = None

    async def SignByPolicyServer(  # noqa: N802
        self, request: pb.SignByPolicyServerRequest, context: Any
    ) -> pb.SignByPolicyServerResponse:
        version = get_room_version(request.room_version)
        assert version is not None
        policy = policy_server_of(parse_event(request.policy.pdu_json, version))
        assert policy is not None
        events = [parse_event(item.pdu_json, version) for item in request.events]
        self.calls.append([str(event.content.get("body", event.type)) for event in events])
        if self.before is not None:
            await self.before()
        results = []
        for event in events:
            decided = self.decide(event)
            if isinstance(decided, MatrixError):
                results.append(pb.PolicySignature(refusal=detail_of(decided)))
                continue
            signed = event if decided == "unsigned" else recommended(event, policy.name)
            message = common_pb2.Event(event_id=signed.event_id, pdu_json=signed.pdu_json)
            results.append(pb.PolicySignature(event=message))
        return pb.SignByPolicyServerResponse(results=results)


@pytest.fixture
def federation() -> FakeFederation:
    return FakeFederation()


@pytest.fixture
async def world(tmp_path: Path, federation: FakeFederation) -> AsyncIterator[World]:
    async with lone_clientapi(tmp_path, federation=federation) as running:
        yield running


async def policy_room(world: World, user: Client) -> FakeRoom:
    """A room with a policy server in it."""
    room = await make_room(world, user, preset="public_chat")
    world.roomserver.insert(foreign_event(room, BOT, "m.room.member", {"membership": "join"}, BOT))
    await user.ok("PUT", f"/rooms/{room.room_id}/state/{POLICY_TYPE}", policy_content(PS))
    return room


def bodies(room: FakeRoom) -> list[str]:
    return [
        room.events[event_id].content["body"]
        for event_id in room.order
        if room.events[event_id].type == "m.room.message"
    ]


def all_signed(room: FakeRoom) -> bool:
    server = policy_server_of(room.state[POLICY_TYPE, ""])
    assert server is not None
    messages = [
        event for event in room.events.values() if event.type == "m.room.message" and event.sender != BOT
    ]
    return all(is_signed(event, server) for event in messages)


async def test_a_chain_is_signed_by_one_question(world: World, federation: FakeFederation) -> None:
    alice = await world.user()
    room = await policy_room(world, alice)
    assert federation.calls == []  # the policy itself needs nobody
    stale = world.roomserver.stale
    answers = await send_many(alice, room, 40)
    assert [status for status, _ in answers] == [200] * 40
    assert sorted(bodies(room), key=int) == [str(number) for number in range(40)]
    assert all_signed(room)
    assert sum(map(len, federation.calls)) == 40
    assert len(federation.calls) < 40
    assert world.roomserver.stale == stale
    assert len(room.extremities) == 1


async def test_what_is_refused_takes_nothing_with_it(world: World, federation: FakeFederation) -> None:
    alice = await world.user()
    room = await policy_room(world, alice)
    federation.decide = lambda event: SPAM if int(event.content["body"]) % 5 == 2 else None
    answers = await send_many(alice, room, 20)
    assert [status for status, _ in answers] == [400 if number % 5 == 2 else 200 for number in range(20)]
    assert {answer["error"] for status, answer in answers if status == 400} == {"spam"}
    assert sorted(bodies(room), key=int) == [str(number) for number in range(20) if number % 5 != 2]
    # Nothing stands on an event that nobody has.
    known = {prev for event in room.events.values() for prev in event.prev_event_ids}
    assert known <= room.events.keys()
    assert len(room.extremities) == 1


async def test_an_event_that_comes_meanwhile_has_it_built_and_signed_anew(
    world: World, federation: FakeFederation
) -> None:
    alice = await world.user()
    room = await policy_room(world, alice)
    came = 0

    async def intrude() -> None:
        nonlocal came
        if not came:
            came += 1
            world.roomserver.insert(foreign_event(room, BOT, "m.room.message", {"body": "theirs"}, None))

    federation.before = intrude
    await alice.ok("PUT", f"/rooms/{room.room_id}/send/m.room.message/t", {"body": "ours"})
    assert federation.calls == [["ours"], ["ours"]]
    assert bodies(room) == ["theirs", "ours"]
    assert len(room.extremities) == 1


async def test_a_view_that_is_lost_while_it_is_asked_is_not_written_on(
    world: World, federation: FakeFederation
) -> None:
    """A chain is under way and comes back stale; the next was built on it and is being signed."""
    alice = await world.user()
    room = await policy_room(world, alice)
    path = f"/rooms/{room.room_id}/send/m.room.message"
    stale = world.roomserver.stale
    began, go_on = asyncio.Event(), asyncio.Event()

    async def be_away() -> None:
        world.roomserver.away = True

    async def hold() -> None:
        began.set()
        await go_on.wait()

    async def written() -> bool:
        return world.roomserver.waiting > 0

    async def came_back() -> bool:
        return world.roomserver.stale > stale

    federation.before = be_away
    async with asyncio.TaskGroup() as group:
        group.create_task(alice.ok("PUT", f"{path}/1", {"body": "first"}))
        await until(written, "the first is written")
        federation.before = hold
        group.create_task(alice.ok("PUT", f"{path}/2", {"body": "second"}))
        await began.wait()
        world.roomserver.insert(foreign_event(room, BOT, "m.room.message", {"body": "theirs"}, None))
        world.roomserver.come_back()
        await until(came_back, "the first came back")
        go_on.set()
    assert bodies(room) == ["theirs", "first", "second"]
    assert all(is_signed_by_bot(room, text) for text in ("first", "second"))
    assert len(room.extremities) == 1


def is_signed_by_bot(room: FakeRoom, text: str) -> bool:
    server = policy_server_of(room.state[POLICY_TYPE, ""])
    assert server is not None
    return any(
        is_signed(event, server) for event in room.events.values() if event.content.get("body") == text
    )


async def test_what_follows_a_new_policy_is_measured_by_it(world: World, federation: FakeFederation) -> None:
    """All in one chain."""
    alice = await world.user()
    room = await make_room(world, alice, preset="public_chat")
    world.roomserver.insert(foreign_event(room, BOT, "m.room.member", {"membership": "join"}, BOT))
    other = "other.example"
    joined = {"membership": "join"}
    world.roomserver.insert(foreign_event(room, f"@x:{other}", "m.room.member", joined, f"@x:{other}"))
    state, send = f"/rooms/{room.room_id}/state/{POLICY_TYPE}", f"/rooms/{room.room_id}/send/m.room.message"
    await asyncio.gather(
        alice.ok("PUT", f"{send}/1", {"body": "free"}),
        alice.ok("PUT", state, policy_content(PS)),
        alice.ok("PUT", f"{send}/2", {"body": "first"}),
        alice.ok("PUT", state, policy_content(other)),
        alice.ok("PUT", f"{send}/3", {"body": "second"}),
        alice.ok("PUT", state, {}),
        alice.ok("PUT", f"{send}/4", {"body": "free again"}),
    )
    asked = [text for call in federation.calls for text in call]
    messages = bodies(room)
    assert sorted(messages) == ["first", "free", "free again", "second"]
    # Whichever way they came in: what stands behind a policy was asked for.
    policy = False
    for event_id in room.order:
        event = room.events[event_id]
        if event.type == POLICY_TYPE:
            policy = bool(event.content)
        elif event.type == "m.room.message":
            assert (event.content["body"] in asked) == policy, event.content


async def test_a_policy_server_that_came_unnoticed_is_asked_at_the_second_try(
    world: World, federation: FakeFederation
) -> None:
    alice = await world.user()
    room = await policy_room(world, alice)
    answers: list[Decision] = ["unsigned", None]
    federation.decide = lambda event: answers.pop(0)
    await alice.ok("PUT", f"/rooms/{room.room_id}/send/m.room.message/1", {"body": "x"})
    assert len(federation.calls) == 2
    assert all_signed(room)
    federation.decide = lambda event: "unsigned"
    refused = await alice.fails("PUT", f"/rooms/{room.room_id}/send/m.room.message/2", {"body": "y"})
    assert refused == (403, "M_FORBIDDEN")
    assert len(federation.calls) == 4


async def test_a_federation_service_that_fails_is_a_503_and_the_lane_goes_on(
    world: World, federation: FakeFederation
) -> None:
    alice = await world.user()
    room = await policy_room(world, alice)
    path = f"/rooms/{room.room_id}/send/m.room.message"

    async def fail() -> None:
        raise unavailable()

    federation.before = fail
    assert await alice.fails("PUT", f"{path}/1", {"body": "x"}) == (503, "M_UNKNOWN")

    async def break_down() -> None:
        raise RuntimeError("a bug")

    federation.before = break_down
    assert (await alice.fails("PUT", f"{path}/2", {"body": "x"}))[0] == 500
    federation.before = None
    await alice.ok("PUT", f"{path}/1", {"body": "x"})
    assert bodies(room) == ["x"]


async def test_a_redacted_policy_asks_nobody(world: World, federation: FakeFederation) -> None:
    alice = await world.user()
    room = await policy_room(world, alice)
    policy = room.state[POLICY_TYPE, ""].event_id
    await asyncio.gather(
        alice.ok("PUT", f"/rooms/{room.room_id}/redact/{policy}/1", {}),
        alice.ok("PUT", f"/rooms/{room.room_id}/send/m.room.message/2", {"body": "x"}),
    )
    await alice.ok("PUT", f"/rooms/{room.room_id}/send/m.room.message/3", {"body": "y"})
    assert federation.calls[0][0] == "m.room.redaction"
    assert "y" not in [text for call in federation.calls for text in call]


async def test_a_writer_that_was_late_hears_of_the_policy(world: World, federation: FakeFederation) -> None:
    """The view of a lane is old; STALE tells it of the policy."""
    alice = await world.user()
    room = await make_room(world, alice, preset="public_chat")
    world.roomserver.insert(foreign_event(room, BOT, "m.room.member", {"membership": "join"}, BOT))
    policy = foreign_event(room, alice.user_id, POLICY_TYPE, policy_content(PS), "")
    world.roomserver.insert(policy)
    queries = world.roomserver.queries
    await alice.ok("PUT", f"/rooms/{room.room_id}/send/m.room.message/1", {"body": "x"})
    assert world.roomserver.stale == 1
    assert all_signed(room)
    assert federation.calls == [["x"]]
    assert world.roomserver.queries - queries <= 3


async def test_a_room_without_a_policy_asks_nobody_anything(world: World, federation: FakeFederation) -> None:
    alice = await world.user()
    room = await make_room(world, alice)
    asked = world.roomserver.queries
    await send_many(alice, room, 5)
    assert world.roomserver.queries == asked
    await alice.ok("PUT", f"/rooms/{room.room_id}/state/{POLICY_TYPE}", {"via": PS})
    await send_many(alice, room, 5, "u")
    assert world.roomserver.queries == asked
    assert federation.calls == []


@pytest.fixture
async def hermit(tmp_path: Path) -> AsyncIterator[World]:
    async with lone_clientapi(tmp_path) as running:
        yield running


async def test_a_server_that_speaks_to_nobody_refuses_where_it_names_itself(hermit: World) -> None:
    alice = await hermit.user()
    room = await make_room(hermit, alice)
    state = f"/rooms/{room.room_id}/state/{POLICY_TYPE}"
    await alice.ok("PUT", state, policy_content("elsewhere.example"))
    await send_many(alice, room, 3)
    await alice.ok("PUT", state, policy_content("here.example"))
    assert [status for status, _ in await send_many(alice, room, 3, "u")] == [403] * 3
    await alice.ok("PUT", state, {})
    await send_many(alice, room, 3, "v")
    assert len(bodies(room)) == 6


async def test_a_room_may_be_made_with_a_policy(world: World, federation: FakeFederation) -> None:
    alice = await world.user()

    def of(name: str) -> dict[str, Any]:
        return {"initial_state": [{"type": POLICY_TYPE, "state_key": "", "content": policy_content(name)}]}

    room = await make_room(world, alice, name="x", topic="y", **of(PS))
    assert room.state[POLICY_TYPE, ""].content["via"] == PS
    assert federation.calls == []
    # Our own is in the room from the first, and would have to sign what comes after.
    assert await alice.fails("POST", "/createRoom", {"name": "x", **of("here.example")}) == (
        403,
        "M_FORBIDDEN",
    )

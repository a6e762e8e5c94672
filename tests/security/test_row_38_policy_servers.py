"""Row 38: a policy server is asked once for what is not signed, and nothing that it says or does harms us.

Here the federation service is alone; test_row_38_policy_servers_system.py runs the whole server.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from arbor.federation.v1 import federation_pb2 as pb
from federation import policy as asking
from federation.storage.fetching import Wanted
from federation.submit import event_message
from matrixlib.events import Event, parse_event
from matrixlib.policy_servers import KEY_ID, is_signed, policy_server_of
from matrixlib.signing import sign_event
from servicekit.errors import MatrixError
from servicekit.grpc import error_of
from tests.support.evil_peer import Answer, EvilPeer
from tests.support.federation_alone import FederationAlone
from tests.support.policy import (
    OTHER_KEY,
    POLICY_TYPE,
    PolicyServerScript,
    policy_answer,
    policy_content,
    recommended,
    refusal,
)
from tests.support.rooms import Room
from tests.support.tls_ca import TestCa


@dataclass(slots=True)
class World:
    """A room of ours with Eve of another server in it, and with a policy server."""

    us: FederationAlone
    eves: EvilPeer
    script: PolicyServerScript
    room: Room
    transactions: int = 0

    @property
    def eve(self) -> str:
        return f"@eve:{self.eves.server_name}"

    @property
    def name(self) -> str:
        return self.script.peer.server_name

    def policy(self, content: dict[str, Any] | None = None) -> Event:
        return self.room.send(
            self.room.creator,
            POLICY_TYPE,
            policy_content(self.name) if content is None else content,
            state_key="",
        )

    def said(self, text: str, count: int = 1) -> list[Event]:
        """Messages of Eve's that are not known here yet."""
        events = [
            self.room.send(self.eve, "m.room.message", {"body": f"{text} {number}"})
            for number in range(count)
        ]
        self.forget(*events)
        return events

    def forget(self, *events: Event) -> None:
        """Let these events, the last ones of the room, not be known here."""
        for event in events:
            del self.room.events[event.event_id]
        self.room.heads = list(events[0].prev_event_ids)

    async def receive(self, *events: Event) -> dict[str, Any]:
        """Eve's server sends a transaction; returns its answer's results."""
        self.transactions += 1
        path = f"/_matrix/federation/v1/send/{self.transactions}"
        body = {"pdus": [event.pdu for event in events], "edus": []}
        status, answer = await self.eves.ask("PUT", self.us.base_url, path, self.us.server_name, body)
        assert status == 200, answer
        results: dict[str, Any] = answer["pdus"]
        return results

    def written(self) -> dict[str, bool]:
        """The events written to INPUT so far, and whether the policy server had signed each when it was last."""
        server = policy_server_of(self.room.state[POLICY_TYPE, ""])
        assert server is not None
        events = [
            parse_event(item.pdu_json, self.room.version)
            for entry in self.us.input.inputs
            for item in entry.submit_events.events
        ]
        return {event.event_id: is_signed(event, server) for event in events}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as eves, EvilPeer(ca) as server, FederationAlone(tmp_path, ca) as us:
        room = Room("10", creator=us.user("owner")).with_members(
            f"@eve:{eves.server_name}", f"@bot:{server.server_name}"
        )
        us.rooms.of[room.create.room_id] = room
        made = World(us, eves, PolicyServerScript(server, room.version), room)
        made.policy()
        yield made


# -- what other servers send


async def test_a_missing_signature_is_asked_for_and_added(world: World) -> None:
    event = world.said("x")[0]
    assert await world.receive(event) == {event.event_id: {}}
    assert world.script.asked == [event.pdu]
    assert world.written() == {event.event_id: True}
    # The request is one of ours, to the policy server.
    header = world.script.peer.asked("sign")[0].headers["Authorization"]
    assert f'origin="{world.us.server_name}"' in header
    assert f'destination="{world.name}"' in header


async def test_what_is_signed_already_is_not_asked_for(world: World) -> None:
    event = recommended(world.said("x")[0], world.name)
    await world.receive(event)
    assert world.script.asked == []
    assert world.written() == {event.event_id: True}


async def test_a_wrong_signature_is_replaced(world: World) -> None:
    """The key may have changed since."""
    event = world.said("x")[0]
    stale = policy_answer(event.pdu, event.room_version, world.name, OTHER_KEY)
    event = parse_event({**event.pdu, "signatures": {**event.pdu["signatures"], **stale}}, event.room_version)
    await world.receive(event)
    assert len(world.script.asked) == 1
    assert world.written() == {event.event_id: True}


async def test_what_is_refused_goes_on_without_and_is_asked_for_once(world: World) -> None:
    """The RoomServer soft-fails it then."""
    world.script.decide = lambda pdu: refusal(400, "M_FORBIDDEN", "spam")
    event = world.said("x")[0]
    for _ in range(3):
        assert await world.receive(event) == {event.event_id: {}}
        world.forget(event)
    assert len(world.script.asked) == 1
    assert world.written() == {event.event_id: False}


async def test_a_signature_is_asked_for_once(world: World) -> None:
    event = world.said("x")[0]
    for _ in range(3):
        await world.receive(event)
        world.forget(event)
    assert len(world.script.asked) == 1
    assert len(world.us.input.inputs) == 3
    assert world.written() == {event.event_id: True}


async def test_what_was_judged_before_is_not_asked_for(world: World) -> None:
    event = world.room.send(world.eve, "m.room.message", {"body": "here already"})
    await world.receive(event)
    assert world.script.asked == []


async def test_one_event_of_two_servers_is_one_question(world: World) -> None:
    """Both come at the same time."""
    began, go_on = asyncio.Event(), asyncio.Event()

    async def hold(pdu: dict[str, Any]) -> None:
        began.set()
        await go_on.wait()

    world.script.decide = hold
    view = await world.us.rooms.view(world.room.create.room_id)
    event = world.said("x")[0]
    policy = world.us.parts.servicer._policy
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(policy.of_received(view, [event])) for _ in range(3)]
        await began.wait()
        go_on.set()
    assert len(world.script.asked) == 1
    server = policy_server_of(world.room.state[POLICY_TYPE, ""])
    assert server is not None
    assert all(is_signed(task.result()[0], server) for task in tasks)


WRONG: dict[str, Any] = {
    "another key": lambda pdu, version, name: policy_answer(pdu, version, name, OTHER_KEY),
    "another name": lambda pdu, version, name: policy_answer(pdu, version, "elsewhere.example"),
    "nothing": lambda pdu, version, name: {},
    "no object": lambda pdu, version, name: [1],
    "an odd key": lambda pdu, version, name: {name: {KEY_ID: {"x": 1}}},
    "a long one": lambda pdu, version, name: {name: {KEY_ID: "A" * 100_000}},
    "no JSON": lambda pdu, version, name: Answer(200, b"\xff"),
    "a redirect": lambda pdu, version, name: Answer(302, b"{}", {"Location": "https://127.0.0.1:1/x"}),
    "token": lambda pdu, version, name: refusal(401, "M_UNKNOWN_TOKEN", soft_logout=True),
    "no policy server": lambda pdu, version, name: refusal(404, "M_UNRECOGNIZED"),
    "too many": lambda pdu, version, name: refusal(429, "M_LIMIT_EXCEEDED", retry_after_ms=50),
    "html": lambda pdu, version, name: Answer(500, b"<script>"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_wrong_answers_sign_nothing(world: World, name: str) -> None:
    world.script.decide = lambda pdu: WRONG[name](pdu, world.room.version, world.name)
    event = world.said("x")[0]
    assert await world.receive(event) == {event.event_id: {}}
    assert len(world.script.asked) == 1
    assert world.written() == {event.event_id: False}


async def test_a_policy_server_that_is_away_holds_nobody_up(world: World) -> None:
    await world.script.peer.go_away()
    for number in range(3):
        event = world.said(str(number))[0]
        assert await world.receive(event) == {event.event_id: {}}
    assert list(world.written().values()) == [False] * 3


async def test_a_slow_policy_server_holds_a_transaction_up_for_a_bounded_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "RECEIVED_TIMEOUT_S", 0.3)

    async def never(pdu: dict[str, Any]) -> None:
        await asyncio.Event().wait()

    world.script.decide = never
    events = world.said("x", 20)
    assert (await world.receive(*events)).keys() == {event.event_id for event in events}
    assert list(world.written().values()) == [False] * 20


async def test_no_more_than_some_are_asked_at_once(world: World) -> None:
    now = most = 0

    async def count(pdu: dict[str, Any]) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1

    world.script.decide = count
    events = world.said("x", 30)
    await world.receive(*events)
    assert list(world.written()) == [event.event_id for event in events]
    assert set(world.written().values()) == {True}
    assert most <= asking.AT_ONCE


async def test_a_server_that_is_not_in_the_room_is_not_asked(world: World) -> None:
    world.room.member(f"@bot:{world.name}", "leave")
    event = world.said("x")[0]
    await world.receive(event)
    assert world.script.asked == []
    world.room.member(f"@bot:{world.name}", "invite", by=world.room.creator)
    await world.receive(world.said("y")[0])
    assert world.script.asked == []


async def test_the_policy_itself_needs_nobody(world: World) -> None:
    """Whoever may change it does so without asking; what comes with it is measured by it."""
    world.room.send(
        world.room.creator,
        "m.room.power_levels",
        {"users": {world.room.creator: 100, world.eve: 100}},
        state_key="",
    )
    await world.script.peer.go_away()
    off = world.room.send(world.eve, POLICY_TYPE, {}, state_key="")
    free = world.room.send(world.eve, "m.room.message", {"body": "free"})
    back = world.room.send(world.eve, POLICY_TYPE, policy_content(world.name), state_key="")
    bound = world.room.send(world.eve, "m.room.message", {"body": "bound"})
    events = [off, free, back, bound]
    world.forget(*events)
    assert (await world.receive(*events)).keys() == {event.event_id for event in events}
    assert world.script.asked == []
    assert [event_id in world.room.events for event_id in world.written()] == [True] * 4


async def test_a_policy_server_with_a_key_that_is_none_is_not_asked(world: World) -> None:
    world.policy({"via": world.name, "public_keys": {"ed25519": "none"}})
    event = world.said("x")[0]
    await world.receive(event)
    assert world.script.asked == []
    assert world.written() == {event.event_id: False}


async def test_the_policy_servers_own_events_keep_both_signatures(world: World) -> None:
    """It signs its events as a server and as the policy server; the second key is nobody's to publish."""
    event = recommended(world.room.send(f"@bot:{world.name}", "m.room.message", {"body": "x"}), world.name)
    world.forget(event)
    path = "/_matrix/federation/v1/send/bot"
    body = {"pdus": [event.pdu], "edus": []}
    peer = world.script.peer
    status, answer = await peer.ask("PUT", world.us.base_url, path, world.us.server_name, body)
    assert (status, answer) == (200, {"pdus": {event.event_id: {}}})
    assert world.written() == {event.event_id: True}
    assert [request.path for request in peer.requests if "key" in request.path] == ["/_matrix/key/v2/server"]


async def test_fetched_events_are_asked_for(world: World) -> None:
    first, second = world.said("x", 2)
    world.us.rooms.outliers[second.event_id] = second
    world.us.rooms.waiting.add(second.event_id)
    world.eves.answer("get_missing_events", lambda _: {"events": [first.pdu]})
    missing = tuple(second.prev_event_ids)
    await world.us.parts.fetcher.fetch(
        Wanted(second.event_id, second.room_id, missing, world.eves.server_name, 0)
    )
    # What waited is signed before that comes for which it waited, and asked for once.
    assert [pdu["content"]["body"] for pdu in world.script.asked] == ["x 1", "x 0"]
    assert list(world.written()) == [second.event_id, first.event_id]
    assert world.written() == {first.event_id: True, second.event_id: True}


# -- joining and inviting


async def send_join(world: World, user: str) -> tuple[int, Any]:
    path = f"/_matrix/federation/v1/make_join/{world.room.create.room_id}/{user}?ver=10"
    status, answer = await world.eves.ask("GET", world.us.base_url, path, world.us.server_name)
    assert status == 200, answer
    event = world.eves.member_event(world.room.version, answer["event"])
    path = f"/_matrix/federation/v2/send_join/{event.room_id}/{event.event_id}"
    return await world.eves.ask("PUT", world.us.base_url, path, world.us.server_name, event.pdu)


async def test_a_join_through_us_is_signed_or_refused(world: World) -> None:
    user = f"@mallory:{world.eves.server_name}"
    world.script.decide = lambda pdu: refusal(400, "M_FORBIDDEN", "not you")
    status, body = await send_join(world, user)
    assert (status, body["errcode"], body["error"]) == (400, "M_FORBIDDEN", "not you")
    assert world.us.input.inputs == []
    world.script.decide = lambda pdu: None
    status, body = await send_join(world, user)
    assert status == 200, body
    assert KEY_ID in body["event"]["signatures"][world.name]
    assert list(world.written().values()) == [True]


async def test_an_invite_to_a_user_of_the_policy_server_keeps_its_signature(world: World) -> None:
    guest = f"@guest:{world.name}"
    invite = world.room.member(guest, "invite", by=world.room.creator)
    signed = recommended(invite, world.name)

    def accept(request: Any) -> Any:
        pdu = request.content["event"]
        peer = world.script.peer
        event = sign_event(pdu, world.room.version, peer.server_name, peer.key)
        # It gives back only what it added.
        event["signatures"][peer.server_name].pop(KEY_ID)
        return {"event": event}

    world.script.peer.answer("invite", accept)
    result = await world.us.parts.memberships.invite(signed, [])
    assert set(result.pdu["signatures"][world.name]) == {KEY_ID, world.script.peer.key.key_id}


# -- what local users send


async def sign_ours(world: World, *events: Event, policy: Event | None = None) -> list[Any]:
    request = pb.SignByPolicyServerRequest(
        room_id=world.room.create.room_id,
        room_version="10",
        policy=event_message(policy or world.room.state[POLICY_TYPE, ""]),
        events=[event_message(event) for event in events],
    )
    context: Any = None
    answer = await world.us.parts.servicer.SignByPolicyServer(request, context)
    return [
        error_of(result.refusal)
        if result.HasField("refusal")
        else parse_event(result.event.pdu_json, world.room.version)
        for result in answer.results
    ]


async def test_ours_are_signed_in_their_order(world: World) -> None:
    events = [world.room.send(world.room.creator, "m.room.message", {"body": str(n)}) for n in range(20)]
    world.script.decide = lambda pdu: (
        refusal(400, "M_FORBIDDEN", "spam") if pdu["content"]["body"] == "7" else None
    )
    results = await sign_ours(world, *events)
    assert len(world.script.asked) == 20
    for event, result in zip(events, results, strict=True):
        if event.content["body"] == "7":
            assert isinstance(result, MatrixError)
            assert (result.http_status, result.errcode, result.message) == (400, "M_FORBIDDEN", "spam")
        else:
            assert result.event_id == event.event_id
            assert KEY_ID in result.pdu["signatures"][world.name]


TOLD = {
    "another key": (403, "M_FORBIDDEN"),
    "another name": (403, "M_FORBIDDEN"),
    "nothing": (403, "M_FORBIDDEN"),
    "no object": (403, "M_FORBIDDEN"),
    "an odd key": (403, "M_FORBIDDEN"),
    "a long one": (403, "M_FORBIDDEN"),
    "no JSON": (502, "M_UNKNOWN"),
    "a redirect": (403, "M_FORBIDDEN"),
    "token": (403, "M_FORBIDDEN"),
    "no policy server": (403, "M_FORBIDDEN"),
    "too many": (429, "M_LIMIT_EXCEEDED"),
    "html": (502, "M_UNKNOWN"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_what_our_users_are_told(world: World, name: str) -> None:
    """The policy server's error where it is one; never one that would log them out."""
    world.script.decide = lambda pdu: WRONG[name](pdu, world.room.version, world.name)
    event = world.room.send(world.room.creator, "m.room.message", {"body": "x"})
    told = (await sign_ours(world, event))[0]
    assert isinstance(told, MatrixError)
    assert (told.http_status, told.errcode) == TOLD[name]
    assert told.retry_after_ms == (50 if name == "too many" else None)
    assert "soft_logout" not in told.body()
    assert "<" not in told.message


async def test_a_policy_server_that_was_away_is_asked_for_ours_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others sent found it away a moment ago; our users' events do not suffer from that."""
    monkeypatch.setattr(asking, "TIMEOUT_S", 0.3)

    async def never(pdu: dict[str, Any]) -> None:
        await asyncio.Event().wait()

    world.script.decide = never
    await world.receive(world.said("x")[0])
    world.script.decide = lambda pdu: None
    await world.receive(world.said("y")[0])
    assert len(world.script.asked) == 1
    monkeypatch.undo()
    event = world.room.send(world.room.creator, "m.room.message", {"body": "z"})
    assert isinstance((await sign_ours(world, event))[0], Event)


async def test_a_named_server_that_is_not_in_the_room_signs_nothing_of_ours(world: World) -> None:
    event = world.room.send(world.room.creator, "m.room.message", {"body": "x"})
    policy = world.policy(policy_content("elsewhere.example"))
    assert (await sign_ours(world, event, policy=policy))[0].pdu == event.pdu
    policy = world.policy({"via": world.name})
    assert (await sign_ours(world, event, policy=policy))[0].pdu == event.pdu
    assert world.script.asked == []


async def test_our_own_name_is_asked_like_any_other(world: World) -> None:
    """Another software may be behind it; where there is none, the answer is that of every other server."""
    policy = world.policy(policy_content(world.us.server_name))
    event = world.room.send(world.room.creator, "m.room.message", {"body": "x"})
    told = (await sign_ours(world, event, policy=policy))[0]
    assert isinstance(told, MatrixError)
    assert (told.http_status, told.errcode) == (403, "M_FORBIDDEN")

"""Row 38 with the whole server: what clients see of a room with a policy server, and what other servers get."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from matrixlib.event_builder import build_event
from matrixlib.events import Event, parse_event
from matrixlib.policy_servers import KEY_ID
from matrixlib.room_versions import ROOM_VERSIONS
from matrixlib.signing import sign_event
from tests.support.arbor_server import ArborServer
from tests.support.evil_peer import Asked, EvilPeer
from tests.support.federation import federated_arbor, until
from tests.support.matrix_client import ClientError, MatrixClient, joined_timeline, segment
from tests.support.policy import POLICY_TYPE, PolicyServerScript, policy_content, recommended, refusal
from tests.support.resident import ResidentRoom, RoomOf, join_patiently, join_through
from tests.support.tls_ca import TestCa

pytestmark = pytest.mark.timeout(120)
VERSION = ROOM_VERSIONS["10"]


@dataclass(slots=True)
class Guest:
    """A user of another server in a room of ours, who builds on what they said last."""

    peer: EvilPeer
    join: Event
    levels_id: str
    create_id: str
    last: Event
    transactions: int = 0

    def say(self, text: str) -> Event:
        self.last = build_event(
            VERSION,
            room_id=self.join.room_id,
            sender=self.join.sender,
            type="m.room.message",
            content={"body": text, "msgtype": "m.text"},
            prev_events=[self.last.event_id],
            auth_event_ids=[self.create_id, self.levels_id, self.join.event_id],
            depth=self.last.depth + 1,
            origin_server_ts=self.last.origin_server_ts + 1000,
            server_name=self.peer.server_name,
            signing_key=self.peer.key,
        )
        return self.last

    async def send(self, server: ArborServer, *events: Event) -> None:
        self.transactions += 1
        path = f"/_matrix/federation/v1/send/{self.transactions}"
        body = {"pdus": [event.pdu for event in events], "edus": []}
        base_url = f"https://{server.server_name}"
        status, answer = await self.peer.ask("PUT", base_url, path, server.server_name, body)
        assert (status, answer) == (200, {"pdus": {event.event_id: {} for event in events}})


async def join(server: ArborServer, peer: EvilPeer, room_id: str, name: str) -> Guest:
    answer = await join_through(
        server.server_name, peer, RoomOf(room_id, VERSION), f"@{name}:{peer.server_name}"
    )
    state = {event.key: event for pdu in answer["state"] if (event := parse_event(pdu, VERSION))}
    joined = parse_event(answer["event"], VERSION)
    return Guest(
        peer,
        joined,
        state["m.room.power_levels", ""].event_id,
        state["m.room.create", ""].event_id,
        joined,
    )


@dataclass(slots=True)
class World:
    """Alice's room here, with a policy server and a guest of another server."""

    server: ArborServer
    alice: MatrixClient
    script: PolicyServerScript
    guest: Guest
    room_id: str

    @property
    def name(self) -> str:
        return self.script.peer.server_name

    async def bodies(self) -> list[str]:
        """What Alice sees of all that was said, sorted."""
        return sorted(
            event["content"]["body"]
            for event in await self.alice.all_messages(self.room_id)
            if event["type"] == "m.room.message" and event["content"]
        )

    def told(self) -> list[dict[str, Any]]:
        """The PDUs that the guest's server got."""
        return [pdu for request in self.guest.peer.asked("send") for pdu in request.content["pdus"]]

    async def refused(self, text: str) -> ClientError:
        with pytest.raises(ClientError) as raised:
            await self.alice.send(self.room_id, text)
        return raised.value


@pytest.fixture
async def world(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[World]:
    ca = TestCa(tmp_path / "ca")
    server = federated_arbor(tmp_path / "arbor", ca)
    async with EvilPeer(ca) as peer, EvilPeer(ca) as other:
        for one in (peer, other):
            one.answer("send", lambda request: {"pdus": {}})
        script = PolicyServerScript(peer, VERSION)
        await server.start()
        try:
            alice = await server.register(session, "alice")
            # The policy is there from the first; its server comes later.
            policy = {"type": POLICY_TYPE, "state_key": "", "content": policy_content(peer.server_name)}
            room_id = await alice.create_room(
                preset="public_chat", room_version="10", name="x", initial_state=[policy]
            )
            await alice.send(room_id, "free")
            assert script.asked == []
            await join(server, peer, room_id, "bot")
            guest = await join(server, other, room_id, "eve")
            # She joined when the policy server was in the room.
            assert [pdu["sender"] for pdu in script.asked] == [guest.join.sender]
            script.asked.clear()
            yield World(server, alice, script, guest, room_id)
        finally:
            await server.stop()


async def test_what_is_sent_here(world: World) -> None:
    alice, script, room_id = world.alice, world.script, world.room_id
    sent = await alice.send(room_id, "good")
    topic = await alice.set_state(room_id, "m.room.topic", {"topic": "x"})
    redaction = await alice.redact(room_id, sent)
    assert [pdu["type"] for pdu in script.asked] == ["m.room.message", "m.room.topic", "m.room.redaction"]

    async def all_told() -> bool:
        got = {parse_event(pdu, VERSION).event_id: pdu for pdu in world.told()}
        wanted = [got.get(event_id) for event_id in (sent, topic, redaction)]
        return all(pdu is not None and KEY_ID in pdu["signatures"].get(world.name, {}) for pdu in wanted)

    await until(all_told, "the other server has all three, signed")

    # Refused: with the policy server's own words, and without a trace.
    answers = {
        "spam": (refusal(400, "M_FORBIDDEN", "This is spam"), 400, "M_FORBIDDEN"),
        "fast": (refusal(429, "M_LIMIT_EXCEEDED", "Slowly", retry_after_ms=12), 429, "M_LIMIT_EXCEEDED"),
        "token": (refusal(401, "M_UNKNOWN_TOKEN", "x", soft_logout=True), 403, "M_FORBIDDEN"),
        "none": (refusal(404, "M_UNRECOGNIZED", "x"), 403, "M_FORBIDDEN"),
        "broken": (refusal(500, "M_UNKNOWN", "x"), 502, "M_UNKNOWN"),
        "empty": ({}, 403, "M_FORBIDDEN"),
    }
    script.decide = lambda pdu: answers[body][0] if (body := pdu["content"].get("body")) in answers else None
    for text, (_, status, errcode) in answers.items():
        error = await world.refused(text)
        assert (error.status, error.errcode) == (status, errcode)
        assert "soft_logout" not in error.body
    assert (await world.refused("spam")).body["error"] == "This is spam"
    assert (await world.refused("fast")).body["retry_after_ms"] == 12
    assert await world.bodies() == ["free"]  # but for the redacted one
    with pytest.raises(ClientError):
        await alice.set_state(room_id, "m.room.topic", {"body": "spam"})

    # Many at once, some of them bad: each good one once, each bad one refused.
    txns = {f"many {number}": alice.new_txn_id() for number in range(30)}
    script.decide = lambda pdu: (
        refusal(400, "M_FORBIDDEN") if pdu["content"].get("body", "").endswith(("3", "7")) else None
    )

    async def send(text: str) -> None:
        if text.endswith(("3", "7")):
            with pytest.raises(ClientError, match="400"):
                await alice.send(room_id, text, txn_id=txns[text])
        else:
            first = await alice.send(room_id, text, txn_id=txns[text])
            assert await alice.send(room_id, text, txn_id=txns[text]) == first

    await asyncio.gather(*map(send, txns))
    good = {text for text in txns if not text.endswith(("3", "7"))}
    bodies = await world.bodies()
    assert set(bodies) == {"free", *good}
    assert len(bodies) == 1 + len(good)


async def test_what_comes_from_other_servers(world: World) -> None:
    alice, script, guest, server = world.alice, world.script, world.guest, world.server
    since = (await alice.sync())["next_batch"]
    script.decide = lambda pdu: refusal(400, "M_FORBIDDEN") if pdu["content"]["body"] == "bad" else None
    bad, good = guest.say("bad"), guest.say("good")
    await guest.send(server, bad)
    await guest.send(server, bad)
    assert [pdu["content"]["body"] for pdu in script.asked] == ["bad"]
    await guest.send(server, good)

    async def seen() -> list[str] | None:
        answer = await alice.sync(since)
        bodies = [event["content"].get("body", "") for event in joined_timeline(answer, world.room_id)]
        return bodies if "good" in bodies else None

    # What was refused is shown to nobody; what was built on it is.
    assert await until(seen, "the good message") == ["good"]
    assert await world.bodies() == ["free", "good"]
    with pytest.raises(ClientError) as raised:
        await alice.get(f"/rooms/{world.room_id}/event/{bad.event_id}")
    assert raised.value.status == 404
    # Whoever reads the room from us gets the signature with the event, and not what was refused.
    path = f"/_matrix/federation/v1/event/{good.event_id}"
    status, answer = await guest.peer.ask("GET", f"https://{server.server_name}", path, server.server_name)
    assert status == 200
    assert KEY_ID in answer["pdus"][0]["signatures"][world.name]
    await alice.send(world.room_id, "and ours goes on")
    assert bad.event_id not in script.asked[-1]["prev_events"]


async def test_a_policy_server_that_is_away(world: World) -> None:
    alice, guest, room_id = world.alice, world.guest, world.room_id
    await world.script.peer.go_away()
    error = await world.refused("nobody signs this")
    assert (error.status, error.errcode) == (502, "M_UNKNOWN")
    await guest.send(world.server, guest.say("nor this"))
    assert await world.bodies() == ["free"]
    # Whoever may change the policy needs nobody for it, and then the room is free.
    await alice.set_state(room_id, POLICY_TYPE, {})
    await alice.send(room_id, "free again")
    await guest.send(world.server, guest.say("and so am I"))

    async def both() -> bool:
        return await world.bodies() == ["and so am I", "free", "free again"]

    await until(both, "both messages")
    # A new one that is named and not in the room is none.
    await alice.set_state(room_id, POLICY_TYPE, policy_content("nobody.example"))
    await alice.send(room_id, "still free")


async def test_operators_delete_a_room_whose_policy_server_is_away(
    world: World, session: aiohttp.ClientSession
) -> None:
    root = await world.server.register(session, "root", admin=True)
    await world.script.peer.go_away()
    path = f"/_synapse/admin/v1/rooms/{segment(world.room_id)}"
    answer = await root.request("DELETE", path, {"purge": True, "force_purge": True})
    assert answer["failed_to_kick_users"] == [world.alice.user_id]
    assert (await world.refused("gone")).status == 403
    assert world.room_id not in (await world.alice.get("/joined_rooms"))["joined_rooms"]


async def test_a_redacted_policy_is_gone(world: World) -> None:
    alice, room_id = world.alice, world.room_id
    state = await alice.state(room_id)
    policy = next(event["event_id"] for event in state if event["type"] == POLICY_TYPE)
    await alice.redact(room_id, policy)
    await world.script.peer.go_away()
    await alice.send(room_id, "free at once")
    await world.guest.send(world.server, world.guest.say("soon"))

    async def seen() -> bool:
        return await world.bodies() == ["free", "free at once", "soon"]

    await until(seen, "both messages")


async def test_our_own_name_signs_nothing(world: World) -> None:
    """There is no policy server in this one: the room says so to everybody until its policy is mended."""
    await world.alice.set_state(world.room_id, POLICY_TYPE, policy_content(world.server.server_name))
    assert (await world.refused("x")).errcode == "M_FORBIDDEN"
    base_url = f"https://{world.server.server_name}"
    status, body = await world.guest.peer.ask(
        "POST", base_url, "/_matrix/policy/v1/sign", world.server.server_name, world.guest.say("x").pdu
    )
    assert (status, body["errcode"]) == (404, "M_UNRECOGNIZED")
    await world.alice.set_state(world.room_id, POLICY_TYPE, {})
    await world.alice.send(world.room_id, "y")


async def test_inviting_a_user_of_another_server(world: World) -> None:
    peer = world.script.peer

    def accept(request: Asked) -> Any:
        pdu = request.content["event"]
        assert KEY_ID in pdu["signatures"][world.name]  # asked before anybody else hears of it
        return {"event": sign_event(pdu, VERSION, peer.server_name, peer.key)}

    peer.answer("invite", accept)
    world.script.decide = lambda pdu: (
        refusal(400, "M_FORBIDDEN", "not him") if "mallory" in (pdu.get("state_key") or "") else None
    )
    with pytest.raises(ClientError) as raised:
        await world.alice.invite(world.room_id, f"@mallory:{peer.server_name}")
    assert raised.value.body["error"] == "not him"
    assert peer.asked("invite") == []
    friend = f"@friend:{peer.server_name}"
    await world.alice.invite(world.room_id, friend)
    members = await world.alice.get(f"/rooms/{world.room_id}/members", membership="invite")
    assert [event["state_key"] for event in members["chunk"]] == [friend]


@pytest.mark.parametrize("signed_by", ["the resident's asking", "our asking", "nobody"])
async def test_joining_such_a_room_elsewhere(world: World, signed_by: str) -> None:
    """The join is an event of that room like others; most residents have asked for its signature."""
    peer, other = world.script.peer, world.guest.peer
    room = ResidentRoom(other, 2)
    bot = f"@bot:{peer.server_name}"
    content = {"membership": "join"}
    room.state.append(
        build_event(
            VERSION,
            room_id=room.room_id,
            sender=bot,
            type="m.room.member",
            content=content,
            state_key=bot,
            prev_events=[room.state[-1].event_id],
            auth_event_ids=[event.event_id for event in room.auth],
            depth=len(room.state) + 1,
            origin_server_ts=1_700_000_000_000,
            server_name=peer.server_name,
            signing_key=peer.key,
        )
    )
    boss = room.state[1]
    room._send(
        room.creator, POLICY_TYPE, "", policy_content(peer.server_name), (room.create, boss, room.levels)
    )
    send_join = room.send_join

    async def with_signature(request: Asked) -> Any:
        if signed_by == "the resident's asking":
            request.content = recommended(parse_event(request.content, VERSION), world.name).pdu
        return await send_join(request)

    other.answer("send_join", with_signature)
    world.script.decide = lambda pdu: (
        refusal(400, "M_FORBIDDEN", "not you") if signed_by == "nobody" else None
    )
    if signed_by == "nobody":
        with pytest.raises(ClientError) as raised:
            await join_patiently(world.alice, room.room_id, other.server_name)
        assert raised.value.body["error"] == "not you"
        assert room.room_id not in (await world.alice.get("/joined_rooms"))["joined_rooms"]
        return
    await join_patiently(world.alice, room.room_id, other.server_name)
    assert len(world.script.asked) == (1 if signed_by == "our asking" else 0)
    await world.alice.send(room.room_id, "hello")
    assert world.script.asked[-1]["content"]["body"] == "hello"

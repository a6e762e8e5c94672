"""A user joins a room whose server leaves the members out at first: talks at once, and sees them later."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from matrixlib.event_builder import build_event
from tests.support.arbor_server import ArborServer
from tests.support.evil_peer import Answer, Asked, EvilPeer
from tests.support.federation import until
from tests.support.joining_world import JoiningWorld, joining_world
from tests.support.matrix_client import ClientError, MatrixClient
from tests.support.resident import ResidentRoom, join_patiently

MEMBERS = 30
LAZY = orjson.dumps({"room": {"state": {"lazy_load_members": True}}}).decode()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[JoiningWorld]:
    async with joining_world(tmp_path) as made:
        yield made


async def sync(client: MatrixClient, *, lazy: bool, since: str = "") -> dict[str, Any]:
    params = {"timeout": "0"} | ({"filter": LAZY} if lazy else {}) | ({"since": since} if since else {})
    answer: dict[str, Any] = await client.get("/sync", **params)
    return answer


def bodies(room: dict[str, Any]) -> list[str]:
    events = room["timeline"]["events"]
    return [event["content"]["body"] for event in events if event["type"] == "m.room.message"]


def members_in(room: dict[str, Any]) -> set[str]:
    events = [*room["state"]["events"], *room["timeline"]["events"]]
    return {event["state_key"] for event in events if event["type"] == "m.room.member"}


async def whole(client: MatrixClient, room_id: str, count: int) -> bool:
    """Whether a room has so many members, once they are known."""
    return len((await patiently(client.get, f"/rooms/{room_id}/joined_members"))["joined"]) == count


def sent_to(peer: EvilPeer) -> list[str]:
    return [
        pdu["content"].get("body", "") for request in peer.asked("send") for pdu in request.content["pdus"]
    ]


async def joins_of(server: ArborServer) -> list[list[str]]:
    status, output = await server.command("federation", "joins")
    assert status == 0, output
    return [line.split() for line in output.splitlines()[1:]]


async def test_talk_goes_both_ways_before_and_after_the_members_come(
    world: JoiningWorld, session: aiohttp.ClientSession
) -> None:
    server, peer = world.server, world.peer
    room = ResidentRoom(peer, MEMBERS, omits=True, gives_state=False)
    alice = await server.register(session, "alice")
    before = (await sync(alice, lazy=False))["next_batch"]
    await join_patiently(alice, room.room_id, peer.server_name)
    assert room.joins[0].sender == alice.user_id
    assert peer.asked("send_join")[0].query == {"omit_members": "true"}

    mine = await alice.send(room.room_id, "from here")

    async def heard() -> bool:
        return "from here" in sent_to(peer)

    await until(heard, "the message to reach the server that was told to be in the room")
    theirs = room.speak(
        f"@member7:{peer.server_name}", {"body": "from there", "msgtype": "m.text"}, after=mine
    )
    path = "/_matrix/federation/v1/send/1"
    content = {"origin": peer.server_name, "origin_server_ts": 1, "pdus": [theirs.pdu], "edus": []}
    status, answer = await peer.ask("PUT", f"https://{server.server_name}", path, server.server_name, content)
    assert (status, answer) == (200, {"pdus": {theirs.event_id: {}}})

    shown = (await sync(alice, lazy=True))["rooms"]["join"][room.room_id]
    assert bodies(shown) == ["from here"]
    assert members_in(shown) == {alice.user_id}
    hidden = await sync(alice, lazy=False, since=before)
    assert room.room_id not in hidden.get("rooms", {}).get("join", {})
    assert (await alice.get("/joined_rooms"))["joined_rooms"] == [room.room_id]
    (listed,) = await joins_of(server)
    assert listed[3] == "completing"

    room.gives_state = True
    assert await whole(alice, room.room_id, MEMBERS + 2), "who asks for the members waits for them"

    async def arrived() -> bool:
        answer = await sync(alice, lazy=False, since=hidden["next_batch"])
        shown = answer.get("rooms", {}).get("join", {}).get(room.room_id)
        return (
            shown is not None
            and bodies(shown) == ["from here", "from there"]
            and (len(members_in(shown)) == MEMBERS + 2)
        )

    await until(arrived, "the room to come whole to who did not see it before")
    (listed,) = await joins_of(server)
    assert listed[3] == "done"
    state = await alice.get(f"/rooms/{room.room_id}/state")
    assert {event["event_id"] for event in state} == {
        *(event.event_id for event in room.state),
        room.joins[0].event_id,
    }
    await alice.send(room.room_id, "still here")


async def test_what_needs_the_members_waits_for_them(
    world: JoiningWorld, session: aiohttp.ClientSession
) -> None:
    server, peer = world.server, world.peer
    room = ResidentRoom(peer, MEMBERS, omits=True, gives_state=False)
    alice, bob = await server.register(session, "alice"), await server.register(session, "bob")
    await join_patiently(alice, room.room_id, peer.server_name)
    target = f"@member1:{peer.server_name}"
    async with asyncio.TaskGroup() as group:
        # Each waits some seconds here, and comes back when told to.
        members = group.create_task(patiently(alice.get, f"/rooms/{room.room_id}/members"))
        state = group.create_task(patiently(alice.get, f"/rooms/{room.room_id}/state"))
        joined = group.create_task(patiently(bob.join, room.room_id))
        kicked = group.create_task(patiently(alice.post, f"/rooms/{room.room_id}/kick", {"user_id": target}))
        # The user's own profile and messages do not.
        await alice.put(f"/profile/{alice.user_id}/displayname", {"displayname": "Al"})
        await alice.send(room.room_id, "meanwhile")
        assert not any(task.done() for task in (members, state, joined, kicked))
        room.gives_state = True
    assert len(members.result()["chunk"]) >= MEMBERS + 2, "and the second user, if that was quicker"
    assert isinstance(kicked.result(), ClientError), "the member is known, and stands as high"
    assert await whole(alice, room.room_id, MEMBERS + 3)
    assert len(room.joins) == 1, "the second user needed no other server"


async def patiently(ask: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    """Ask again as long as it is 503; returns the answer, or the error that it is else."""
    while True:
        try:
            return await ask(*arguments)
        except ClientError as error:
            if error.status != 503:
                return error


async def test_other_servers_are_served_what_is_certain(
    world: JoiningWorld, session: aiohttp.ClientSession
) -> None:
    server, peer = world.server, world.peer
    room = ResidentRoom(peer, MEMBERS, omits=True, gives_state=False)
    alice = await server.register(session, "alice")
    await join_patiently(alice, room.room_id, peer.server_name)
    join = room.joins[0].event_id

    async def ask(who: EvilPeer, path: str) -> int:
        url = f"https://{server.server_name}"
        status, _ = await who.ask("GET", url, f"/_matrix/federation/v1/{path}", server.server_name)
        return status

    refused = (
        f"state/{room.room_id}?event_id={join}",
        f"state_ids/{room.room_id}?event_id={join}",
        f"event_auth/{room.room_id}/{join}",
        f"timestamp_to_event/{room.room_id}?ts=0&dir=f",
        f"hierarchy/{room.room_id}",
        f"make_join/{room.room_id}/@eve:{peer.server_name}?ver=10",
    )
    assert [await ask(peer, path) for path in refused] == [404] * len(refused)
    assert await ask(peer, f"event/{join}") == 200
    assert await ask(world.third, f"event/{join}") == 403
    room.gives_state = True
    await until(lambda: whole(alice, room.room_id, MEMBERS + 2), "the members to come")
    assert [await ask(peer, path) for path in refused[:3]] == [200] * 3


async def test_history_is_not_read_before_it_is_known_who_was_there(
    world: JoiningWorld, session: aiohttp.ClientSession
) -> None:
    server, peer = world.server, world.peer
    room = ResidentRoom(peer, MEMBERS, omits=True, gives_state=False)
    alice = await server.register(session, "alice")
    await join_patiently(alice, room.room_id, peer.server_name)
    await alice.send(room.room_id, "the first")
    page = await alice.get(f"/rooms/{room.room_id}/messages", dir="b", limit="2")
    assert [event["type"] for event in page["chunk"]] == ["m.room.message", "m.room.member"]
    assert "end" in page, "there is more, once it is known who was there"
    assert peer.asked("backfill") == []
    room.gives_state = True
    await until(lambda: whole(alice, room.room_id, MEMBERS + 2), "the members to come")
    await alice.get(f"/rooms/{room.room_id}/messages", dir="b", limit="10")
    assert peer.asked("backfill")


async def test_who_leaves_ends_the_fetching(world: JoiningWorld, session: aiohttp.ClientSession) -> None:
    server, peer = world.server, world.peer
    room = ResidentRoom(peer, MEMBERS, omits=True, gives_state=False)
    alice = await server.register(session, "alice")
    await join_patiently(alice, room.room_id, peer.server_name)
    await alice.post(f"/rooms/{room.room_id}/leave")

    async def ended() -> bool:
        (listed,) = await joins_of(server)
        return listed[3] == "failed"

    await until(ended, "the join to be given up")
    assert (await alice.get("/joined_rooms"))["joined_rooms"] == []

    async def told() -> bool:
        pdus = [pdu for request in peer.asked("send") for pdu in request.content["pdus"]]
        return "leave" in [pdu["content"].get("membership") for pdu in pdus]

    await until(told, "the room's server to be told of the leave")
    room.gives_state = True
    await join_patiently(alice, room.room_id, peer.server_name)
    assert await whole(alice, room.room_id, MEMBERS + 2)


@pytest.mark.parametrize(
    "servers", [None, [], ["no server name"], "localhost", [1], ["a.example"] * 2 + [""]], ids=repr
)
async def test_an_answer_without_members_and_servers_is_asked_for_whole(
    world: JoiningWorld, session: aiohttp.ClientSession, servers: Any
) -> None:
    server, peer = world.server, world.peer
    room = ResidentRoom(peer, 3, omits=True)
    honest = room.send_join

    async def lie(request: Asked) -> Answer:
        answer = await honest(request)
        parsed = orjson.loads(answer.body)
        if parsed["members_omitted"]:
            parsed["servers_in_room"] = servers
        return Answer(body=orjson.dumps(parsed))

    peer.answer("send_join", lie)
    alice = await server.register(session, "alice")
    await join_patiently(alice, room.room_id, peer.server_name)
    assert [request.query for request in peer.asked("send_join")] == [{"omit_members": "true"}, {}]
    assert await whole(alice, room.room_id, 5)
    assert peer.asked("state") == []


async def test_auth_events_that_are_missing_are_not_made_up(
    world: JoiningWorld, session: aiohttp.ClientSession
) -> None:
    server, peer = world.server, world.peer
    room = ResidentRoom(peer, 3, omits=True)
    honest = room.send_join

    async def lie(request: Asked) -> Answer:
        parsed = orjson.loads((await honest(request)).body)
        if parsed["members_omitted"]:
            # Without the creator's membership nothing of the state can stand but the create event.
            parsed["auth_chain"] = [pdu for pdu in parsed["auth_chain"] if pdu["type"] != "m.room.member"]
        return Answer(body=orjson.dumps(parsed))

    peer.answer("send_join", lie)
    alice = await server.register(session, "alice")
    await join_patiently(alice, room.room_id, peer.server_name)
    assert [request.query for request in peer.asked("send_join")] == [{"omit_members": "true"}, {}]
    assert await whole(alice, room.room_id, 5)


async def test_members_that_are_of_no_use_are_asked_of_others(
    world: JoiningWorld, session: aiohttp.ClientSession
) -> None:
    server, peer, third = world.server, world.peer, world.third
    room = ResidentRoom(peer, MEMBERS, omits=True)
    honest, honest_state = room.send_join, room.give_state

    async def with_third(request: Asked) -> Answer:
        parsed = orjson.loads((await honest(request)).body)
        parsed["servers_in_room"].append(third.server_name)
        return Answer(body=orjson.dumps(parsed))

    def other_create() -> dict[str, Any]:
        made = build_event(
            room.version,
            room_id=room.room_id,
            sender=room.creator,
            type="m.room.create",
            content={"creator": room.creator, "room_version": "10", "other": True},
            state_key="",
            prev_events=[],
            auth_event_ids=[],
            depth=1,
            origin_server_ts=1,
            server_name=peer.server_name,
            signing_key=peer.key,
        )
        return dict(made.pdu)

    lies = iter(
        [
            b"[]",
            b'{"pdus":{},"auth_chain":[]}',
            b'{"pdus":[],"auth_chain":[]}',
            orjson.dumps({"pdus": [other_create()], "auth_chain": []}),
        ]
    )
    peer.answer("send_join", with_third)
    peer.answer("state", lambda _: Answer(body=next(lies, b"[]")))
    tries: list[str] = []

    async def later(request: Asked) -> Answer:
        tries.append(request.query["event_id"])
        return await honest_state(request) if len(tries) > 3 else Answer(502)

    third.answer("state", later)
    alice = await server.register(session, "alice")
    await join_patiently(alice, room.room_id, peer.server_name)

    async def failing() -> bool:
        (listed,) = await joins_of(server)
        return listed[3] == "completing" and listed[7].isdigit()

    await until(failing, "a try to fail and be listed")
    assert await whole(alice, room.room_id, MEMBERS + 2)
    assert len(peer.asked("state")) >= 4
    assert tries[0] == room.joins[0].event_id


async def test_what_is_told_later_changes_nothing_but_members(
    world: JoiningWorld, session: aiohttp.ClientSession
) -> None:
    server, peer = world.server, world.peer
    room = ResidentRoom(peer, 3, omits=True)
    honest = room.give_state

    async def contradict(request: Asked) -> Answer:
        parsed = orjson.loads((await honest(request)).body)
        parsed["pdus"] = [pdu for pdu in parsed["pdus"] if pdu["type"] != "m.room.name"]
        return Answer(body=orjson.dumps(parsed))

    peer.answer("state", contradict)
    alice = await server.register(session, "alice")
    await join_patiently(alice, room.room_id, peer.server_name)
    assert await whole(alice, room.room_id, 5)
    name = await alice.get(f"/rooms/{room.room_id}/state/m.room.name")
    assert name == {"name": "A room"}

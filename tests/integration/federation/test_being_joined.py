"""Another server joins a room of ours, and takes less than the whole state."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from federation.receipt.ordering import with_whole_auth
from matrixlib.event_auth import Refused, check_event_auth
from matrixlib.event_builder import build_event
from matrixlib.events import Event, parse_event
from matrixlib.room_versions import get_room_version
from matrixlib.signing import sign_event
from tests.support.arbor_server import ArborServer
from tests.support.evil_peer import EvilPeer
from tests.support.federation import federated_arbor
from tests.support.matrix_client import MatrixClient
from tests.support.tls_ca import TestCa

MEMBERS = 8


@dataclass(frozen=True, slots=True)
class World:
    """A running Arbor, a scripted server, users of the former in the order of their coming."""

    server: ArborServer
    peer: EvilPeer
    users: list[MatrixClient]

    @property
    def us(self) -> str:
        return self.server.server_name

    async def room(self, **settings: Any) -> str:
        """A public room with all users in it."""
        room_id = await self.users[0].create_room(preset="public_chat", **settings)
        for user in self.users[1:]:
            await user.join(room_id)
        return room_id

    async def ask(self, method: str, path: str, content: Any = None) -> tuple[int, Any]:
        url = f"https://{self.us}"
        return await self.peer.ask(method, url, f"/_matrix/federation{path}", self.us, content)

    async def join_event(self, room_id: str, user_id: str) -> Event:
        """The join of one of the peer's users, from a template."""
        versions = "&".join(f"ver={version}" for version in range(1, 13))
        status, answer = await self.ask("GET", f"/v1/make_join/{room_id}/{user_id}?{versions}")
        assert status == 200, answer
        version = get_room_version(answer["room_version"])
        assert version is not None
        return self.peer.member_event(version, answer["event"])

    async def send_join(self, event: Event, query: str = "", prefix: str = "/v2") -> tuple[int, Any]:
        path = f"{prefix}/send_join/{event.room_id}/{event.event_id}{query}"
        return await self.ask("PUT", path, event.pdu)


@pytest.fixture
async def world(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[World]:
    ca = TestCa(tmp_path / "ca")
    server = federated_arbor(tmp_path / "arbor", ca)
    async with EvilPeer(ca) as peer:
        await server.start()
        try:
            users = [await server.register(session, f"user{number}") for number in range(MEMBERS)]
            made = World(server, peer, users)
            # Clients are served before the federation service is up; what other servers ask waits for it.
            assert (await made.ask("GET", "/v1/version"))[0] == 200
            yield made
        finally:
            await server.stop()


def events_of(answer: dict[str, Any], part: str, join: Event) -> dict[str, Event]:
    events = [parse_event(pdu, join.room_version) for pdu in answer[part]]
    return {event.event_id: event for event in events}


def members_of(events: dict[str, Event]) -> list[str]:
    return sorted(str(event.state_key) for event in events.values() if event.type == "m.room.member")


async def test_members_are_left_out_for_who_says_so(world: World) -> None:
    room_id = await world.room(name="With a name")
    join = await world.join_event(room_id, f"@eve:{world.peer.server_name}")
    status, answer = await world.send_join(join, "?omit_members=true")
    assert status == 200, answer
    assert answer["members_omitted"] is True
    assert answer["servers_in_room"] == [world.us], "those before the join"
    state, chain = events_of(answer, "state", join), events_of(answer, "auth_chain", join)
    assert members_of(state) == []
    assert {event.type for event in state.values()} >= {"m.room.create", "m.room.join_rules", "m.room.name"}
    assert not state.keys() & chain.keys(), "nothing is told twice"
    # Every event can be judged by what is here, the join among them.
    known = {**chain, **state}
    assert with_whole_auth({**known, join.event_id: join}).keys() == {*known, join.event_id}
    assert not isinstance(check_event_auth(join, {event.key: event for event in state.values()}), Refused)


async def test_a_room_without_a_name_is_called_after_its_first_members(world: World) -> None:
    room_id = await world.room()
    await world.users[1].post(f"/rooms/{room_id}/leave")
    join = await world.join_event(room_id, f"@eve:{world.peer.server_name}")
    status, answer = await world.send_join(join, "?omit_members=true")
    assert status == 200, answer
    state, chain = events_of(answer, "state", join), events_of(answer, "auth_chain", join)
    users = [user.user_id for user in world.users]
    assert members_of(state) == sorted([users[0], *users[2:6]])
    known = {**chain, **state}
    assert with_whole_auth(known).keys() == known.keys()


async def test_who_was_invited_is_told_of_the_invite(world: World) -> None:
    eve = f"@eve:{world.peer.server_name}"
    room_id = await world.users[0].create_room(preset="private_chat", name="With a name")
    invite: list[Any] = []

    def sign(request: Any) -> Any:
        version = get_room_version(request.content["room_version"])
        assert version is not None
        invite.append(sign_event(request.content["event"], version, world.peer.server_name, world.peer.key))
        return {"event": invite[0]}

    world.peer.answer("invite", sign)
    await world.users[0].post(f"/rooms/{room_id}/invite", {"user_id": eve})
    join = await world.join_event(room_id, eve)
    status, answer = await world.send_join(join, "?omit_members=true")
    assert status == 200, answer
    state = events_of(answer, "state", join)
    # The members by whom the join is judged.
    assert members_of(state) == [eve]
    assert not isinstance(check_event_auth(join, {event.key: event for event in state.values()}), Refused)
    known = {**events_of(answer, "auth_chain", join), **state}
    assert with_whole_auth(known).keys() == known.keys()


async def test_all_members_are_told_to_who_does_not_say_so(world: World) -> None:
    room_id = await world.room(name="With a name")
    eve, dora = f"@eve:{world.peer.server_name}", f"@dora:{world.peer.server_name}"
    users = [user.user_id for user in world.users]
    join = await world.join_event(room_id, eve)
    status, answer = await world.send_join(join, "?omit_members=maybe")
    assert (status, answer["errcode"]) == (400, "M_INVALID_PARAM")
    status, answer = await world.send_join(join)
    assert (status, answer["members_omitted"]) == (200, False), answer
    assert members_of(events_of(answer, "state", join)) == sorted(users)
    # The older form has no such parameter.
    join = await world.join_event(room_id, dora)
    status, answer = await world.send_join(join, "?omit_members=true", prefix="/v1")
    assert (status, answer[0], answer[1]["members_omitted"]) == (200, 200, False)
    assert members_of(events_of(answer[1], "state", join)) == sorted([*users, eve])
    assert set(answer[1]["servers_in_room"]) == {world.us, world.peer.server_name}


def rebuilt(world: World, event: Event, **changes: Any) -> Event:
    """An event of the peer's once more, in parts another one."""
    parts: dict[str, Any] = {
        "room_id": event.room_id,
        "sender": event.sender,
        "type": event.type,
        "content": event.content,
        "state_key": event.state_key,
        "prev_events": event.pdu["prev_events"],
        "auth_event_ids": event.auth_event_ids,
        "depth": event.depth,
        "origin_server_ts": event.origin_server_ts,
        "server_name": world.peer.server_name,
        "signing_key": world.peer.key,
    }
    return build_event(event.room_version, **{**parts, **changes})


async def test_a_refused_join_is_refused_again(world: World) -> None:
    room_id = await world.room(name="With a name")
    eve = f"@eve:{world.peer.server_name}"
    join = await world.join_event(room_id, eve)
    await world.users[0].post(f"/rooms/{room_id}/ban", {"user_id": eve})
    # Allowed by what it was made from, not by what the room is now.
    for _ in range(2):
        status, answer = await world.send_join(join)
        assert (status, answer["errcode"]) == (403, "M_FORBIDDEN"), answer
    # Not allowed by its own auth events.
    forged = rebuilt(world, join, auth_event_ids=join.auth_event_ids[:1], depth=join.depth + 1)
    for _ in range(2):
        status, answer = await world.send_join(forged)
        assert (status, answer["errcode"]) == (403, "M_FORBIDDEN"), answer


async def test_a_join_after_events_unknown_here_is_refused_for_good(world: World) -> None:
    room_id = await world.room(name="With a name")
    eve, dora = f"@eve:{world.peer.server_name}", f"@dora:{world.peer.server_name}"
    first, second = await world.join_event(room_id, eve), await world.join_event(room_id, dora)
    late = rebuilt(world, second, prev_events=[first.event_id], depth=first.depth + 1)
    by_unknown = rebuilt(world, second, auth_event_ids=[*second.auth_event_ids, first.event_id])
    for event in (late, by_unknown):
        status, answer = await world.send_join(event)
        assert (status, answer["errcode"]) == (400, "M_INVALID_PARAM"), answer
    # What it named comes: nobody is in the room of whom it was said that they are not.
    status, answer = await world.send_join(first)
    assert status == 200, answer
    third = await world.join_event(room_id, f"@fay:{world.peer.server_name}")
    status, answer = await world.send_join(third)
    assert status == 200, answer
    members = members_of(events_of(answer, "state", third))
    assert eve in members
    assert dora not in members
    # Now it can be judged, and is welcome.
    status, answer = await world.send_join(late)
    assert status == 200, answer

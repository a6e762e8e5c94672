"""Row 1: nothing that another server hands us is ever signed as it is.

The peer, resident of a room, answers make_join, make_leave and make_knock with templates that are not what
was asked for. No event made of them leaves, and the error is a clean one.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from matrixlib.events import Event, parse_event
from servicekit.errors import MatrixError
from tests.support.evil_peer import EvilPeer
from tests.support.federation_alone import FederationAlone
from tests.support.rooms import Room
from tests.support.tls_ca import TestCa

MEMBERSHIPS = ["join", "leave", "knock"]
VICTIM = "@admin:victim.example"


@dataclass(slots=True)
class World:
    """A room of the peer's to which a user of ours, Alice, is invited."""

    peer: EvilPeer
    us: FederationAlone
    room: Room
    invite: Event

    @property
    def room_id(self) -> str:
        return self.invite.room_id

    @property
    def user_id(self) -> str:
        return self.us.user("alice")

    def template(self, membership: str) -> dict[str, Any]:
        """A template as it should be."""
        return {
            "type": "m.room.member",
            "room_id": self.room_id,
            "sender": self.user_id,
            "state_key": self.user_id,
            "content": {"membership": membership},
            "prev_events": ["$" + "p" * 43],
            "auth_events": ["$" + "a" * 43],
            "depth": 5,
            "origin": self.peer.server_name,
            "origin_server_ts": 1,
        }

    async def ask(self, membership: str, content: dict[str, Any] | None = None, *others: str) -> None:
        """Have Alice join, knock or refuse her invite by way of the peer, then of others."""
        servers = [self.peer.server_name, *others]
        if membership == "join":
            await self.us.parts.joins.join(self.user_id, self.room_id, servers, content or {})
        elif membership == "knock":
            await self.us.parts.memberships.knock(self.user_id, self.room_id, servers, content or {})
        else:
            await self.us.parts.memberships.leave(self.user_id, self.room_id, content or {})

    async def refuses(self, membership: str, answer: Any) -> None:
        """Check that nothing is signed that this answer led to."""
        self.peer.answer(f"make_{membership}", lambda _: answer)
        self.peer.answer(f"send_{membership}", lambda _: {})
        if membership == "leave":
            # The invite ends here all the same, by an event into which nothing of the peer's went.
            await self.ask("leave")
            (entry,) = self.us.input.inputs
            (sent,) = entry.submit_events.events
            leave = parse_event(sent.pdu_json, self.invite.room_version)
            assert (leave.type, leave.membership, leave.room_id) == ("m.room.member", "leave", self.room_id)
            assert leave.prev_event_ids == leave.auth_event_ids == (self.invite.event_id,)
            assert leave.content == {"membership": "leave"}
        else:
            with pytest.raises(MatrixError) as raised:
                await self.ask(membership)
            assert (raised.value.http_status, raised.value.errcode) == (502, "M_UNKNOWN")
            assert self.us.input.inputs == []
        assert len(self.peer.asked(f"make_{membership}")) == 1
        assert self.peer.asked(f"send_{membership}") == []


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    return TestCa(tmp_path / "ca")


@pytest.fixture
async def world(tmp_path: Path, ca: TestCa) -> AsyncIterator[World]:
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        room = Room("10", creator=f"@boss:{peer.server_name}")
        invite = room.member(us.user("alice"), "invite", by=room.creator)
        us.rooms.outliers[invite.event_id] = invite
        us.rooms.outlier_memberships[invite.room_id, us.user("alice")] = invite
        yield World(peer, us, room, invite)


# What of a template is another thing than was asked for; `None` stands for a key that is not there.
BAD: dict[str, dict[str, Any]] = {
    "another type": {"type": "m.room.power_levels"},
    "a type that is no string": {"type": ["m.room.member"]},
    "another sender": {"sender": VICTIM},
    "another user of ours as the sender": {"sender": "@bob:US"},
    "another state key": {"state_key": VICTIM},
    "no state key": {"state_key": None},
    "another sender and state key": {"sender": "@bob:US", "state_key": "@bob:US"},
    "another room": {"room_id": "!other:remote.example"},
    "no room": {"room_id": None},
    "a ban": {"content": {"membership": "ban"}},
    "an invite": {"content": {"membership": "invite"}},
    "no membership": {"content": {}},
    "a membership that is no string": {"content": {"membership": ["join"]}},
    "content that is no object": {"content": "join"},
    "no content": {"content": None},
    "prev events of older room versions": {"prev_events": [["$x", {}]]},
    "too many prev events": {"prev_events": [f"${n:043d}" for n in range(21)]},
    "no prev events": {"prev_events": None},
    "too many auth events": {"auth_events": [f"${n:043d}" for n in range(11)]},
    "auth events that are no strings": {"auth_events": [7]},
    "auth events that are no array": {"auth_events": {"$a": "$b"}},
    "a depth out of range": {"depth": 2**53},
    "a depth beyond 64 bits": {"depth": 2**63},
    "a negative depth": {"depth": -1},
    "a fractional depth": {"depth": 1.5},
    "a depth in letters": {"depth": "5"},
    "keys that no template has": {"hashes_of_mine": {"sha256": "x"}},
}


@pytest.mark.parametrize("membership", MEMBERSHIPS)
@pytest.mark.parametrize("name", list(BAD))
async def test_a_bad_template_is_never_signed(world: World, membership: str, name: str) -> None:
    event = {**world.template(membership), **BAD[name]}
    event = {key: value for key, value in event.items() if value is not None}
    for key in ("sender", "state_key"):
        if key in event:
            event[key] = event[key].replace("US", world.us.server_name)
    await world.refuses(membership, {"room_version": "10", "event": event})


@pytest.mark.parametrize("membership", MEMBERSHIPS)
async def test_a_template_for_another_membership_is_never_signed(world: World, membership: str) -> None:
    for other in sorted({"join", "leave", "knock", "invite", "ban"} - {membership}):
        world.peer.requests.clear()
        world.us.input.inputs.clear()
        world.us.rooms.outlier_memberships[world.room_id, world.user_id] = world.invite
        await world.refuses(membership, {"room_version": "10", "event": world.template(other)})


@pytest.mark.parametrize("membership", MEMBERSHIPS)
@pytest.mark.parametrize("room_version", ["evil", "", 10, None, ["10"], {"id": "10"}])
async def test_an_unknown_room_version_is_never_signed(
    world: World, membership: str, room_version: Any
) -> None:
    # As versions 1 and 2 have it, in case that it is taken for one of those.
    event = {**world.template(membership), "prev_events": [["$p:x", {}]], "auth_events": [["$a:x", {}]]}
    await world.refuses(membership, {"room_version": room_version, "event": event})


@pytest.mark.parametrize("membership", MEMBERSHIPS)
@pytest.mark.parametrize("known", ["9", "1"])
async def test_a_known_room_keeps_its_version(world: World, membership: str, known: str) -> None:
    """Of a room that we know, nothing is signed by the rules of another version."""
    room = Room(known, creator=f"@boss:{world.peer.server_name}")
    if membership == "leave":
        invite = room.member(world.user_id, "invite", by=room.creator)
        world.us.rooms.outliers[invite.event_id] = invite
        world.us.rooms.outlier_memberships[invite.room_id, world.user_id] = invite
    else:
        # Nobody of us is in it now.
        world.us.rooms.of[room.create.room_id] = room
        invite = room.create
    world.invite = invite
    await world.refuses(membership, {"room_version": "10", "event": world.template(membership)})


async def test_an_invite_of_room_version_2_is_refused_at_its_room(world: World) -> None:
    """The older form of `/invite` does not tell whether the room has version 1 or 2."""
    room = Room("1", creator=world.room.creator)
    world.invite = room.member(world.user_id, "invite", by=room.creator)
    world.us.rooms.outliers[world.invite.event_id] = world.invite
    world.us.rooms.outlier_memberships[world.room_id, world.user_id] = world.invite
    event = {**world.template("leave"), "prev_events": [["$p:x", {}]], "auth_events": [["$a:x", {}]]}
    world.peer.answer("make_leave", lambda _: {"room_version": "2", "event": event})
    world.peer.answer("send_leave", lambda _: {})
    await world.ask("leave")
    assert len(world.peer.asked("send_leave")) == 1


@pytest.mark.parametrize("membership", MEMBERSHIPS)
@pytest.mark.parametrize(
    "answer",
    [None, [], "x", 7, {}, {"event": []}, {"event": None, "room_version": "10"}, {"event": "x"}],
    ids=str,
)
async def test_what_is_no_template_at_all(world: World, membership: str, answer: Any) -> None:
    await world.refuses(membership, answer)


@pytest.mark.parametrize(
    ("version", "authoriser"),
    [
        ("10", "@a:victim.example"),
        ("10", "@a:US"),
        ("10", "boss"),
        ("10", 7),
        ("10", {}),
        # Rooms of this version have no restricted joins.
        ("7", "@boss:PEER"),
    ],
)
async def test_an_authoriser_of_another_server_is_never_named(
    world: World, version: str, authoriser: Any
) -> None:
    if isinstance(authoriser, str):
        authoriser = authoriser.replace("US", world.us.server_name).replace("PEER", world.peer.server_name)
    event = world.template("join")
    event["content"]["join_authorised_via_users_server"] = authoriser
    await world.refuses("join", {"room_version": version, "event": event})


@pytest.mark.parametrize("membership", MEMBERSHIPS)
async def test_what_a_good_template_smuggles_in_is_left_out(world: World, membership: str) -> None:
    template = world.template(membership)
    template["content"] |= {"displayname": "I am evil", "third_party_invite": {}, "is_direct": True}
    if membership != "join":
        template["content"]["join_authorised_via_users_server"] = f"@boss:{world.peer.server_name}"
    template["redacts"] = "$something"
    template["unsigned"] = {"age": 1}
    template["hashes"] = {"sha256": "x"}
    template["signatures"] = {world.us.server_name: {world.us.key.key_id: "x"}}
    world.peer.answer(f"make_{membership}", lambda _: {"room_version": "10", "event": template})
    world.peer.answer(f"send_{membership}", lambda _: {})
    if membership == "join":
        with pytest.raises(MatrixError):  # `{}` is no answer to a join
            await world.ask(membership, {"displayname": "Alice"})
    else:
        await world.ask(membership, {"displayname": "Alice"})
    (sent,) = world.peer.asked(f"send_{membership}")
    assert sent.content["content"] == {"membership": membership, "displayname": "Alice"}
    assert set(sent.content) == {
        "auth_events",
        "content",
        "depth",
        "hashes",
        "origin_server_ts",
        "prev_events",
        "room_id",
        "sender",
        "signatures",
        "state_key",
        "type",
    }
    assert sent.content["origin_server_ts"] != template["origin_server_ts"]
    assert sent.content["hashes"] != template["hashes"]
    assert set(sent.content["signatures"]) == {world.us.server_name}
    assert sent.content["signatures"] != template["signatures"]


@pytest.mark.parametrize("membership", ["join", "knock"])
async def test_an_honest_server_is_asked_after_an_evil_one(world: World, ca: TestCa, membership: str) -> None:
    async with EvilPeer(ca) as honest:
        evil = {**world.template(membership), "type": "m.room.power_levels"}
        world.peer.answer(f"make_{membership}", lambda _: {"room_version": "10", "event": evil})
        good = world.template(membership)
        honest.answer(f"make_{membership}", lambda _: {"room_version": "10", "event": good})
        honest.answer(f"send_{membership}", lambda _: {})
        if membership == "join":
            with pytest.raises(MatrixError):
                await world.ask(membership, None, honest.server_name)
        else:
            await world.ask(membership, None, honest.server_name)
        assert world.peer.asked(f"send_{membership}") == []
        assert len(honest.asked(f"send_{membership}")) == 1

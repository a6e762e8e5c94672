"""Join, leave, invite, kick, ban, unban, knock, forget; restricted rooms; aliases and the directory."""

from typing import Any

import pytest

from arbor.log.v1 import output_pb2
from clientapi.storage.tables import outbox_tables
from matrixlib.events import Event
from matrixlib.signing import generate_signing_key, sign_json
from servicekit.errors import MatrixError
from servicekit.log.outbox import Outbox
from tests.support.clientapi_alone import Client, World
from tests.support.fake_roomserver import FakeRoom


async def make(world: World, user: Client, **body: Any) -> FakeRoom:
    answer = await user.ok("POST", "/createRoom", body)
    return world.roomserver.rooms[answer["room_id"]]


def membership(room: FakeRoom, user: Client) -> str | None:
    return room.state[("m.room.member", user.user_id)].membership


async def test_invite_join_leave_kick_ban_unban(world: World) -> None:
    alice, bob = await world.user(), await world.user()
    room = await make(world, alice)
    path = f"/rooms/{room.room_id}"
    target = {"user_id": bob.user_id, "reason": "so"}
    await alice.ok("POST", f"{path}/invite", target)
    assert room.state[("m.room.member", bob.user_id)].content == {"membership": "invite", "reason": "so"}
    await bob.ok("POST", f"{path}/leave")
    assert membership(room, bob) == "leave"
    assert await bob.fails("POST", f"{path}/join") == (403, "M_FORBIDDEN")
    await alice.ok("POST", f"{path}/invite", target)
    await bob.ok("POST", f"{path}/join", {"reason": "hello"})
    count = len(room.order)
    await bob.ok("POST", f"{path}/join")
    assert len(room.order) == count
    assert await bob.fails("POST", f"{path}/kick", {"user_id": alice.user_id}) == (403, "M_FORBIDDEN")
    await alice.ok("POST", f"{path}/kick", target)
    assert membership(room, bob) == "leave"
    assert await alice.fails("POST", f"{path}/kick", target) == (403, "M_FORBIDDEN")
    assert await alice.fails("POST", f"{path}/unban", target) == (403, "M_BAD_STATE")
    await alice.ok("POST", f"{path}/ban", target)
    assert await bob.fails("POST", f"{path}/leave") == (403, "M_FORBIDDEN")
    assert await alice.fails("POST", f"{path}/invite", target) == (403, "M_FORBIDDEN")
    await alice.ok("POST", f"{path}/unban", target)
    assert membership(room, bob) == "leave"
    for endpoint in ("invite", "kick", "ban", "unban"):
        assert await alice.fails("POST", f"{path}/{endpoint}", {}) == (400, "M_MISSING_PARAM")
        assert await alice.fails("POST", f"{path}/{endpoint}", {"user_id": "x"}) == (400, "M_INVALID_PARAM")
        assert await alice.fails("POST", f"{path}/{endpoint}", {"user_id": 7}) == (400, "M_BAD_JSON")
    third = {"medium": "email", "address": "a@b.c", "id_server": "x", "id_access_token": "t"}
    assert await alice.fails("POST", f"{path}/invite", third) == (403, "M_THREEPID_DENIED")
    assert await alice.fails("POST", "/rooms/!" + "A" * 43 + "/leave") == (404, "M_NOT_FOUND")


async def test_a_join_asks_the_roomserver_once(world: World) -> None:
    alice, bob = await world.user(), await world.user()
    room = await make(world, alice, preset="public_chat")
    before = world.roomserver.queries
    await bob.ok("POST", f"/join/{room.room_id}")
    assert membership(room, bob) == "join"
    assert world.roomserver.queries == before + 1


async def test_knock(world: World) -> None:
    alice, bob = await world.user(), await world.user()
    rules = {"type": "m.room.join_rules", "content": {"join_rule": "knock"}}
    room = await make(world, alice, initial_state=[rules], room_alias_name="door")
    await bob.ok("POST", "/knock/%23door:here.example", {"reason": "let me in"})
    assert membership(room, bob) == "knock"
    await alice.ok("POST", f"/rooms/{room.room_id}/invite", {"user_id": bob.user_id})
    await bob.ok("POST", f"/join/{room.room_id}")
    closed = await make(world, alice)
    assert await bob.fails("POST", f"/knock/{closed.room_id}") == (403, "M_FORBIDDEN")


@pytest.mark.parametrize("version", ["8", "10", "12"])
async def test_restricted_rooms(world: World, version: str) -> None:
    alice, bob, carol = [await world.user() for _ in range(3)]
    space = await make(world, alice, preset="public_chat")
    allow = [{"type": "m.room_membership", "room_id": space.room_id}]
    rules = {"type": "m.room.join_rules", "content": {"join_rule": "restricted", "allow": allow}}
    room = await make(world, alice, room_version=version, initial_state=[rules])
    await bob.ok("POST", f"/join/{space.room_id}")
    await bob.ok("POST", f"/join/{room.room_id}")
    content = room.state[("m.room.member", bob.user_id)].content
    assert content["join_authorised_via_users_server"] == alice.user_id
    assert await carol.fails("POST", f"/join/{room.room_id}") == (403, "M_FORBIDDEN")
    await alice.ok("POST", f"/rooms/{room.room_id}/invite", {"user_id": carol.user_id})
    await carol.ok("POST", f"/join/{room.room_id}")


async def test_forgetting_is_told_and_ends_with_a_new_join(world: World) -> None:
    alice, bob = await world.user(), await world.user()
    room = await make(world, alice, preset="public_chat")
    path = f"/rooms/{room.room_id}"
    assert await bob.fails("POST", f"{path}/forget") == (404, "M_NOT_FOUND")
    await bob.ok("POST", f"{path}/join")
    assert await bob.fails("POST", f"{path}/forget") == (400, "M_UNKNOWN")
    await bob.ok("POST", f"{path}/leave")
    for _ in range(2):
        await bob.ok("POST", f"{path}/forget")
    assert await told(world, "room_forgotten") == [(bob.user_id, room.room_id)]
    await bob.ok("POST", f"{path}/join")
    await bob.ok("POST", f"{path}/leave")
    await bob.ok("POST", f"{path}/forget")
    assert len(await told(world, "room_forgotten")) == 2


async def told(world: World, kind: str) -> list[tuple[str, str]]:
    """(user, room) of everything of a kind in the outbox."""
    entries = await world.service._db.read(Outbox(outbox_tables).load)
    messages = [output_pb2.OutputMessage.FromString(entry.data) for entry in entries]
    for entry, message in zip(entries, messages, strict=True):
        assert (message.stamp.partition, message.stamp.output_no) == (entry.partition, entry.output_no)
    return [
        (message.user_id, getattr(entry, kind).room_id)
        for message in messages
        for entry in message.entries
        if entry.WhichOneof("kind") == kind
    ]


async def test_aliases(world: World) -> None:
    alice, bob = await world.user(), await world.user()
    room = await make(world, alice, preset="public_chat")
    path, body = "/directory/room/%23tea:here.example", {"room_id": room.room_id}
    assert await bob.fails("PUT", path, body) == (403, "M_FORBIDDEN")
    await alice.ok("PUT", path, body)
    assert await alice.fails("PUT", path, body) == (409, "M_UNKNOWN")
    assert await alice.fails("PUT", "/directory/room/%23tea:elsewhere", body) == (400, "M_INVALID_PARAM")
    assert await alice.fails("PUT", "/directory/room/tea", body) == (400, "M_INVALID_PARAM")
    assert await alice.fails("PUT", path, {}) == (400, "M_MISSING_PARAM")
    await bob.ok("POST", "/join/%23tea:here.example")
    listed = await bob.ok("GET", f"/rooms/{room.room_id}/aliases")
    assert listed == {"aliases": ["#tea:here.example"]}
    state = f"/rooms/{room.room_id}/state/m.room.canonical_alias"
    await alice.ok("PUT", state, {"alias": "#tea:here.example"})
    assert await bob.fails("DELETE", path) == (403, "M_FORBIDDEN")
    await alice.ok("DELETE", path)
    assert room.state[("m.room.canonical_alias", "")].content == {}
    assert await alice.fails("GET", path) == (404, "M_NOT_FOUND")
    assert await alice.fails("DELETE", path) == (404, "M_NOT_FOUND")
    await bob.ok("POST", f"/rooms/{room.room_id}/leave")
    assert await bob.fails("GET", f"/rooms/{room.room_id}/aliases") == (403, "M_FORBIDDEN")


async def test_the_directory(world: World) -> None:
    alice, bob = await world.user(), await world.user()
    big = await make(world, alice, visibility="public", name="Big Tea", topic="about tea")
    small = await make(world, alice, preset="public_chat", name="Small")
    space = {"type": "m.space"}
    hidden = await make(world, alice, visibility="public", name="Space", creation_content=space)
    await bob.ok("POST", f"/join/{big.room_id}")
    listed = f"/directory/list/room/{small.room_id}"
    assert await bob.ok("GET", listed) == {"visibility": "private"}
    assert await bob.fails("PUT", listed, {"visibility": "public"}) == (403, "M_FORBIDDEN")
    assert await alice.fails("PUT", listed, {"visibility": "x"}) == (400, "M_INVALID_PARAM")
    await alice.ok("PUT", listed, {"visibility": "public"})
    assert await bob.ok("GET", listed) == {"visibility": "public"}
    page = await bob.ok("GET", "/publicRooms", limit="1")
    assert page["total_room_count_estimate"] == 3
    assert page["chunk"] == [
        {
            "room_id": big.room_id,
            "num_joined_members": 2,
            "world_readable": False,
            "guest_can_join": False,
            "join_rule": "public",
            "name": "Big Tea",
            "topic": "about tea",
        }
    ]
    rest = await bob.ok("GET", "/publicRooms", since=page["next_batch"])
    assert {entry["room_id"] for entry in rest["chunk"]} == {small.room_id, hidden.room_id}
    found = await bob.ok("POST", "/publicRooms", {"filter": {"generic_search_term": "TEA"}})
    assert [entry["room_id"] for entry in found["chunk"]] == [big.room_id]
    spaces = await bob.ok("POST", "/publicRooms", {"filter": {"room_types": ["m.space"]}})
    assert [entry["room_id"] for entry in spaces["chunk"]] == [hidden.room_id]
    plain = await bob.ok("POST", "/publicRooms", {"filter": {"room_types": [None]}})
    assert len(plain["chunk"]) == 2
    assert await bob.fails("GET", "/publicRooms", since="x") == (400, "M_INVALID_PARAM")
    assert await world.client().fails("GET", "/publicRooms") == (401, "M_MISSING_TOKEN")


async def test_who_takes_no_invites_gets_none(world: World) -> None:
    alice, bob = await world.user(), await world.user()
    room_id = (await alice.ok("POST", "/createRoom", {}))["room_id"]
    permission = f"/user/{bob.user_id}/account_data/m.invite_permission_config"
    await bob.ok("PUT", permission, {"default_action": "block"})
    blocked = (403, "M_INVITE_BLOCKED")
    by_state = f"/rooms/{room_id}/state/m.room.member/{bob.user_id}"
    rooms = set(world.roomserver.rooms)
    assert await alice.fails("POST", f"/rooms/{room_id}/invite", {"user_id": bob.user_id}) == blocked
    assert await alice.fails("PUT", by_state, {"membership": "invite"}) == blocked
    assert await alice.fails("POST", "/createRoom", {"invite": [bob.user_id]}) == blocked
    assert set(world.roomserver.rooms) == rooms
    # What is not known here means invites as usual.
    for content in ({"default_action": "ask"}, {"default_action": ["block"]}, {}):
        await bob.ok("PUT", permission, content)
        await alice.ok("POST", f"/rooms/{room_id}/invite", {"user_id": bob.user_id})


async def test_memberships_set_as_state_take_the_same_ways(world: World) -> None:
    alice, bob = await world.user(), await world.user()
    allowing = (await alice.ok("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
    restricted = await alice.ok(
        "POST",
        "/createRoom",
        {
            "initial_state": [
                {
                    "type": "m.room.join_rules",
                    "content": {
                        "join_rule": "restricted",
                        "allow": [{"type": "m.room_membership", "room_id": allowing}],
                    },
                }
            ]
        },
    )
    room_id = restricted["room_id"]
    path = f"/rooms/{room_id}/state/m.room.member/{bob.user_id}"

    def member() -> Event:
        return world.roomserver.rooms[room_id].state["m.room.member", bob.user_id]

    assert await bob.fails("PUT", path, {"membership": "join"}) == (403, "M_FORBIDDEN")
    await bob.ok("POST", f"/join/{allowing}")
    await bob.ok("PUT", path, {"membership": "join", "org.example.more": 1})
    assert member().content["join_authorised_via_users_server"] == alice.user_id
    assert member().content["org.example.more"] == 1
    # A name for this room alone.
    await bob.ok("PUT", path, {"membership": "join", "displayname": "Bob of this room"})
    assert member().content["displayname"] == "Bob of this room"
    await alice.ok("PUT", path, {"membership": "ban", "reason": "r"})
    assert member().membership == "ban"
    await alice.ok("PUT", path, {"membership": "leave"})
    await alice.ok("PUT", path, {"membership": "invite"})
    await bob.ok("PUT", path, {"membership": "leave", "reason": "no"})
    assert (member().membership, member().content["reason"]) == ("leave", "no")
    assert await bob.fails("PUT", path, {"membership": "knock"}) == (403, "M_FORBIDDEN")


async def test_canonical_aliases_may_be_another_servers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await world.user()
    room = await make(world, alice, room_alias_name="here")

    async def resolve(alias: str) -> tuple[str, list[str]]:
        if alias == "#away:there.example":
            return room.room_id, ["there.example"]
        if alias == "#other:there.example":
            return "!other:there.example", ["there.example"]
        raise MatrixError("M_UNKNOWN", 502, "The other server cannot be reached")

    monkeypatch.setattr(world.service._rooms.remote, "resolve_alias", resolve)
    path = f"/rooms/{room.room_id}/state/m.room.canonical_alias"
    bad = (400, "M_BAD_ALIAS")
    for alias in ("#other:there.example", "#off:there.example", "#none:here.example"):
        assert await alice.fails("PUT", path, {"alias": alias}) == bad
        assert await alice.fails("PUT", path, {"alias": "#here:here.example", "alt_aliases": [alias]}) == bad
    for content in (
        {"alias": "no alias"},
        {"alias": 7},
        {"alt_aliases": "#here:here.example"},
        {"alt_aliases": [7]},
        {"alt_aliases": [f"#{number}:here.example" for number in range(1000)]},
    ):
        status, errcode = await alice.fails("PUT", path, content)
        assert (status, errcode) in {(400, "M_INVALID_PARAM"), (400, "M_BAD_JSON")}
    await alice.ok("PUT", path, {"alias": "#here:here.example", "alt_aliases": ["#away:there.example"]})
    # What stands there already is not asked for again.
    await alice.ok("PUT", path, {"alt_aliases": ["#away:there.example"]})
    await alice.ok("PUT", path, {})


async def test_a_third_party_invite_is_redeemed(world: World) -> None:
    """An address was invited; an identity server has signed whose it is."""
    alice, bob, carol = await world.user(), await world.user(), await world.user()
    room = await make(world, alice)
    identity = generate_signing_key("1")
    issued = {
        "display_name": "b...@e...",
        "key_validity_url": "https://id.example/valid",
        "public_key": identity.verify_key.base64,
        "public_keys": [{"public_key": identity.verify_key.base64}],
    }
    await alice.ok("PUT", f"/rooms/{room.room_id}/state/m.room.third_party_invite/token", issued)

    def signed(user: Client, token: str = "token") -> dict[str, Any]:
        value = {"sender": alice.user_id, "mxid": user.user_id, "token": token}
        return sign_json(value, "id.example", identity)

    path = f"/join/{room.room_id}"
    refused = (403, "M_FORBIDDEN")
    forged = {**signed(bob), "mxid": carol.user_id}
    assert await bob.fails("POST", path, {}) == refused
    assert await bob.fails("POST", path, {"third_party_signed": signed(carol)}) == refused
    assert await bob.fails("POST", path, {"third_party_signed": signed(bob, "other")}) == refused
    assert await carol.fails("POST", path, {"third_party_signed": forged}) == refused
    assert await bob.fails("POST", path, {"third_party_signed": {"mxid": bob.user_id}}) == (
        400,
        "M_MISSING_PARAM",
    )
    assert await bob.fails("POST", path, {"third_party_signed": 7}) == (400, "M_BAD_JSON")
    await bob.ok("POST", path, {"third_party_signed": signed(bob)})
    assert membership(room, bob) == "join"
    events = [
        room.events[event_id] for event_id in room.order if room.events[event_id].state_key == bob.user_id
    ]
    assert [(event.sender, event.membership) for event in events] == [
        (alice.user_id, "invite"),
        (bob.user_id, "join"),
    ]
    assert events[0].content["third_party_invite"] == {
        "display_name": "b...@e...",
        "signed": signed(bob),
    }

"""createRoom's options, memberships, state and redactions, and who may see what, over a running system."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from tests.support.following import Follower
from tests.support.homeserver import Homeserver
from tests.support.matrix_client import ClientError, MatrixClient, segment

Person = Callable[[str], Awaitable[MatrixClient]]

WITH_LEFT = '{"room":{"include_leave":true}}'


@pytest.fixture
def person(homeserver: Homeserver, session: aiohttp.ClientSession, unique: Callable[[str], str]) -> Person:
    """`await person("alice")`: a new user of that name or so."""

    async def make(name: str) -> MatrixClient:
        return await homeserver.register(session, unique(name))

    return make


async def refusal(request: Awaitable[Any]) -> tuple[int, str | None]:
    """Status and errcode of a request that must be refused."""
    with pytest.raises(ClientError) as caught:
        await request
    return caught.value.status, caught.value.errcode


def contents(state: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """The state's contents by type and key."""
    return {(event["type"], event["state_key"]): event["content"] for event in state}


def member(client: MatrixClient) -> tuple[str, str]:
    return "m.room.member", client.user_id


# -- createRoom --


@pytest.mark.parametrize(
    ("preset", "join_rule", "guest_access"),
    [
        ("private_chat", "invite", "can_join"),
        ("trusted_private_chat", "invite", "can_join"),
        ("public_chat", "public", "forbidden"),
    ],
)
@pytest.mark.parametrize("version", ["1", "6", "10", "11", "12"])
async def test_presets(preset: str, join_rule: str, guest_access: str, version: str, person: Person) -> None:
    alice, bob = await person("alice"), await person("bob")
    room_id = await alice.create_room(preset=preset, invite=[bob.user_id], room_version=version)
    assert (":" in room_id) is (version != "12")
    state = contents(await alice.state(room_id))
    assert state["m.room.join_rules", ""] == {"join_rule": join_rule}
    assert state["m.room.history_visibility", ""] == {"history_visibility": "shared"}
    assert state["m.room.guest_access", ""] == {"guest_access": guest_access}
    create = state["m.room.create", ""]
    assert create["room_version"] == version
    assert ("creator" in create) is (version in ("1", "6", "10"))
    assert state[member(alice)]["membership"] == "join"
    assert state[member(bob)]["membership"] == "invite"
    users = state["m.room.power_levels", ""].get("users", {})
    trusted = preset == "trusted_private_chat"
    if version == "12":
        # Creators stand above all numbers and are in none.
        assert alice.user_id not in users
        assert create.get("additional_creators", []) == ([bob.user_id] if trusted else [])
    else:
        assert users[alice.user_id] == 100
        assert users.get(bob.user_id) == (100 if trusted else None)
    # They can talk in it, and redact.
    await bob.join(room_id)
    event_id = await bob.send(room_id, "hello")
    await alice.redact(room_id, event_id)
    found = await alice.get(f"/rooms/{segment(room_id)}/event/{segment(event_id)}")
    assert found["content"] == {}


@pytest.mark.parametrize("version", [str(number) for number in range(1, 13)])
async def test_every_room_version_that_is_offered(version: str, person: Person) -> None:
    alice = await person("alice")
    offered = (await alice.get("/capabilities"))["capabilities"]["m.room_versions"]["available"]
    if version not in offered:
        assert await refusal(alice.create_room(room_version=version)) == (400, "M_UNSUPPORTED_ROOM_VERSION")
        return
    room_id = await alice.create_room(room_version=version)
    event_id = await alice.send(room_id, "hello")
    assert (await alice.messages(room_id, limit=1))["chunk"][0]["event_id"] == event_id


async def test_all_other_options(person: Person, unique: Callable[[str], str]) -> None:
    alice, bob = await person("alice"), await person("bob")
    alias = unique("alias")
    room_id = await alice.create_room(
        name="A name",
        topic="A topic",
        room_alias_name=alias,
        visibility="public",
        invite=[bob.user_id],
        is_direct=True,
        creation_content={"m.federate": False, "type": "m.space", "creator": "@evil:arbor.test"},
        power_level_content_override={"events_default": 7, "users_default": 3},
        initial_state=[
            {"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}},
            {"type": "org.example", "state_key": "k", "content": {"a": 1}},
            {"type": "m.room.name", "content": {"name": "not this one"}},
        ],
    )
    state = contents(await alice.state(room_id))
    server = alice.user_id.split(":", 1)[1]
    assert state["m.room.name", ""] == {"name": "A name"}
    assert state["m.room.topic", ""]["topic"] == "A topic"
    assert state["m.room.canonical_alias", ""] == {"alias": f"#{alias}:{server}"}
    assert state["m.room.create", ""]["m.federate"] is False
    assert state["m.room.create", ""]["type"] == "m.space"
    assert state["m.room.create", ""].get("creator") != "@evil:arbor.test"
    assert state["m.room.history_visibility", ""] == {"history_visibility": "joined"}
    assert state["org.example", "k"] == {"a": 1}
    levels = state["m.room.power_levels", ""]
    assert (levels["events_default"], levels["users_default"]) == (7, 3)
    assert levels["ban"] == 50
    # `visibility: public` means the public preset where none is named, and the directory.
    assert state["m.room.join_rules", ""] == {"join_rule": "public"}
    found = await alice.post("/publicRooms", {"filter": {"generic_search_term": "A name"}, "limit": 1000})
    assert room_id in {room["room_id"] for room in found["chunk"]}
    assert (await alice.get(f"/directory/room/{segment(f'#{alias}:{server}')}"))["room_id"] == room_id
    invited = (await bob.sync())["rooms"]["invite"][room_id]["invite_state"]["events"]
    own = next(event for event in invited if event.get("state_key") == bob.user_id)
    assert own["content"]["is_direct"] is True
    assert {"m.room.create", "m.room.name"} <= {event["type"] for event in invited}


@pytest.mark.parametrize(
    ("options", "status", "errcode"),
    [
        ({"initial_state": [{"type": "m.room.create", "content": {}}]}, 400, "M_INVALID_ROOM_STATE"),
        (
            {"initial_state": [{"type": "m.room.member", "state_key": "@x:arbor.test", "content": {}}]},
            400,
            None,
        ),
        (
            {
                "initial_state": [
                    {"type": "org.example", "content": {}},
                    {
                        "type": "m.room.member",
                        "state_key": "@somebody:arbor.test",
                        "content": {"membership": "join"},
                    },
                ]
            },
            400,
            "M_INVALID_ROOM_STATE",
        ),
        (
            {"initial_state": [{"type": "m.room.topic", "content": {"topic": "x" * 70_000}}]},
            413,
            "M_TOO_LARGE",
        ),
        ({"initial_state": [{"type": "t" * 300, "content": {}}]}, None, None),
        ({"initial_state": [{"type": "org.example", "state_key": "\0", "content": {}}]}, 400, "M_BAD_JSON"),
        ({"power_level_content_override": {"users": {"not a user": 1}}}, 400, None),
        ({"power_level_content_override": {"ban": "fifty"}}, 400, None),
        ({"room_version": "13-nothing"}, 400, "M_UNSUPPORTED_ROOM_VERSION"),
        ({"preset": "secret_chat"}, 400, "M_INVALID_PARAM"),
        ({"visibility": "hidden"}, 400, "M_INVALID_PARAM"),
        ({"name": "x" * 70_000}, 413, "M_TOO_LARGE"),
        ({"invite": ["nobody"]}, 400, "M_INVALID_PARAM"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_one_bad_option_leaves_no_trace(
    options: dict[str, Any],
    status: int | None,
    errcode: str | None,
    person: Person,
    unique: Callable[[str], str],
) -> None:
    alice, bob = await person("alice"), await person("bob")
    alias = unique("alias")
    since = (await alice.sync())["next_batch"]
    given = {"invite": [bob.user_id], "preset": "public_chat", "visibility": "public", **options}
    got = await refusal(alice.create_room(room_alias_name=alias, **given))
    assert got[0] == status if status is not None else 400 <= got[0] < 500
    assert got[1] == errcode if errcode is not None else got[1] is not None
    assert (await alice.get("/joined_rooms"))["joined_rooms"] == []
    assert "rooms" not in await alice.sync(since)
    assert "rooms" not in await bob.sync()
    server = alice.user_id.split(":", 1)[1]
    path = f"/directory/room/{segment(f'#{alias}:{server}')}"
    assert await refusal(alice.get(path)) == (404, "M_NOT_FOUND")
    # The name is free.
    room_id = await alice.create_room(room_alias_name=alias)
    assert (await alice.get(path))["room_id"] == room_id
    assert await refusal(bob.create_room(room_alias_name=alias)) == (400, "M_ROOM_IN_USE")
    assert (await bob.get("/joined_rooms"))["joined_rooms"] == []


# -- memberships --


async def change(actor: MatrixClient, room_id: str, action: str, target: MatrixClient | None = None) -> Any:
    body = {} if target is None else {"user_id": target.user_id}
    return await actor.post(f"/rooms/{segment(room_id)}/{action}", body)


async def test_a_public_room(person: Person) -> None:
    alice, bob, carol = [await person(name) for name in ("alice", "bob", "carol")]
    room_id = await alice.create_room(preset="public_chat")
    await bob.join(room_id)
    await bob.join(room_id)
    history = await bob.all_messages(room_id)
    assert [event.get("state_key") for event in history].count(bob.user_id) == 1, "a second join is none"
    assert await refusal(change(bob, room_id, "kick", alice)) == (403, "M_FORBIDDEN")
    assert await refusal(change(bob, room_id, "ban", carol)) == (403, "M_FORBIDDEN")
    assert await refusal(change(carol, room_id, "invite", carol)) == (403, "M_FORBIDDEN")
    assert await refusal(change(carol, room_id, "leave")) == (403, "M_FORBIDDEN")
    assert await refusal(change(alice, room_id, "unban", bob)) == (403, "M_BAD_STATE")
    assert await refusal(change(alice, room_id, "kick", carol)) == (403, "M_FORBIDDEN")
    assert await refusal(change(alice, room_id, "invite", bob)) == (403, "M_FORBIDDEN")
    assert await refusal(change(bob, room_id, "forget")) == (400, "M_UNKNOWN")
    await change(alice, room_id, "kick", bob)
    assert await refusal(bob.send(room_id, "gone")) == (403, "M_FORBIDDEN")
    await bob.join(room_id)
    await change(alice, room_id, "ban", bob)
    assert await refusal(bob.join(room_id)) == (403, "M_FORBIDDEN")
    assert await refusal(change(alice, room_id, "invite", bob)) == (403, "M_FORBIDDEN")
    await change(alice, room_id, "unban", bob)
    await bob.join(room_id)
    await bob.leave(room_id)
    await bob.leave(room_id)
    await change(bob, room_id, "forget")
    # Readers hear of it by the log.
    async with asyncio.timeout(10):
        while room_id in (await bob.sync(filter=WITH_LEFT)).get("rooms", {}).get("leave", {}):
            await asyncio.sleep(0.02)
    assert await refusal(bob.messages(room_id)) == (403, "M_FORBIDDEN")
    # Back again, it is remembered again.
    await bob.join(room_id)
    assert room_id in (await bob.get("/joined_rooms"))["joined_rooms"]


async def test_an_invite_room(person: Person) -> None:
    alice, bob, carol = [await person(name) for name in ("alice", "bob", "carol")]
    room_id = await alice.create_room(preset="private_chat", power_level_content_override={"invite": 50})
    assert await refusal(bob.join(room_id)) == (403, "M_FORBIDDEN")
    assert await refusal(bob.post(f"/knock/{segment(room_id)}")) == (403, "M_FORBIDDEN")
    await alice.invite(room_id, bob.user_id)
    follower = Follower(bob)
    await follower.follow_until(lambda own: room_id in own.invited)
    await bob.leave(room_id)
    assert await refusal(bob.join(room_id)) == (403, "M_FORBIDDEN")
    await alice.invite(room_id, bob.user_id)
    await bob.join(room_id)
    assert await refusal(bob.post(f"/rooms/{segment(room_id)}/invite", {"user_id": carol.user_id})) == (
        403,
        "M_FORBIDDEN",
    )
    # An invite that is taken back is none.
    await alice.invite(room_id, carol.user_id)
    await change(alice, room_id, "kick", carol)
    assert await refusal(carol.join(room_id)) == (403, "M_FORBIDDEN")
    levels = await alice.get(f"/rooms/{segment(room_id)}/state/m.room.power_levels/")
    assert await refusal(bob.set_state(room_id, "m.room.power_levels", levels)) == (403, "M_FORBIDDEN")
    assert await refusal(bob.set_state(room_id, "m.room.name", {"name": "mine"})) == (403, "M_FORBIDDEN")


async def test_a_restricted_room(person: Person) -> None:
    alice, bob, carol = [await person(name) for name in ("alice", "bob", "carol")]
    club = await alice.create_room(preset="public_chat")
    rule = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": club}]}
    room_id = await alice.create_room(initial_state=[{"type": "m.room.join_rules", "content": rule}])
    assert await refusal(bob.join(room_id)) == (403, "M_FORBIDDEN")
    await bob.join(club)
    await bob.join(room_id)
    state = contents(await bob.state(room_id))
    assert state[member(bob)]["join_authorised_via_users_server"] == alice.user_id
    await carol.join(club)
    await carol.leave(club)
    assert await refusal(carol.join(room_id)) == (403, "M_FORBIDDEN")
    # An invite opens it as ever.
    await alice.invite(room_id, carol.user_id)
    await carol.join(room_id)
    # Who says by himself that somebody let him in is not let in.
    claim = {"membership": "join", "join_authorised_via_users_server": alice.user_id}
    dave = await person("dave")
    path = f"/rooms/{segment(room_id)}/state/m.room.member/{segment(dave.user_id)}"
    assert await refusal(dave.put(path, claim)) in ((400, "M_BAD_JSON"), (403, "M_FORBIDDEN"))


async def test_a_room_to_knock_at(person: Person) -> None:
    alice, bob, carol = [await person(name) for name in ("alice", "bob", "carol")]
    room_id = await alice.create_room(
        name="Knock", initial_state=[{"type": "m.room.join_rules", "content": {"join_rule": "knock"}}]
    )
    assert await refusal(bob.join(room_id)) == (403, "M_FORBIDDEN")
    answer = await bob.post(f"/knock/{segment(room_id)}", {"reason": "let me in"})
    assert answer == {"room_id": room_id}
    knocked = (await bob.sync())["rooms"]["knock"][room_id]["knock_state"]["events"]
    assert {"m.room.create", "m.room.name"} <= {event["type"] for event in knocked}
    knock = Follower(alice)
    await knock.follow_until(lambda own: bob.user_id in {e.get("state_key") for e in own.events.values()})
    assert contents(await alice.state(room_id))[member(bob)]["reason"] == "let me in"
    assert await refusal(bob.messages(room_id)) == (403, "M_FORBIDDEN")
    await alice.invite(room_id, bob.user_id)
    await bob.join(room_id)
    await carol.post(f"/knock/{segment(room_id)}")
    await carol.leave(room_id)
    await change(alice, room_id, "ban", carol)
    assert await refusal(carol.post(f"/knock/{segment(room_id)}")) == (403, "M_FORBIDDEN")


# -- redactions --


async def test_redacted_content_is_gone_everywhere(person: Person) -> None:
    alice, bob = await person("alice"), await person("bob")
    room_id = await alice.create_room(preset="public_chat")
    await bob.join(room_id)
    follower = Follower(bob)
    secret = "the secret words"
    message = await alice.send(room_id, secret)
    state_event = await alice.set_state(room_id, "m.room.topic", {"topic": secret})
    await follower.catch_up(message, state_event)
    redaction = await alice.redact(room_id, message, "slipped out")
    await alice.redact(room_id, state_event)
    last = await alice.send(room_id, "after")
    await follower.catch_up(redaction, last)
    room = f"/rooms/{segment(room_id)}"
    for client in (alice, bob):
        seen = {
            "initial sync": await client.sync(),
            "messages": await client.messages(room_id),
            "event": await client.get(f"{room}/event/{segment(message)}"),
            "state event": await client.get(f"{room}/event/{segment(state_event)}"),
            "context": await client.get(f"{room}/context/{segment(message)}", limit="20"),
            "state": await client.state(room_id),
            "one entry": await client.get(f"{room}/state/m.room.topic/"),
        }
        for where, answer in seen.items():
            assert secret not in str(answer), where
        because = seen["event"]["unsigned"]["redacted_because"]
        assert because["event_id"] == redaction
        assert because["content"]["reason"] == "slipped out"
        assert seen["event"]["content"] == {}
    # Only who may redacts, and only what is there.
    target = await alice.send(room_id, "alice's")
    assert await refusal(bob.redact(room_id, target)) == (403, "M_FORBIDDEN")
    own = await bob.send(room_id, "bob's")
    await bob.redact(room_id, own)
    found = await alice.get(f"{room}/event/{segment(target)}")
    assert found["content"]["body"] == "alice's"


async def test_state_replaces_and_previous_content_is_told(person: Person) -> None:
    alice = await person("alice")
    room_id = await alice.create_room()
    follower = Follower(alice)
    await follower.follow()
    first = await alice.set_state(room_id, "m.room.name", {"name": "one"})
    second = await alice.set_state(room_id, "m.room.name", {"name": "two"})
    await follower.catch_up(first, second)
    assert follower.events[second]["unsigned"]["prev_content"] == {"name": "one"}
    assert follower.events[second]["unsigned"]["replaces_state"] == first
    room = f"/rooms/{segment(room_id)}"
    assert await alice.get(f"{room}/state/m.room.name") == {"name": "two"}
    assert (await alice.get(f"{room}/state/m.room.name/", format="event"))["event_id"] == second
    assert await refusal(alice.get(f"{room}/state/m.room.nothing")) == (404, "M_NOT_FOUND")
    assert await refusal(alice.get(f"{room}/event/$nothing")) == (404, "M_NOT_FOUND")


# -- history --


@pytest.mark.parametrize(
    ("visibility", "before_invite", "before_join"),
    [
        ("world_readable", True, True),
        ("shared", True, True),
        ("invited", False, True),
        ("joined", False, False),
    ],
)
async def test_who_comes_late(
    visibility: str, before_invite: bool, before_join: bool, person: Person
) -> None:
    alice, bob, carol = [await person(name) for name in ("alice", "bob", "carol")]
    content = {"history_visibility": visibility}
    room_id = await alice.create_room(
        initial_state=[{"type": "m.room.history_visibility", "content": content}]
    )
    early = await alice.send(room_id, "before the invite")
    await alice.invite(room_id, bob.user_id)
    between = await alice.send(room_id, "between")
    await bob.join(room_id)
    inside = await alice.send(room_id, "inside")
    # Others than the writer are told by the log: that it has come here, bob's /sync says.
    await Follower(bob).catch_up(inside)
    assert await refusal_or_ids(carol, room_id) == (
        {early, between, inside} if visibility == "world_readable" else "M_FORBIDDEN"
    )
    visible = {early: before_invite, between: before_join, inside: True}
    wanted = {event_id for event_id, seen in visible.items() if seen}
    assert await refusal_or_ids(bob, room_id) == wanted
    room = f"/rooms/{segment(room_id)}"
    for event_id, seen in visible.items():
        path = f"{room}/event/{segment(event_id)}"
        if seen:
            assert (await bob.get(path))["event_id"] == event_id
        else:
            assert await refusal(bob.get(path)) == (404, "M_NOT_FOUND")
            assert (await refusal(bob.get(f"{room}/context/{segment(event_id)}")))[0] in (403, 404)
    # Who has left sees what was there, and nothing of what comes then.
    await bob.leave(room_id)
    late = await alice.send(room_id, "after bob left")
    named = await alice.set_state(room_id, "m.room.name", {"name": "after bob left"})
    await Follower(alice).catch_up(late, named)
    after = visibility == "world_readable"
    assert await refusal_or_ids(bob, room_id) == wanted | ({late} if after else set())
    if not after:
        assert await refusal(bob.get(f"{room}/event/{segment(late)}")) == (404, "M_NOT_FOUND")
        assert "after bob left" not in str(await bob.state(room_id))
    assert "after bob left" not in str((await bob.sync(filter=WITH_LEFT))["rooms"]["leave"][room_id])


async def refusal_or_ids(client: MatrixClient, room_id: str) -> set[str] | str | None:
    """The messages that somebody is shown, or the errcode."""
    try:
        events = await client.all_messages(room_id)
    except ClientError as error:
        return error.errcode
    return {event["event_id"] for event in events if event["type"] == "m.room.message"}

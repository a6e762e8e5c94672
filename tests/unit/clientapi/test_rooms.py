"""createRoom with its presets and options, state, redactions, upgrades."""

from typing import Any
from urllib.parse import quote

import pytest

from clientapi.rooms import upgrade
from clientapi.rooms.building import EventBuilder
from clientapi.rooms.requests import Draft
from matrixlib.room_versions import ROOM_VERSIONS
from matrixlib.signing import generate_signing_key
from tests.support.clientapi_alone import Client, World
from tests.support.fake_roomserver import FakeRoom


async def make(world: World, user: Client, **body: Any) -> FakeRoom:
    answer = await user.ok("POST", "/createRoom", body)
    return world.roomserver.rooms[answer["room_id"]]


def content(room: FakeRoom, type_: str, state_key: str = "") -> Any:
    return room.state[(type_, state_key)].content


@pytest.mark.parametrize("version", list(ROOM_VERSIONS))
async def test_a_room_of_every_version(world: World, version: str) -> None:
    alice, bob = await world.user(), await world.user()
    room = await make(world, alice, room_version=version, preset="public_chat", topic="t")
    assert content(room, "m.room.create")["room_version"] == version
    assert ("creator" in content(room, "m.room.create")) == (int(version) <= 10)
    await bob.ok("POST", f"/rooms/{room.room_id}/join")
    sent = await bob.ok("PUT", f"/rooms/{room.room_id}/send/m.room.message/t", {"body": "x"})
    target = quote(sent["event_id"], safe="$:")  # ids of version 3 hold slashes
    redaction = await alice.ok("PUT", f"/rooms/{room.room_id}/redact/{target}/t", {})
    assert room.events[redaction["event_id"]].redacts == sent["event_id"]
    assert world.roomserver.stale == 0


async def test_presets(world: World) -> None:
    alice, bob = await world.user(), await world.user()
    private = await make(world, alice)
    assert content(private, "m.room.join_rules") == {"join_rule": "invite"}
    assert content(private, "m.room.history_visibility") == {"history_visibility": "shared"}
    assert content(private, "m.room.guest_access") == {"guest_access": "can_join"}
    public = await make(world, alice, visibility="public")
    assert content(public, "m.room.join_rules") == {"join_rule": "public"}
    assert content(public, "m.room.guest_access") == {"guest_access": "forbidden"}
    trusted = await make(world, alice, preset="trusted_private_chat", invite=[bob.user_id], is_direct=True)
    assert content(trusted, "m.room.create")["additional_creators"] == [bob.user_id]
    assert content(trusted, "m.room.member", bob.user_id)["is_direct"] is True
    older = await make(world, alice, preset="trusted_private_chat", invite=[bob.user_id], room_version="11")
    assert content(older, "m.room.power_levels")["users"] == {alice.user_id: 100, bob.user_id: 100}


async def test_version_12_rooms(world: World) -> None:
    alice = await world.user()
    room = await make(world, alice)
    create = room.state[("m.room.create", "")]
    assert room.room_id == "!" + create.event_id[1:]
    levels = content(room, "m.room.power_levels")
    assert levels["users"] == {}
    assert levels["events"]["m.room.tombstone"] == 150
    # Creators may not be listed.
    refused = {"power_level_content_override": {"users": {alice.user_id: 100}}}
    assert await alice.fails("POST", "/createRoom", refused) == (400, "M_INVALID_ROOM_STATE")


def test_rooms_made_alike_in_one_moment_are_different_rooms() -> None:
    builder = EventBuilder({"x.example": generate_signing_key("a")}, lambda: 1_700_000_000_000)
    draft = Draft("m.room.create", {"room_version": "12"}, "")
    made = {
        builder.build(ROOM_VERSIONS["12"], None, "@a:x.example", draft, [], [], 0).room_id for _ in range(3)
    }
    assert len(made) == 3


async def test_all_options_in_the_specifications_order(world: World) -> None:
    alice, bob = await world.user(), await world.user()
    await alice.ok("PUT", f"/profile/{alice.user_id}/displayname", {"displayname": "Alice"})
    room = await make(
        world,
        alice,
        name="Name",
        topic="Topic",
        room_alias_name="tea",
        invite=[bob.user_id],
        creation_content={"type": "m.space", "creator": "@evil:x", "room_version": "1"},
        initial_state=[
            {"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}},
            {
                "type": "m.room.history_visibility",
                "state_key": "",
                "content": {"history_visibility": "joined"},
            },
            {"type": "m.room.name", "content": {"name": "not this"}},
        ],
        power_level_content_override={"events_default": 10},
    )
    assert [room.events[event_id].type for event_id in room.order] == [
        "m.room.create",
        "m.room.member",
        "m.room.power_levels",
        "m.room.canonical_alias",
        "m.room.join_rules",
        "m.room.guest_access",
        "m.room.encryption",
        "m.room.history_visibility",
        "m.room.name",
        "m.room.topic",
        "m.room.member",
    ]
    assert content(room, "m.room.create") == {"type": "m.space", "room_version": "12"}
    assert content(room, "m.room.name") == {"name": "Name"}
    assert content(room, "m.room.topic") == {"topic": "Topic", "m.topic": {"m.text": [{"body": "Topic"}]}}
    assert content(room, "m.room.history_visibility") == {"history_visibility": "joined"}
    assert content(room, "m.room.power_levels")["events_default"] == 10
    assert content(room, "m.room.member", alice.user_id)["displayname"] == "Alice"
    resolved = await world.client().ok("GET", "/directory/room/%23tea:here.example")
    assert resolved == {"room_id": room.room_id, "servers": ["here.example"]}


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ({"type": "m.room.member", "state_key": "@x:here.example", "content": {"membership": "join"}}, None),
        ({"type": "m.room.create", "content": {}}, None),
        ({"type": "m.room.power_levels", "content": {"users": {"@a:b": "100"}}}, None),
        ({"type": "t", "state_key": "@other:here.example", "content": {}}, None),
        ({"type": "t", "content": {"pi": 3.14}}, (400, "M_BAD_JSON")),
        ({"type": "t", "content": {"big": 2**60}}, (400, "M_BAD_JSON")),
        ({"type": "t", "content": {"long": "x" * 70_000}}, (413, "M_TOO_LARGE")),
        ({"type": "t" * 300, "content": {}}, (413, "M_TOO_LARGE")),
        ({"type": "t"}, (400, "M_MISSING_PARAM")),
        ({"content": {}}, (400, "M_MISSING_PARAM")),
        ({"type": "t", "content": []}, (400, "M_BAD_JSON")),
        ("x", (400, "M_BAD_JSON")),
    ],
)
async def test_one_bad_initial_state_event_leaves_no_trace_of_the_room(
    world: World, bad: Any, error: tuple[int, str] | None
) -> None:
    alice = await world.user()
    body = {
        "room_alias_name": "gone",
        "visibility": "public",
        "initial_state": [{"type": "fine", "content": {}}, bad],
    }
    assert await alice.fails("POST", "/createRoom", body) == (error or (400, "M_INVALID_ROOM_STATE"))
    assert not world.roomserver.rooms
    assert not world.roomserver.batches
    assert await alice.fails("GET", "/directory/room/%23gone:here.example") == (404, "M_NOT_FOUND")
    assert (await alice.ok("GET", "/publicRooms"))["chunk"] == []
    del body["initial_state"][1]  # type: ignore[attr-defined]
    await alice.ok("POST", "/createRoom", body)


ADDRESS = {
    "id_server": "id.example",
    "id_access_token": "token",
    "medium": "email",
    "address": "somebody@example.org",
}


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"room_version": "99"}, (400, "M_UNSUPPORTED_ROOM_VERSION")),
        ({"room_version": 12}, (400, "M_BAD_JSON")),
        ({"preset": "cosy"}, (400, "M_INVALID_PARAM")),
        ({"visibility": "hidden"}, (400, "M_INVALID_PARAM")),
        ({"invite": ["bob"]}, (400, "M_INVALID_PARAM")),
        ({"invite": "@bob:here.example"}, (400, "M_BAD_JSON")),
        ({"invite": ["@bob:elsewhere.example"]}, (403, "M_FORBIDDEN")),
        ({"invite_3pid": [{"medium": "email"}]}, (400, "M_MISSING_PARAM")),
        ({"invite_3pid": [ADDRESS]}, (403, "M_THREEPID_DENIED")),
        ({"invite_3pid": [ADDRESS] * 11}, (400, "M_INVALID_PARAM")),
        ({"invite_3pid": ["a@b.example"]}, (400, "M_BAD_JSON")),
        ({"room_alias_name": "with space"}, (400, "M_INVALID_PARAM")),
        ({"room_alias_name": "#a:b"}, (400, "M_INVALID_PARAM")),
        ({"name": 7}, (400, "M_BAD_JSON")),
        ({"creation_content": []}, (400, "M_BAD_JSON")),
        ({"creation_content": {"additional_creators": ["x"]}}, (400, "M_INVALID_ROOM_STATE")),
        ({"power_level_content_override": {"ban": "50"}}, (400, "M_INVALID_ROOM_STATE")),
        ({"is_direct": "yes"}, (400, "M_BAD_JSON")),
    ],
)
async def test_bad_rooms(world: World, body: dict[str, Any], error: tuple[int, str]) -> None:
    alice = await world.user()
    assert await alice.fails("POST", "/createRoom", body) == error
    assert not world.roomserver.batches


async def test_a_taken_alias_refuses_the_whole_room(world: World) -> None:
    alice = await world.user()
    await make(world, alice, room_alias_name="one")
    assert await alice.fails("POST", "/createRoom", {"room_alias_name": "one"}) == (400, "M_ROOM_IN_USE")
    assert len(world.roomserver.rooms) == 1


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("send/m.room.message/t", {"pi": 1.5}, (400, "M_BAD_JSON")),
        ("send/m.room.message/t", {"n": 2**53}, (400, "M_BAD_JSON")),
        ("send/m.room.message/t", {"body": "x" * 66_000}, (413, "M_TOO_LARGE")),
        ("send/" + "t" * 256 + "/t", {}, (413, "M_TOO_LARGE")),
        ("send/m.room.message/" + "t" * 256, {}, (400, "M_INVALID_PARAM")),
        ("send/m.room.redaction/t", {}, (400, "M_MISSING_PARAM")),
        ("state/m.room.member/@x:y", {}, (400, "M_BAD_JSON")),
        ("state/m.room.member/x", {"membership": "join"}, (400, "M_INVALID_PARAM")),
        ("state/m.room.create", {}, (403, "M_FORBIDDEN")),
        ("state/m.room.canonical_alias", {"alias": "#no:here.example"}, (400, "M_BAD_ALIAS")),
        ("state/m.room.canonical_alias", {"alias": "no"}, (400, "M_INVALID_PARAM")),
        ("state/m.room.canonical_alias", {"alt_aliases": "no"}, (400, "M_BAD_JSON")),
        ("state/m.room.power_levels", {"users_default": "100"}, (400, "M_BAD_JSON")),
        ("redact/nonsense/t", {}, (400, "M_INVALID_PARAM")),
        ("redact/$unknown/t", {}, (404, "M_NOT_FOUND")),
        ("redact/$unknown/t", {"reason": 7}, (400, "M_BAD_JSON")),
        ("state/%ff", {}, (400, "M_INVALID_PARAM")),
    ],
)
async def test_bad_events(world: World, path: str, body: Any, error: tuple[int, str]) -> None:
    alice = await world.user()
    room = await make(world, alice)
    count = len(room.order)
    assert await alice.fails("PUT", f"/rooms/{room.room_id}/{path}", body) == error
    assert len(room.order) == count
    # The room is none the worse for it.
    await alice.ok("PUT", f"/rooms/{room.room_id}/send/m.room.message/ok", {"body": "x"})
    assert len(room.extremities) == 1


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"{", (400, "M_NOT_JSON")),
        (b"", (400, "M_NOT_JSON")),
        (b"[]", (400, "M_BAD_JSON")),
        (b'{"a": NaN}', (400, "M_NOT_JSON")),
        (b'{"a": "\xff"}', (400, "M_NOT_JSON")),
        (b'{"a": "\\ud800"}', (400, "M_NOT_JSON")),
        (b'{"a":' * 150 + b"1" + b"}" * 150, (400, "M_BAD_JSON")),
    ],
)
async def test_bodies_that_are_no_event(world: World, data: bytes, error: tuple[int, str]) -> None:
    alice = await world.user()
    room = await make(world, alice)
    path = f"/rooms/{room.room_id}/send/m.room.message/t"
    status, answer = await alice("PUT", path, data=data)
    assert (status, answer["errcode"]) == error


async def test_rooms_one_is_not_in_or_that_are_not_there(world: World) -> None:
    alice, bob = await world.user(), await world.user()
    room = await make(world, alice)
    unknown = "!" + "A" * 43
    for room_id in (room.room_id, unknown, "!x:elsewhere.example"):
        send = f"/rooms/{room_id}/send/m.room.message/t"
        assert await bob.fails("PUT", send, {"body": "x"}) == (403, "M_FORBIDDEN")
        state = f"/rooms/{room_id}/state/m.room.topic"
        assert await bob.fails("PUT", state, {"topic": "x"}) == (403, "M_FORBIDDEN")
    assert await bob.fails("POST", f"/join/{room.room_id}") == (403, "M_FORBIDDEN")
    assert await bob.fails("POST", f"/join/{unknown}") == (404, "M_NOT_FOUND")
    assert await bob.fails("POST", "/join/%23no:here.example") == (404, "M_NOT_FOUND")
    assert await bob.fails("POST", "/join/nonsense") == (400, "M_INVALID_PARAM")
    assert await bob.fails("PUT", "/rooms/nonsense/send/m.room.message/t", {}) == (400, "M_INVALID_PARAM")


async def test_what_a_room_stands_on_is_not_redacted(world: World) -> None:
    alice = await world.user()
    room = await make(world, alice)
    path = f"/rooms/{room.room_id}"
    acl = (await alice.ok("PUT", f"{path}/state/m.room.server_acl", {"allow": ["*"]}))["event_id"]
    create = room.state["m.room.create", ""].event_id
    for number, target in enumerate((acl, create)):
        assert await alice.fails("PUT", f"{path}/redact/{target}/{number}", {}) == (403, "M_FORBIDDEN")
    topic = (await alice.ok("PUT", f"{path}/state/m.room.topic", {"topic": "x"}))["event_id"]
    await alice.ok("PUT", f"{path}/redact/{topic}/t", {})


async def test_only_some_may_redact(world: World) -> None:
    alice, bob, carol = [await world.user() for _ in range(3)]
    room = await make(world, alice, preset="public_chat")
    path = f"/rooms/{room.room_id}"
    for user in (bob, carol):
        await user.ok("POST", f"{path}/join")
    event_id = (await bob.ok("PUT", f"{path}/send/m.room.message/t", {"body": "x"}))["event_id"]
    assert await carol.fails("PUT", f"{path}/redact/{event_id}/t", {}) == (403, "M_FORBIDDEN")
    await bob.ok("PUT", f"{path}/redact/{event_id}/t2", {"reason": "mine"})
    await alice.ok("PUT", f"{path}/redact/{event_id}/t", {})
    # The newer form, by /send.
    sent = await alice.ok("PUT", f"{path}/send/m.room.redaction/t9", {"redacts": event_id, "reason": "r"})
    assert room.events[sent["event_id"]].content == {"redacts": event_id, "reason": "r"}


async def test_the_same_state_again_is_judged_by_the_roomserver(world: World) -> None:
    alice = await world.user()
    room = await make(world, alice)
    path = f"/rooms/{room.room_id}/state/m.room.topic/"
    await alice.ok("PUT", path, {"topic": "a"})
    await alice.ok("PUT", path, {"topic": "b"})
    await alice.ok("PUT", f"/rooms/{room.room_id}/state/custom/key%2Fslash", {"a": 1})
    assert content(room, "custom", "key/slash") == {"a": 1}
    assert content(room, "m.room.topic") == {"topic": "b"}


@pytest.mark.parametrize(("old", "new"), [("10", "11"), ("11", "12"), ("12", "12"), ("12", "10")])
async def test_upgrade(world: World, old: str, new: str) -> None:
    alice, bob = await world.user(), await world.user()
    room = await make(world, alice, room_version=old, name="Name", room_alias_name="up", visibility="public")
    await bob.ok("POST", f"/rooms/{room.room_id}/join")
    await alice.ok("POST", f"/rooms/{room.room_id}/ban", {"user_id": "@bad:here.example"})
    assert await bob.fails("POST", f"/rooms/{room.room_id}/upgrade", {"new_version": new}) == (
        403,
        "M_FORBIDDEN",
    )
    answer = await alice.ok("POST", f"/rooms/{room.room_id}/upgrade", {"new_version": new})
    successor = world.roomserver.rooms[answer["replacement_room"]]
    assert content(room, "m.room.tombstone")["replacement_room"] == successor.room_id
    assert content(successor, "m.room.create")["predecessor"]["room_id"] == room.room_id
    assert content(successor, "m.room.create")["room_version"] == new
    assert content(successor, "m.room.name") == {"name": "Name"}
    assert content(successor, "m.room.join_rules") == {"join_rule": "public"}
    assert content(successor, "m.room.member", "@bad:here.example")["membership"] == "ban"
    assert content(successor, "m.room.canonical_alias") == {"alias": "#up:here.example"}
    assert (await alice.ok("GET", "/directory/room/%23up:here.example"))["room_id"] == successor.room_id
    listed = (await alice.ok("GET", "/publicRooms"))["chunk"]
    assert [entry["room_id"] for entry in listed] == [successor.room_id]
    # Nobody without power talks in the old room any more.
    old_send = f"/rooms/{room.room_id}/send/m.room.message/t"
    assert await bob.fails("PUT", old_send, {"body": "x"}) == (403, "M_FORBIDDEN")
    await alice.ok("PUT", f"/rooms/{successor.room_id}/state/m.room.topic", {"topic": "x"})
    assert await alice.fails("POST", f"/rooms/{room.room_id}/upgrade", {"new_version": "99"}) == (
        400,
        "M_UNSUPPORTED_ROOM_VERSION",
    )


async def test_a_room_cannot_replace_itself(world: World) -> None:
    alice = await world.user()
    room = await make(world, alice)
    path = f"/rooms/{room.room_id}/state/m.room.tombstone"
    assert await alice.fails("PUT", path, {"replacement_room": room.room_id}) == (400, "M_INVALID_PARAM")


async def test_a_room_that_is_not_there_cannot_be_upgraded(world: World) -> None:
    alice = await world.user()
    path = "/rooms/!nowhere:here.example/upgrade"
    assert await alice.fails("POST", path, {"new_version": "12"}) == (404, "M_NOT_FOUND")


@pytest.mark.parametrize(
    ("type_", "content", "errcode"),
    [
        ("m.room.power_levels", {"ban": "50"}, "M_BAD_JSON"),
        ("m.room.power_levels", {"users": []}, "M_BAD_JSON"),
        ("m.room.power_levels", {"users": {"@a:here.example": True}}, "M_BAD_JSON"),
        ("m.room.power_levels", {"events": {"m.room.name": None}}, "M_BAD_JSON"),
        ("m.room.power_levels", {"notifications": {"room": "x"}}, "M_BAD_JSON"),
        ("m.room.server_acl", {"allow": ["*"], "deny": ["here.example"]}, "M_INVALID_PARAM"),
        ("m.room.server_acl", {"allow": []}, "M_INVALID_PARAM"),
        ("m.room.server_acl", {}, "M_INVALID_PARAM"),
    ],
)
async def test_state_that_nobody_can_want(world: World, type_: str, content: Any, errcode: str) -> None:
    alice = await world.user()
    room = await make(world, alice, room_version="9")
    path = f"/rooms/{room.room_id}/state/{type_}"
    assert await alice.fails("PUT", path, content) == (400, errcode)
    await alice.ok(
        "PUT", f"/rooms/{room.room_id}/state/m.room.server_acl", {"allow": ["*"], "deny": ["evil"]}
    )


async def test_an_upgraded_space_keeps_its_rooms(world: World) -> None:
    alice = await world.user()
    space = await make(world, alice, creation_content={"type": "m.space"}, room_version="11")
    child = f"/rooms/{space.room_id}/state/m.space.child"
    await alice.ok("PUT", f"{child}/!a:here.example", {"via": ["here.example"], "suggested": True})
    await alice.ok("PUT", f"{child}/!gone:here.example", {})
    await alice.ok("PUT", f"/rooms/{space.room_id}/state/org.example.own", {"a": 1})
    answer = await alice.ok("POST", f"/rooms/{space.room_id}/upgrade", {"new_version": "12"})
    successor = world.roomserver.rooms[answer["replacement_room"]]
    assert content(successor, "m.room.create")["type"] == "m.space"
    assert content(successor, "m.space.child", "!a:here.example") == {
        "via": ["here.example"],
        "suggested": True,
    }
    assert ("m.space.child", "!gone:here.example") not in successor.state
    # What may mean something only by who sent it stays behind.
    assert ("org.example.own", "") not in successor.state


async def test_a_deleted_alias_leaves_nothing_behind(world: World) -> None:
    alice = await world.user()
    room = await make(world, alice, room_alias_name="one")
    await alice.ok("PUT", "/directory/room/%23two:here.example", {"room_id": room.room_id})
    aliases = {"alias": "#one:here.example", "alt_aliases": ["#two:here.example"]}
    await alice.ok("PUT", f"/rooms/{room.room_id}/state/m.room.canonical_alias", aliases)
    await alice.ok("DELETE", "/directory/room/%23two:here.example")
    assert content(room, "m.room.canonical_alias") == {"alias": "#one:here.example"}
    await alice.ok("DELETE", "/directory/room/%23one:here.example")
    assert content(room, "m.room.canonical_alias") == {}


async def test_a_room_with_very_many_bans_is_upgraded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade, "NUMEROUS_AT_ONCE", 3)
    monkeypatch.setattr(upgrade, "TOGETHER", 4)
    alice = await world.user()
    room = await make(world, alice)
    banned = [f"@bad{number}:here.example" for number in range(12)]
    for user_id in banned:
        await alice.ok("POST", f"/rooms/{room.room_id}/ban", {"user_id": user_id, "reason": "spam"})
    answer = await alice.ok("POST", f"/rooms/{room.room_id}/upgrade", {"new_version": "12"})
    successor = world.roomserver.rooms[answer["replacement_room"]]
    for user_id in banned:
        assert content(successor, "m.room.member", user_id) == {"membership": "ban", "reason": "spam"}
    assert len(successor.extremities) == 1


async def test_state_that_is_there_already_is_not_set_again(world: World) -> None:
    alice, bob = await world.user(), await world.user()
    room = await make(world, alice, preset="public_chat", power_level_content_override={"state_default": 0})
    await bob.ok("POST", f"/rooms/{room.room_id}/join")
    path = f"/rooms/{room.room_id}/state/org.example"

    async def put(client: Client, body: dict[str, Any]) -> str:
        event_id: str = (await client.ok("PUT", path, body))["event_id"]
        return event_id

    first = await put(alice, {"a": 1, "b": [1]})
    assert await put(alice, {"b": [1], "a": 1}) == first
    as_true = await put(alice, {"a": True, "b": [1]})
    assert as_true != first
    # Said by somebody else it is something else; so it is after something else.
    others = await put(bob, {"a": True, "b": [1]})
    assert others != as_true
    assert await put(alice, {"a": True, "b": [1]}) not in (as_true, others)
    last = await put(bob, {"a": True, "b": [1]})
    await bob.ok("POST", f"/rooms/{room.room_id}/leave")
    assert await bob.fails("PUT", path, {"a": True, "b": [1]}) == (403, "M_FORBIDDEN")
    assert room.state["org.example", ""].event_id == last


async def test_no_thread_begins_in_a_thread(world: World) -> None:
    alice = await world.user()
    path = f"/rooms/{(await make(world, alice)).room_id}/send/m.room.message"

    async def say(txn: str, **relation: Any) -> tuple[int, Any]:
        return await alice(
            "PUT", f"{path}/{txn}", {"msgtype": "m.text", "body": txn, "m.relates_to": relation}
        )

    root = (await alice.ok("PUT", f"{path}/root", {"msgtype": "m.text", "body": "root"}))["event_id"]
    for number in range(2):
        status, inside = await say(f"in{number}", rel_type="m.thread", event_id=root)
        assert status == 200
    _, reply = await say("reply", **{"m.in_reply_to": {"event_id": root}})
    status, refused = await say("deeper", rel_type="m.thread", event_id=inside["event_id"])
    assert (status, refused["errcode"]) == (400, "M_UNKNOWN")
    assert (await say("at a reply", rel_type="m.thread", event_id=reply["event_id"]))[0] == 200
    assert (await say("unknown", rel_type="m.thread", event_id="$unknown"))[0] == 200
    assert (await say("odd", rel_type="m.thread", event_id=5))[0] == 200


async def test_a_second_annotation_of_a_kind_is_refused(world: World) -> None:
    alice, bob = await world.user("alice"), await world.user()
    room = await make(world, alice, preset="public_chat")
    await bob.ok("POST", f"/join/{room.room_id}")
    path = f"/rooms/{room.room_id}"
    said = (await alice.ok("PUT", f"{path}/send/m.room.message/0", {"body": "x"}))["event_id"]

    def reaction(key: Any, target: str = said) -> dict[str, Any]:
        return {"m.relates_to": {"rel_type": "m.annotation", "event_id": target, "key": key}}

    send = f"{path}/send/m.reaction"
    first = await alice.ok("PUT", f"{send}/1", reaction("a"))
    # The same request once more finds its event; another one is a second reaction.
    assert await alice.ok("PUT", f"{send}/1", reaction("a")) == first
    duplicate = (400, "M_DUPLICATE_ANNOTATION")
    assert await alice.fails("PUT", f"{send}/2", reaction("a")) == duplicate
    assert await alice.fails("POST", send, reaction("a")) == duplicate
    # Another key, type, target or user makes another kind.
    await alice.ok("PUT", f"{send}/3", reaction("b"))
    await alice.ok("PUT", f"{path}/send/org.example.other/4", reaction("a"))
    await alice.ok("PUT", f"{send}/5", reaction("a", first["event_id"]))
    await bob.ok("PUT", f"{send}/1", reaction("a"))
    # What is redacted counts no more.
    await alice.ok("PUT", f"{path}/redact/{first['event_id']}/6", {})
    again = await alice.ok("PUT", f"{send}/7", reaction("a"))
    assert again != first
    assert await alice.fails("PUT", f"{send}/8", reaction("a")) == duplicate
    # Relations without a key, and such as are none, are nobody's business here.
    for number, relation in enumerate(({"rel_type": "m.annotation"}, {"rel_type": 7}, "x", {"key": 1})):
        for again_ in range(2):
            await alice.ok("PUT", f"{send}/n{number}{again_}", {"m.relates_to": relation})

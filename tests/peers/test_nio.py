"""Two people talk through matrix-nio: every step as a client that we did not write does it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import nio

from tests.support.homeserver import Homeserver

PASSWORD = "correct horse battery"
TIMEOUT_S = 20.0


class Person:
    """A user at a keyboard: a client, and what they have seen by long-polling."""

    def __init__(self, client: nio.AsyncClient) -> None:
        self.client = client
        self.events: list[tuple[str, Any]] = []
        self.invites: list[str] = []
        self.left: list[str] = []
        self._changed = asyncio.Condition()

    async def poll(self) -> None:
        """Long-poll for ever."""
        while True:
            answer = ok(await self.client.sync(timeout=20_000))
            for room_id, room in answer.rooms.join.items():
                seen = [*room.state, *room.timeline.events] if room.timeline.limited else room.timeline.events
                self.events += [(room_id, event) for event in seen]
            self.invites += answer.rooms.invite
            self.left += answer.rooms.leave
            async with self._changed:
                self._changed.notify_all()

    async def until(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait until this person has seen it."""
        try:
            async with asyncio.timeout(TIMEOUT_S), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            raise AssertionError(f"{self.client.user_id} never saw {what}; saw {self.events}") from None

    def sees(self, room_id: str, kind: type, **fields: Any) -> bool:
        """Whether an event of this class with these attributes has come."""
        return any(
            room == room_id
            and isinstance(event, kind)
            and all(getattr(event, name) == value for name, value in fields.items())
            for room, event in self.events
        )


def ok(answer: Any) -> Any:
    """The answer, unless it is an error."""
    assert not isinstance(answer, nio.ErrorResponse), answer
    return answer


@asynccontextmanager
async def person(homeserver: Homeserver, name: str) -> AsyncIterator[Person]:
    """Register, log in on a new device, and poll until the end."""
    newcomer = nio.AsyncClient(homeserver.base_url, name)
    try:
        ok(await newcomer.register(name, PASSWORD))
        user_id = newcomer.user_id
    finally:
        await newcomer.close()
    client = nio.AsyncClient(homeserver.base_url, user_id)
    try:
        ok(await client.login(PASSWORD, device_name="nio"))
        someone = Person(client)
        async with asyncio.TaskGroup() as group:
            polling = group.create_task(someone.poll())
            yield someone
            polling.cancel()
    finally:
        await client.close()


async def test_two_people_talk(homeserver: Homeserver, unique: Callable[[str], str]) -> None:
    async with person(homeserver, unique("alice")) as alice, person(homeserver, unique("bob")) as bob:
        room_id = ok(
            await alice.client.room_create(name="The first room", topic="Hello", invite=[bob.client.user_id])
        ).room_id
        await bob.until("the invite", lambda: room_id in bob.invites)

        ok(await bob.client.join(room_id))
        for who in (alice, bob):
            await who.until(
                "bob's join",
                lambda who=who: who.sees(
                    room_id, nio.RoomMemberEvent, state_key=bob.client.user_id, membership="join"
                ),
            )

        async def say(speaker: Person, text: str) -> str:
            content = {"msgtype": "m.text", "body": text}
            event_id: str = ok(await speaker.client.room_send(room_id, "m.room.message", content)).event_id
            for who in (alice, bob):
                await who.until(
                    f"{text!r}",
                    lambda who=who: who.sees(room_id, nio.RoomMessageText, event_id=event_id, body=text),
                )
            return event_id

        await say(alice, "Hello, Bob")
        regretted = await say(bob, "Hello, Alice. My password is hunter2")

        ok(await bob.client.room_redact(room_id, regretted, reason="oh dear"))
        for who in (alice, bob):
            await who.until(
                "the redaction", lambda who=who: who.sees(room_id, nio.RedactionEvent, redacts=regretted)
            )
        gone = ok(await alice.client.room_get_event(room_id, regretted)).event
        assert isinstance(gone, nio.RedactedEvent), gone

        ok(await alice.client.room_put_state(room_id, "m.room.topic", {"topic": "Goodbye"}))
        for who in (alice, bob):
            await who.until(
                "the topic", lambda who=who: who.sees(room_id, nio.RoomTopicEvent, topic="Goodbye")
            )
        assert bob.client.rooms[room_id].topic == "Goodbye"
        assert set(bob.client.rooms[room_id].users) == {alice.client.user_id, bob.client.user_id}

        ok(await bob.client.room_leave(room_id))
        await alice.until(
            "bob's leaving",
            lambda: alice.sees(
                room_id, nio.RoomMemberEvent, state_key=bob.client.user_id, membership="leave"
            ),
        )
        await bob.until("having left", lambda: room_id in bob.left)
        refused = await bob.client.room_send(room_id, "m.room.message", {"msgtype": "m.text", "body": "?"})
        assert isinstance(refused, nio.RoomSendError)
        assert refused.status_code == "M_FORBIDDEN"
        assert set(alice.client.rooms[room_id].users) == {alice.client.user_id}


async def test_history_is_paged_back_to_the_beginning(
    homeserver: Homeserver, unique: Callable[[str], str]
) -> None:
    async with person(homeserver, unique("alice")) as alice:
        room_id = ok(await alice.client.room_create()).room_id
        texts = [f"message {number}" for number in range(35)]
        for text in texts:
            content: dict[str, Any] = {"msgtype": "m.text", "body": text}
            ok(await alice.client.room_send(room_id, "m.room.message", content))
        seen: list[str] = []
        start = ""
        pages = 0
        while True:
            page = ok(await alice.client.room_messages(room_id, start, limit=10))
            seen += [event.body for event in page.chunk if isinstance(event, nio.RoomMessageText)]
            pages += 1
            if not page.end or page.end == start:
                break
            start = page.end
        assert seen[::-1] == texts
        assert pages >= 4


async def test_a_password_that_is_wrong_is_refused(
    homeserver: Homeserver, unique: Callable[[str], str]
) -> None:
    async with person(homeserver, unique("alice")) as alice:
        client = nio.AsyncClient(homeserver.base_url, alice.client.user_id)
        try:
            refused = await client.login("not the password")
        finally:
            await client.close()
        assert isinstance(refused, nio.LoginError)
        assert refused.status_code == "M_FORBIDDEN"


async def test_a_day_of_a_bot(homeserver: Homeserver, unique: Callable[[str], str]) -> None:
    """What nio's clients, bots mostly, ask beside talking: every answer parses as what it should be."""
    async with person(homeserver, unique("alice")) as alice, person(homeserver, unique("bob")) as bob:
        client, user_id = alice.client, alice.client.user_id
        server = user_id.partition(":")[2]
        assert "m.login.password" in ok(await client.login_info()).flows
        assert ok(await client.whoami()).user_id == user_id
        # Its own account.
        ok(await client.set_displayname("Alice"))
        ok(await client.set_avatar("mxc://arbor.test/a"))
        profile = ok(await client.get_profile())
        assert (profile.displayname, profile.avatar_url) == ("Alice", "mxc://arbor.test/a")
        assert ok(await client.get_displayname(user_id)).displayname == "Alice"
        ok(await client.set_presence("online", "working"))
        assert ok(await client.get_presence(user_id)).presence in ("online", "unavailable")
        assert ok(await client.get_openid_token(user_id)).matrix_server_name == server
        assert ok(await client.upload_filter(room={"timeline": {"limit": 1}})).filter_id
        devices = ok(await client.devices()).devices
        mine = next(device for device in devices if device.id == client.device_id)
        ok(await client.update_device(mine.id, {"display_name": "a bot"}))
        others = [device.id for device in devices if device.id != client.device_id]
        challenge = await client.delete_devices(others)
        assert isinstance(challenge, nio.DeleteDevicesAuthResponse)
        auth = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": user_id},
            "password": PASSWORD,
            "session": challenge.session,
        }
        ok(await client.delete_devices(others, auth))
        assert [device.display_name for device in ok(await client.devices()).devices] == ["a bot"]
        # Push rules.
        rule = {"scope": "global", "kind": nio.PushRuleKind.content, "rule_id": "word"}
        ok(await client.set_pushrule(**rule, pattern="word", actions=[nio.PushNotify()]))
        ok(await client.enable_pushrule(**rule, enable=False))
        ok(await client.set_pushrule_actions(**rule, actions=[]))
        ok(await client.delete_pushrule(**rule))
        # Rooms: aliases, the directory, power, state.
        alias = unique("tea")
        room_id = ok(
            await client.room_create(
                visibility=nio.RoomVisibility.public,
                preset=nio.RoomPreset.public_chat,
                alias=alias,
                name="Tea",
                room_version="11",
            )
        ).room_id
        resolved = ok(await bob.client.room_resolve_alias(f"#{alias}:{server}"))
        assert (resolved.room_id, resolved.servers) == (room_id, [server])
        ok(await client.room_put_alias(f"#{alias}-too:{server}", room_id))
        ok(await client.room_update_aliases(room_id, f"#{alias}:{server}", [f"#{alias}-too:{server}"]))
        ok(await client.room_delete_alias(f"#{alias}-too:{server}"))
        canonical = ok(await client.room_get_state_event(room_id, "m.room.canonical_alias")).content
        assert canonical["alias"] == f"#{alias}:{server}"
        assert not canonical.get("alt_aliases")
        assert ok(await client.room_get_visibility(room_id)).visibility == "public"
        public = ok(await bob.client.list_public_rooms(limit=100)).public_rooms
        assert room_id in {room.room_id for room in public}
        ok(await bob.client.join(f"#{alias}:{server}"))
        assert ok(await bob.client.joined_rooms()).rooms == [room_id]
        members = ok(await bob.client.joined_members(room_id)).members
        assert {member.user_id: member.display_name for member in members}[user_id] == "Alice"
        root = ok(
            await client.room_send(room_id, "m.room.message", {"msgtype": "m.text", "body": "tea?"})
        ).event_id
        reply = {
            "msgtype": "m.text",
            "body": "yes",
            "m.relates_to": {"rel_type": "m.thread", "event_id": root},
        }
        ok(await bob.client.room_send(room_id, "m.room.message", reply))
        ok(await bob.client.room_typing(room_id))
        ok(await bob.client.room_read_markers(room_id, root, root))
        ok(await bob.client.update_receipt_marker(room_id, root))
        assert [event.event_id async for event in bob.client.room_get_threads(room_id)] == [root]
        related = [event.body async for event in client.room_get_event_relations(room_id, root)]
        assert related == ["yes"]
        assert ok(await client.room_context(room_id, root)).event.event_id == root
        assert any(
            event["type"] == "m.room.create" for event in ok(await client.room_get_state(room_id)).events
        )
        ok(await client.room_kick(room_id, bob.client.user_id, "out"))
        ok(await client.room_ban(room_id, bob.client.user_id))
        banned = await bob.client.join(room_id)
        assert isinstance(banned, nio.JoinError)
        assert banned.status_code == "M_FORBIDDEN"
        ok(await client.room_unban(room_id, bob.client.user_id))
        ok(await client.room_put_state(room_id, "m.room.join_rules", {"join_rule": "knock"}))
        ok(await bob.client.room_knock(room_id, "please"))
        ok(await client.room_invite(room_id, bob.client.user_id))
        ok(await bob.client.join(room_id))
        # nio makes the new room by itself, out of the old one's state.
        successor = ok(await client.room_upgrade(room_id, "11")).room_id
        created = ok(await client.room_get_state_event(successor, "m.room.create")).content
        assert created["predecessor"]["room_id"] == room_id
        tombstone = ok(await client.room_get_state_event(room_id, "m.room.tombstone")).content
        assert tombstone["replacement_room"] == successor
        ok(await bob.client.room_leave(room_id))
        ok(await bob.client.room_forget(room_id))
        # A session of its own ends; the others go on.
        passing = nio.AsyncClient(homeserver.base_url, user_id)
        try:
            ok(await passing.login(PASSWORD))
            token = passing.access_token
            ok(await passing.logout())
            passing.access_token = token
            gone = await passing.whoami()
        finally:
            await passing.close()
        assert isinstance(gone, nio.WhoamiError)
        assert gone.status_code == "M_UNKNOWN_TOKEN"
        assert ok(await client.whoami()).user_id == user_id

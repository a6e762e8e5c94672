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

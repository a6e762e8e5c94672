"""People who keep talking whatever happens to the server, and an account of what they were promised.

Each talker sends numbered messages, one after the other, into rooms that all share. A send that fails in a
way that says nothing about its fate (no connection, a time-out, a 5xx, a 429) is repeated with the same
transaction id until the server acknowledges it; any other answer is an error. At the same time each talker
follows `/sync`, and one looks into a room's history again and again.

`Talkers.verify()` then holds the promises against what the server shows: every acknowledged event is in
`/messages` once, no message stands there twice, nobody saw an event twice in `/sync`, and no sync token went
back.
"""

import asyncio
import contextlib
import json
import re
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from tests.support.homeserver import Homeserver
from tests.support.matrix_client import ClientError, MatrixClient

ATTEMPT_TIMEOUT_S = 20.0
RETRY_PAUSE_S = 0.1
LOOK_BACK_PAUSE_S = 0.02
SYNC_FILTER = json.dumps({"room": {"timeline": {"limit": 1000}, "state": {"lazy_load_members": True}}})
TRANSIENT = (aiohttp.ClientError, TimeoutError, ConnectionError)


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A send that the server answered with 200; times are of the monotonic clock."""

    room_id: str
    event_id: str
    text: str
    # When the attempt began that was answered, and when the answer came.
    began: float
    ended: float
    attempts: int


@dataclass
class Talker:
    """One person: what they were promised and what they saw."""

    client: MatrixClient
    name: str
    acknowledged: list[Acknowledged] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    limited_rooms: set[str] = field(default_factory=set)
    positions: list[int] = field(default_factory=list)
    tokens_back: list[str] = field(default_factory=list)
    since: str | None = None
    sync_failures: int = 0
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    synced: asyncio.Condition = field(default_factory=asyncio.Condition)


def output_position(token: str) -> int | None:
    """The log position in one of Arbor's sync tokens; `None` for a token of another form."""
    found = re.match(r"a1_[^.]+\.(\d+)_", token)
    return int(found[1]) if found else None


def is_transient(error: ClientError) -> bool:
    """Whether an answer leaves open what became of the request."""
    return error.status == 429 or error.status >= 500


class Talkers:
    """Talkers in shared rooms, at one server or at several edges of one deployment."""

    def __init__(self, talkers: list[Talker], rooms: list[str]) -> None:
        self.talkers = talkers
        self.rooms = rooms
        self._stopping = False
        self._target: int | None = None
        self._acknowledged = asyncio.Condition()
        # (began, ended) of the newest acknowledgements, in the order in which they came.
        self._recent: deque[tuple[float, float]] = deque(maxlen=400)

    @classmethod
    async def gather(
        cls, homeserver: Homeserver, session: aiohttp.ClientSession, *, people: int, rooms: int
    ) -> "Talkers":
        """Make the people and the rooms, everybody in every room."""
        clients = [await homeserver.register(session, f"talker{number}") for number in range(people)]
        room_ids = []
        for number in range(rooms):
            room_id = await clients[0].create_room(preset="public_chat", name=f"room {number}")
            for client in clients[1:]:
                await client.join(room_id)
            room_ids.append(room_id)
        talkers = [Talker(client, f"talker{number}") for number, client in enumerate(clients)]
        return cls(talkers, room_ids)

    @asynccontextmanager
    async def talking(self, messages_each: int | None = None) -> AsyncIterator[None]:
        """They talk and sync while the body runs; at its end each finishes the message they are at.

        With `messages_each` the end waits until each has had that many acknowledged.
        """
        self._stopping, self._target = False, messages_each
        async with asyncio.TaskGroup() as group:
            followers = [group.create_task(self._follow(talker)) for talker in self.talkers]
            followers.append(group.create_task(self._look_back(self.talkers[0])))
            for talker in self.talkers:
                await talker.ready.wait()
            senders = [group.create_task(self._talk(talker)) for talker in self.talkers]
            yield
            self._stopping = True
            async with asyncio.timeout(180):
                await asyncio.gather(*senders)
                await self._all_seen()
            for follower in followers:
                follower.cancel()

    def all_acknowledged(self) -> list[Acknowledged]:
        """Everything that was promised to anybody."""
        return [promise for talker in self.talkers for promise in talker.acknowledged]

    async def wait_for_acknowledged(self, since: float, count: int, timeout_s: float) -> float:
        """Wait for `count` (at most 300) acknowledgements of attempts begun after `since`; returns when."""

        def times() -> list[float]:
            return [ended for began, ended in self._recent if began > since]

        async with asyncio.timeout(timeout_s), self._acknowledged:
            await self._acknowledged.wait_for(lambda: len(times()) >= count)
            return times()[count - 1]

    # -- talking --

    def _finished(self, talker: Talker) -> bool:
        return self._stopping and (self._target is None or len(talker.acknowledged) >= self._target)

    async def _talk(self, talker: Talker) -> None:
        number = len(talker.acknowledged)
        while not self._finished(talker):
            number += 1
            room_id = self.rooms[(number + self.talkers.index(talker)) % len(self.rooms)]
            promise = await self._send(talker, room_id, f"{talker.name} says {number}")
            talker.acknowledged.append(promise)
            self._recent.append((promise.began, promise.ended))
            async with self._acknowledged:
                self._acknowledged.notify_all()

    async def _send(self, talker: Talker, room_id: str, text: str) -> Acknowledged:
        txn_id = talker.client.new_txn_id()
        attempts = 0
        while True:
            attempts += 1
            began = time.monotonic()
            pause_s = RETRY_PAUSE_S
            try:
                async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
                    event_id = await talker.client.send(room_id, text, txn_id=txn_id)
            except TRANSIENT:
                pass
            except ClientError as error:
                if not is_transient(error):
                    raise
                if isinstance(error.body, dict) and "retry_after_ms" in error.body:
                    pause_s = min(error.body["retry_after_ms"] / 1e3, 1.0)
            else:
                return Acknowledged(room_id, event_id, text, began, time.monotonic(), attempts)
            await asyncio.sleep(pause_s)

    # -- following --

    async def _follow(self, talker: Talker) -> None:
        while True:
            old = talker.since
            try:
                async with asyncio.timeout(40):
                    answer = await talker.client.sync(
                        old, timeout_ms=10_000 if old else 0, filter=SYNC_FILTER
                    )
            except TRANSIENT:
                talker.sync_failures += 1
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            except ClientError as error:
                if not is_transient(error):
                    raise
                talker.sync_failures += 1
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            talker.since = answer["next_batch"]
            self._note_token(talker, old, answer["next_batch"])
            for room_id, room in answer.get("rooms", {}).get("join", {}).items():
                timeline = room.get("timeline", {})
                if timeline.get("limited") and old is not None:
                    talker.limited_rooms.add(room_id)
                for event in timeline.get("events", []):
                    talker.seen[event["event_id"]] += 1
            talker.ready.set()
            async with talker.synced:
                talker.synced.notify_all()

    async def _look_back(self, talker: Talker) -> None:
        """Read from the database, which has to be written for that."""
        while True:
            try:
                async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
                    await talker.client.messages(self.rooms[0], "b", 10)
            except TRANSIENT:
                pass
            except ClientError as error:
                if not is_transient(error):
                    raise
            await asyncio.sleep(LOOK_BACK_PAUSE_S)

    @staticmethod
    def _note_token(talker: Talker, old: str | None, new: str) -> None:
        before, after = output_position(old or ""), output_position(new)
        if before is not None and after is not None and after < before:
            talker.tokens_back.append(f"{old} -> {new}")
        if after is not None:
            talker.positions.append(after)

    def _unseen(self, talker: Talker) -> list[Acknowledged]:
        return [
            promise
            for promise in self.all_acknowledged()
            if promise.event_id not in talker.seen and promise.room_id not in talker.limited_rooms
        ]

    async def _all_seen(self, timeout_s: float = 30) -> None:
        """Wait until everybody's `/sync` has brought all of it; `verify` tells if it did not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for talker in self.talkers:
                    while self._unseen(talker):
                        async with talker.synced:
                            await talker.synced.wait()

    # -- the account --

    async def verify(self) -> None:
        """Hold what was acknowledged against `/messages` and `/sync`; fails with what is wrong."""
        promises = self.all_acknowledged()
        reader = self.talkers[0].client
        problems: list[str] = []
        for room_id in self.rooms:
            events = await reader.all_messages(room_id)
            ids = Counter(event["event_id"] for event in events)
            texts = Counter(
                event["content"].get("body") for event in events if event["type"] == "m.room.message"
            )
            mine = [promise for promise in promises if promise.room_id == room_id]
            problems += [f"lost: {one}" for one in mine if ids[one.event_id] == 0]
            problems += [f"twice in /messages: {event_id}" for event_id, times in ids.items() if times > 1]
            problems += [f"sent twice: {text!r}" for text, times in texts.items() if times > 1]
            problems += [
                f"never acknowledged: {text!r}" for text in texts.keys() - {one.text for one in mine}
            ]
        for talker in self.talkers:
            problems += [
                f"{talker.name} saw {event_id} {times} times"
                for event_id, times in talker.seen.items()
                if times > 1
            ]
            problems += [f"{talker.name}'s token went back: {step}" for step in talker.tokens_back]
            problems += [f"{talker.name} never saw {one}" for one in self._unseen(talker)]
        shown = "\n".join(problems[:30])
        assert not problems, f"{len(problems)} problems with {len(promises)} acknowledged events:\n{shown}"

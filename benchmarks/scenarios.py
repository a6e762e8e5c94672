"""The loads. Each scenario takes a `Bench` (a running server and what is set up there) and yields rows.

A scenario makes what it needs first and measures then; what several need (users, rooms) is made once a server
and kept in the `Bench`.
"""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import count

import aiohttp

from benchmarks import fedjoin
from benchmarks.measure import Measurement, in_flight, measured
from tests.support.homeserver import Homeserver
from tests.support.matrix_client import MatrixClient, joined_timeline


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything; `smoke` is for seeing that it works, `full` is for figures."""

    sends: dict[int, int]
    rooms: int
    receivers: int
    deliveries: int
    create_rooms: int
    members: int
    initial_syncs: int
    pages: int
    idle_sends: int
    disk_events: int
    federated_rooms: tuple[int, ...]
    # Arbor is given this many times more operations, since CPU time is counted in hundredths of a second.
    arbor_factor: int


FULL = Scale(
    sends={1: 200, 16: 600, 64: 1000},
    rooms=50,
    receivers=100,
    deliveries=20,
    create_rooms=60,
    members=2000,
    initial_syncs=5,
    pages=50,
    idle_sends=100,
    disk_events=10_000,
    federated_rooms=(2_000, 20_000),
    arbor_factor=5,
)
SMOKE = Scale(
    sends={1: 20, 16: 100, 64: 150},
    rooms=10,
    receivers=20,
    deliveries=5,
    create_rooms=6,
    members=60,
    initial_syncs=2,
    pages=10,
    idle_sends=15,
    disk_events=300,
    federated_rooms=(60,),
    arbor_factor=3,
)


@dataclass
class Bench:
    """One server under load."""

    server: Homeserver
    session: aiohttp.ClientSession
    scale: Scale
    factor: int
    _names: "count[int]" = field(default_factory=count)
    _alice: MatrixClient | None = None
    _bob: MatrixClient | None = None
    _rooms: list[str] = field(default_factory=list)

    async def new_user(self) -> MatrixClient:
        """A fresh user."""
        return await self.server.register(self.session, f"user{next(self._names)}")

    async def alice(self) -> MatrixClient:
        """The user who sends."""
        if self._alice is None:
            self._alice = await self.new_user()
        return self._alice

    async def bob(self) -> MatrixClient:
        """The user who is there."""
        if self._bob is None:
            self._bob = await self.new_user()
        return self._bob

    async def room(self) -> str:
        """A fresh public room of alice with bob in it."""
        alice, bob = await self.alice(), await self.bob()
        room_id = await alice.create_room(preset="public_chat")
        await bob.join(room_id)
        return room_id

    async def rooms(self) -> list[str]:
        """The rooms that alice and bob share, made once."""
        while len(self._rooms) < self.scale.rooms:
            self._rooms.append(await self.room())
        return self._rooms


# Servers choose differently how long a timeline is when nobody says.
SYNC_FILTER = '{"room":{"timeline":{"limit":20}}}'

Rows = AsyncIterator[tuple[str, Measurement]]


async def _sends(bench: Bench, rooms: list[str], limit: int) -> Measurement:
    alice = await bench.alice()
    total = bench.scale.sends[limit] * bench.factor
    # Caches and connections warm up outside of the measurement.
    warm = [
        functools.partial(alice.send, rooms[i % len(rooms)], f"warm {i}")
        for i in range(2 * limit + len(rooms))
    ]
    await in_flight(warm, limit)
    async with measured(bench.server) as row:
        jobs = (functools.partial(alice.send, rooms[i % len(rooms)], f"message {i}") for i in range(total))
        row.operations = await in_flight(jobs, limit, row.latencies_s)
    return row


async def send_one_room(bench: Bench) -> Rows:
    """Sends into one room, 1, 16 and 64 in flight."""
    room_id = await bench.room()
    for limit in bench.scale.sends:
        yield f"send, 1 room, {limit} in flight", await _sends(bench, [room_id], limit)


async def send_many_rooms(bench: Bench) -> Rows:
    """Sends into many rooms in turn, 1, 16 and 64 in flight."""
    rooms = await bench.rooms()
    for limit in bench.scale.sends:
        yield f"send, {len(rooms)} rooms, {limit} in flight", await _sends(bench, rooms, limit)


async def _receiver(
    client: MatrixClient,
    room_id: str,
    since: str,
    arrived: Callable[[str], None],
    waiting: Callable[[], None],
) -> None:
    """Long-poll for ever, telling of every message of the room."""
    while True:
        answer = await client.sync(since, timeout_ms=30_000)
        since = answer["next_batch"]
        for event in joined_timeline(answer, room_id):
            if event["type"] == "m.room.message":
                arrived(event["event_id"])
        waiting()


async def _deliver(
    bench: Bench, receivers: int, messages: int, pause_s: float
) -> tuple[Measurement, Measurement]:
    """Send `messages` to `receivers` long-polling clients; (deliveries with their latencies, the sends)."""
    alice = await bench.alice()
    room_id = await alice.create_room(preset="public_chat")
    clients = [await bench.new_user() for _ in range(receivers)]
    for client in clients:
        await client.join(room_id)
    tokens = [(await client.sync())["next_batch"] for client in clients]
    sends = Measurement()
    outstanding = 0
    everywhere = asyncio.Event()
    latencies: list[float] = []
    sent_at = 0.0

    def arrived(_event_id: str) -> None:
        nonlocal outstanding
        latencies.append(time.perf_counter() - sent_at)
        outstanding -= 1
        if outstanding == 0:
            everywhere.set()

    async def say(text: str) -> None:
        nonlocal outstanding, sent_at
        outstanding = receivers
        everywhere.clear()
        sent_at = time.perf_counter()
        await alice.send(room_id, text)
        sends.latencies_s.append(time.perf_counter() - sent_at)
        async with asyncio.timeout(60):
            await everywhere.wait()

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_receiver(client, room_id, token, arrived, lambda: None))
            for client, token in zip(clients, tokens, strict=True)
        ]
        for number in range(3):
            await say(f"warm {number}")
        latencies.clear()
        sends.latencies_s.clear()
        async with measured(bench.server) as row:
            for number in range(messages):
                # Long enough that every client waits in its next request: what is measured is an idle server.
                await asyncio.sleep(pause_s)
                await say(f"message {number}")
            row.operations = messages * receivers
        row.latencies_s = latencies
        sends.operations = messages
        for task in tasks:
            task.cancel()
    return row, sends


async def deliver(bench: Bench) -> Rows:
    """One message at a time to many syncing clients: from PUT to each of them."""
    receivers = bench.scale.receivers
    row, _ = await _deliver(bench, receivers, bench.scale.deliveries * min(bench.factor, 3), 0.05)
    yield f"delivery to {receivers} syncing clients", row


async def idle(bench: Bench) -> Rows:
    """One sender, one waiting client, nothing else: how long a send and its delivery take."""
    row, sends = await _deliver(bench, 1, bench.scale.idle_sends, 0.1)
    sends.note = row.note = "idle"
    row.cpu_s = None
    yield "idle: send answered", sends
    yield "idle: seen by a waiting client", row


async def create_room(bench: Bench) -> Rows:
    """Create private rooms, one after the other and 16 at a time."""
    alice = await bench.alice()
    await alice.create_room(preset="private_chat", name="warm")
    for limit in (1, 16):
        async with measured(bench.server) as row:
            jobs = (
                functools.partial(alice.create_room, preset="private_chat", name=f"room {i}")
                for i in range(bench.scale.create_rooms * bench.factor)
            )
            row.operations = await in_flight(jobs, limit, row.latencies_s)
        yield f"createRoom, {limit} in flight", row


async def join(bench: Bench) -> Rows:
    """Many users join one public room; then the initial sync of one of them."""
    alice = await bench.alice()
    room_id = await alice.create_room(preset="public_chat")
    clients: list[MatrixClient] = []

    async def make() -> None:
        clients.append(await bench.new_user())

    await in_flight([make] * bench.scale.members, 8)
    singly = max(10, bench.scale.members // 20)
    for limit, joining in ((1, clients[:singly]), (16, clients[singly:])):
        async with measured(bench.server) as row:
            jobs = (functools.partial(client.join, room_id) for client in joining)
            row.operations = await in_flight(jobs, limit, row.latencies_s)
        yield f"join, {limit} in flight", row
    yield (
        f"initial sync, one room of {bench.scale.members:,} members",
        await _initial_syncs(bench, clients[0].user_id),
    )


async def join_over_federation(bench: Bench) -> Rows:
    """A user joins a large room of another server, and another server joins it through us."""
    async for row in fedjoin.joins(bench.server, bench.scale.federated_rooms):
        yield row


async def _initial_syncs(bench: Bench, user_id: str) -> Measurement:
    """Initial syncs, each by a new device, so that no answer can come from a cache of answers."""
    nobody = MatrixClient(bench.session, bench.server.base_url)
    devices = [
        await nobody.login(user_id, "correct horse")
        for _ in range(bench.scale.initial_syncs * bench.factor + 1)
    ]
    await devices.pop().sync(filter=SYNC_FILTER)
    async with measured(bench.server) as row:
        jobs = (functools.partial(device.sync, filter=SYNC_FILTER) for device in devices)
        row.operations = await in_flight(jobs, 1, row.latencies_s)
    return row


async def initial_sync(bench: Bench) -> Rows:
    """Initial sync of a user in many rooms."""
    rooms = await bench.rooms()
    alice = await bench.alice()
    # Whether or not the sends ran before: each room has more than a timeline's worth of messages.
    await in_flight(
        [functools.partial(alice.send, room_id, f"{i}") for i in range(25) for room_id in rooms], 16
    )
    bob = await bench.bob()
    yield f"initial sync, {len(rooms)} rooms", await _initial_syncs(bench, bob.user_id)


async def messages(bench: Bench) -> Rows:
    """Page through a long history, a hundred events a page."""
    alice = await bench.alice()
    room_id = await bench.room()
    wanted = min(bench.scale.pages, 15) * 100
    await in_flight([functools.partial(alice.send, room_id, f"history {i}") for i in range(wanted)], 16)
    pages = bench.scale.pages * bench.factor

    async def page(query: dict[str, str]) -> None:
        answer = await alice.messages(room_id, "b", 100, **query)
        query.clear()
        if len(answer["chunk"]) == 100 and "end" in answer:
            query["from"] = answer["end"]

    position: dict[str, str] = {}
    await page(position)
    async with measured(bench.server) as row:
        row.operations = await in_flight([functools.partial(page, position)] * pages, 1, row.latencies_s)
    yield "/messages, pages of 100", row


async def disk(bench: Bench) -> Rows:
    """Bytes on disk an event, after many."""
    rooms = await bench.rooms()
    alice = await bench.alice()
    before = bench.server.disk_bytes()
    events = bench.scale.disk_events * (10 if bench.factor > 1 and bench.scale is FULL else 1)
    await in_flight(
        (functools.partial(alice.send, rooms[i % len(rooms)], f"message number {i}") for i in range(events)),
        64,
    )
    grown = bench.server.disk_bytes() - before
    yield "bytes on disk an event", Measurement(value=grown / events, note=f"{events:,} events")


async def memory(bench: Bench) -> Rows:
    """Memory of all processes, now."""
    yield "memory at the end, MB", Measurement(value=bench.server.memory_bytes() / 1e6)


SCENARIOS: dict[str, Callable[[Bench], Rows]] = {
    "idle": idle,
    "send1": send_one_room,
    "send50": send_many_rooms,
    "deliver": deliver,
    "create": create_room,
    "initial": initial_sync,
    "messages": messages,
    "join": join,
    "fedjoin": join_over_federation,
    "disk": disk,
    "memory": memory,
}

"""Row 10, for the others: while one server floods, hangs or drips, other rooms and other servers go on.

That is judged by what gets done while the hostile server is still at it, not by how long anything takes.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from federation.receipt.pdu_checks import MAX_SERVERS_AT_ONCE
from tests.support.evil_peer import Answer, Asked, EvilPeer
from tests.support.federation import until
from tests.support.visited_server import VisitedServer, visited_server
from tests.support.visitor import V1, Visitor

ROUNDS = 5


@pytest.fixture
async def world(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[VisitedServer]:
    """`world.peer` is the hostile server."""
    async with visited_server(tmp_path, session) as made:
        yield made


class Others:
    """A room that the hostile server is not in, shared with an honest one; and a room of Alice's alone."""

    def __init__(self, world: VisitedServer, honest: Visitor, alone: str) -> None:
        self.world = world
        self.honest = honest
        self.alone = alone

    async def go_on(self) -> None:
        """Have a message sent in both rooms, one come by the honest server, and one whose past must be asked for."""
        alice = self.world.alice
        await alice.send(self.alone, "to myself")
        await self.world.goes_on(self.honest)
        missing, told = self.honest.messages(2)
        self.honest.peer.answer("get_missing_events", lambda _: {"events": [missing.pdu]})
        assert await self.honest.send([told.pdu]) == {told.event_id: {}}

        async def both_there() -> bool:
            shown = [event["event_id"] for event in await alice.all_messages(self.honest.room_id)]
            return missing.event_id in shown and told.event_id in shown

        await until(both_there, "what was missing is fetched from the honest server")


@asynccontextmanager
async def others(world: VisitedServer) -> AsyncIterator[Others]:
    async with EvilPeer(world.ca) as peer:
        peer.answer("send", lambda _: {"pdus": {}})
        honest = await world.visited_room(peer=peer)
        yield Others(world, honest, await world.alice.create_room(preset="private_chat"))


class Hanging:
    """Answers that never come. `count` requests wait for one; `released`, they get an error."""

    def __init__(self) -> None:
        self.count = 0
        self.released = asyncio.Event()

    async def __call__(self, _: Asked) -> Answer:
        self.count += 1
        try:
            await self.released.wait()
        finally:
            self.count -= 1
        return Answer(503)


async def test_questions_that_the_hostile_server_never_answers(world: VisitedServer) -> None:
    """Each of its many rooms waits for events that it does not give."""
    hanging = Hanging()
    world.peer.answer("get_missing_events", hanging)
    async with others(world) as rest:
        rooms = [await world.visited_room() for _ in range(40)]
        for visitor in rooms:
            (event,) = visitor.messages(2)[1:]
            assert await visitor.send([event.pdu]) == {event.event_id: {}}

        async def are_asked() -> bool:
            return hanging.count > 0

        await until(are_asked, "the hostile server is asked")
        for _ in range(ROUNDS):
            await rest.go_on()
        assert hanging.count > 0, "it still hangs"
        hanging.released.set()


async def test_keys_that_the_hostile_server_makes_us_ask_for(world: VisitedServer) -> None:
    """Its events name users of servers that take a connection and say nothing."""
    async with others(world) as rest, silent_server() as silent:
        visitor = await world.visited_room()
        pdus = [
            visitor.event("m.room.message", {"n": n}, sender=f"@user:127.0.0.{n + 1}:{silent.port}")
            for n in range(50)
        ]
        for pdu in pdus:
            # Else nobody's key would be asked for.
            pdu["signatures"][pdu["sender"].split(":", 1)[1]] = {"ed25519:x": "A" * 86}
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(visitor.send(pdus))
            await until(silent.is_connected, "the silent servers are asked for their keys")
            # A server never met before is listened to all the same.
            async with EvilPeer(world.ca) as new:
                path = f"{V1}/query/profile?user_id={world.alice.user_id}"
                url = f"https://{world.server_name}"
                status, _ = await new.ask("GET", url, path, world.server_name)
                assert status == 200
            # It did not wait until one of them was given up.
            assert silent.connected <= MAX_SERVERS_AT_ONCE
            await rest.go_on()
            assert not sending.done(), "the silent servers are still asked"
            silent.done.set()


class Silent:
    """A port, `port`, on which connections are taken, and nothing is said until `done`."""

    def __init__(self) -> None:
        self.port = 0
        self.connected = 0
        self.done = asyncio.Event()

    async def is_connected(self) -> bool:
        """Whether somebody waits for an answer."""
        return self.connected > 0

    async def say_nothing(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        self.connected += 1
        await self.done.wait()
        writer.close()


@asynccontextmanager
async def silent_server() -> AsyncIterator[Silent]:
    silent = Silent()
    server = await asyncio.start_server(silent.say_nothing, "0.0.0.0", 0)
    silent.port = server.sockets[0].getsockname()[1]
    try:
        yield silent
    finally:
        silent.done.set()
        server.close()


async def test_a_flood_of_events_that_are_refused_or_wait(world: VisitedServer) -> None:
    hanging = Hanging()
    world.peer.answer("get_missing_events", hanging)
    world.peer.answer("state_ids", hanging)
    async with others(world) as rest:
        visitor = await world.visited_room()
        stop = asyncio.Event()
        taken = 0

        async def flood(number: int) -> None:
            nonlocal taken
            turn = 0
            while not stop.is_set():
                turn += 1
                pdus = [a_bad_one(visitor, number * 1_000_000 + turn * 100 + n) for n in range(50)]
                body = visitor.transaction(pdus)
                status, _ = await visitor.ask("PUT", f"{V1}/send/flood{number}-{turn}", body)
                assert status in (200, 429)
                taken += status == 200

        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(flood(number))
            done = 0
            while done < ROUNDS:
                before = taken
                await rest.go_on()
                done += 1

                async def goes_on_flooding(before: int = before) -> bool:
                    return taken > before

                await until(goes_on_flooding, "the flood goes on meanwhile", timeout_s=60)
            stop.set()
        hanging.released.set()
    await world.goes_on(visitor)


def a_bad_one(visitor: Visitor, number: int) -> dict[str, Any]:
    """An event that costs something before it is refused, or kept waiting."""
    match number % 3:
        case 0:
            return visitor.event("m.room.message", {"n": number}, prev_events=[f"${number:043d}"])
        case 1:
            levels = {"users": {visitor.user_id: 100}, "n": number}
            return visitor.event("m.room.power_levels", levels, state_key="")
        case _:
            pdu = visitor.event("m.room.message", {"n": number})
            return {**pdu, "signatures": {visitor.peer.server_name: {visitor.peer.key.key_id: "A" * 86}}}


async def test_a_server_that_drips_in_both_directions(world: VisitedServer) -> None:
    """Its requests come byte by byte, and so do its answers to ours."""
    dripped = 0
    stop = asyncio.Event()

    async def drip(response: web.StreamResponse) -> None:
        nonlocal dripped
        while not stop.is_set():
            await response.write(b" ")
            dripped += 1
            await asyncio.sleep(0.02)

    async with others(world) as rest:
        visitors = [await world.visited_room() for _ in range(5)]
        for endpoint in ("send", "get_missing_events", "state_ids", "event"):
            world.peer.answer(endpoint, lambda _: Answer(write=drip))
        for visitor in visitors:
            # Something for it from us, and something for us to ask.
            await world.alice.send(visitor.room_id, "for the slow one")
            (event,) = visitor.messages(2)[1:]
            assert await visitor.send([event.pdu]) == {event.event_id: {}}
        host, _, port = world.server_name.partition(":")
        writers = []
        for number in range(20):
            _, writer = await asyncio.open_connection(
                host, int(port), ssl=insecure(), server_hostname="localhost"
            )
            writer.write(
                f"PUT {V1}/send/slow{number} HTTP/1.1\r\nHost: {world.server_name}\r\n"
                "Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n".encode()
            )
            writers.append(writer)

        async def write_slowly() -> None:
            while not stop.is_set():
                for writer in writers:
                    if not writer.is_closing():
                        writer.write(b" ")
                await asyncio.sleep(0.02)

        async with asyncio.TaskGroup() as group:
            group.create_task(write_slowly())
            for _ in range(ROUNDS):
                before = dripped
                await rest.go_on()

                async def drips_on(before: int = before) -> bool:
                    return dripped > before

                await until(drips_on, "it drips on meanwhile")
            stop.set()
        for writer in writers:
            writer.close()


def insecure() -> ssl.SSLContext:
    """A TLS context that takes every certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context

"""A change of state too large for a message goes by reference: every reader follows it, also from the beginning."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from matrixlib.events import Event
from tests.support.arbor_server import ARBOR, ArborServer
from tests.support.federation import until
from tests.support.following import Follower
from tests.support.foreign_writer import ForeignWriter, foreign_writer
from tests.support.matrix_client import MatrixClient, http_session

BIG = "org.example.big"
COUNT = 12
MALLORY = "@mallory:foreign.test"
CAROL = "@carol:third.test"


async def change_much(foreign: ForeignWriter, room_id: str, base: Any) -> str:
    """Have the room change by a branch of which only the end is sent, with the state before it."""
    state = foreign.state_of(base)
    prev: Event | None = None
    made = []
    join = {"membership": "join"}
    steps: list[tuple[str, dict[str, object], str, str]] = [("m.room.member", join, CAROL, CAROL)]
    steps += [(BIG, {"text": "x" * 50_000, "n": n}, str(n), MALLORY) for n in range(COUNT)]
    for type_, content, key, sender in steps:
        prev = foreign.build(base, state, type_, content, key, room_id=room_id, prev=prev, sender=sender)
        state[type_, key] = prev
        made.append(prev)
    end = foreign.build(base, state, "m.room.message", {"body": "end"}, room_id=room_id, prev=prev)
    # The last part makes the state complete; the parts before leave the event waiting.
    for start in range(0, len(made), 6):
        await foreign.submit(
            room_id, end, outliers=made[start : start + 6], state_before=list(state.values())
        )
    return end.event_id


async def state_ids(client: MatrixClient, room_id: str) -> dict[tuple[str, str], str]:
    return {(event["type"], event["state_key"]): event["event_id"] for event in await client.state(room_id)}


def servers_known(server: ArborServer, room_id: str) -> set[str]:
    """The servers that federation sends a room's events to."""
    with closing(sqlite3.connect(server.data_dir / "federation.db", timeout=30)) as connection:
        rows = connection.execute(
            "SELECT server_name FROM room_server WHERE room_id = ? AND left_position IS NULL", (room_id,)
        )
        return {row[0] for row in rows}


@pytest.mark.timeout(180)
async def test_every_reader_follows_a_change_by_reference(tmp_path: Path) -> None:
    server = ArborServer(tmp_path / "server")
    await server.start()
    try:
        async with http_session() as session, foreign_writer(server, MALLORY) as foreign:
            alice = await server.register(session, "alice")
            room_id = await alice.create_room(preset="public_chat", room_version="10")
            follower = Follower(alice)
            await follower.follow()
            await follower.catch_up(
                await foreign.write(room_id, "m.room.member", {"membership": "join"}, MALLORY)
            )
            levels = {"users": {alice.user_id: 100, MALLORY: 100}}
            await alice.put(f"/rooms/{room_id}/state/m.room.power_levels/", levels)
            base = await foreign.latest(room_id)
            await follower.catch_up(await alice.send(room_id, "ours"))
            since = follower.since
            end = await change_much(foreign, room_id, base)
            await follower.catch_up(end)

            expected = {
                (event.type, event.state_key): event.event_id
                for event in foreign.state_of(await foreign.latest(room_id)).values()
            }
            assert {key for key in expected if key[0] == BIG} == {(BIG, str(n)) for n in range(COUNT)}
            assert ("m.room.member", CAROL) in expected
            assert await state_ids(alice, room_id) == expected
            # An incremental sync tells what changed beside the timeline.
            answer = await alice.sync(since)
            told = answer["rooms"]["join"][room_id]
            assert {(event["type"], event["state_key"]) for event in told["state"]["events"]} >= {
                *((BIG, str(n)) for n in range(COUNT)),
                ("m.room.member", CAROL),
            }
            assert told["summary"]["m.joined_member_count"] == 3

            async def look() -> bool:
                return {"foreign.test", "third.test"} <= servers_known(server, room_id)

            await until(look, "federation knows the servers of the new state")

            process = await asyncio.create_subprocess_exec(
                str(ARBOR), "rebuild", "syncapi", "--config", str(server.config_path)
            )
            assert await process.wait() == 0
            assert await state_ids(alice, room_id) == expected

            # From the first message on: the readers' tables are gone, the log is all there.
            await server.stop()
            for path in [*server.data_dir.glob("syncapi.db*"), *server.data_dir.glob("federation.db*")]:
                path.unlink()
            await server.start()
            alice.base_url = server.base_url
            assert await state_ids(alice, room_id) == expected
            await until(look, "federation knows them again")
            assert (await alice.sync(since))["rooms"]["join"][room_id]["summary"] == told["summary"]
    finally:
        await server.stop()

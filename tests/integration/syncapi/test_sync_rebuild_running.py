"""`arbor rebuild syncapi` beside a running server: the same answers, old tokens go on, new events come."""

import asyncio
from pathlib import Path
from typing import Any

from tests.support.arbor_server import ARBOR, ArborServer
from tests.support.matrix_client import MatrixClient, http_session


async def bodies_until(client: MatrixClient, room_id: str, since: str, last: str) -> tuple[list[str], Any]:
    """Sync from a token until a message is there; returns all texts, and the last counts."""
    texts: list[str] = []
    counts: Any = None
    async with asyncio.timeout(30):
        while last not in texts:
            answer = await client.sync(since, 5_000)
            since = answer["next_batch"]
            room = answer.get("rooms", {}).get("join", {}).get(room_id)
            if room is not None:
                texts += [event["content"].get("body") for event in room["timeline"]["events"]]
                counts = room["unread_notifications"]
    return texts, counts


async def test_rebuild_beside_a_running_server(tmp_path: Path) -> None:
    server = ArborServer(tmp_path / "server")
    await server.start()
    try:
        async with http_session() as session:
            alice = await server.register(session, "alice")
            bob = await server.register(session, "bob")
            room_id = await alice.create_room(preset="public_chat")
            await bob.join(room_id)
            since = (await bob.sync())["next_batch"]
            for number in range(5):
                await alice.send(room_id, {"msgtype": "m.text", "body": str(number)})
            before = await bodies_until(bob, room_id, since, "4")
            state = await bob.state(room_id)
            process = await asyncio.create_subprocess_exec(
                str(ARBOR), "rebuild", "syncapi", "--config", str(server.config_path)
            )
            assert await process.wait() == 0
            assert await bodies_until(bob, room_id, since, "4") == before
            assert {event["event_id"] for event in await bob.state(room_id)} == {
                event["event_id"] for event in state
            }
            fresh = await bob.sync()
            assert room_id in fresh["rooms"]["join"]
            await alice.send(room_id, {"msgtype": "m.text", "body": "after"})
            texts, _ = await bodies_until(bob, room_id, fresh["next_batch"], "after")
            assert texts == ["after"]
    finally:
        await server.stop()

"""Two syncapi processes, each with a database of its own, over one log: tokens of one go on at the other."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.support.arbor_server import ARBOR, ArborServer
from tests.support.homeserver import Homeserver
from tests.support.matrix_client import MatrixClient
from tests.support.ports import free_port


class Replica(Homeserver):
    """One more syncapi of a running deployment."""

    name = "Arbor's second syncapi"

    def __init__(self, deployment: ArborServer, database_url: str) -> None:
        folder = deployment.folder / "replica"
        super().__init__(folder)
        folder.mkdir()
        self.server_name = deployment.server_name
        self._port = free_port()
        self.config_path = folder / "homeserver.yaml"
        settings = yaml.safe_load(deployment.config_path.read_text())
        settings |= {
            "listeners": [{"host": "127.0.0.1", "port": self._port, "resources": ["client"]}],
            "grpc": {"listen": {"syncapi": f"unix:{folder / 'syncapi.sock'}"}},
            "databases": {"syncapi": database_url},
        }
        self.config_path.write_text(yaml.safe_dump(settings))

    def _command(self) -> tuple[list[str], dict[str, str]]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ARBOR_")}
        return [str(ARBOR), "syncapi", "--config", str(self.config_path)], environment

    def _find_base_url(self) -> str | None:
        return f"http://127.0.0.1:{self._port}"

    async def _wait_until_it_answers(self, deadline: float) -> None:
        self.base_url = f"http://127.0.0.1:{self._port}"
        async with aiohttp.ClientSession() as session:
            while time.monotonic() < deadline:
                with contextlib.suppress(aiohttp.ClientError):
                    # It has no /versions, which is clientapi's.
                    async with session.get(f"{self.base_url}/_matrix/client/v3/joined_rooms") as response:
                        if response.status == 401:
                            return
                await asyncio.sleep(0.02)
        raise TimeoutError(f"{self.name} does not answer:\n{self.output_tail()}")


@pytest.fixture
async def replicas(tmp_path: Path, postgres_url: str) -> AsyncIterator[tuple[ArborServer, Replica]]:
    """A deployment on SQLite with a second syncapi on PostgreSQL."""
    first = ArborServer(tmp_path / "arbor", config={"federation": {"enabled": False}})
    await first.start()
    try:
        second = Replica(first, postgres_url)
        await second.start()
        try:
            yield first, second
        finally:
            await second.stop()
    finally:
        await first.stop()


def comparable(value: Any) -> Any:
    """The answer without what replicas may have differently: the LIVE part of tokens, orders of no meaning."""
    if isinstance(value, dict):
        return {
            key: value[key].rpartition("_")[0] if key == "next_batch" else comparable(value[key])
            for key in sorted(value)
            if key != "presence"
        }
    if isinstance(value, list):
        items = [comparable(item) for item in value]
        keyed = all(isinstance(item, dict) and "event_id" in item for item in items)
        return sorted(items, key=lambda item: item["event_id"]) if keyed else items
    return value


@pytest.mark.timeout(120)
async def test_same_answers_and_tokens_valid_on_both(
    replicas: tuple[ArborServer, Replica], session: aiohttp.ClientSession
) -> None:
    first, second = replicas
    alice = await first.register(session, "alice")
    bob = await first.register(session, "bob")
    room_id = await alice.create_room(preset="public_chat", name="Two of them")
    await bob.join(room_id)
    at = {server: bob.at(server.base_url) for server in (first, second)}

    async def told(client: MatrixClient, since: str, event_id: str) -> tuple[str, list[str]]:
        found: list[str] = []
        async with asyncio.timeout(20):
            while event_id not in found:
                answer = await client.sync(since, 5_000)
                since = answer["next_batch"]
                room = answer.get("rooms", {}).get("join", {}).get(room_id)
                found += [event["event_id"] for event in room["timeline"]["events"]] if room else []
        return since, found

    # A client that is sent to and fro is told everything, once.
    since = (await at[first].sync())["next_batch"]
    sent: list[str] = []
    seen: list[str] = []
    for turn in range(12):
        sent.append(await alice.send(room_id, f"turn {turn}"))
        since, found = await told(at[second if turn % 2 else first], since, sent[-1])
        seen += found
    assert seen == sent
    await alice.set_state(room_id, "m.room.topic", {"topic": "t"})
    last = await alice.send(room_id, "last")
    for client in at.values():
        await told(client, since, last)
    answers = [comparable(await client.sync()) for client in at.values()]
    assert answers[0] == answers[1]
    # With a filter not used before: a repeated request would get its first answer again.
    long = '{"room":{"timeline":{"limit":20}}}'
    answers = [comparable(await client.sync(since, filter=long)) for client in at.values()]
    assert answers[0] == answers[1]
    assert len(answers[0]["rooms"]["join"][room_id]["timeline"]["events"]) == 2
    # Pages go on at the other one too.
    page = await at[first].messages(room_id, limit=5)
    pages = [await client.messages(room_id, limit=5, **{"from": page["end"]}) for client in at.values()]
    assert pages[0] == pages[1]
    assert len(pages[0]["chunk"]) == 5
    histories = [await client.all_messages(room_id) for client in at.values()]
    assert histories[0] == histories[1]

"""Row 39, the running system: what its processes share is shut to everybody else.

Sockets, keys and credentials are the owner's, NATS is on loopback and asks who is there, and what a service
may not say it cannot say: an entry that another than the RoomServer puts on OUTPUT is refused by NATS.
"""

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import nats
import psutil
import pytest

from servicekit.log.subjects import encode_token, room_output_subject
from tests.support.arbor_server import ArborServer
from tests.support.http_listener import connected
from tests.support.processes import process_tree


@pytest.fixture
async def arbor(tmp_path: Path) -> AsyncIterator[ArborServer]:
    server = ArborServer(tmp_path / "arbor")
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def nats_answer(port: int, options: dict[str, str]) -> bytes:
    """What nats-server says to a CONNECT with these options and a PING."""
    async with asyncio.timeout(10), connected(port) as (reader, writer):
        assert (await reader.readline()).startswith(b"INFO ")
        writer.write(b"CONNECT %s\r\nPING\r\n" % json.dumps({"verbose": False, **options}).encode())
        return (await reader.readline()).strip()


async def test_what_the_processes_share_is_shut(arbor: ArborServer, session: aiohttp.ClientSession) -> None:
    alice = await arbor.register(session, "alice")
    room_id = await alice.create_room()
    event_id = await alice.send(room_id, "true")

    # Files and sockets: the owner's alone, or in a folder that is.
    for path in arbor.data_dir.rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert not mode & 0o077 or _is_shut_in(path, arbor.data_dir), f"{path}: {mode:o}"
    for name in ("signing.key", "run/nats-credentials.json", "run/nats.conf", "clientapi.db"):
        assert stat.S_IMODE((arbor.data_dir / name).stat().st_mode) & 0o077 == 0, name

    # Nothing listens on other addresses than loopback, and on no port that nobody told it to.
    known = {listener["port"] for listener in arbor.listeners()}
    nats_place = json.loads((arbor.run_dir / "nats.json").read_text())
    for process in process_tree(arbor.pid):
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip == "127.0.0.1"
                assert connection.laddr.port in known | {nats_place["port"]}

    # NATS wants to know who is there.
    assert await nats_answer(nats_place["port"], {}) == b"-ERR 'Authorization Violation'"
    guess = {"user": "roomserver", "pass": "guess"}
    assert await nats_answer(nats_place["port"], guess) == b"-ERR 'Authorization Violation'"
    passwords = json.loads((arbor.run_dir / "nats-credentials.json").read_text())
    known_user = {"user": "roomserver", "pass": passwords["roomserver"]}
    assert await nats_answer(nats_place["port"], known_user) == b"PONG"

    # No other service than the RoomServer can say what has happened, or read what is asked.
    for service in ("clientapi", "syncapi", "federation"):
        assert await refused_subjects(nats_place["url"], service, passwords[service], room_id) == {
            "publish OUTPUT",
            "read INPUT",
        }, service
    assert await alice.send(room_id, "still true")
    history = [event["event_id"] for event in await alice.all_messages(room_id)]
    assert event_id in history

    # Ids stand in no subject as they are.
    status, output = await arbor.command("log", "show", "OUTPUT", "--after", "0")
    assert status == 0
    subjects = [json.loads(line)["subject"] for line in output.splitlines() if line.startswith("{")]
    assert any(encode_token(room_id) in subject for subject in subjects)
    assert not any(room_id in subject or "!" in subject or "@" in subject for subject in subjects)


def _is_shut_in(path: Path, top: Path) -> bool:
    """Whether a folder on the way from the data directory lets nobody else in."""
    folders = [folder for folder in path.parents if folder == top or top in folder.parents]
    return any(stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0 for folder in folders)


async def refused_subjects(url: str, service: str, password: str, room_id: str) -> set[str]:
    """What NATS refuses a service of: told by errors that come after the fact."""
    refused: set[str] = set()

    async def on_error(error: Exception) -> None:
        text = str(error).lower()
        if "permissions violation" in text:
            refused.add("publish OUTPUT" if "publish" in text and "room.output" in text else "read INPUT")

    connection = await nats.connect(
        url, user=service, password=password, allow_reconnect=False, error_cb=on_error, connect_timeout=5
    )
    try:
        await connection.publish(room_output_subject(room_id, 16), b"a lie")
        await connection.publish("$JS.API.CONSUMER.CREATE.INPUT.forged", b"{}")
        await connection.flush()
        async with asyncio.timeout(10):
            while len(refused) < 2:
                await asyncio.sleep(0.02)
    finally:
        await connection.close()
    return refused

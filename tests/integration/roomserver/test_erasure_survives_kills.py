"""`log.secure_erase` forgets nothing when the process is killed: what was to go goes at the next start."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import orjson
import pytest

from arbor.log.v1.input_pb2 import InputEntry, InputMessage, PurgeRoom
from servicekit.config import Config
from servicekit.log.connection import LogConnection
from servicekit.log.subjects import OUTPUT, room_input_subject
from tests.integration.roomserver.test_log_keeping import SECRET, gone, log_texts
from tests.support.judging import local
from tests.support.nats import NatsProcess, running_nats
from tests.support.rooms import ALICE, Room
from tests.support.running_roomserver import config_for, running_roomserver

FAULTS = (
    "roomserver.after_commit:3",
    "relay.before_publish:3",
    "relay.after_publish:3",
    "roomserver.before_erasure",
    "roomserver.after_erasure",
)


async def killed_while_erasing(
    config: Config, folder: Path, nats: NatsProcess, fault: str, last: str
) -> None:
    """Have another process judge a secret and its end, and be killed."""
    settings = {
        "server_name": "a.example",
        "data_dir": str(config.data_dir),
        "run_dir": str(nats.run_dir),
        "log": {"max_bytes": "256MiB", "partitions": 4, "secure_erase": True},
    }
    path = folder / "arbor.yaml"
    path.write_bytes(orjson.dumps(settings))
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("arbor")), "roomserver", "--config", str(path)),
        env=os.environ | {"ARBOR_FAULT": fault},
    )
    writer = await LogConnection.connect(config, "clientapi")
    try:
        await writer.wait_for_streams()
        room = Room("12")
        room_id = room.room_id or ""
        requests = [local(room_id, [room.events[i] for i in room.order])]
        secret = room.send(ALICE, "m.room.message", {"body": SECRET})
        requests.append(local(room_id, [secret]))
        if last == "redaction":
            redaction = room.send(ALICE, "m.room.redaction", {"redacts": secret.event_id})
            requests.append(local(room_id, [redaction]))
        else:
            requests.append((room_id, [InputEntry(request_id="purge", purge_room=PurgeRoom())]))
        for number, (_, entries) in enumerate(requests, 1):
            data = InputMessage(room_id=room_id, entries=entries).SerializeToString()
            await writer.publish(room_input_subject(room_id, 4), data)
            # Each a batch of its own; whenever the process dies, the next one must make up for it.
            async with asyncio.timeout(20):
                while process.returncode is None and await last_told(writer) < number < len(requests):
                    await asyncio.sleep(0.01)
        async with asyncio.timeout(20):
            assert await process.wait() == -signal.SIGKILL
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await writer.close()


async def last_told(writer: LogConnection) -> int:
    info = await writer.load_stream(OUTPUT)
    return info.last_sequence if info is not None else 0


@pytest.mark.parametrize("last", ["redaction", "purge"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_what_was_to_go_goes_after_a_kill(tmp_path: Path, fault: str, last: str) -> None:
    with running_nats(tmp_path) as nats:
        config = config_for(tmp_path, nats, **{"log.secure_erase": "true"})
        await killed_while_erasing(config, tmp_path, nats, fault, last)
        async with running_roomserver(tmp_path, nats, **{"log.secure_erase": "true"}) as world:
            await gone(world, SECRET)
            assert any(b"m.room.create" in text for text in await log_texts(world)) == (last == "redaction")

"""`arbor log replay`: have a running service apply dead letters again.

The RoomServer does it room by room, over its admin service, and lifts the room's quarantine. A reader does it
by the letters' ids, asked on its process's own unix socket.
"""

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Any

import aiohttp
import grpc.aio

from arbor.roomserver.v1.query_pb2 import ReplayDeadLettersRequest
from arbor.roomserver.v1.query_pb2_grpc import AdminServiceStub
from servicekit.cli.main import CommandError
from servicekit.config import Config
from servicekit.grpc import channel_to, matrix_error_from
from servicekit.service.sockets import process_sockets

TIMEOUT_S = 120.0


def replay(config: Config, service: str, what: Sequence[str]) -> int:
    """Have a service apply dead letters again; returns 1 when some failed again.

    Args:
        config: the deployment's.
        service: whose.
        what: room ids for the RoomServer, numbers of letters for others; empty: everything.
    """
    if service == "roomserver":
        return asyncio.run(_replay_rooms(config, what))
    if not all(word.isdigit() for word in what):
        raise CommandError(f"the letters of {service} go by the numbers that `arbor log dead` shows")
    answer = asyncio.run(_replay_letters(config, service, [int(word) for word in what]))
    print(json.dumps(answer, indent=1, ensure_ascii=False))
    return 0


async def _replay_rooms(config: Config, room_ids: Sequence[str]) -> int:
    applied = failed = 0
    async with channel_to(config, "roomserver", caller="cli") as channel:
        admin = AdminServiceStub(channel)
        for room_id in room_ids or [""]:
            request = ReplayDeadLettersRequest(room_id=room_id)
            try:
                answer = await admin.ReplayDeadLetters(request, timeout=TIMEOUT_S, wait_for_ready=False)
            except grpc.aio.AioRpcError as error:
                raise CommandError(f"the roomserver: {matrix_error_from(error).message}") from error
            applied += answer.applied
            failed += answer.failed
    print(f"{applied} applied, {failed} failed again")
    return 1 if failed else 0


async def _replay_letters(config: Config, service: str, ids: Sequence[int]) -> Any:
    for path in process_sockets(config.socket_path("x").parent):
        connector = aiohttp.UnixConnector(path=str(path))
        async with aiohttp.ClientSession(connector=connector) as session:
            with contextlib.suppress(aiohttp.ClientConnectorError):
                body = {"service": service, "ids": list(ids)}
                async with session.post("http://process/replay", json=body) as response:
                    answer = await response.json()
                    if response.status == 200:
                        return answer
                    if response.status != 404:
                        raise CommandError(str(answer.get("error")))
    raise CommandError(f"no process with {config.run_dir} runs {service}")

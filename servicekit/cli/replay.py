"""`arbor log replay`: a request to the process that runs the service, on its own unix socket."""

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Any

import aiohttp

from servicekit.cli.main import CommandError
from servicekit.config import Config
from servicekit.service.sockets import process_sockets


def replay(config: Config, service: str, ids: Sequence[int]) -> int:
    """Have a running service apply dead letters again."""
    answer = asyncio.run(_replay(config, service, ids))
    print(json.dumps(answer, indent=1, ensure_ascii=False))
    return 0


async def _replay(config: Config, service: str, ids: Sequence[int]) -> Any:
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

"""Requests that come while a process starts."""

import asyncio
from typing import Any

from servicekit.config import Config
from servicekit.http import Router
from servicekit.service.runner import _Process


async def nothing(_request: Any) -> Any:
    raise AssertionError("not called")


async def test_a_request_waits_for_every_service_of_the_process() -> None:
    process = _Process(Config(), {"clientapi": nothing, "federation": nothing}, "edge", None)
    router = Router()
    router.owner = "clientapi"
    router.add("GET", "/ours", nothing)
    router.owner = None
    router.add("GET", "/health", nothing)
    ours, own = (router.match("GET", path)[0] for path in ("/ours", "/health"))
    assert ours is not None
    assert own is not None
    assert await process._ready(own)
    process._started["clientapi"].set()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(process._ready(ours))
        for _ in range(10):
            await asyncio.sleep(0)
        # clientapi asks federation for what other servers have.
        assert not waiting.done()
        process._started["federation"].set()
    assert waiting.result()

"""Two people talk through matrix-js-sdk on Node, the library under Element Web."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.homeserver import Homeserver

SCRIPT = Path(__file__).parent / "js_conversation.mjs"
STEPS = ["started", "invited", "joined", "sent", "redacted", "topic", "left", "refused", "end"]


async def test_two_people_talk(
    homeserver: Homeserver, unique: Callable[[str], str], node_tools: Path
) -> None:
    names = [unique("alice"), unique("bob")]
    process = await asyncio.create_subprocess_exec(
        str(node_tools),
        str(SCRIPT),
        homeserver.base_url,
        *names,
        "correct horse battery",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(90):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    lines = [line for line in output.decode().splitlines() if line.startswith('{"step"')]
    steps: dict[str, Any] = {(line := json.loads(text))["step"]: line for text in lines}
    assert list(steps) == STEPS, f"{output.decode()}\n{errors.decode()}"
    assert process.returncode == 0
    server = homeserver.server_name
    assert steps["started"]["alice"] == f"@{names[0]}:{server}"
    assert steps["started"]["bob"] == f"@{names[1]}:{server}"
    assert steps["joined"]["name"] == "The first room"
    assert steps["left"]["membership"] == "leave"
    assert steps["refused"]["errcode"] == "M_FORBIDDEN"

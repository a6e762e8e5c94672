"""README's first conversation, run as it stands: only where the server listens is another."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.arbor_server import ArborServer

REPOSITORY = Path(__file__).resolve().parents[3]
BASE = "http://localhost:8008"


def code_blocks(heading: str) -> list[str]:
    """The indented blocks of a section of README.md, the indentation taken off."""
    text = (REPOSITORY / "README.md").read_text()
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    blocks: list[str] = []
    inside = False
    for line in section.splitlines():
        if line.startswith("    "):
            if inside:
                blocks[-1] += line[4:] + "\n"
            else:
                blocks.append(line[4:] + "\n")
            inside = True
        elif line.strip():
            inside = False
        elif inside:
            blocks[-1] += "\n"
    return blocks


@pytest.fixture
async def localhost(tmp_path: Path) -> AsyncIterator[ArborServer]:
    """A server with the name that README's has."""
    server = ArborServer(tmp_path / "arbor", "localhost")
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def run_script(script: str, server: ArborServer) -> str:
    """Run shell commands in the repository, stopping at the first that fails; returns what they print."""
    environment = os.environ | {"ARBOR_CONFIG": str(server.config_path)}
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-euo",
        "pipefail",
        "-c",
        script,
        cwd=REPOSITORY,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(90):
        output, _ = await process.communicate()
    text = output.decode()
    assert process.returncode == 0, text
    return text


async def test_the_first_conversation(localhost: ArborServer) -> None:
    blocks = code_blocks("A first conversation")
    assert len(blocks) >= 5
    script = "".join(blocks)
    assert BASE in script
    script = script.replace(BASE, localhost.base_url)
    # The environment that runs the tests stands for the one that `make setup` makes.
    script = script.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    output = await run_script(script, localhost)
    assert re.search(r'"event_id":\s*"\$', output), output
    assert '"body": "Hello, Bob"' in output
    # matrix-nio prints the room and who is in it.
    assert re.search(r"Tea \[.*@alice:localhost.*\]", output), output
    assert "errcode" not in output
    assert "Traceback" not in output

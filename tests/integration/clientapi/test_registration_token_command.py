"""`arbor registration-token` against a server that runs."""

import asyncio
import subprocess
from pathlib import Path

import aiohttp

from tests.support.arbor_server import ARBOR, ArborServer


async def test_a_token_made_on_the_command_line_lets_one_person_register(tmp_path: Path) -> None:
    server = ArborServer(tmp_path, config={"registration": {"require_verification": True}})

    async def command(*arguments: str) -> tuple[int, str, str]:
        whole = [str(ARBOR), "registration-token", *arguments, "--config", str(server.config_path)]
        done = await asyncio.to_thread(subprocess.run, whole, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout.strip(), done.stderr

    async def register(session: aiohttp.ClientSession, name: str, token: str) -> int:
        auth = {"type": "m.login.registration_token", "token": token}
        body = {"username": name, "password": "correct horse", "auth": auth}
        async with session.post(f"{server.base_url}/_matrix/client/v3/register", json=body) as response:
            return response.status

    await server.start()
    try:
        code, token, _ = await command("create", "--uses", "1", "--expires", "7d")
        assert (code, token.isalnum()) == (0, True)
        async with aiohttp.ClientSession() as session:
            assert await register(session, "eve", token) == 200
            assert await register(session, "mallory", token) == 401
        code, listed, _ = await command("list")
        assert listed.startswith(f"{token}  used 1 of 1  expires 20")
        assert (await command("delete", token))[0] == 0
        assert (await command("list"))[1] == ""
        code, _, said = await command("delete", token)
        assert code == 2
        assert "no such registration token" in said
        code, _, said = await command("create", "--expires", "soon")
        assert code == 2
        assert "ISO 8601" in said
    finally:
        await server.stop()

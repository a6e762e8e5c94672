"""matrix-js-sdk on Node, the library under Element Web: two people talk, and a day of a web client."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.homeserver import Homeserver

HERE = Path(__file__).parent
TALK = ["started", "invited", "joined", "sent", "redacted", "topic", "left", "refused", "end"]
DAY = ["asked", "registered", "started", "environment", "oneself", "rooms", "power", "end"]

# Errors that belong to the day: (method, last fixed parts of the path, status, errcode), each as often as it comes.
EXPECTED_ERRORS = {
    ("GET", "/rtc/transports", 404, "M_UNRECOGNIZED"),
    ("GET", "/room_keys/version", 404, "M_NOT_FOUND"),
    ("DELETE", "/devices/", 401, None),
    ("POST", "/kick", 403, "M_FORBIDDEN"),
    ("POST", "/join/", 403, "M_FORBIDDEN"),
    ("PUT", "/send/m.call.member/1", 400, "M_UNRECOGNIZED"),
    ("POST", "/account/deactivate", 401, "M_FORBIDDEN"),
}


async def run(script: str, node: Path, homeserver: Homeserver, names: list[str]) -> dict[str, Any]:
    """Run a script of this folder; returns its steps by name, in order."""
    process = await asyncio.create_subprocess_exec(
        str(node),
        str(HERE / script),
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
    assert "end" in steps, f"{output.decode()}\n{errors.decode()}"
    assert process.returncode == 0
    return steps


async def test_two_people_talk(
    homeserver: Homeserver, unique: Callable[[str], str], node_tools: Path
) -> None:
    names = [unique("alice"), unique("bob")]
    steps = await run("js_conversation.mjs", node_tools, homeserver, names)
    assert list(steps) == TALK
    server = homeserver.server_name
    assert steps["started"]["alice"] == f"@{names[0]}:{server}"
    assert steps["started"]["bob"] == f"@{names[1]}:{server}"
    assert steps["joined"]["name"] == "The first room"
    assert steps["left"]["membership"] == "leave"
    assert steps["refused"]["errcode"] == "M_FORBIDDEN"


async def test_a_day_of_a_web_client(
    homeserver: Homeserver, unique: Callable[[str], str], node_tools: Path
) -> None:
    names = [unique("alice"), unique("bob")]
    steps = await run("js_startup.mjs", node_tools, homeserver, names)
    assert list(steps) == DAY
    server = homeserver.server_name
    asked = steps["asked"]
    assert (asked["metadata"], asked["free"]) == ("M_UNRECOGNIZED", True)
    assert asked["flows"] == [{"stages": ["m.login.dummy"]}]
    assert "m.login.password" in asked["login"]
    assert steps["registered"]["free"] is False
    # The order in which a web client starts; /sync comes last.
    started = steps["started"]["requests"]
    first = ("versions", "pushrules/", "capabilities", "filter", "sync")
    assert [name for name in first if any(f"/{name} 200" in line for line in started)] == list(first)
    assert started[-1].startswith("GET /_matrix/client/v3/sync")
    environment = steps["environment"]
    assert (environment["backup"], environment["transports"]) == ("M_NOT_FOUND", "M_UNRECOGNIZED")
    assert {"m.change_password", "m.profile_fields", "m.room_versions"} <= set(environment["capabilities"])
    assert environment["threads"] == {"threads": 2, "list": 2, "fwdPagination": 2}, "all of it is stable"
    assert environment["fields"] is True
    assert environment["me"] == f"@{names[0]}:{server}"
    oneself = steps["oneself"]
    assert oneself["profile"] == {"displayname": "Alice", "m.tz": "Europe/Berlin"}
    assert (oneself["pushers"], oneself["devices"], oneself["openid"]) == (1, 1, server)
    assert oneself["flows"] == [{"stages": ["m.login.password"]}]
    rooms = steps["rooms"]
    assert rooms["listed"] == [f"Tea {names[0]}"]
    assert rooms["found"] == ["Alice"]
    assert (rooms["aliases"], rooms["summary"], rooms["members"], rooms["hierarchy"]) == (2, 2, 2, 2)
    assert (rooms["threads"], rooms["reactions"], rooms["nearest"]) == (1, 1, True)
    assert rooms["shared"] == [rooms["roomId"]]
    power = steps["power"]
    assert (power["tooMuch"], power["banned"]) == ("M_FORBIDDEN", "M_FORBIDDEN")
    assert power["predecessor"] == rooms["roomId"]
    assert power["favourite"] is power["alias"] is True
    assert power["delayed"] == "M_UNRECOGNIZED"
    assert steps["end"]["wrong"] == 401
    for error in steps["end"]["errors"]:
        assert any(
            (error["method"], error["status"], error["errcode"]) == (method, status, errcode)
            and part in error["path"]
            for method, part, status, errcode in EXPECTED_ERRORS
        ), error

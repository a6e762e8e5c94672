"""Row 40, a whole run: no token, password or message body in what the processes print, log or count."""

from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.arbor_server import ArborServer
from tests.support.homeserver import SHARED_SECRET
from tests.support.matrix_client import ClientError, MatrixClient, segment

PASSWORD = "a-password-like-no-other"
NEW_PASSWORD = "another-one-like-no-other"
RESET_PASSWORD = "a-third-one-like-no-other"
BODY = "words-that-only-the-room-may-read"
REASON = "a-reason-like-no-other"


@pytest.fixture
async def talkative(tmp_path: Path) -> AsyncIterator[ArborServer]:
    """A server that logs all it can."""
    settings = {"logging": {"level": "debug", "format": "json"}}
    server = ArborServer(tmp_path / "arbor", config=settings)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def conversation(server: ArborServer, session: aiohttp.ClientSession) -> list[str]:
    """Talk, in success and in failure; returns what must not be found anywhere."""
    alice = await server.register(session, "alice", PASSWORD)
    again = await MatrixClient(session, server.base_url).login("alice", PASSWORD)
    with pytest.raises(ClientError):
        await MatrixClient(session, server.base_url).login("alice", PASSWORD + "wrong")
    refreshed = await MatrixClient(session, server.base_url).post(
        "/login",
        {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": "alice"},
            "password": PASSWORD,
            "refresh_token": True,
        },
    )
    room_id = await alice.create_room(name="x")
    event_id = await alice.send(room_id, BODY)
    await alice.redact(room_id, event_id, REASON)
    for path in (f"/rooms/{segment(room_id)}/messages", "/sync?since=nonsense", "/nothing"):
        with pytest.raises(ClientError):
            await alice.get(path)
        # The token in the query, as older clients send it.
        url = f"{server.base_url}/_matrix/client/v3{path.split('?')[0]}"
        async with session.get(url, params={"access_token": alice.access_token}) as response:
            await response.read()
    with pytest.raises(ClientError):
        await alice.set_state(room_id, "m.room.member", {"membership": BODY}, alice.user_id)
    auth = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": "alice"},
        "password": PASSWORD,
    }
    try:
        await again.post("/account/password", {"new_password": NEW_PASSWORD, "auth": auth})
    except ClientError as challenge:
        auth["session"] = challenge.body["session"]
        await again.post("/account/password", {"new_password": NEW_PASSWORD, "auth": auth})
    openid = await again.post(f"/user/{segment(again.user_id)}/openid/request_token", {})
    login_token = await with_proof(again, "/_matrix/client/v1/login/get_token", NEW_PASSWORD)
    root = await server.register(session, "root", PASSWORD, admin=True)
    admin_path = f"/_synapse/admin/v1/reset_password/{segment(alice.user_id)}"
    await root.request("POST", admin_path, {"new_password": RESET_PASSWORD, "logout_devices": False})
    with pytest.raises(ClientError):
        await root.post(
            "/register", {"username": "x", "guest_access_token": again.access_token, "password": PASSWORD}
        )
    await again.post("/logout")
    with pytest.raises(ClientError):
        await again.get("/account/whoami")
    return [
        PASSWORD,
        NEW_PASSWORD,
        BODY,
        REASON,
        SHARED_SECRET,
        alice.access_token,
        again.access_token,
        refreshed["access_token"],
        refreshed["refresh_token"],
        RESET_PASSWORD,
        root.access_token,
        openid["access_token"],
        login_token["login_token"],
    ]


async def with_proof(client: MatrixClient, path: str, password: str) -> Any:
    """Ask for what wants a proof by password."""
    auth = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": client.user_id},
        "password": password,
    }
    return await client.request("POST", path, {"auth": auth})


async def test_nothing_secret_is_written(talkative: ArborServer, session: aiohttp.ClientSession) -> None:
    secrets = await conversation(talkative, session)
    metrics = talkative.url_of("metrics")
    assert metrics is not None
    async with session.get(f"{metrics}/metrics") as response:
        exposition = await response.text()
    assert "arbor_" in exposition
    await talkative.stop()
    printed = talkative.output_tail(10**6)
    assert len(printed.splitlines()) > 20, "it logs"
    for secret in secrets:
        assert secret not in printed, secret
        assert secret not in exposition, secret
    credentials = (talkative.run_dir / "nats-credentials.json").read_text()
    for password in [part for part in credentials.split('"') if len(part) > 24]:
        assert password not in printed

    # On the log and in the databases: what is said in rooms is, who may say it is not, not even hashed.
    for file in [path for path in talkative.data_dir.rglob("*") if path.is_file() and not path.is_socket()]:
        data = file.read_bytes()
        for secret in secrets:
            if secret in (BODY, REASON):
                continue
            assert secret.encode() not in data, f"{secret} in {file}"
            if "nats" in file.parts:
                digest = sha256(secret.encode())
                assert digest.digest() not in data
                assert digest.hexdigest().encode() not in data

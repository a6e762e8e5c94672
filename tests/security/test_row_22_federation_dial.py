"""Row 22 and the like for federation: where we connect to, and how much of what comes back we read."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from federation.outbound import identity
from federation.outbound.client import FederationClient
from federation.outbound.deny import DenyList
from federation.outbound.discovery import Target
from federation.outbound.errors import BadAnswer, RemoteError, RemoteRefused, Unreachable
from federation.outbound.identity import AddressInvite, IdentityServers
from federation.outbound.transport import Transport
from servicekit.errors import MatrixError
from tests.support.evil_peer import Answer, EvilPeer
from tests.support.federation_alone import FederationAlone
from tests.support.tls_ca import TestCa


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[tuple[EvilPeer, FederationAlone]]:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        yield peer, us


async def ask(us: FederationAlone, peer: EvilPeer, **options: Any) -> Any:
    client: FederationClient = us.parts.client
    return await client.get(peer.server_name, "/_matrix/federation/v1/version", **options)


async def endless(response: web.StreamResponse) -> None:
    for _ in range(2_000):
        await response.write(b"x" * 65536)
        await asyncio.sleep(0)  # a closed connection takes everything without a wait


async def drip(response: web.StreamResponse) -> None:
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.05)


async def test_an_endless_body_is_cut(world: tuple[EvilPeer, FederationAlone]) -> None:
    peer, us = world
    peer.answer("version", lambda _: Answer(write=endless))
    with pytest.raises(BadAnswer):
        await ask(us, peer, max_bytes=1_000_000)


async def test_a_slow_drip_ends_in_time(world: tuple[EvilPeer, FederationAlone]) -> None:
    peer, us = world
    peer.answer("version", lambda _: Answer(write=drip))
    began = time.monotonic()
    with pytest.raises(Unreachable):
        await ask(us, peer, timeout_s=0.5)
    assert time.monotonic() - began < 5


async def test_a_promised_length_that_is_too_long_is_not_read(
    world: tuple[EvilPeer, FederationAlone],
) -> None:
    peer, us = world
    peer.answer("version", lambda _: Answer(body=b"[" + b"1," * 600_000 + b"1]"))
    with pytest.raises(BadAnswer):
        await ask(us, peer, max_bytes=1_000_000)


async def test_a_compressed_answer_is_not_unpacked(world: tuple[EvilPeer, FederationAlone]) -> None:
    peer, us = world
    peer.answer("version", lambda _: Answer(body=b"\x1f\x8b bomb", headers={"Content-Encoding": "gzip"}))
    with pytest.raises(BadAnswer):
        await ask(us, peer)


async def test_deep_json_is_refused(world: tuple[EvilPeer, FederationAlone]) -> None:
    peer, us = world
    peer.answer("version", lambda _: Answer(body=b'{"a":' * 100_000 + b"1" + b"}" * 100_000))
    with pytest.raises(BadAnswer):
        await ask(us, peer)


async def test_redirects_are_not_followed(world: tuple[EvilPeer, FederationAlone]) -> None:
    peer, us = world
    location = f"https://{peer.server_name}/_matrix/federation/v1/secret"
    peer.answer("version", lambda _: Answer(307, headers={"Location": location}))
    with pytest.raises(RemoteRefused):
        await ask(us, peer)
    assert peer.asked("secret") == []


async def test_private_addresses_are_not_dialled_whatever_the_name(tmp_path: Path) -> None:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer:
        transport = Transport(DenyList(["default"]), [ca.ca_path])
        try:
            for host in ("localhost", "127.0.0.1", "::1", "::ffff:127.0.0.1"):
                with pytest.raises(Unreachable):
                    await transport.request(
                        Target(host, peer.port, "localhost", "x"), "GET", "/", timeout_s=5, max_bytes=100
                    )
        finally:
            await transport.close()
            await asyncio.sleep(0.05)
        assert peer.requests == []


async def test_the_certificate_must_be_for_the_right_name(tmp_path: Path) -> None:
    ca, other = TestCa(tmp_path / "ca"), TestCa(tmp_path / "other")
    async with EvilPeer(ca) as peer:
        for trusted, name in ((ca, "elsewhere.example"), (other, "localhost")):
            transport = Transport(DenyList([]), [trusted.ca_path])
            try:
                with pytest.raises(RemoteError):
                    await transport.request(
                        Target("localhost", peer.port, name, "x"), "GET", "/", timeout_s=5, max_bytes=100
                    )
            finally:
                await transport.close()
                await asyncio.sleep(0.05)
        assert peer.requests == []


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "10.1.2.3", "[::ffff:127.0.0.1]"])
async def test_identity_servers_on_denied_addresses_are_not_asked(tmp_path: Path, host: str) -> None:
    ca = TestCa(tmp_path / "ca")
    transport = Transport(DenyList(["default"]), [ca.ca_path])
    try:
        async with EvilPeer(ca) as peer:
            invite = AddressInvite(f"{host}:{peer.port}", "token", "email", "a@b.example")
            with pytest.raises(MatrixError) as caught:
                await IdentityServers(transport).invite(invite, {})
            assert caught.value.http_status == 502
            assert peer.requests == []
    finally:
        await transport.close()


async def test_a_slow_identity_server_is_given_up(
    world: tuple[EvilPeer, FederationAlone], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, us = world
    monkeypatch.setattr(identity, "TIMEOUT_S", 0.5)
    peer.answer("hash_details", lambda _: {"lookup_pepper": "p", "algorithms": ["sha256"]})
    peer.answer("lookup", lambda _: Answer(write=drip))
    invite = AddressInvite(peer.server_name, "token", "email", "a@b.example")
    with pytest.raises(MatrixError) as caught:
        await us.parts.servicer._identity.invite(invite, {})
    assert caught.value.http_status == 502

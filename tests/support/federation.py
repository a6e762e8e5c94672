"""Homeservers that speak to each other over TLS on loopback, with a CA of the test."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml

from arbor.federation.v1 import federation_pb2_grpc
from servicekit.config import load_config
from servicekit.grpc import channel_to
from tests.support.arbor_server import ArborServer, merge
from tests.support.ports import free_port
from tests.support.synapse_server import SynapseServer
from tests.support.tls_ca import TestCa

T = TypeVar("T")


def federated_arbor(
    folder: Path,
    ca: TestCa,
    *,
    port: int | None = None,
    more_ports: Sequence[int] = (),
    config: dict[str, Any] | None = None,
) -> ArborServer:
    """An Arbor called `localhost:<port>`, and so for `more_ports`, which serves federation there with a
    certificate of `ca`.
    """
    ports = (port or free_port(), *more_ports)
    certificate = ca.issue("localhost", "127.0.0.1", file_name=f"server-{ports[0]}")
    tls = {
        "certificate_path": str(certificate.certificate_path),
        "private_key_path": str(certificate.private_key_path),
    }
    settings: dict[str, Any] = {
        "listeners": [
            {"host": "127.0.0.1", "port": 0, "resources": ["client", "media", "admin"]},
            *({"host": "127.0.0.1", "port": port, "resources": ["federation"], "tls": tls} for port in ports),
            {"host": "127.0.0.1", "port": 0, "resources": ["metrics"]},
        ],
        "federation": {"trusted_ca_paths": [str(ca.ca_path)], "ip_denylist": []},
        "room_directory": {"public_over_federation": True},
    }
    names = [f"localhost:{port}" for port in ports]
    if more_ports:
        settings["server_names"] = names
    return ArborServer(folder, names[0], config=merge(settings, config or {}))


async def until(
    look: Callable[[], Awaitable[T | None]], what: str, *, timeout_s: float = 20.0, every_s: float = 0.1
) -> T:
    """Look again and again until there is something (not None, not False), and return it."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = await look()
        if found is not None and found is not False:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        await asyncio.sleep(every_s)


@asynccontextmanager
async def federation_of(
    server: ArborServer,
) -> AsyncIterator["federation_pb2_grpc.FederationServiceAsyncStub"]:
    """The federation service of a running Arbor, as its other services call it."""
    config = load_config(server.config_path, {})
    channel = channel_to(config, "federation", caller="clientapi")
    try:
        yield federation_pb2_grpc.FederationServiceStub(channel)
    finally:
        await channel.close()


async def wait_for_federation(server: ArborServer) -> None:
    """Wait until clientapi can ask the federation service: in a process of its own it may be there later."""
    channel = channel_to(load_config(server.config_path, {}), "federation", caller="clientapi")
    try:
        async with asyncio.timeout(20):
            await channel.channel_ready()
    finally:
        await channel.close()


class FederatedSynapse(SynapseServer):
    """A Synapse called `localhost:<port>`, which serves federation there with a certificate of `ca`."""

    def __init__(self, folder: Path, ca: TestCa) -> None:
        port = free_port()
        super().__init__(folder, f"localhost:{port}")
        certificate = ca.issue("localhost", "127.0.0.1", file_name=f"synapse-{port}")
        path = folder / "homeserver.yaml"
        settings = yaml.safe_load(path.read_text())
        settings["listeners"].append(
            {
                "port": port,
                "type": "http",
                "tls": True,
                "bind_addresses": ["127.0.0.1"],
                "resources": [{"names": ["federation"], "compress": False}],
            }
        )
        settings |= {
            "tls_certificate_path": str(certificate.certificate_path),
            "tls_private_key_path": str(certificate.private_key_path),
            "federation_custom_ca_list": [str(ca.ca_path)],
            "ip_range_blacklist": [],
            "federation_ip_range_blacklist": [],
            "rc_federation": {
                "window_size": 1000,
                "sleep_limit": 100000,
                "reject_limit": 100000,
                "concurrent": 100,
            },
            "federation": {
                "destination_min_retry_interval": "1s",
                "destination_max_retry_interval": "2s",
                "destination_retry_multiplier": 1,
                "client_timeout": "20s",
            },
            # Else a first sync is answered as it was two minutes ago.
            "caches": {"sync_response_cache_duration": "0s"},
            "allow_public_rooms_over_federation": True,
            "room_list_publication_rules": [{"action": "allow"}],
        }
        del settings["federation_domain_whitelist"]
        path.write_text(yaml.safe_dump(settings))

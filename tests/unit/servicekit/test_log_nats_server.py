"""What the embedded server is given: users, permissions, port, versions."""

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from servicekit import nats_server
from servicekit.config import load_config
from servicekit.log.settings import LogSettings
from servicekit.nats_server import EmbeddedNats, NatsServerError
from servicekit.positions import UserPositions


def write(tmp_path: Path, *, port: int = 0, host: str = "127.0.0.1") -> EmbeddedNats:
    return nats_server.write_nats_files(
        tmp_path / "run",
        tmp_path / "nats",
        host=host,
        port=port,
        max_bytes=10 * 1024**3,
        binary=Path("/usr/bin/nats-server"),
    )


def test_files_that_hold_passwords_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    made = write(tmp_path)
    for name in ("nats.conf", "nats-credentials.json", "nats.json"):
        assert (tmp_path / "run" / name).stat().st_mode & 0o777 == 0o600
    passwords = json.loads((tmp_path / "run" / "nats-credentials.json").read_bytes())
    assert set(passwords) == set(nats_server.SERVICES)
    assert len(set(passwords.values())) == len(nats_server.SERVICES)
    assert min(map(len, passwords.values())) >= 24
    text = made.config_path.read_text()
    assert "sync_interval: always" in text
    assert not any(password in " ".join(made.argv) for password in passwords.values())


def test_port_and_passwords_stay_from_one_start_to_the_next(tmp_path: Path) -> None:
    first = write(tmp_path)
    password = nats_server.read_password(tmp_path / "run", "clientapi")
    second = write(tmp_path)
    assert second.port == first.port
    assert first.port in nats_server.PORT_RANGE
    assert nats_server.read_password(tmp_path / "run", "clientapi") == password
    assert nats_server.read_url(tmp_path / "run") == f"nats://127.0.0.1:{first.port}" == second.url


def test_a_port_that_somebody_took_is_replaced_and_a_configured_one_is_not(tmp_path: Path) -> None:
    first = write(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first.port))
        taken.listen()
        assert write(tmp_path).port != first.port
    assert write(tmp_path, port=4222).port == 4222


def test_an_ipv6_host_and_a_wildcard_have_a_url_to_reach_them(tmp_path: Path) -> None:
    assert write(tmp_path, host="::1", port=4222).url == "nats://[::1]:4222"
    assert write(tmp_path, host="0.0.0.0", port=4222).url == "nats://127.0.0.1:4222"


def test_a_damaged_port_file_is_no_obstacle(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "run" / "nats.json").write_text("{")
    assert write(tmp_path).port in nats_server.PORT_RANGE


@pytest.mark.parametrize(
    ("text", "version"),
    [("nats-server: v2.15.1", (2, 15, 1)), ("2.12.0-RC.1", (2, 12, 0)), ("2.9", (2, 9, 0)), ("?", (0, 0, 0))],
)
def test_versions_are_read_and_old_ones_refused(text: str, version: tuple[int, int, int]) -> None:
    assert nats_server.parse_version(text) == version
    if version >= (2, 12):
        nats_server.check_nats_version(text)
    else:
        with pytest.raises(NatsServerError, match=r"2\.12 or later"):
            nats_server.check_nats_version(text)


def test_a_binary_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(NatsServerError, match="binary_path"):
        nats_server.find_nats_binary(tmp_path / "nothing")
    assert nats_server.find_nats_binary().is_file()


def test_only_the_roomserver_may_tell_and_read_input() -> None:
    for service in nats_server.SERVICES:
        may = nats_server.permissions_of(service)
        reserved = ("room.output", "verdict", ">", "room.>")
        tells = [subject for subject in may["publish"] if subject.startswith(reserved)]
        assert tells == (["room.output.>", "verdict.>"] if service == "roomserver" else [])
        reads_input = any("INPUT" in subject for subject in may["publish"])
        assert reads_input == (service in ("roomserver", "operator"))
        assert may["subscribe"] == [f"_INBOX.{service}.>", f"verdict.{service}.>"]
        assert not any(
            ".DELETE.INPUT" in s and "CONSUMER" not in s and "MSG" not in s for s in may["publish"]
        )
        assert not any(subject.startswith("$JS.API.STREAM.DELETE") for subject in may["publish"])


def test_a_store_is_locked_as_long_as_its_server_lives(tmp_path: Path) -> None:
    descriptor = nats_server.lock_store_dir(tmp_path / "nats", wait_s=0)
    with pytest.raises(NatsServerError, match="end it first"):
        nats_server.lock_store_dir(tmp_path / "nats", wait_s=0)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[descriptor]) as server:
        os.close(descriptor)  # the supervisor was killed, the server lives on
        with pytest.raises(NatsServerError):
            nats_server.lock_store_dir(tmp_path / "nats", wait_s=0)
        server.kill()
    os.close(nats_server.lock_store_dir(tmp_path / "nats", wait_s=0))


def test_the_configuration_leads_to_the_embedded_server(tmp_path: Path) -> None:
    path = tmp_path / "arbor.yaml"
    path.write_text("server_name: example.org\nlog: {partitions: 8, output_retention: 2d}\n")
    config = load_config(path, {})
    made = nats_server.prepare_nats_server(config)
    settings = LogSettings.from_config(config, "syncapi")
    assert settings.urls == (made.url,)
    assert (settings.user, settings.partitions, settings.output_max_age_s) == ("syncapi", 8, 2 * 86400)
    assert settings.password == nats_server.read_password(config.run_dir, "syncapi")
    path.write_text(
        "server_name: example.org\n"
        "nats: {embedded: false, urls: [nats://a:4222, nats://b:4222], user: u, password: p, replicas: 3}\n"
    )
    settings = LogSettings.from_config(load_config(path, {}), "syncapi")
    assert settings.urls == ("nats://a:4222", "nats://b:4222")
    assert (settings.user, settings.password, settings.replicas) == ("u", "p", 3)


def test_positions_remember_the_furthest_and_forget_the_oldest() -> None:
    positions = UserPositions(capacity=2)
    positions.note("@a:x", 5)
    positions.note("@a:x", 3)
    assert positions.last("@a:x") == 5
    assert positions.last("@nobody:x") == 0
    positions.note("@b:x", 1)
    positions.note("@a:x", 6)
    positions.note("@c:x", 1)
    assert (positions.last("@a:x"), positions.last("@b:x"), positions.last("@c:x")) == (6, 0, 1)
    assert positions.newest == 6

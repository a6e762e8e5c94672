"""Configuration: the fixed keys, overriding, and errors that say what to write."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from servicekit.config import ConfigError, Secret, load_config, read_secret_file, write_secret_file
from servicekit.config.reference import reference
from servicekit.config.schema import plain
from servicekit.config.units import format_duration, format_size, parse_duration, parse_size

# Every key that deployments rely on, as they write it.
FIXED_KEYS = """
server_name: example.org
public_base_url: https://matrix.example.org
data_dir: ./data
signing_key_path: ./data/signing.key
listeners:
  - {host: 127.0.0.1, port: 8008, resources: [client, federation, media, admin]}
  - {host: 0.0.0.0, port: 8448, resources: [federation],
     tls: {certificate_path: tls.crt, private_key_path: tls.key}}
  - {host: 127.0.0.1, port: 9009, resources: [metrics]}
nats: {embedded: true, host: 127.0.0.1, port: 0, store_dir: ./data/nats}
database: {url: "sqlite:///./data/arbor.db"}
log: {input_retention: 24h, output_retention: 7d, max_bytes: 10GiB, secure_erase: false, partitions: 16}
logging: {level: info, path: null, format: console}
registration:
  enabled: false
  require_verification: true
  allow_guests: false
  shared_secret: null
passwords: {hash_cost: standard}
rate_limits: {enabled: true}
rooms: {default_version: "12", self_destructing_events: false}
room_directory:
  public_without_auth: false
  public_over_federation: false
  publication_rules: [{action: allow}]
presence: {enabled: true}
sync: {response_cache_seconds: 120}
push: {enabled: true}
federation:
  enabled: true
  trusted_ca_paths: []
  ip_denylist: [default]
  key_servers: []
outbound_http:
  trusted_ca_paths: []
  verify_tls: true
  ip_denylist: [default]
application_services: {registration_files: []}
media: {store_path: ./data/media, url_previews: {enabled: false, ip_denylist: [default]}}
user_directory: {enabled: true, search_all_users: false}
identity: {three_pid_changes_enabled: true}
email: {smtp_host: null, smtp_port: 25, smtp_tls: starttls, from: null}
captcha: {required: false, verify_url: null, public_key: null, private_key: null}
cas: {enabled: false, server_url: null}
server_notices: {enabled: false}
"""


def write(directory: Path, text: str) -> Path:
    """Write a configuration file."""
    path = directory / "arbor.yaml"
    path.write_text(text)
    return path


def test_every_fixed_key_is_taken_and_has_the_documented_default(tmp_path: Path) -> None:
    given = load_config(write(tmp_path, FIXED_KEYS), {})
    default = load_config(write(tmp_path, "{}"), {})
    assert given.log.input_retention == 86400.0
    assert given.log.max_bytes == 10 * 1024**3
    assert given.listeners[1].tls is not None
    assert given.listeners[1].tls.certificate_path == tmp_path / "tls.crt"
    same = {**plain(default), "server_name": "example.org", "server_names": ["example.org"]}
    for key in ("public_base_url", "listeners"):
        same[key] = plain(given)[key]
    assert plain(given) == same


def test_the_reference_lists_every_key_and_loads_as_the_defaults(tmp_path: Path) -> None:
    text = reference()
    assert plain(load_config(write(tmp_path, text), {})) == plain(load_config(write(tmp_path, "{}"), {}))
    for section, keys in yaml.safe_load(FIXED_KEYS).items():
        assert f"{section}:" in text
        for key in keys if isinstance(keys, dict) else ():
            assert f"{key}:" in text, f"{section}.{key}"
    # One line of documentation each.
    assert all("  # " in line for line in text.splitlines() if ": " in line and not line.startswith("#"))


def test_environment_overrides_the_file_and_flags_override_both(tmp_path: Path) -> None:
    path = write(tmp_path, "rooms: {default_version: '10'}\nlog: {partitions: 4}")
    environment = {"ARBOR_ROOMS__DEFAULT_VERSION": "11", "ARBOR_LOG__PARTITIONS": "8", "OTHER": "x"}
    assert load_config(path, environment).rooms.default_version == "11"
    config = load_config(path, environment, {"rooms.default_version": "12"})
    assert (config.rooms.default_version, config.log.partitions) == ("12", 8)


def test_environment_takes_lists_secrets_and_null() -> None:
    config = load_config(
        None,
        {
            "ARBOR_LISTENERS": "[{port: 0, resources: [client]}]",
            "ARBOR_REGISTRATION__SHARED_SECRET": "123",
            "ARBOR_LOGGING__PATH": "null",
            "ARBOR_PRESENCE__ENABLED": "false",
            "ARBOR_SYNC__RESPONSE_CACHE_SECONDS": "2m",
            "ARBOR_FAULT": "relay.after_publish",
        },
    )
    assert config.listeners[0].resources == ("client",)
    assert config.registration.shared_secret == "123"
    assert config.logging.path is None
    assert not config.presence.enabled
    assert config.sync.response_cache_seconds == 120.0


@pytest.mark.parametrize(
    ("text", "path", "said"),
    [
        ("romms: {}", "romms", ["unknown key", "Did you mean rooms?"]),
        ("rooms: {default_verson: '11'}", "rooms.default_verson", ["Did you mean default_version?"]),
        ("log: {max_bytes: lots}", "log.max_bytes", ["'lots'", "10GiB"]),
        ("log: {input_retention: 1 fortnight}", "log.input_retention", ["24h"]),
        ("log: {partitions: 0}", "log.partitions", ["found 0", "at least 1"]),
        ("log: {partitions: true}", "log.partitions", ["found True", "a whole number"]),
        ("logging: {level: loud}", "logging.level", ["'loud'", "debug, info, warning, error"]),
        ("presence: {enabled: 'yes'}", "presence.enabled", ["'yes'", "true or false"]),
        ("rooms: 12", "rooms", ["found 12", "a mapping"]),
        ("listeners: [{port: 70000}]", "listeners[0].port", ["70000", "at most 65535"]),
        ("listeners: [{resources: [clients]}]", "listeners[0].resources[0]", ["'clients'", "client"]),
        ("listeners: [{resources: []}]", "listeners[0].resources", ["at least one"]),
        ("listeners: [{tls: {certificate_path: a}}]", "listeners[0].tls.private_key_path", ["missing"]),
        ("listeners: [{port: 8008}, {port: 8008}]", "listeners[1]", ["listeners[0]"]),
        ("server_name: 'bad name'", "server_name", ["'bad name'", "host name"]),
        ("server_name: a.b\nserver_names: [c.d]", "server_name", ["server_names"]),
        ("database: {url: 'mysql://x/y'}", "database.url", ["'mysql'", "postgresql://"]),
        ("databases: {roomserver: 'sqlite:///'}", "databases.roomserver", ["a file"]),
        ("nats: {embedded: false}", "nats.url", ["missing", "nats://"]),
        ("grpc: {addresses: {roomserver: '10.0.0.1:9000'}}", "grpc.addresses.roomserver", ["grpc.tls"]),
        ("grpc: {addresses: {roomserver: nowhere}}", "grpc.addresses.roomserver", ["host:port"]),
        ("rate_limits: {login: {per_second: 0, burst: 1}}", "rate_limits.login.per_second", ["more than 0"]),
        ("cas: {server_url: cas}", "cas.server_url", ["'cas'"]),
    ],
)
def test_a_mistake_is_named_with_what_was_found_and_what_is_allowed(
    tmp_path: Path, text: str, path: str, said: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text), {})
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path}: ")
    for words in said:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: b: c", "is not YAML"), ("- 1", "no mapping"), ("log: {}\nlog: {}", "stands twice")],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(write(tmp_path, text), {})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml"):
        load_config(tmp_path / "nothing.yaml", {})


def test_paths_are_relative_to_the_file_and_follow_data_dir(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "data_dir: ../elsewhere\nmedia: {store_path: m}"), {})
    elsewhere = tmp_path.parent / "elsewhere"
    assert config.data_dir == elsewhere
    assert config.run_dir == elsewhere / "run"
    assert config.signing_key_path == elsewhere / "signing.key"
    assert config.nats.store_dir == elsewhere / "nats"
    assert config.secrets_dir == elsewhere / "secrets"
    assert config.media.store_path == tmp_path / "m"
    assert config.database_url("roomserver") == f"sqlite:///{elsewhere}/roomserver.db"


def test_each_service_gets_a_database_of_its_own(tmp_path: Path) -> None:
    config = load_config(
        write(
            tmp_path,
            "database: {url: 'postgresql://arbor:pw@db/arbor?options=-cwork_mem%3D64MB'}\n"
            "databases: {syncapi: 'sqlite:///sync.db'}",
        ),
        {},
    )
    assert config.database_url("roomserver") == (
        "postgresql+psycopg://arbor:pw@db/arbor?options=-cwork_mem%3D64MB%20-csearch_path%3Droomserver"
    )
    assert config.database_url("syncapi") == f"sqlite:///{tmp_path}/sync.db"


def test_several_server_names_are_all_local() -> None:
    config = load_config(None, {}, {"server_names": ["example.org", "localhost:8448"]})
    assert config.server_name == "example.org"
    assert config.is_local("localhost:8448")
    assert not config.is_local("example.com")


def test_naming_a_nats_server_turns_the_embedded_one_off() -> None:
    config = load_config(None, {}, {"nats.url": "nats://log:4222"})
    assert not config.nats.embedded
    assert config.nats.urls == ("nats://log:4222",)


def test_secrets_do_not_show_themselves() -> None:
    config = load_config(None, {"ARBOR_REGISTRATION__SHARED_SECRET": "hunter2"})
    assert isinstance(config.registration.shared_secret, Secret)
    assert "hunter2" not in repr(config)
    assert "hunter2" not in str(plain(config))
    with pytest.raises(ConfigError) as caught:
        load_config(None, {}, {"nats.password": ["hunter2"]})
    assert "hunter2" not in str(caught.value)


def test_socket_paths_fit_into_a_socket_address(tmp_path: Path) -> None:
    short: Any = load_config(None, {}, {"run_dir": "/run/arbor"})
    assert short.socket_path("roomserver") == Path("/run/arbor/roomserver.sock")
    deep = load_config(None, {}, {"run_dir": str(tmp_path / ("x" * 120))})
    other = load_config(None, {}, {"run_dir": str(tmp_path / ("y" * 120))})
    assert len(os.fsencode(deep.socket_path("roomserver"))) < 108
    assert deep.socket_path("roomserver") != other.socket_path("roomserver")


def test_secret_files_are_their_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "made" / "secret"
    previous = os.umask(0)
    try:
        assert write_secret_file(path, b"one")
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not write_secret_file(path, b"two", keep_existing=True)
    assert read_secret_file(path) == b"one"
    assert list(path.parent.iterdir()) == [path]
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_secret_file(path)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("10GiB", 10 * 1024**3),
        ("1.5 MB", 1_500_000),
        ("2k", 2000),
        ("x", None),
        ("-1", None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        ("500ms", 0.5),
        ("24h", 86400.0),
        ("7d", 604800.0),
        ("1y", 31536000.0),
        ("h", None),
        ("1 mo", None),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


def test_units_are_written_as_they_are_read() -> None:
    assert [format_size(parse_size(text) or 0) for text in ("10GiB", "512KiB", "1000")] == [
        "10GiB",
        "512KiB",
        "1000",
    ]
    assert [format_duration(parse_duration(t) or 0) for t in ("90s", "24h", "500ms")] == [
        "90s",
        "1d",
        "500ms",
    ]

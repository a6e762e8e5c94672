"""File, environment and flags, in this order of growing weight, to one checked `Config`."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from servicekit.config.convert import RawText, convert_struct
from servicekit.config.database_urls import check_database_url
from servicekit.config.errors import ConfigError
from servicekit.config.schema import Config, Listener, Nats

ENV_PREFIX = "ARBOR_"
# Variables with our prefix that are no configuration keys.
ENV_CONFIG_FILE = "ARBOR_CONFIG"
ENV_INTERNAL_PREFIXES = ("ARBOR_INTERNAL_", "ARBOR_TEST_", "ARBOR_FAULT", "ARBOR_CHAOS")

# A server name (specification, appendices "Server Name"): IPv4, [IPv6] or DNS name, and an optional port.
_SERVER_NAME = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z.-]{1,230})(?::\d{1,5})?\Z")


def load_config(
    path: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """Return the checked configuration.

    Args:
        path: the YAML file; None: defaults only, relative paths then start at the working directory.
        env: the environment; None: the process's. `ARBOR_ROOMS__DEFAULT_VERSION=11` sets
            `rooms.default_version`. overrides: flags, dotted key -> text or plain value.

    Raises:
        ConfigError: the file cannot be read, a key is unknown or a value wrong; the text says which and what
            is allowed.
    """
    base_dir = Path.cwd()
    tree: dict[str, Any] = {}
    if path is not None:
        file = Path(path).absolute()
        base_dir = file.parent
        tree = _read_file(file)
    for name, text in (os.environ if env is None else env).items():
        if (
            name.startswith(ENV_PREFIX)
            and name != ENV_CONFIG_FILE
            and not name.startswith(ENV_INTERNAL_PREFIXES)
        ):
            _set(tree, name.removeprefix(ENV_PREFIX).lower().split("__"), RawText(text), name)
    for dotted, value in (overrides or {}).items():
        _set(tree, dotted.split("."), RawText(value) if isinstance(value, str) else value, dotted)
    config: Config = convert_struct(Config, tree, "", base_dir)
    return _complete(config, tree, base_dir)


def _read_file(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(file.read_bytes(), Loader=_StrictLoader)  # noqa: S506 - a SafeLoader, see below
    except OSError as error:
        raise ConfigError(f"the configuration file {file} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"the configuration file {file} is not YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"the configuration file {file} holds no mapping of keys to values")
    return tree


class _StrictLoader(yaml.SafeLoader):
    """YAML without the trap that a key written twice silently drops its first value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                line = key_node.start_mark.line + 1
                raise yaml.YAMLError(f"the key {key_node.value} stands twice, the second time on line {line}")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


def _set(tree: dict[str, Any], keys: list[str], value: Any, source: str) -> None:
    here = tree
    for key in keys[:-1]:
        below = here.get(key)
        if below is None:
            below = {}
        elif not isinstance(below, dict):
            raise ConfigError(f"{source} names a key below {key}, which is no section")
        here[key] = below
        here = below
    here[keys[-1]] = value


def _complete(config: Config, tree: Mapping[str, Any], base_dir: Path) -> Config:
    """Fill in what is derived from other keys, and check what no single key can be checked for."""
    if config.server_name and config.server_names and config.server_name not in config.server_names:
        raise ConfigError(
            f"found {config.server_name!r}, which is not in server_names; give one of the two keys",
            path="server_name",
        )
    names = config.server_names or (config.server_name or "localhost",)
    for name in names:
        if not _SERVER_NAME.match(name):
            raise ConfigError(
                f"found {name!r}; allowed: a host name or address, with or without a port",
                path="server_name",
            )
    data_dir = config.data_dir if config.data_dir.is_absolute() else base_dir / config.data_dir
    # `./data` joined to a directory keeps its dot; a normal form makes paths comparable and error texts
    # short.
    data_dir = Path(os.path.normpath(data_dir))

    def place(given: Path, *keys: str) -> Path:
        """Return the path given, or where the default lies below data_dir."""
        if _get(tree, *keys) is None:
            return data_dir / given.relative_to("data")
        return Path(os.path.normpath(given))

    url = f"sqlite:///{data_dir / 'arbor.db'}"
    if _get(tree, "database", "url") is not None:
        url = _database_url(config.database.url, "database.url", base_dir)
    config = msgspec.structs.replace(
        config,
        server_name=config.server_name or names[0],
        server_names=names,
        data_dir=data_dir,
        run_dir=place(config.run_dir, "run_dir"),
        signing_key_path=place(config.signing_key_path, "signing_key_path"),
        nats=_complete_nats(config, place(config.nats.store_dir, "nats", "store_dir")),
        database=msgspec.structs.replace(config.database, url=url),
        databases={
            service: _database_url(given, f"databases.{service}", base_dir)
            for service, given in config.databases.items()
        },
        media=msgspec.structs.replace(
            config.media, store_path=place(config.media.store_path, "media", "store_path")
        ),
        grpc=msgspec.structs.replace(
            config.grpc, secrets_dir=place(config.grpc.secrets_dir, "grpc", "secrets_dir")
        ),
    )
    _check_listeners(config.listeners)
    _check_grpc(config)
    for number, contact in enumerate(config.support.contacts):
        if not contact.matrix_id and not contact.email_address:
            raise ConfigError(
                "names nobody; allowed: with matrix_id, email_address, or both",
                path=f"support.contacts[{number}]",
            )
    return config


def _get(tree: Mapping[str, Any], *keys: str) -> Any:
    """Return what stands at a key of the plain tree, None where nothing does."""
    here: Any = tree
    for key in keys:
        here = here.get(key) if isinstance(here, Mapping) else None
    return here


def _complete_nats(config: Config, store_dir: Path) -> Nats:
    nats = config.nats
    urls = nats.urls or ((nats.url,) if nats.url else ())
    if nats.embedded and urls:
        # Naming a server is asking for it: `embedded: false` need not be said too.
        nats = msgspec.structs.replace(nats, embedded=False)
    if not nats.embedded and not urls:
        raise ConfigError("missing; allowed: nats://host:port, or a list as nats.urls", path="nats.url")
    return msgspec.structs.replace(nats, urls=urls, url=urls[0] if urls else None, store_dir=store_dir)


def _database_url(url: str, path: str, base_dir: Path) -> str:
    checked = check_database_url(url, path)
    if checked.startswith("sqlite:///"):
        location, mark, query = checked.removeprefix("sqlite:///").partition("?")
        if location in ("", ":memory:"):
            raise ConfigError(f"found {url!r}; allowed: a file, sqlite:///path/to/file.db", path=path)
        checked = f"sqlite:///{os.path.normpath(base_dir / location)}{mark}{query}"
    return checked


def _check_listeners(listeners: tuple[Listener, ...]) -> None:
    seen: dict[tuple[str, int], int] = {}
    for number, listener in enumerate(listeners):
        where = f"listeners[{number}]"
        if not listener.resources:
            raise ConfigError(
                "found an empty list; allowed: at least one resource", path=f"{where}.resources"
            )
        place = (listener.host, listener.port)
        if listener.port and place in seen:
            raise ConfigError(
                f"{listener.host}:{listener.port} is taken by listeners[{seen[place]}]; join the two",
                path=where,
            )
        seen[place] = number


LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")


def _check_grpc(config: Config) -> None:
    for section, addresses in (("addresses", config.grpc.addresses), ("listen", config.grpc.listen)):
        for service, address in addresses.items():
            path = f"grpc.{section}.{service}"
            if address.startswith("unix:"):
                continue
            host, _, port = address.rpartition(":")
            if not host or not port.isdigit():
                raise ConfigError(f"found {address!r}; allowed: host:port or unix:/path", path=path)
            if host not in LOOPBACK_HOSTS and config.grpc.tls is None:
                raise ConfigError(
                    f"found {address!r}, which leaves this machine, without grpc.tls; allowed: a unix socket,"
                    " a loopback address, or set grpc.tls",
                    path=path,
                )

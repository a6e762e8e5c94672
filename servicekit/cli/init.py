"""`arbor init`, `arbor config --check` and `arbor key generate`."""

import time
from collections.abc import Mapping
from pathlib import Path

import yaml

from servicekit.cli.main import DEFAULT_FILE, CommandError
from servicekit.config import Config, load_config
from servicekit.config.schema import plain
from servicekit.keys import load_signing_key, rotate_signing_key

_TEMPLATE = """\
# What `arbor config --reference` lists can be set here; everything else has its default.
server_name: {server_name}
data_dir: {data_dir}

listeners:
  # Put a reverse proxy that speaks TLS in front of this one.
  - {{host: 127.0.0.1, port: 8008, resources: [client, federation, media, admin]}}

registration:
  enabled: false

logging: {{level: info, format: console}}
"""


def init(file: str | None, overrides: Mapping[str, str], *, force: bool) -> int:
    """Write a configuration file, and make the data folder and the signing key."""
    path = Path(file) if file is not None else DEFAULT_FILE
    if path.exists() and not force:
        raise CommandError(f"{path} is there already; --force replaces it")
    rest = {key: value for key, value in overrides.items() if key not in ("server_name", "data_dir")}
    if rest:
        raise CommandError(f"init takes --server-name and --data-dir; write {', '.join(rest)} into the file")
    text = _TEMPLATE.format(
        server_name=overrides.get("server_name", "localhost"), data_dir=overrides.get("data_dir", "./data")
    )
    load_config(None, {}, yaml.safe_load(text))  # what is wrong is said before anything is written
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)
    config = load_config(path, {})
    config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    generate_keys(config, rotate=False)
    print(f"Wrote {path}. Start with: arbor run --config {path}")
    return 0


def generate_keys(config: Config, *, rotate: bool) -> int:
    """Make the signing keys that are missing, or replace all."""
    for name in config.server_names:
        key = (
            rotate_signing_key(config, name, int(time.time() * 1000))
            if rotate
            else load_signing_key(config, name)
        )
        print(f"{name}: {key.key_id}")
    if rotate:
        print("Services use the new keys from their next start.")
    return 0


def print_configuration(config: Config) -> int:
    """Print the configuration in force, secrets hidden."""
    print(yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True), end="")
    return 0

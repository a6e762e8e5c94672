"""The configuration of a deployment: one YAML file, overridden by environment and flags.

`schema` is the tree of keys (a frozen struct a section, one line of documentation a key), `convert` turns
plain values into that tree and says exactly what is wrong, `units` reads `10GiB` and `24h`, `load` joins
file, environment and flags, `reference` prints every key with its default. Other code needs only the names
below.
"""

from servicekit.config.errors import ConfigError
from servicekit.config.load import load_config
from servicekit.config.schema import Config, Listener, RateLimit, Secret
from servicekit.config.secret_files import read_secret_file, write_secret_file

__all__ = [
    "Config",
    "ConfigError",
    "Listener",
    "RateLimit",
    "Secret",
    "load_config",
    "read_secret_file",
    "write_secret_file",
]

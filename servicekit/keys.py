"""The signing keys of this deployment: the files they lie in, and how they are made and rotated.

The key of the first server name is the file `signing_key_path`; further names have one beside it, called
`<file>.<server name>`. A key file is one line, `ed25519 <version> <seed in Base64>`, readable by its owner
only, the form that other servers use too; of several lines the first signs. It is made with randomness of the
operating system when it is missing, also when several processes start at once.

Keys of former times lie in `<file>.old`, public halves only: `<key id> <public key in Base64> <expired_ms>`.
They are published as `old_verify_keys` and sign nothing any more.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path

from matrixlib.signing import (
    SigningKey,
    VerifyKey,
    decode_signing_key,
    encode_signing_key,
    generate_signing_key,
    verify_key_from_base64,
)
from servicekit.config import Config, ConfigError
from servicekit.config.secret_files import read_secret_file, write_secret_file


@dataclass(frozen=True, slots=True)
class OldKey:
    """A key that signs no more: what it signed before `expired_ms` (milliseconds since 1970) stays valid."""

    verify_key: VerifyKey
    expired_ms: int


def signing_key_path(config: Config, server_name: str) -> Path:
    """Return the key file of a local server name.

    Raises:
        ValueError: the name is not local.
    """
    if not config.is_local(server_name):
        raise ValueError(f"{server_name} is not a name of this deployment")
    path = config.signing_key_path
    return path if server_name == config.server_names[0] else path.with_name(f"{path.name}.{server_name}")


def load_signing_key(config: Config, server_name: str) -> SigningKey:
    """Return the key that signs for a local server name, made when there is none.

    Raises:
        ConfigError: the file cannot be read, is readable by others, or holds no key.
        ValueError: the name is not local.
    """
    path = signing_key_path(config, server_name)
    if not path.exists():
        made = encode_signing_key(generate_signing_key(f"a_{secrets.token_hex(3)}"))
        write_secret_file(path, f"{made}\n".encode(), keep_existing=True)
    return _read_key(path)


def load_signing_keys(config: Config) -> dict[str, SigningKey]:
    """Return the signing key of each local server name. Raises as `load_signing_key`."""
    return {name: load_signing_key(config, name) for name in config.server_names}


def load_old_keys(config: Config, server_name: str) -> tuple[OldKey, ...]:
    """Return the former keys of a local server name.

    Raises:
        ConfigError: the file is damaged.
    """
    path = _old_keys_path(config, server_name)
    if not path.exists():
        return ()
    keys = []
    for line in path.read_text().splitlines():
        if not line.strip():
            continue
        try:
            key_id, public, expired_ms = line.split()
            keys.append(OldKey(verify_key_from_base64(key_id, public), int(expired_ms)))
        except ValueError as error:
            raise ConfigError(f"{path} holds a line that is not an old key: {error}") from error
    return tuple(keys)


def rotate_signing_key(config: Config, server_name: str, now_ms: int) -> SigningKey:
    """Replace the key of a local server name; the old one is published as an old key from now on.

    Services use the new key from their next start. Returns it. Raises as `load_signing_key`.
    """
    path = signing_key_path(config, server_name)
    old = load_signing_key(config, server_name)
    lines = [
        f"{key.verify_key.key_id} {key.verify_key.base64} {key.expired_ms}"
        for key in load_old_keys(config, server_name)
    ]
    lines.append(f"{old.key_id} {old.verify_key.base64} {now_ms}")
    # First the old public half: a crash in between leaves a key that is listed as old and still signs.
    write_secret_file(_old_keys_path(config, server_name), ("\n".join(lines) + "\n").encode())
    new = generate_signing_key(f"a_{secrets.token_hex(3)}")
    write_secret_file(path, f"{encode_signing_key(new)}\n".encode())
    return new


def _old_keys_path(config: Config, server_name: str) -> Path:
    path = signing_key_path(config, server_name)
    return path.with_name(f"{path.name}.old")


def _read_key(path: Path) -> SigningKey:
    for line in read_secret_file(path).decode(errors="replace").splitlines():
        if line.strip():
            try:
                return decode_signing_key(line)
            except ValueError as error:
                raise ConfigError(f"{path} holds no signing key: {error}") from error
    raise ConfigError(f"{path} holds no signing key: it is empty")

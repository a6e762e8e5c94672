"""Our own keys as others read them (server-server API, "Publishing keys")."""

from typing import Any

from matrixlib.signing import SigningKey, VerifyKey, sign_json
from servicekit.config import Config
from servicekit.keys import OldKey, load_old_keys, load_signing_keys

# Others ask again after at most half of this; a key that leaked can be withdrawn within it.
VALIDITY_MS = 24 * 3600 * 1000


class OwnKeys:
    """The signing key and the old keys of each local server name."""

    def __init__(self, signing: dict[str, SigningKey], old: dict[str, tuple[OldKey, ...]]) -> None:
        self.signing = signing
        self._old = old

    @classmethod
    def load(cls, config: Config) -> "OwnKeys":
        """Read the key files, making what is missing. Raises `ConfigError`."""
        return cls(
            load_signing_keys(config), {name: load_old_keys(config, name) for name in config.server_names}
        )

    def verify_keys(self, server_name: str, at_ms: int) -> dict[str, VerifyKey]:
        """Return key id -> key of ours that may have signed something at a time."""
        key = self.signing[server_name].verify_key
        old = {
            old.verify_key.key_id: old.verify_key
            for old in self._old.get(server_name, ())
            if at_ms <= old.expired_ms
        }
        return {**old, key.key_id: key}

    def key_object(self, server_name: str, now_ms: int) -> dict[str, Any]:
        """Return the signed key object of a local name. Raises `KeyError` for a foreign one."""
        key = self.signing[server_name]
        value = {
            "server_name": server_name,
            "verify_keys": {key.key_id: {"key": key.verify_key.base64}},
            "old_verify_keys": {
                old.verify_key.key_id: {"key": old.verify_key.base64, "expired_ts": old.expired_ms}
                for old in self._old.get(server_name, ())
                if old.verify_key.key_id != key.key_id
            },
            "valid_until_ts": now_ms + VALIDITY_MS,
        }
        return sign_json(value, server_name, key)

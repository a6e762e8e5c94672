"""What a server's key object must be to be believed (server-server API, "Publishing keys"). Pure."""

import re
from typing import Any

from federation.storage.keys import KeyRow
from matrixlib.signing import (
    SignatureError,
    VerifyKey,
    signing_key_ids,
    verify_key_from_base64,
    verify_signed_json,
)

MAX_VALIDITY_MS = 7 * 24 * 3600 * 1000
MAX_KEYS = 200
_KEY_ID = re.compile(r"ed25519:[A-Za-z0-9_]{1,200}")
# Points of small order: with one of these as public key, signatures can be made by anybody. And the key that
# belongs to the seed of 32 zero bytes.
_WEAK_KEYS = frozenset(
    bytes.fromhex(text)
    for text in (
        "00" * 32,
        "01" + "00" * 31,
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
        "00" * 31 + "80",
        "01" + "00" * 30 + "80",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29",
    )
)


class KeyObjectError(ValueError):
    """A key object is not to be believed."""


def read_key_object(value: Any, server_name: str, now_ms: int) -> list[KeyRow]:
    """Check a server's own key object and return its keys, current and old.

    The object must name the server and be signed with every current key that has a signature on it, one at
    least. Keys of unknown algorithms and malformed ones are skipped.

    Raises:
        KeyObjectError: it is not to be believed.
    """
    if not isinstance(value, dict) or value.get("server_name") != server_name:
        raise KeyObjectError("the key object is not of the server that was asked for")
    valid_until = value.get("valid_until_ts")
    if type(valid_until) is not int:
        raise KeyObjectError("valid_until_ts is not an integer")
    valid_until = min(valid_until, now_ms + MAX_VALIDITY_MS)
    current = _keys_of(value.get("verify_keys"))
    signed_with = [key for key in signing_key_ids(value, server_name) if key in current]
    if not signed_with:
        raise KeyObjectError("the key object is not signed with any of its own keys")
    for key_id in signed_with:
        try:
            verify_signed_json(value, server_name, current[key_id])
        except SignatureError as error:
            raise KeyObjectError(str(error)) from None
    rows = [KeyRow(key_id, key.public_bytes, valid_until, None) for key_id, key in current.items()]
    old = value.get("old_verify_keys")
    old = old if isinstance(old, dict) else {}
    for key_id, key in _keys_of(old).items():
        expired = old[key_id].get("expired_ts")
        if key_id not in current and type(expired) is int:
            rows.append(KeyRow(key_id, key.public_bytes, min(expired, valid_until), expired))
    return rows


def check_notary_signature(value: Any, notary: str, keys: dict[str, VerifyKey]) -> None:
    """Check that a notary signed a key object with one of its keys. Raises `KeyObjectError`."""
    known = [key_id for key_id in signing_key_ids(value, notary) if key_id in keys]
    if not known:
        raise KeyObjectError("the notary did not sign the key object")
    for key_id in known:
        try:
            verify_signed_json(value, notary, keys[key_id])
        except SignatureError as error:
            raise KeyObjectError(str(error)) from None


def is_usable(key: KeyRow, at_ms: int, *, enforce_validity: bool) -> bool:
    """Whether a key may have signed something at a time.

    `enforce_validity`: whether the room version looks at `valid_until_ts`; requests always do.
    """
    if key.expired_ms is not None and at_ms > key.expired_ms:
        return False
    return not enforce_validity or at_ms <= key.valid_until_ms


def _keys_of(value: Any) -> dict[str, VerifyKey]:
    keys: dict[str, VerifyKey] = {}
    if not isinstance(value, dict):
        return keys
    for key_id, entry in list(value.items())[:MAX_KEYS]:
        if not isinstance(key_id, str) or not _KEY_ID.fullmatch(key_id) or not isinstance(entry, dict):
            continue
        try:
            key = verify_key_from_base64(key_id, entry.get("key"))
        except ValueError:
            continue
        if key.public_bytes not in _WEAK_KEYS:
            keys[key_id] = key
    return keys

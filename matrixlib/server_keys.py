"""Which keys of a server are good for what, and when (server-server API, "Retrieving server keys"; room
version 5, "Signing key validity period").

``parse_server_keys`` reads what a server (or a notary for it) published; the caller keeps the result with the
time at which it came. Times are milliseconds; the clock is the caller's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from matrixlib.identifiers import ServerName, is_valid_server_name
from matrixlib.room_versions import RoomVersion
from matrixlib.signing import (
    SignatureError,
    SigningKey,
    VerifyKey,
    sign_json,
    signing_key_ids,
    verify_key_from_base64,
    verify_signed_json,
)

MAX_VALIDITY_MS: Final = 7 * 24 * 3600 * 1000
MAX_KEYS: Final = 50


class ServerKeysError(ValueError):
    """A key response is malformed, of another server, or not signed by its own keys."""


@dataclass(frozen=True, slots=True)
class PublishedKey:
    """One key of a server."""

    key: VerifyKey
    valid_until_ms: int
    """Until when it may be used: `valid_until_ts` (capped when used) or, for an old key, `expired_ts`."""
    is_old: bool
    """An old key is good for events of its time only, never for requests."""


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """A server's keys as published."""

    server_name: ServerName
    keys: Mapping[str, PublishedKey]
    """Key id -> key."""
    valid_until_ms: int


def parse_server_keys(response: Any, server_name: str) -> ServerKeys:
    """Read a key response, of `/_matrix/key/v2/server` or one of a notary's `server_keys`.

    Malformed single keys are left out. The response must be signed by at least one of its `verify_keys`, and
    no signature by one of these may be wrong. Raises ``ServerKeysError``.
    """
    if not isinstance(response, dict) or response.get("server_name") != server_name:
        raise ServerKeysError("not the keys of this server")
    if not is_valid_server_name(server_name):
        raise ServerKeysError("not a server name")
    valid_until_ms = response.get("valid_until_ts")
    if type(valid_until_ms) is not int:
        raise ServerKeysError("no valid_until_ts")
    keys: dict[str, PublishedKey] = {}
    for key_id, value in _items(response.get("old_verify_keys")):
        expired_ms = value.get("expired_ts")
        key = _key(key_id, value)
        if key is not None and type(expired_ms) is int:
            keys[key_id] = PublishedKey(key, expired_ms, is_old=True)
    for key_id, value in _items(response.get("verify_keys")):
        key = _key(key_id, value)
        if key is not None:
            keys[key_id] = PublishedKey(key, valid_until_ms, is_old=False)
    current = {key_id: entry.key for key_id, entry in keys.items() if not entry.is_old}
    signed_with = [key_id for key_id in signing_key_ids(response, server_name) if key_id in current]
    if not signed_with:
        raise ServerKeysError("not signed by one of its own keys")
    for key_id in signed_with:
        try:
            verify_signed_json(response, server_name, current[key_id])
        except SignatureError as error:
            raise ServerKeysError(str(error)) from None
    return ServerKeys(ServerName(server_name), keys, valid_until_ms)


def server_keys_response(
    server_name: str, key: SigningKey, *, valid_until_ms: int, old_keys: Mapping[VerifyKey, int] | None = None
) -> dict[str, Any]:
    """What we publish ourselves, signed. ``old_keys``: key -> when it expired (ms)."""
    response = {
        "server_name": server_name,
        "valid_until_ts": valid_until_ms,
        "verify_keys": {key.key_id: {"key": key.verify_key.base64}},
        "old_verify_keys": {
            old.key_id: {"key": old.base64, "expired_ts": expired_ms}
            for old, expired_ms in (old_keys or {}).items()
        },
    }
    return sign_json(response, server_name, key)


def is_valid_for_request(key: PublishedKey, *, now_ms: int, fetched_ms: int) -> bool:
    """Whether a key may sign a request made now. ``fetched_ms``: when the key response came."""
    return not key.is_old and now_ms <= min(key.valid_until_ms, fetched_ms + MAX_VALIDITY_MS)


def is_valid_for_event(
    key: PublishedKey, room_version: RoomVersion, *, origin_server_ts: int, fetched_ms: int
) -> bool:
    """Whether a key may have signed an event of this time (``origin_server_ts``).

    Room versions 1 to 4: any key that the server ever published. Later: "servers MUST enforce the
    `valid_until_ts` property from a key request is at least as large as the `origin_server_ts` for the event
    being validated" and "MUST use the lesser of `valid_until_ts` and 7 days into the future".
    """
    if not room_version.enforce_key_validity:
        return True
    if key.is_old:
        return origin_server_ts <= key.valid_until_ms
    return origin_server_ts <= min(key.valid_until_ms, fetched_ms + MAX_VALIDITY_MS)


def _items(value: Any) -> list[tuple[str, Mapping[str, Any]]]:
    if not isinstance(value, dict):
        return []
    return [(key_id, item) for key_id, item in list(value.items())[:MAX_KEYS] if isinstance(item, dict)]


def _key(key_id: str, value: Mapping[str, Any]) -> VerifyKey | None:
    try:
        return verify_key_from_base64(key_id, value.get("key"))
    except ValueError:
        return None

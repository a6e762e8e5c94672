"""Ed25519 keys, signed JSON, and signatures of events.

Spec v1.19, appendices, "Signing JSON"; server-server API, "Signing events", "Validating hashes and signatures
on received events"; rooms, "Signatures must be valid at the time" is left to ``server_keys``.

Order of use for a received event: ``event_signers`` says who must have signed; the caller gets those servers'
keys; ``verify_event_signature`` checks each. Key fetching is the caller's, randomness an argument.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import nacl.bindings
from nacl.exceptions import CryptoError

from matrixlib.canonical_json import CanonicalJsonError, encode_canonical, encode_checked
from matrixlib.events import Event
from matrixlib.hashes import content_hash, decode_base64, encode_base64
from matrixlib.identifiers import ServerName, is_valid_user_id, server_name_of
from matrixlib.redaction import redact_pdu
from matrixlib.room_versions import RoomVersion

ALGORITHM: Final = "ed25519"


class SignatureError(ValueError):
    """A signature is missing, malformed or wrong."""


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """A public Ed25519 key: ``key_id`` as "ed25519:abc" and 32 bytes."""

    key_id: str
    public_bytes: bytes

    @property
    def base64(self) -> str:
        """Unpadded Base64 of the public key."""
        return encode_base64(self.public_bytes)


class SigningKey:
    """A private Ed25519 key with its key id. ``repr`` shows no secret."""

    __slots__ = ("_secret", "key_id", "verify_key")

    def __init__(self, key_id: str, seed: bytes) -> None:
        """``key_id`` as "ed25519:abc"; ``seed`` is 32 bytes. Raises ``ValueError``."""
        if not key_id.startswith(f"{ALGORITHM}:") or len(seed) != 32:
            raise ValueError("not an ed25519 key")
        public, self._secret = nacl.bindings.crypto_sign_seed_keypair(seed)
        self.key_id: Final = key_id
        self.verify_key: Final = VerifyKey(key_id, public)

    def __repr__(self) -> str:
        return f"SigningKey({self.key_id!r})"

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes."""
        return self._secret[:32]

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of the detached signature."""
        return nacl.bindings.crypto_sign(message, self._secret)[:64]


def generate_signing_key(version: str, *, random_bytes: Callable[[int], bytes] = os.urandom) -> SigningKey:
    """A new key with key id ``ed25519:<version>``; ``version`` matches `[a-zA-Z0-9_]+`. Raises
    ``ValueError``.
    """
    if not version.replace("_", "a").isalnum() or not version.isascii():
        raise ValueError("the version of a key consists of letters, digits and underscores")
    return SigningKey(f"{ALGORITHM}:{version}", random_bytes(32))


def encode_signing_key(key: SigningKey) -> str:
    """One line for a key file: algorithm, version, seed in Base64 (the format other servers use)."""
    algorithm, _, version = key.key_id.partition(":")
    return f"{algorithm} {version} {encode_base64(key.seed)}"


def decode_signing_key(line: str) -> SigningKey:
    """Read what ``encode_signing_key`` wrote. Raises ``ValueError``."""
    parts = line.split()
    if len(parts) != 3:
        raise ValueError("a signing key is three words: algorithm, version, seed")
    return SigningKey(f"{parts[0]}:{parts[1]}", decode_base64(parts[2]))


def verify_key_from_base64(key_id: str, text: object) -> VerifyKey:
    """A public key as other servers publish it. Raises ``ValueError``."""
    public = decode_base64(text)
    if not key_id.startswith(f"{ALGORITHM}:") or len(public) != 32:
        raise ValueError("not an ed25519 key")
    return VerifyKey(key_id, public)


def sign_json(value: Mapping[str, Any], name: str, key: SigningKey) -> dict[str, Any]:
    """A copy of an object with a signature of ``name`` (a server or a user) added.

    ``signatures`` and ``unsigned`` are not part of what is signed. Raises ``CanonicalJsonError``.
    """
    signatures = value.get("signatures")
    signatures = dict(signatures) if isinstance(signatures, dict) else {}
    of_name = signatures.get(name)
    signatures[name] = {
        **(of_name if isinstance(of_name, dict) else {}),
        key.key_id: encode_base64(key.sign(_signed_bytes(value))),
    }
    return {**value, "signatures": signatures}


def verify_signed_json(value: Mapping[str, Any], name: str, key: VerifyKey) -> None:
    """Check the signature of ``name`` made with ``key`` on an object. Raises ``SignatureError``."""
    signature = _signature_of(value, name, key.key_id)
    try:
        message = _signed_bytes(value)
    except CanonicalJsonError as error:
        raise SignatureError(str(error)) from None
    verify_bytes(message, signature, key)


def verify_bytes(message: bytes, signature: bytes, key: VerifyKey) -> None:
    """Check a detached signature. Raises ``SignatureError``."""
    try:
        nacl.bindings.crypto_sign_open(signature + message, key.public_bytes)
    except (CryptoError, ValueError, TypeError):
        raise SignatureError(f"the signature with {key.key_id} is wrong") from None


def signing_key_ids(value: Mapping[str, Any], name: str) -> list[str]:
    """The Ed25519 key ids with which ``name`` claims to have signed an object."""
    signatures = value.get("signatures")
    of_name = signatures.get(name) if isinstance(signatures, dict) else None
    if not isinstance(of_name, dict):
        return []
    return [key_id for key_id in of_name if isinstance(key_id, str) and key_id.startswith(f"{ALGORITHM}:")]


def sign_event(
    pdu: Mapping[str, Any], room_version: RoomVersion, server_name: str, key: SigningKey
) -> dict[str, Any]:
    """A copy of a PDU with its content hash and our signature added.

    An existing hash is kept if there are signatures already (a second signature must not change the first's
    ground).
    Raises ``CanonicalJsonError``.
    """
    signed = dict(pdu)
    existing = signed.get("signatures")
    if not (existing and "hashes" in signed):
        signed["hashes"] = {"sha256": encode_base64(content_hash(signed))}
    redacted = redact_pdu(signed, room_version)
    signature = encode_base64(key.sign(_signed_bytes(redacted)))
    signatures = dict(existing) if isinstance(existing, dict) else {}
    signatures[server_name] = {**signatures.get(server_name, {}), key.key_id: signature}
    signed["signatures"] = signatures
    return signed


def verify_event_signature(event: Event, server_name: str, key: VerifyKey) -> None:
    """Check that ``server_name`` signed the event with ``key``. Raises ``SignatureError``."""
    signature = _signature_of(event.pdu, server_name, key.key_id)
    verify_bytes(_signed_bytes_of(event), signature, key)


def verify_event_signatures(event: Event, keys: Mapping[str, Mapping[str, VerifyKey]]) -> None:
    """Check all signatures that an event must have. Raises ``SignatureError``.

    ``keys``: server name -> key id -> key, of those known and valid at the event's time (``server_keys``).
    "If a signature is from an unknown or expired key, it is skipped"; of each server in ``event_signers`` at
    least one must be left, and all that are left must be right.
    """
    message = _signed_bytes_of(event)
    for server in event_signers(event):
        known = keys.get(server, {})
        key_ids = [key_id for key_id in signing_key_ids(event.pdu, server) if key_id in known]
        if not key_ids:
            raise SignatureError(f"not signed by {server} with a known key")
        for key_id in key_ids:
            verify_bytes(message, _signature_of(event.pdu, server, key_id), known[key_id])


def event_signers(event: Event) -> frozenset[ServerName]:
    """The servers that must have signed an event.

    * the sender's, unless the event is an invite that came of a third-party invite;
    * in room versions 1 and 2, the server in the event id;
    * for a member event with `join_authorised_via_users_server`, that user's server (room version 8 and
      later).
    """
    version = event.room_version
    content = event.content
    servers = set()
    membership = event.membership
    if not (membership == "invite" and isinstance(content.get("third_party_invite"), dict)):
        servers.add(server_name_of(event.sender))
    if not version.hashed_event_ids:
        servers.add(server_name_of(event.event_id))
    if version.restricted_joins and event.type == "m.room.member":
        authoriser = content.get("join_authorised_via_users_server")
        if is_valid_user_id(authoriser):
            servers.add(server_name_of(authoriser))
    return frozenset(servers)


def _signed_bytes(value: Mapping[str, Any]) -> bytes:
    return encode_canonical(
        {key: item for key, item in value.items() if key not in ("signatures", "unsigned")}
    )


def _signed_bytes_of(event: Event) -> bytes:
    version = event.room_version
    redacted = redact_pdu(event.pdu, version)
    redacted.pop("signatures", None)
    try:
        return encode_checked(redacted) if version.strict_canonical_json else encode_canonical(redacted)
    except CanonicalJsonError as error:
        raise SignatureError(str(error)) from None


def _signature_of(value: Mapping[str, Any], name: str, key_id: str) -> bytes:
    signatures = value.get("signatures")
    of_name = signatures.get(name) if isinstance(signatures, dict) else None
    text = of_name.get(key_id) if isinstance(of_name, dict) else None
    if text is None:
        raise SignatureError(f"not signed by {name} with {key_id}")
    try:
        signature = decode_base64(text)
    except ValueError as error:
        raise SignatureError(str(error)) from None
    if len(signature) != 64:
        raise SignatureError("a signature is 64 bytes long")
    return signature

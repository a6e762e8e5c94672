"""Content and reference hashes of events, and Base64 without padding.

Spec v1.19, server-server API, "Calculating the content hash for an event" and "Calculating the reference hash
for an event"; appendices, "Unpadded Base64".
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Any

from matrixlib.canonical_json import encode_canonical, encode_checked
from matrixlib.redaction import redact_pdu
from matrixlib.room_versions import EventIdFormat, RoomVersion


def encode_base64(data: bytes) -> str:
    """Standard Base64 without padding."""
    return base64.b64encode(data).rstrip(b"=").decode("ascii")


def encode_base64_url_safe(data: bytes) -> str:
    """URL-safe Base64 without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode_base64(text: object) -> bytes:
    """Decode Base64 of either alphabet, padding optional. Raises ``ValueError``."""
    if not isinstance(text, str):
        raise ValueError("not Base64: not a string")
    body = text.rstrip("=")
    try:
        raw = body.encode("ascii").translate(_FROM_URL_SAFE)
        return binascii.a2b_base64(raw + b"=" * (-len(raw) % 4), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError(f"not Base64: {error}") from None


_FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def content_hash(pdu: Mapping[str, Any], *, checked: bool = False) -> bytes:
    """SHA-256 over the event without ``unsigned``, ``signatures`` and ``hashes``.

    ``checked``: the PDU is known to be strict canonical JSON. Raises ``CanonicalJsonError`` if the event has
    no canonical form.
    """
    hashed = dict(pdu)
    for key in ("unsigned", "signatures", "hashes"):
        hashed.pop(key, None)
    return hashlib.sha256(encode_checked(hashed) if checked else encode_canonical(hashed)).digest()


def check_content_hash(pdu: Mapping[str, Any], *, checked: bool = False) -> bool:
    """Whether ``hashes.sha256`` is the event's content hash. If not, the event is to be redacted, not
    refused. ``checked`` as for ``content_hash``.
    """
    hashes = pdu.get("hashes")
    claimed = hashes.get("sha256") if isinstance(hashes, dict) else None
    try:
        digest = content_hash(pdu, checked=checked)
        return claimed == encode_base64(digest) or decode_base64(claimed) == digest
    except ValueError:
        return False


def reference_hash(pdu: Mapping[str, Any], room_version: RoomVersion, *, checked: bool = False) -> bytes:
    """SHA-256 over the redacted event without ``signatures`` and ``unsigned``.

    ``checked``: the PDU is known to be strict canonical JSON. Raises ``CanonicalJsonError`` if the event has
    no canonical form.
    """
    redacted = redact_pdu(pdu, room_version)
    redacted.pop("signatures", None)
    return hashlib.sha256(encode_checked(redacted) if checked else encode_canonical(redacted)).digest()


def hashed_event_id(pdu: Mapping[str, Any], room_version: RoomVersion, *, checked: bool = False) -> str:
    """The event id of an event of room version 3 or later; arguments as for ``reference_hash``.

    Raises ``CanonicalJsonError``.
    """
    digest = reference_hash(pdu, room_version, checked=checked)
    if room_version.event_id_format is EventIdFormat.HASH:
        return "$" + encode_base64(digest)
    return "$" + encode_base64_url_safe(digest)

"""Identifiers and server names (spec v1.19, appendices, "Identifier Grammar").

``parse_*`` are lenient: they take what the spec says must be accepted, historical user ids included.
``is_valid_new_*`` are strict: what this server may mint. Ids are plain strings with a type of their own, so
that mypy tells a user from a room. Errors: ``IdentifierError``, a ``ValueError``.
"""

import ipaddress
import re
from functools import lru_cache
from typing import Any, Final, NewType, TypeGuard

UserId = NewType("UserId", str)
RoomId = NewType("RoomId", str)
EventId = NewType("EventId", str)
RoomAlias = NewType("RoomAlias", str)
ServerName = NewType("ServerName", str)

MAX_ID_BYTES: Final = 255

_SERVER_NAME: Final = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<host>[0-9A-Za-z.-]{1,255}))(?::[0-9]{1,5})?"
)
_LOOKS_LIKE_IPV4: Final = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}")
_NEW_LOCALPART: Final = re.compile(r"[a-z0-9._=/+-]+")
_NAMESPACED: Final = re.compile(r"[a-z][a-z0-9._-]{0,254}")
_HASH_ID: Final = re.compile(r"[A-Za-z0-9_-]{43}")


class IdentifierError(ValueError):
    """A string is not the identifier it should be."""


@lru_cache(maxsize=16384)
def is_valid_server_name(name: str) -> bool:
    """Whether a string follows the server name grammar (appendices, "Server Name")."""
    if not isinstance(name, str) or len(name) > MAX_ID_BYTES:
        return False
    match = _SERVER_NAME.fullmatch(name)
    if match is None:
        return False
    v6 = match["v6"]
    if v6 is not None:
        try:
            ipaddress.IPv6Address(v6)
        except ValueError:
            return False
        return True
    host = match["host"]
    if _LOOKS_LIKE_IPV4.fullmatch(host):
        return all(int(part) <= 255 for part in host.split("."))
    return True


def parse_server_name(name: Any) -> ServerName:
    """Check a server name. Raises ``IdentifierError``."""
    if not isinstance(name, str) or not is_valid_server_name(name):
        raise IdentifierError("not a server name")
    return ServerName(name)


def split_host_port(name: str) -> tuple[str, int | None]:
    """Split a valid server name into host (IPv6 with its brackets) and port (``None`` if not given)."""
    if name.endswith("]"):
        return name, None
    host, colon, port = name.rpartition(":")
    if not colon:
        return name, None
    return host, int(port)


def server_name_of(identifier: str) -> ServerName:
    """The domain of an id: all after its first colon.

    A room id or event id without a domain (room version 12, event ids since version 3) gives the empty
    string.
    """
    return ServerName(identifier.partition(":")[2])


def localpart_of(identifier: str) -> str:
    """The part between the sigil and the first colon."""
    return identifier[1:].partition(":")[0]


def is_valid_user_id(value: Any) -> TypeGuard[str]:
    """Whether a value is a user id, historical ones included."""
    return isinstance(value, str) and _is_user_id(value)


@lru_cache(maxsize=65536)
def _is_user_id(value: str) -> bool:
    return _is_domain_id(value, "@")


def parse_user_id(value: Any) -> UserId:
    """Check a user id as received, historical localparts included. Raises ``IdentifierError``."""
    if not is_valid_user_id(value):
        raise IdentifierError("not a user id")
    return UserId(value)


def parse_room_id(value: Any) -> RoomId:
    """Check a room id, with a domain (versions 1 to 11) or a hash (version 12). Raises
    ``IdentifierError``.
    """
    if not isinstance(value, str) or not (_is_domain_id(value, "!") or _is_opaque_id(value, "!")):
        raise IdentifierError("not a room id")
    return RoomId(value)


def parse_event_id(value: Any) -> EventId:
    """Check an event id of any room version. Raises ``IdentifierError``."""
    if not isinstance(value, str) or not (_is_domain_id(value, "$") or _is_opaque_id(value, "$")):
        raise IdentifierError("not an event id")
    return EventId(value)


def parse_room_alias(value: Any) -> RoomAlias:
    """Check a room alias. Raises ``IdentifierError``."""
    if not isinstance(value, str) or not _is_domain_id(value, "#"):
        raise IdentifierError("not a room alias")
    return RoomAlias(value)


def is_valid_new_user_localpart(localpart: str) -> bool:
    """Whether we may register this localpart: the strict grammar."""
    return _NEW_LOCALPART.fullmatch(localpart) is not None


def is_compliant_user_id(value: str) -> bool:
    """Whether a user id may be forwarded outside of an event (appendices, "Historical User IDs").

    The localpart must not be empty and lie in U+0021 to U+007E.
    """
    localpart = localpart_of(value)
    return is_valid_user_id(value) and bool(localpart) and all("\x21" <= char <= "\x7e" for char in localpart)


def is_hash_room_id(value: str) -> bool:
    """Whether a room id is the hash of a create event (room version 12)."""
    return value[:1] == "!" and _HASH_ID.fullmatch(value, 1) is not None


def is_namespaced_identifier(value: str) -> bool:
    """Whether a string follows the Common Namespaced Identifier Grammar."""
    return _NAMESPACED.fullmatch(value) is not None


def _fits(value: str) -> bool:
    # At most four bytes a character: measure only what may be too long.
    if len(value) > MAX_ID_BYTES:
        return False
    try:
        return len(value.encode()) <= MAX_ID_BYTES
    except UnicodeEncodeError:  # a lone surrogate
        return False


def _is_domain_id(value: str, sigil: str) -> bool:
    if value[:1] != sigil:
        return False
    localpart, colon, domain = value[1:].partition(":")
    return bool(colon) and "\0" not in localpart and _fits(value) and is_valid_server_name(domain)


def _is_opaque_id(value: str, sigil: str) -> bool:
    return value[:1] == sigil and len(value) > 1 and ":" not in value and "\0" not in value and _fits(value)

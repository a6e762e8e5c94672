"""Requests between servers, signed: the `X-Matrix` authorisation scheme (server-server API, "Request
Authentication").

Sending: ``authorization_header``. Receiving: ``parse_authorization_header`` for each header of the request,
then, with the origin's key, ``verify_request``. Which keys are the origin's is ``server_keys``'s matter.
"""

import re
from dataclasses import dataclass
from typing import Any, Final

from matrixlib.canonical_json import encode_canonical
from matrixlib.hashes import encode_base64
from matrixlib.identifiers import ServerName, is_valid_server_name
from matrixlib.signing import SignatureError, SigningKey, VerifyKey, sign_json, verify_signed_json

SCHEME: Final = "X-Matrix"
MAX_HEADER_LENGTH: Final = 4096

# Recipients should allow colons in unquoted values; Base64 and IPv6 literals come unquoted too.
_PARAMETER: Final = re.compile(
    r"[ \t]*(?P<name>[!#$%&\'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*"
    r'(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s",]*))[ \t]*(?:,|$)',
    re.DOTALL,
)
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)


class RequestAuthError(ValueError):
    """An `Authorization` header is no acceptable `X-Matrix` header, or its signature is wrong (401)."""


@dataclass(frozen=True, slots=True)
class XMatrix:
    """The parameters of an `X-Matrix` header."""

    origin: ServerName
    destination: str | None
    """`None` from servers older than v1.3."""
    key_id: str
    signature: str


def signed_request(
    method: str, uri: str, origin: str, destination: str | None, content: Any | None
) -> dict[str, Any]:
    """The object that is signed. ``uri`` is path and query as sent; ``content`` the parsed body, ``None``
    without.
    """
    request: dict[str, Any] = {"method": method, "uri": uri, "origin": origin}
    if destination is not None:
        request["destination"] = destination
    if content is not None:
        request["content"] = content
    return request


def authorization_header(
    key: SigningKey, *, method: str, uri: str, origin: str, destination: str, content: Any | None = None
) -> str:
    """The value of the `Authorization` header for a request of ours. Raises ``CanonicalJsonError``."""
    signed = sign_json(signed_request(method, uri, origin, destination, content), origin, key)
    signature = signed["signatures"][origin][key.key_id]
    return format_header(XMatrix(ServerName(origin), destination, key.key_id, signature))


def authorization_header_of_bytes(
    key: SigningKey, *, method: str, uri: str, origin: str, destination: str, content_json: bytes | None
) -> str:
    """As `authorization_header`, for a body (None: none) that is canonical JSON already: it is not encoded again."""
    signed = encode_canonical(signed_request(method, uri, origin, destination, None))
    if content_json is not None:
        # Of the keys `content` comes first.
        signed = b'{"content":' + content_json + b"," + signed[1:]
    signature = encode_base64(key.sign(signed))
    return format_header(XMatrix(ServerName(origin), destination, key.key_id, signature))


def format_header(value: XMatrix) -> str:
    """Write a header as the spec recommends: one space, lower case, all quoted."""
    parameters = {"origin": value.origin, "destination": value.destination, "key": value.key_id}
    parameters["sig"] = value.signature
    return f"{SCHEME} " + ",".join(
        f'{name}="{_escape(text)}"' for name, text in parameters.items() if text is not None
    )


def parse_authorization_header(header: str) -> XMatrix:
    """Parse the value of an `Authorization` header. Raises ``RequestAuthError``."""
    if len(header) > MAX_HEADER_LENGTH:
        raise RequestAuthError("the header is too long")
    scheme, _, rest = header.strip().partition(" ")
    if scheme.lower() != SCHEME.lower():
        raise RequestAuthError("not an X-Matrix header")
    parameters: dict[str, str] = {}
    position = 0
    rest = rest.strip(" \t")
    while position < len(rest):
        match = _PARAMETER.match(rest, position)
        if match is None:
            raise RequestAuthError("malformed parameters")
        # "The names are case insensitive and order does not matter."
        name = match["name"].lower()
        if name in parameters:
            raise RequestAuthError(f"two parameters {name}")
        quoted = match["quoted"]
        parameters[name] = match["bare"] if quoted is None else _ESCAPE.sub(r"\1", quoted)
        position = match.end()
    origin = parameters.get("origin", "")
    key_id = parameters.get("key", "")
    signature = parameters.get("sig", "")
    if not is_valid_server_name(origin):
        raise RequestAuthError("origin is not a server name")
    if not key_id.startswith("ed25519:"):
        raise RequestAuthError("not an ed25519 key")
    if not signature:
        raise RequestAuthError("no signature")
    return XMatrix(ServerName(origin), parameters.get("destination"), key_id, signature)


def verify_request(
    header: XMatrix, key: VerifyKey, *, method: str, uri: str, destination: str, content: Any | None
) -> None:
    """Check a request against its header with the origin's key.

    ``destination`` is our name as the header may have it (any of our server names that the caller accepts;
    pass the header's own once that was checked with ``destination_matches``). Raises ``RequestAuthError``.
    """
    if key.key_id != header.key_id:
        raise RequestAuthError("signed with another key")
    if header.destination is not None and header.destination != destination:
        raise RequestAuthError("the request is for another server")
    # Who leaves the destination out of the header has signed it all the same.
    request = signed_request(method, uri, header.origin, destination, content)
    request["signatures"] = {header.origin: {header.key_id: header.signature}}
    try:
        verify_signed_json(request, header.origin, key)
    except SignatureError as error:
        raise RequestAuthError(str(error)) from None


def destination_matches(header: XMatrix, our_names: frozenset[str]) -> bool:
    """Whether a request is for us: "recipients should accept requests without this parameter"."""
    return header.destination is None or header.destination in our_names


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')

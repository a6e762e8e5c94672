"""The X-Matrix Authorization header, taken apart (server-server API, "Request Authentication"). Pure.

The grammar is RFC 9110's for credentials, with what older servers send: colons in unquoted values, any case
of scheme and names, any order, blanks around the commas, unknown parameters, no `destination`.
"""

import re
from dataclasses import dataclass

from matrixlib.identifiers import is_valid_server_name

MAX_LENGTH = 4096
_PARAMETER = re.compile(
    r"""[ \t]*(?P<name>[A-Za-z0-9!#$%&'*+.^_`|~-]+)[ \t]*=[ \t]*
        (?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^\s",]*))[ \t]*(?:,|$)""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


class XMatrixError(ValueError):
    """The header is not an X-Matrix header that can be used."""


@dataclass(frozen=True, slots=True)
class XMatrix:
    """The parameters; `destination` is None when the header has none."""

    origin: str
    key_id: str
    signature: str
    destination: str | None


def parse_x_matrix(header: str) -> XMatrix:
    """Take the header's value apart. Raises `XMatrixError`."""
    scheme, _, rest = header.strip().partition(" ")
    if scheme.lower() != "x-matrix":
        raise XMatrixError("not an X-Matrix header")
    if len(rest) > MAX_LENGTH:
        raise XMatrixError("the header is too long")
    rest = rest.strip(" \t")
    values: dict[str, str] = {}
    at = 0
    while at < len(rest):
        if rest[at] in ", \t":  # RFC 9110 lets lists have empty elements
            at += 1
            continue
        match = _PARAMETER.match(rest, at)
        if match is None:
            raise XMatrixError("the header is malformed")
        name = match["name"].lower()
        quoted = match["quoted"]
        if name in values:
            raise XMatrixError(f"the header has {name} twice")
        values[name] = match["plain"] if quoted is None else _ESCAPED.sub(r"\1", quoted)
        at = match.end()
    origin, key_id, signature = values.get("origin"), values.get("key"), values.get("sig")
    if not origin or not key_id or not signature:
        raise XMatrixError("the header lacks origin, key or sig")
    if not is_valid_server_name(origin):
        raise XMatrixError("origin is no server name")
    destination = values.get("destination")
    return XMatrix(origin, key_id, signature, destination)

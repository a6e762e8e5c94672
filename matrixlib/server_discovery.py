"""Where a server is to be reached, decided over given answers (server-server API, "Resolving server names").

The I/O around it is thin: ``next_question`` says what to look up next, the caller adds the answer and asks
again until it gets a ``Destination``. Hosts in it still have to be resolved to addresses (AAAA and A
records), which is the caller's business, together with which addresses are allowed.

    answers = Answers()
    while not isinstance(step := next_question(name, answers), Destination):
        match step: AskWellKnown -> answers.well_known = ...; AskSrv -> answers.srv[step.name] = ...
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from matrixlib.canonical_json import CanonicalJsonError, parse_json
from matrixlib.identifiers import is_valid_server_name, split_host_port
from matrixlib.server_acl import is_ip_literal

DEFAULT_PORT: Final = 8448
MAX_WELL_KNOWN_BYTES: Final = 50_000
WELL_KNOWN_DEFAULT_CACHE_S: Final = 24 * 3600
WELL_KNOWN_MAX_CACHE_S: Final = 48 * 3600
WELL_KNOWN_ERROR_CACHE_S: Final = 3600


class ServerDiscoveryError(ValueError):
    """A name is no server name: there is nothing to connect to."""


@dataclass(frozen=True, slots=True)
class Target:
    """A host (name, or IP literal without brackets) and port to connect to."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Destination:
    """How to make requests to a server."""

    targets: tuple[Target, ...]
    """In the order to try; never empty."""
    host_header: str
    """Value of the `Host` header."""
    certificate_name: str
    """Name, or IP address, that the certificate must be valid for; also the TLS server name."""
    is_ip_literal: bool
    step: str
    """The step of the spec's algorithm that decided, such as "3.2"."""


@dataclass(frozen=True, slots=True)
class AskWellKnown:
    """Fetch `https://<host>/.well-known/matrix/server`, following redirects."""

    host: str


@dataclass(frozen=True, slots=True)
class AskSrv:
    """Look up SRV records of a name."""

    name: str


@dataclass(frozen=True, slots=True)
class SrvRecord:
    """An SRV record."""

    priority: int
    weight: int
    port: int
    host: str


@dataclass(slots=True)
class Answers:
    """What is known so far."""

    well_known: Mapping[str, Any] | None = None
    """The parsed response; the empty mapping if it was an error of any kind; ``None`` if not asked yet."""
    srv: dict[str, list[SrvRecord]] = field(default_factory=dict)
    """Name -> records, the empty list if there are none; absent if not asked yet."""


Step = Destination | AskWellKnown | AskSrv


def next_question(server_name: str, answers: Answers) -> Step:
    """What to ask next, or the destination. Raises ``ServerDiscoveryError`` for what is no server name."""
    if not is_valid_server_name(server_name):
        raise ServerDiscoveryError("not a server name")
    host, port = split_host_port(server_name)
    # 1. "If the hostname is an IP literal, then that IP address should be used, together with the given port
    # number, or
    # 8448 if no port is given."
    if is_ip_literal(host):
        return _literal(host, port, server_name, "1")
    # 2. "If the hostname is not an IP literal, and the server name includes an explicit port, ..."
    if port is not None:
        return Destination((Target(host, port),), server_name, host, False, "2")
    # 3. "... a regular HTTPS request is made to `https://<hostname>/.well-known/matrix/server`"
    if answers.well_known is None:
        return AskWellKnown(host)
    delegated = delegated_name(answers.well_known)
    if delegated is None:
        # 4., 5. and 6.: the same with the hostname itself.
        return _by_srv(host, answers, ("4", "5", "6"))
    delegated_host, delegated_port = split_host_port(delegated)
    # 3.1. "If `<delegated_hostname>` is an IP literal, then that IP address should be used ..."
    if is_ip_literal(delegated_host):
        return _literal(delegated_host, delegated_port, delegated, "3.1")
    # 3.2. "If `<delegated_hostname>` is not an IP literal, and `<delegated_port>` is present, ..."
    if delegated_port is not None:
        return Destination((Target(delegated_host, delegated_port),), delegated, delegated_host, False, "3.2")
    return _by_srv(delegated_host, answers, ("3.3", "3.4", "3.5"))


def parse_well_known(status: int, body: bytes) -> dict[str, Any]:
    """The answer of a well-known request for ``Answers.well_known``: empty if it counts as an error."""
    if status != 200 or len(body) > MAX_WELL_KNOWN_BYTES:
        return {}
    try:
        value = parse_json(body)
    except CanonicalJsonError:
        return {}
    return value if isinstance(value, dict) and delegated_name(value) is not None else {}


def delegated_name(well_known: Mapping[str, Any]) -> str | None:
    """`m.server` of a well-known response if it is a server name."""
    name = well_known.get("m.server")
    return name if isinstance(name, str) and is_valid_server_name(name) else None


def well_known_cache_s(well_known: Mapping[str, Any], max_age_s: int | None) -> int:
    """For how many seconds to keep an answer, by its own `max-age` (``None`` if it has none)."""
    if not well_known:
        return WELL_KNOWN_ERROR_CACHE_S
    if max_age_s is None:
        return WELL_KNOWN_DEFAULT_CACHE_S
    return max(0, min(max_age_s, WELL_KNOWN_MAX_CACHE_S))


def _literal(host: str, port: int | None, host_header: str, step: str) -> Destination:
    address = host.strip("[]")
    target = Target(address, DEFAULT_PORT if port is None else port)
    return Destination((target,), host_header, address, True, step)


def _by_srv(host: str, answers: Answers, steps: tuple[str, str, str]) -> Step:
    for service, step in (("_matrix-fed", steps[0]), ("_matrix", steps[1])):
        name = f"{service}._tcp.{host}"
        records = answers.srv.get(name)
        if records is None:
            return AskSrv(name)
        # A single record with the target "." says that the service is decidedly not available (RFC 2782).
        usable = [record for record in records if record.host.rstrip(".") and 0 < record.port < 65536]
        if usable:
            # Lowest priority number first; of equals the heavier. Spreading load by weight is the caller's
            # choice.
            ordered = sorted(
                usable, key=lambda record: (record.priority, -record.weight, record.host, record.port)
            )
            targets = tuple(Target(record.host.rstrip("."), record.port) for record in ordered)
            return Destination(targets, host, host, False, step)
    return Destination((Target(host, DEFAULT_PORT),), host, host, False, steps[2])

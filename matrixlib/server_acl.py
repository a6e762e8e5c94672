"""Server ACLs: may this server take part in a room? (client-server API, `m.room.server_acl`.)

Compile once per ACL event (``ServerAcl.of``), ask often. Names are compared without port and, since v1.19,
without regard to case. Cost is bounded: literal entries are looked up, globs are linear, and there are at
most ``MAX_GLOBS`` of them in each list that count.
"""

import ipaddress
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from matrixlib.events import Event
from matrixlib.globs import Glob
from matrixlib.identifiers import is_valid_server_name, split_host_port

MAX_GLOBS: Final = 20_000
"""Entries with wildcards that are read from one list. An event of 64 KiB can hold no more."""


class ServerAcl:
    """A compiled `m.room.server_acl`."""

    __slots__ = ("_allow", "_allow_ip_literals", "_allowed", "_deny")

    def __init__(self, content: Mapping[str, Any]) -> None:
        """Of the event's content; malformed parts count as their defaults, malformed entries as absent."""
        self._allow_ip_literals = content.get("allow_ip_literals") is not False
        self._allow = _Patterns(content.get("allow"))
        self._deny = _Patterns(content.get("deny"))
        self._allowed = lru_cache(maxsize=1024)(self._decide)

    @classmethod
    def of(cls, event: Event | None) -> "ServerAcl | None":
        """Of a room's ACL event; ``None`` if there is none, which allows every server."""
        return cls(event.content) if event is not None and event.state_key == "" else None

    def allows(self, server_name: str) -> bool:
        """Whether a server may take part. A name that is no server name may not."""
        return self._allowed(server_name)

    def _decide(self, server_name: str) -> bool:
        if not is_valid_server_name(server_name):
            return False
        host = split_host_port(server_name)[0].lower()
        # "If the server name is an IP address (v4 or v6) literal, and `allow_ip_literals` is present and
        # `false`, deny."
        if not self._allow_ip_literals and is_ip_literal(host.rstrip(".")):
            return False
        # "If the server name matches an entry in the `deny` list, deny." A trailing dot names the same host.
        names = {host, host.rstrip(".")}
        if any(self._deny.match(name) for name in names):
            return False
        # "If the server name matches an entry in the `allow` list, allow. Otherwise, deny."
        return self._allow.match(host)


def server_allowed(acl: Event | None, server_name: str) -> bool:
    """Whether a room's ACL event (``None`` if it has none) allows a server, without keeping the compiled
    form.
    """
    compiled = ServerAcl.of(acl)
    return compiled is None or compiled.allows(server_name)


def is_ip_literal(host: str) -> bool:
    """Whether a host (without port) is an IP address, IPv6 in brackets or not."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


class _Patterns:
    __slots__ = ("_any", "_globs", "_literals")

    def __init__(self, entries: Any) -> None:
        texts = [entry for entry in entries if isinstance(entry, str)] if isinstance(entries, list) else []
        self._any = "*" in texts
        lowered = dict.fromkeys(text.lower() for text in texts)
        wild = [text for text in lowered if "*" in text or "?" in text]
        self._literals = lowered.keys() - wild
        self._globs = [] if self._any else [Glob(text) for text in wild[:MAX_GLOBS]]

    def match(self, host: str) -> bool:
        return self._any or host in self._literals or any(glob.matches(host) for glob in self._globs)

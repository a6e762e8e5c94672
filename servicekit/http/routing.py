"""Which route a path belongs to: a trie of segments.

A path is taken as it was sent: nothing is normalised, no slash is added or dropped, `..` and `;x` mean
nothing. A fixed segment matches byte for byte; a parameter is one segment, percent-decoded once and on its
own, so that `%2F` stays inside it. Whatever a proxy in front decides by the raw path is therefore decided
here by the same bytes.

Patterns: `/rooms/{room_id}/state/{event_type}/{state_key?}`; a parameter with `?` may be an empty segment,
    the others not. `/_matrix/client/v3/…` is served as `r0` and `api/v1` too.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from servicekit.config.schema import Resource
from servicekit.errors import invalid_param

if TYPE_CHECKING:
    from servicekit.http.messages import Request, Response

Handler = Callable[["Request"], Awaitable["Response"]]

_V3 = "/_matrix/client/v3/"
_OLD_PREFIXES = ("/_matrix/client/r0/", "/_matrix/client/api/v1/")
_MEDIA_V3 = "/_matrix/media/v3/"
_OLD_MEDIA_PREFIXES = ("/_matrix/media/r0/", "/_matrix/media/v1/")

# By prefix of the path: which resource of a listener serves it. The first that fits counts.
_RESOURCES: tuple[tuple[str, tuple[Resource, ...]], ...] = (
    ("/_matrix/client/v1/media/", ("client", "media")),
    ("/_matrix/client/", ("client",)),
    ("/_matrix/media/", ("media",)),
    ("/_matrix/federation/v1/media/", ("federation", "media")),
    ("/_matrix/federation/", ("federation",)),
    ("/_matrix/key/", ("federation",)),
    ("/_matrix/policy/", ("federation",)),
    ("/.well-known/matrix/server", ("federation",)),
    ("/.well-known/matrix/", ("client",)),
    ("/_synapse/admin/", ("admin",)),
    ("/_arbor/admin/", ("admin",)),
    ("/metrics", ("metrics",)),
)


@dataclass(slots=True, eq=False)
class Route:
    """A method and pattern and who answers it."""

    method: str
    pattern: str
    handler: Handler
    resources: frozenset[Resource] | None
    max_body: int | None = None
    body_timeout_s: float | None = None
    cancel_on_disconnect: bool = False
    owner: str | None = None
    param_names: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


@dataclass(slots=True)
class _Node:
    fixed: dict[str, "_Node"] = field(default_factory=dict)
    param: "_Node | None" = None
    empty_param: "_Node | None" = None
    routes: dict[str, Route] = field(default_factory=dict)


class Router:
    """The routes of a process or of one listener."""

    def __init__(self) -> None:
        self._root = _Node()
        self.routes: list[Route] = []
        self.owner: str | None = None
        """Name of the service that adds routes now."""

    def add(
        self,
        method: str,
        pattern: str,
        handler: Handler,
        *,
        aliases: Iterable[str] = (),
        resources: Iterable[Resource] | None = None,
        max_body: int | None = None,
        body_timeout_s: float | None = None,
        cancel_on_disconnect: bool = False,
    ) -> Route:
        """Add a route.

        Args:
            method: `GET`, `PUT`, …; HEAD is answered by GET, OPTIONS by the server.
            pattern: see the module.
            handler: what answers.
            aliases: further patterns with the same parameters, such as unstable prefixes.
            resources: on which listeners it is served; by default it follows from the path, and a path that
                belongs
                to none (`/health`) is served on all.
            max_body: largest body in bytes; None: the server's default.
            body_timeout_s: time to receive the whole body; None: the server's default.
            cancel_on_disconnect: cancel the handler when the client goes away: for long polls, never for what
                writes.

        Raises:
            ValueError: the pattern is malformed, or the method and path are taken.
        """
        own = frozenset(resources) if resources is not None else _resources_of(pattern)
        names = tuple(_param_name(part) for part in pattern.split("/") if part.startswith("{"))
        route = Route(
            method,
            pattern,
            handler,
            own,
            max_body,
            body_timeout_s,
            cancel_on_disconnect,
            self.owner,
            names,
            tuple(aliases),
        )
        self._insert(route)
        return route

    def restricted_to(self, resources: Iterable[Resource]) -> "Router":
        """Return a router with the routes that a listener of these resources serves."""
        wanted = frozenset(resources)
        router = Router()
        for route in self.routes:
            if route.resources is None or route.resources & wanted:
                router._insert(route)
        return router

    def _insert(self, route: Route) -> None:
        self.routes.append(route)
        for pattern in dict.fromkeys(_all_patterns(route)):
            node = self._root
            if not pattern.startswith("/"):
                raise ValueError(f"the pattern {pattern!r} does not begin with a slash")
            names = []
            for part in pattern[1:].split("/"):
                if part.startswith("{"):
                    names.append(_param_name(part))
                    if part.endswith("?}"):
                        node.empty_param = node.empty_param or _Node()
                        node = node.empty_param
                    else:
                        node.param = node.param or _Node()
                        node = node.param
                else:
                    node = node.fixed.setdefault(part, _Node())
            if tuple(names) != route.param_names:
                raise ValueError(f"the alias {pattern!r} has other parameters than {route.pattern!r}")
            if route.method in node.routes:
                raise ValueError(f"{route.method} {pattern} is taken")
            node.routes[route.method] = route

    def match(self, method: str, path: str) -> tuple[Route | None, dict[str, str], frozenset[str]]:
        """Return the route, the decoded parameters, and the methods known for this path (empty: unknown
        path).

        Args:
            method: of the request.
            path: raw path of the request target, without the query.

        Raises:
            MatrixError: a parameter is not percent-encoded UTF-8 (400 M_INVALID_PARAM).
        """
        if not path.startswith("/"):
            return None, {}, frozenset()
        segments = path[1:].split("/")
        # Nearly always the first way down is the right one; going back comes at four times the price.
        route, values = _descend(self._root, segments, method)
        if route is not None:
            return route, _decode(route, values), frozenset()
        allowed: set[str] = set()
        for node, found in _walk(self._root, segments, 0, ()):
            route = node.routes.get(method)
            if route is None and method == "HEAD":
                route = node.routes.get("GET")
            if route is not None:
                return route, _decode(route, found), frozenset()
            allowed.update(node.routes)
        return None, {}, frozenset(allowed)


def _decode(route: Route, values: Sequence[str]) -> dict[str, str]:
    return {name: decode_segment(value) for name, value in zip(route.param_names, values, strict=True)}


def _descend(node: _Node, segments: list[str], method: str) -> tuple[Route | None, list[str]]:
    """Return the route at the end of the first way that `_walk` takes, None where there is none."""
    values: list[str] = []
    for segment in segments:
        below = node.fixed.get(segment)
        if below is None:
            below = node.param if segment and node.param is not None else node.empty_param
            if below is None:
                return None, values
            values.append(segment)
        node = below
    return node.routes.get(method), values


def _walk(
    node: _Node, segments: list[str], at: int, values: tuple[str, ...]
) -> Iterator[tuple[_Node, tuple[str, ...]]]:
    """Go through the nodes with routes that fit, fixed segments before parameters."""
    if at == len(segments):
        if node.routes:
            yield node, values
        return
    segment = segments[at]
    fixed = node.fixed.get(segment)
    if fixed is not None:
        yield from _walk(fixed, segments, at + 1, values)
    if node.param is not None and segment:
        yield from _walk(node.param, segments, at + 1, (*values, segment))
    if node.empty_param is not None:
        yield from _walk(node.empty_param, segments, at + 1, (*values, segment))


def decode_segment(segment: str) -> str:
    """Return a percent-decoded path segment.

    Raises:
        MatrixError: it does not decode to UTF-8, or a percent sign begins no escape (400 M_INVALID_PARAM).
    """
    if "%" not in segment and segment.isascii():
        return segment
    pieces = segment.split("%")
    for piece in pieces[1:]:
        if len(piece) < 2 or not _is_hex(piece[0]) or not _is_hex(piece[1]):
            raise invalid_param("The path holds a percent sign that begins no escape")
    try:
        # A target with raw bytes above 127 comes as surrogates: back to the bytes, then strictly UTF-8.
        return unquote_to_bytes(segment.encode("utf-8", "surrogateescape")).decode("utf-8")
    except (UnicodeDecodeError, UnicodeEncodeError):
        raise invalid_param("The path is not UTF-8") from None


def _is_hex(character: str) -> bool:
    return character in "0123456789abcdefABCDEF"


def _param_name(part: str) -> str:
    name = part[1:-1].removesuffix("?")
    if not part.endswith("}") or not name.isidentifier():
        raise ValueError(f"{part!r} is no parameter")
    return name


def _all_patterns(route: Route) -> Iterator[str]:
    for pattern in (route.pattern, *route.aliases):
        yield pattern
        if pattern.startswith(_V3):
            yield from (old + pattern.removeprefix(_V3) for old in _OLD_PREFIXES)
        elif pattern.startswith(_MEDIA_V3):
            yield from (old + pattern.removeprefix(_MEDIA_V3) for old in _OLD_MEDIA_PREFIXES)


def _resources_of(pattern: str) -> frozenset[Resource] | None:
    for prefix, resources in _RESOURCES:
        if pattern.startswith(prefix):
            return frozenset(resources)
    return None

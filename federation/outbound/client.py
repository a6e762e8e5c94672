"""Signed requests to other servers.

A request is signed as the local server name that it is made for, sent to the first place that discovery names
and that answers, and read whole within limits. Failures to reach a destination are noted at `Destinations`;
unless the caller wants it tried anyway, a destination that is backing off is not asked at all.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from federation.outbound.discovery import Discovery, Target
from federation.outbound.errors import BackingOff, BadAnswer, RemoteError, RemoteRefused, Unreachable
from federation.outbound.transport import RawResponse, Transport
from matrixlib.canonical_json import CanonicalJsonError, encode_canonical, parse_json
from matrixlib.request_auth import authorization_header_of_bytes
from matrixlib.signing import SigningKey
from servicekit import metrics

DEFAULT_TIMEOUT_S = 30.0
DEFAULT_MAX_BYTES = 8 * 1024 * 1024
# Answers that may hold the state of a large room.
LARGE_MAX_BYTES = 256 * 1024 * 1024
LARGE_TIMEOUT_S = 180.0
MAX_RETRY_AFTER_MS = 24 * 3600 * 1000
# Parsed on a thread from this size on, so that the loop keeps answering.
_THREAD_BYTES = 256 * 1024

_requests = metrics.counter("federation_requests_total", "Requests to other servers", ["endpoint", "outcome"])


class Gate(Protocol):
    """Who knows which destinations are backing off."""

    def next_try_ms(self, server_name: str) -> int:
        """When the destination may be asked again; 0: now."""
        ...

    def note_success(self, server_name: str) -> None:
        """The destination answered (with whatever)."""
        ...

    def note_failure(self, server_name: str, reason: str) -> None:
        """The destination could not be reached."""
        ...


def path_of(template: str, *parts: str, **query: str | list[str]) -> str:
    """Fill ids, escaped, into the `{}` of a path; `query` with values or lists of values is appended."""
    path = template.format(*(quote(part, safe="") for part in parts))
    return f"{path}?{urlencode(query, doseq=True, quote_via=quote)}" if query else path


class FederationClient:
    """Requests to other servers.

    Args:
        keys: local server name -> the key that signs for it.
        gate: which destinations are backing off.
    """

    def __init__(
        self, transport: Transport, discovery: Discovery, keys: Mapping[str, SigningKey], gate: Gate
    ) -> None:
        self._transport = transport
        self._discovery = discovery
        self._keys = keys
        self._gate = gate
        self._default_origin = next(iter(keys))

    async def get(self, destination: str, path: str, **options: Any) -> Any:
        """Shorthand for `request` with GET."""
        return await self.request(destination, "GET", path, **options)

    async def request(
        self,
        destination: str,
        method: str,
        path: str,
        *,
        content: Mapping[str, Any] | None = None,
        content_json: bytes | None = None,
        origin: str | None = None,
        signed: bool = True,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_bytes: int = DEFAULT_MAX_BYTES,
        ignore_backoff: bool = False,
        count: bool = True,
        to_ourselves: bool = False,
    ) -> Any:
        """Send a request and return its answer, parsed.

        Args:
            path: path and query, escaped (`path_of`).
            content: the body; it is sent as canonical JSON, which is what the signature covers.
            content_json: in its place a body that is canonical JSON already.
            origin: the local server name to speak as; the first one by default.
            ignore_backoff: try also a destination that failed lately.
            count: note success and failure at the gate (the sender counts its own).
            to_ourselves: the destination may be one of our own names, under which other software may answer, too.

        Raises:
            RemoteError: see `federation.outbound.errors`.
        """
        origin = origin or self._default_origin
        if destination in self._keys and not to_ourselves:
            raise Unreachable(destination, "that is this server")
        next_try_ms = 0 if ignore_backoff else self._gate.next_try_ms(destination)
        if next_try_ms:
            raise BackingOff(destination, next_try_ms)
        headers = {}
        body = encode_canonical(content) if content is not None else content_json
        if body is not None:
            headers["Content-Type"] = "application/json"
        if signed:
            headers["Authorization"] = authorization_header_of_bytes(
                self._keys[origin],
                method=method,
                uri=path,
                origin=origin,
                destination=destination,
                content_json=body,
            )
        endpoint = _endpoint(path)
        try:
            response = await self._send(destination, method, path, headers, body, timeout_s, max_bytes)
        except RemoteError as error:
            _requests.labels(endpoint, type(error).__name__).inc()
            if isinstance(error, Unreachable) and count:
                self._gate.note_failure(destination, error.reason)
            raise
        if count and response.status < 500 and response.status != 429:
            self._gate.note_success(destination)
        _requests.labels(endpoint, f"{response.status // 100}xx").inc()
        if not 200 <= response.status < 300:
            raise refusal_of(destination, response)
        return await _parse(destination, response.body)

    async def _send(
        self,
        destination: str,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout_s: float,
        max_bytes: int,
    ) -> RawResponse:
        targets = await self._discovery.resolve(destination)
        if not targets:
            raise Unreachable(destination, "it is no server name")
        last: Unreachable | None = None
        # Several SRV records: the next one where no answer came from the one before.
        for target in targets[:3]:
            try:
                return await self._ask(destination, target, method, path, headers, body, timeout_s, max_bytes)
            except Unreachable as error:
                last = error
        assert last is not None
        raise last

    async def _ask(
        self,
        destination: str,
        target: Target,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout_s: float,
        max_bytes: int,
    ) -> RawResponse:
        try:
            return await self._transport.request(
                target, method, path, headers=headers, body=body, timeout_s=timeout_s, max_bytes=max_bytes
            )
        except RemoteError as error:
            # The transport names the place; everybody above thinks in server names.
            error.destination = destination
            raise


def refusal_of(destination: str, response: RawResponse) -> RemoteRefused:
    """Return the error that an answer other than 2xx stands for; its body may hold anything."""
    try:
        value = parse_json(response.body)
    except CanonicalJsonError:
        value = None
    body = value if isinstance(value, dict) else {}
    errcode, message, version = body.get("errcode"), body.get("error"), body.get("room_version")
    retry_after_ms = body.get("retry_after_ms")
    return RemoteRefused(
        destination,
        response.status,
        errcode if isinstance(errcode, str) and errcode.isascii() and len(errcode) < 100 else "",
        message if isinstance(message, str) else "",
        version if isinstance(version, str) and len(version) <= 32 else "",
        retry_after_ms if type(retry_after_ms) is int and 0 <= retry_after_ms <= MAX_RETRY_AFTER_MS else None,
    )


async def _parse(destination: str, body: bytes) -> Any:
    try:
        if len(body) > _THREAD_BYTES:
            return await asyncio.to_thread(parse_json, body)
        return parse_json(body)
    except CanonicalJsonError as error:
        raise BadAnswer(destination, str(error)) from None


def _endpoint(path: str) -> str:
    # Few values: the word after the version.
    parts = path.partition("?")[0].split("/")
    return parts[4] if len(parts) > 4 else path

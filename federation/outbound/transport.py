"""One HTTPS request to a known place, with a limit on the bytes that are read and on the time of the whole.

The deny list is applied to the addresses that a name resolved to, at the moment of dialling: a name that
answers differently the second time gains nothing. Redirects are not followed, except for well-known.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from io import BytesIO
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
import dns.asyncresolver
import dns.exception
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from federation.outbound.deny import DenyList
from federation.outbound.discovery import Target, WellKnown
from federation.outbound.errors import BadAnswer, Unreachable
from matrixlib.server_discovery import MAX_WELL_KNOWN_BYTES, SrvRecord, parse_well_known

WELL_KNOWN_TIMEOUT_S = 15.0
WELL_KNOWN_REDIRECTS = 5
SRV_TIMEOUT_S = 5.0
MAX_CONNECTIONS = 400
MAX_CONNECTIONS_PER_HOST = 16
PIECES_FROM_BYTES = 512 * 1024
USER_AGENT = "Arbor"


@dataclass(frozen=True, slots=True)
class RawResponse:
    """An answer as it came: status, headers (looked up in whatever case) and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _DeniedAddress(OSError):
    """Every address of a name is on the deny list."""


class _CheckedResolver(AbstractResolver):
    """The system's resolver, without the addresses on the deny list."""

    def __init__(self, deny_list: DenyList) -> None:
        self._deny_list = deny_list

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, family=socket.AF_UNSPEC, flags=socket.AI_ADDRCONFIG
        )
        results = [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=port,
                family=int(kind),
                proto=protocol,
                flags=socket.AI_NUMERICHOST,
            )
            for kind, _, protocol, _, address in found
            if isinstance(address[0], str) and not self._deny_list.denies(address[0])
        ]
        if not results:
            raise _DeniedAddress(f"{host} has no address that may be connected to")
        return results

    async def close(self) -> None:
        """Nothing is held."""


class Transport:
    """HTTPS to other servers. Make it on the running loop, `close` it at the end.

    Args:
        deny_list: addresses never connected to.
        trusted_ca_paths: PEM files of CAs trusted besides the system's.
        verify_tls: False takes any certificate (closed tests).
    """

    def __init__(
        self, deny_list: DenyList, trusted_ca_paths: Sequence[Path] = (), *, verify_tls: bool = True
    ) -> None:
        context = ssl.create_default_context()
        for path in trusted_ca_paths:
            context.load_verify_locations(path)
        if not verify_tls:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        self._deny_list = deny_list
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_CheckedResolver(deny_list),
                ssl=context,
                limit=MAX_CONNECTIONS,
                limit_per_host=MAX_CONNECTIONS_PER_HOST,
                ttl_dns_cache=60,
            ),
            # No cookies, no decompression bombs, and every body is read by us.
            cookie_jar=aiohttp.DummyCookieJar(),
            # Each request has one timeout of ours around everything.
            timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None),
            auto_decompress=False,
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
            skip_auto_headers=["Accept"],
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def request(
        self,
        target: Target,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout_s: float,
        max_bytes: int,
    ) -> RawResponse:
        """Send one request and read the whole answer.

        Args:
            path: path and query as they are sent, escaped.
            timeout_s: for everything from dialling to the last byte.
            max_bytes: the longest body that is taken.

        Raises:
            Unreachable: no connection, a wrong certificate, or not in time.
            BadAnswer: the answer is too long, or is no HTTP.
        """
        if _is_address(target.host) and self._deny_list.denies(target.host):
            raise Unreachable(target.host_header, "its address is on the deny list")
        host = f"[{target.host}]" if ":" in target.host else target.host
        url = URL(f"https://{host}:{target.port}{path}", encoded=True)
        try:
            async with asyncio.timeout(timeout_s):
                async with self._session.request(
                    method,
                    url,
                    headers={**(headers or {}), "Host": target.host_header},
                    # A large body goes out piece by piece.
                    data=BytesIO(body) if body is not None and len(body) > PIECES_FROM_BYTES else body,
                    allow_redirects=False,
                    server_hostname=target.tls_name,
                ) as response:
                    content = await _read(response, max_bytes, target.host_header)
                    return RawResponse(response.status, response.headers, content)
        except TimeoutError:
            raise Unreachable(target.host_header, f"no answer within {timeout_s:g} s") from None
        except (aiohttp.ClientConnectionError, OSError) as error:
            raise Unreachable(target.host_header, _reason(error)) from error
        except (aiohttp.ClientError, ValueError) as error:
            raise BadAnswer(target.host_header, _reason(error)) from error

    # -- the questions that discovery asks -----------------------------------------------------------------

    async def well_known(self, hostname: str) -> WellKnown:
        """Ask `https://<hostname>/.well-known/matrix/server`, following a few redirects; never raises."""
        url = f"https://{hostname}/.well-known/matrix/server"
        try:
            async with asyncio.timeout(WELL_KNOWN_TIMEOUT_S):
                for _ in range(WELL_KNOWN_REDIRECTS + 1):
                    parts = urlsplit(url)
                    if parts.scheme != "https" or not parts.hostname:
                        return WellKnown({}, None)
                    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                    response = await self.request(
                        Target(parts.hostname, parts.port or 443, parts.hostname, parts.netloc),
                        "GET",
                        path,
                        timeout_s=WELL_KNOWN_TIMEOUT_S,
                        max_bytes=MAX_WELL_KNOWN_BYTES,
                    )
                    location = response.headers.get("location")
                    if response.status not in (301, 302, 303, 307, 308) or location is None:
                        return _read_well_known(response)
                    url = urljoin(url, location)
        except (TimeoutError, Unreachable, BadAnswer, ValueError):
            pass
        return WellKnown({}, None)

    async def srv(self, name: str) -> Sequence[SrvRecord]:
        """Look an SRV record up; no records where there is none or the look-up fails."""
        try:
            answer: Any = await dns.asyncresolver.resolve(name, "SRV", lifetime=SRV_TIMEOUT_S, search=False)
        except (dns.exception.DNSException, OSError, ValueError):
            return ()
        return [
            SrvRecord(record.priority, record.weight, record.port, record.target.to_text())
            for record in answer
        ]


async def _read(response: aiohttp.ClientResponse, max_bytes: int, name: str) -> bytes:
    if (response.content_length or 0) > max_bytes:
        raise BadAnswer(name, "the answer is too long")
    if response.headers.get("Content-Encoding", "identity").lower() not in ("identity", ""):
        raise BadAnswer(name, "the answer is encoded, though we asked for it plain")
    parts = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > max_bytes:
            response.close()
            raise BadAnswer(name, "the answer is too long")
        parts.append(part)
    return b"".join(parts)


def _read_well_known(response: RawResponse) -> WellKnown:
    answer = parse_well_known(response.status, response.body)
    return WellKnown(answer, cache_time_s(response.headers, time.time()))


def cache_time_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """Seconds for which an answer may be kept by its own headers; None: they do not say."""
    for directive in headers.get("cache-control", "").split(","):
        name, _, value = directive.strip().partition("=")
        if name.lower() in ("no-store", "no-cache"):
            return 0.0
        if name.lower() == "max-age" and value.strip('"').isdigit():
            return float(value.strip('"')[:9])
    expires = headers.get("expires")
    if expires is not None:
        try:
            return max(parsedate_to_datetime(expires).timestamp() - now_s, 0.0)
        except (ValueError, TypeError):
            return 0.0
    return None


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:300]

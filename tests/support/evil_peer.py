"""Another server, scripted: it signs what it likes and answers each of our requests as a test says.

    async with EvilPeer(ca) as peer:
        peer.answer("make_join", lambda request: {"room_version": "10", "event": {...}})
        status, body = await peer.ask("PUT", base_url, "/_matrix/federation/v1/send/1", destination, content)
        assert peer.asked("send_join") == []

It listens with TLS on `localhost:<port>`, which is its server name, and serves its keys properly unless told
otherwise.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Self

import aiohttp
import orjson
from aiohttp import web

from matrixlib.canonical_json import CanonicalJsonError, encode_canonical, parse_json
from matrixlib.event_builder import build_event
from matrixlib.events import Event
from matrixlib.request_auth import authorization_header
from matrixlib.room_versions import RoomVersion
from matrixlib.signing import SigningKey, sign_json
from tests.support.ports import free_port
from tests.support.rooms import key_of
from tests.support.tls_ca import TestCa


@dataclass(slots=True)
class Asked:
    """A request that came in."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    content: Any
    raw_query: str = ""


@dataclass(slots=True)
class Answer:
    """An answer that is not just 200 and JSON. `write` takes over the connection's body."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    write: Callable[[web.StreamResponse], Awaitable[None]] | None = None


Script = Callable[[Asked], Any]


class EvilPeer:
    """See the module. `key` signs for `server_name`."""

    def __init__(self, ca: TestCa) -> None:
        self._ca = ca
        self.port = free_port()
        self.server_name = f"localhost:{self.port}"
        self.key = key_of(self.server_name)
        self.requests: list[Asked] = []
        self._scripts: dict[str, Script] = {"server": lambda _: self.key_object()}
        self._runner: web.ServerRunner | None = None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        certificate = self._ca.issue("localhost", "127.0.0.1", file_name=f"peer-{self.port}")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate.certificate_path, certificate.private_key_path)
        self._runner = web.ServerRunner(web.Server(self._serve), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context).start()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=False), timeout=aiohttp.ClientTimeout(total=30)
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._session is not None:
            await self._session.close()
        if self._runner is not None:
            await self._runner.cleanup()
        # Connections over TLS need a turn of the loop to be gone.
        await asyncio.sleep(0.05)

    async def go_away(self) -> None:
        """Listen no more: whoever connects is refused."""
        assert self._runner is not None
        await self._runner.cleanup()

    # -- what it answers -----------------------------------------------------------------------------------

    def answer(self, endpoint: str, script: Script) -> None:
        """Answer an endpoint, named by the first word after the version (`make_join`, `send`, `server`)."""
        self._scripts[endpoint] = script

    def asked(self, endpoint: str) -> list[Asked]:
        """The requests that came to an endpoint."""
        return [request for request in self.requests if endpoint_of(request.path) == endpoint]

    def key_object(self, **changes: Any) -> dict[str, Any]:
        """Its signed keys, valid for a day, with changes laid over before they are signed."""
        value = {
            "server_name": self.server_name,
            "verify_keys": {self.key.key_id: {"key": self.key.verify_key.base64}},
            "old_verify_keys": {},
            "valid_until_ts": 2**52,
            **changes,
        }
        return sign_json(value, self.server_name, self.key)

    async def _serve(self, base: web.BaseRequest) -> web.StreamResponse:
        body = await base.content.read()  # of any size
        request = Asked(
            base.method,
            base.raw_path.partition("?")[0],
            dict(base.query),
            dict(base.headers),
            parse_json(body) if body else None,
            base.raw_path.partition("?")[2],
        )
        self.requests.append(request)
        script = self._scripts.get(endpoint_of(request.path))
        answer = (
            Answer(404, b'{"errcode":"M_UNRECOGNIZED","error":"Unknown"}')
            if script is None
            else script(request)
        )
        if asyncio.iscoroutine(answer):
            answer = await answer
        if not isinstance(answer, Answer):
            answer = Answer(body=orjson.dumps(answer))
        if answer.write is None:
            return web.Response(
                status=answer.status,
                body=answer.body,
                headers={"Content-Type": "application/json", **answer.headers},
            )
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        await response.prepare(base)
        await answer.write(response)
        return response

    def member_event(self, version: RoomVersion, template: dict[str, Any], **content: Any) -> Event:
        """Make the membership event of a user of this server out of make_join's, or the like's, template."""
        return build_event(
            version,
            room_id=template["room_id"],
            sender=template["sender"],
            type="m.room.member",
            content={**template["content"], **content},
            state_key=template["sender"],
            prev_events=template["prev_events"],
            auth_event_ids=template["auth_events"],
            depth=template["depth"],
            origin_server_ts=template["origin_server_ts"],
            server_name=self.server_name,
            signing_key=self.key,
        )

    # -- what it asks --------------------------------------------------------------------------------------

    async def ask(
        self,
        method: str,
        base_url: str,
        path: str,
        destination: str | None,
        content: Any = None,
        *,
        origin: str | None = None,
        key: SigningKey | None = None,
        signed: bool = True,
        header: str | None = None,
        raw: bytes | None = None,
    ) -> tuple[int, Any]:
        """Send a request, signed as this server unless told otherwise; returns (status, parsed body).

        With `raw`, these bytes are the body; `content` is still what is signed.
        """
        assert self._session is not None
        headers = {}
        if header is not None:
            headers["Authorization"] = header
        elif signed:
            headers["Authorization"] = authorization_header(
                key or self.key,
                method=method,
                uri=path,
                origin=origin or self.server_name,
                destination=destination or "",
                content=content,
            )
        body = raw if raw is not None or content is None else _json(content)
        data = None if body is None else BytesIO(body)
        async with self._session.request(method, f"{base_url}{path}", data=data, headers=headers) as response:
            answered = await response.read()
        try:
            return response.status, parse_json(answered)
        except CanonicalJsonError:
            return response.status, answered


def _json(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # integers beyond 64 bits
        return encode_canonical(value)


def endpoint_of(path: str) -> str:
    """The word of a federation path that names the endpoint."""
    parts = path.split("/")
    return parts[4] if len(parts) > 4 else path

"""A thin client of the client-server API, for tests and benchmarks: one method an endpoint, JSON in and out.

It adds nothing of its own (no retries, no state), so that a test sees what the server said; the methods raise
`ClientError` for every answer that is not a success. It drives any homeserver.
"""

import hashlib
import hmac
import itertools
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson

Json = dict[str, Any]

_LOCAL_TXN = itertools.count()


class ClientError(Exception):
    """The server's answer was an error: `status`, `errcode` and the whole `body`."""

    def __init__(self, method: str, path: str, status: int, body: Any) -> None:
        self.status = status
        self.body = body
        self.errcode = body.get("errcode") if isinstance(body, dict) else None
        super().__init__(f"{method} {path}: {status} {body!r}")


def segment(value: str) -> str:
    """A path segment, everything escaped."""
    return quote(value, safe="")


@asynccontextmanager
async def http_session(timeout_s: float = 120) -> AsyncIterator[aiohttp.ClientSession]:
    """A session without a limit of connections; cookies are of no use here."""
    connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=600)
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    jar = aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=jar) as session:
        yield session


class MatrixClient:
    """One device of one user (or nobody yet) at one homeserver."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        base_url: str,
        *,
        user_id: str = "",
        device_id: str = "",
        access_token: str = "",
    ) -> None:
        self.session = session
        self.base_url = base_url
        self.user_id = user_id
        self.device_id = device_id
        self.access_token = access_token
        self._txn_prefix = secrets.token_hex(6)

    # -- the wire --

    async def request(
        self,
        method: str,
        path: str,
        body: Json | list[Any] | None = None,
        query: dict[str, str] | None = None,
    ) -> Any:
        """One request with our token; `path` starts at `/`. Raises `ClientError` unless the answer is 2xx."""
        headers = {}
        if self.access_token:
            headers["Authorization"] = f"Bearer {self.access_token}"
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = orjson.dumps(body)
        url = self.base_url + path
        async with self.session.request(method, url, data=data, params=query, headers=headers) as response:
            raw = await response.read()
        try:
            answer = orjson.loads(raw) if raw else {}
        except orjson.JSONDecodeError:
            answer = raw
        if not 200 <= response.status < 300:
            raise ClientError(method, path, response.status, answer)
        return answer

    async def get(self, path: str, **query: str) -> Any:
        """GET below `/_matrix/client/v3`."""
        return await self.request("GET", f"/_matrix/client/v3{path}", query=query or None)

    async def post(self, path: str, body: Json | None = None) -> Any:
        """POST below `/_matrix/client/v3`."""
        return await self.request("POST", f"/_matrix/client/v3{path}", body or {})

    async def put(self, path: str, body: Json) -> Any:
        """PUT below `/_matrix/client/v3`."""
        return await self.request("PUT", f"/_matrix/client/v3{path}", body)

    # -- accounts --

    async def register_with_secret(
        self, shared_secret: str, name: str, password: str, *, admin: bool = False
    ) -> "MatrixClient":
        """Make a user through the shared-secret form; returns a client with the new device's token."""
        path = "/_synapse/admin/v1/register"
        nonce = (await self.request("GET", path))["nonce"]
        parts = [nonce, name, password, "admin" if admin else "notadmin"]
        mac = hmac.new(shared_secret.encode(), "\0".join(parts).encode(), hashlib.sha1).hexdigest()
        body = {"nonce": nonce, "username": name, "password": password, "admin": admin, "mac": mac}
        return self._as(await self.request("POST", path, body))

    async def login(self, name: str, password: str, device_id: str | None = None) -> "MatrixClient":
        """Password login; returns a client of the new device."""
        body: Json = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": name},
            "password": password,
        }
        if device_id is not None:
            body["device_id"] = device_id
        return self._as(await self.post("/login", body))

    def _as(self, answer: Json) -> "MatrixClient":
        return MatrixClient(
            self.session,
            self.base_url,
            user_id=answer["user_id"],
            device_id=answer["device_id"],
            access_token=answer["access_token"],
        )

    def at(self, base_url: str) -> "MatrixClient":
        """The same device, asking another edge of the same deployment."""
        return MatrixClient(
            self.session,
            base_url,
            user_id=self.user_id,
            device_id=self.device_id,
            access_token=self.access_token,
        )

    # -- rooms --

    async def create_room(self, **options: Any) -> str:
        """Create a room with these keys of the request body; returns its id."""
        room_id: str = (await self.post("/createRoom", options))["room_id"]
        return room_id

    async def join(self, room_id: str) -> None:
        """Join by room id or alias."""
        await self.post(f"/join/{segment(room_id)}")

    async def invite(self, room_id: str, user_id: str) -> None:
        """Invite a user."""
        await self.post(f"/rooms/{segment(room_id)}/invite", {"user_id": user_id})

    async def leave(self, room_id: str) -> None:
        """Leave, or reject an invite."""
        await self.post(f"/rooms/{segment(room_id)}/leave")

    def new_txn_id(self) -> str:
        """A transaction id that this device has not used."""
        return f"{self._txn_prefix}.{next(_LOCAL_TXN)}"

    async def send(
        self, room_id: str, body: str | Json, event_type: str = "m.room.message", txn_id: str | None = None
    ) -> str:
        """Send a text (or a whole content) into the room; returns the event id."""
        content = {"msgtype": "m.text", "body": body} if isinstance(body, str) else body
        path = f"/rooms/{segment(room_id)}/send/{segment(event_type)}/{segment(txn_id or self.new_txn_id())}"
        event_id: str = (await self.put(path, content))["event_id"]
        return event_id

    async def redact(self, room_id: str, event_id: str, reason: str = "") -> str:
        """Redact an event; returns the id of the redaction."""
        path = f"/rooms/{segment(room_id)}/redact/{segment(event_id)}/{self.new_txn_id()}"
        redaction_id: str = (await self.put(path, {"reason": reason} if reason else {}))["event_id"]
        return redaction_id

    async def set_state(self, room_id: str, event_type: str, content: Json, state_key: str = "") -> str:
        """Set a state event; returns its id."""
        path = f"/rooms/{segment(room_id)}/state/{segment(event_type)}/{segment(state_key)}"
        event_id: str = (await self.put(path, content))["event_id"]
        return event_id

    async def state(self, room_id: str) -> list[Json]:
        """The current state's events."""
        events: list[Json] = await self.get(f"/rooms/{segment(room_id)}/state")
        return events

    # -- reading --

    async def sync(self, since: str | None = None, timeout_ms: int = 0, **query: str) -> Json:
        """One `/sync`, marking the user neither online nor away unless `set_presence` says so."""
        query.setdefault("set_presence", "offline")
        query["timeout"] = str(timeout_ms)
        if since is not None:
            query["since"] = since
        answer: Json = await self.get("/sync", **query)
        return answer

    async def messages(self, room_id: str, direction: str = "b", limit: int = 100, **query: str) -> Json:
        """One page of history."""
        answer: Json = await self.get(
            f"/rooms/{segment(room_id)}/messages", dir=direction, limit=str(limit), **query
        )
        return answer

    async def all_messages(self, room_id: str) -> list[Json]:
        """The whole history as this user may see it, oldest first."""
        events: list[Json] = []
        query: dict[str, str] = {}
        while True:
            page = await self.messages(room_id, "b", 100, **query)
            events += page["chunk"]
            if "end" not in page or page["end"] == query.get("from"):
                return events[::-1]
            query = {"from": page["end"]}


def joined_timeline(answer: Json, room_id: str) -> list[Json]:
    """The timeline events of a joined room in a `/sync` answer."""
    room = answer.get("rooms", {}).get("join", {}).get(room_id, {})
    events: list[Json] = room.get("timeline", {}).get("events", [])
    return events

"""Identity servers, asked for a local user who invites somebody by an address (identity service API v1.19).

    hash_details -> lookup -> bound: the user is invited like anybody
                           -> not:   store-invite: the identity server tells the address, and signs for who proves it

The user names the server and gives the access token for it. What it says is bounded in size and time, its address is
checked like that of every server, and no error of it concerns the user's session here.
"""

import asyncio
import hashlib
import re
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from federation.outbound.discovery import Target
from federation.outbound.errors import BadAnswer, RemoteError, RemoteRefused, client_error
from federation.outbound.transport import Transport
from matrixlib.identifiers import is_valid_server_name, is_valid_user_id, split_host_port
from servicekit.errors import MatrixError, forbidden, invalid_param

TIMEOUT_S = 10.0
MAX_BYTES = 64 * 1024
MAX_KEYS = 20
_BASE = "/_matrix/identity/v2"
_TOKEN = re.compile(r"[0-9a-zA-Z.=_-]{1,255}", re.ASCII)


@dataclass(frozen=True, slots=True)
class AddressInvite:
    """Whom to ask, with which access token, about which address."""

    id_server: str
    id_access_token: str
    medium: str
    address: str


@dataclass(frozen=True, slots=True)
class StoredInvite:
    """An invite that the identity server keeps: its token, and the content of `m.room.third_party_invite`."""

    token: str
    content: Mapping[str, Any]


class IdentityServers:
    """See the module."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def invite(self, invite: AddressInvite, details: Mapping[str, Any]) -> str | StoredInvite:
        """Return who has the address, or the invite that is kept for whoever proves to have it.

        Args:
            details: what the identity server is told of the room and the sender.

        Raises:
            MatrixError: it refuses, or cannot be reached (502).
        """
        if not is_valid_server_name(invite.id_server):
            raise invalid_param("id_server is no host name")
        try:
            async with asyncio.timeout(TIMEOUT_S):
                bound = await self._look_up(invite)
                return bound if bound is not None else await self._store(invite, details)
        except TimeoutError:
            raise MatrixError("M_UNKNOWN", 502, "The identity server does not answer in time") from None
        except RemoteError as error:
            raise _client_error(error) from error

    async def _look_up(self, invite: AddressInvite) -> str | None:
        # The pepper may be replaced between the two questions, hardly twice.
        for attempt in range(2):
            known = await self._ask(invite, "GET", "/hash_details")
            pepper, algorithms = known.get("lookup_pepper"), known.get("algorithms")
            if not isinstance(pepper, str) or not isinstance(algorithms, list):
                raise BadAnswer(invite.id_server, "no hash details")
            if "sha256" in algorithms:
                algorithm = "sha256"
                text = f"{invite.address} {invite.medium} {pepper}"
                asked = urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
            elif "none" in algorithms:
                algorithm, asked = "none", f"{invite.address} {invite.medium}"
            else:
                raise BadAnswer(invite.id_server, "no known algorithm")
            try:
                found = await self._ask(
                    invite,
                    "POST",
                    "/lookup",
                    {"algorithm": algorithm, "pepper": pepper, "addresses": [asked]},
                )
            except RemoteRefused as error:
                if error.errcode == "M_INVALID_PEPPER" and not attempt:
                    continue
                raise
            mappings = found.get("mappings")
            user_id = mappings.get(asked) if isinstance(mappings, dict) else None
            if user_id is not None and not is_valid_user_id(user_id):
                raise BadAnswer(invite.id_server, "an address of no user")
            return user_id
        raise AssertionError("the second attempt returns or raises")

    async def _store(self, invite: AddressInvite, details: Mapping[str, Any]) -> str | StoredInvite:
        body = {**details, "medium": invite.medium, "address": invite.address}
        try:
            stored = await self._ask(invite, "POST", "/store-invite", body)
        except RemoteRefused as error:
            if error.errcode == "M_UNRECOGNIZED" and error.http_status == 400:
                raise MatrixError(
                    "M_THREEPID_MEDIUM_NOT_SUPPORTED", 400, "The identity server does not know such addresses"
                ) from error
            raise
        token, name, keys = (stored.get(key) for key in ("token", "display_name", "public_keys"))
        if not isinstance(token, str) or not _TOKEN.fullmatch(token) or not isinstance(name, str):
            raise BadAnswer(invite.id_server, "no token or display_name")
        listed = [_key(invite.id_server, key) for key in keys] if isinstance(keys, list) else []
        if not 0 < len(listed) <= MAX_KEYS:
            raise BadAnswer(invite.id_server, "no public_keys")
        return StoredInvite(token, {"display_name": name, **listed[0], "public_keys": listed})

    async def _ask(
        self, invite: AddressInvite, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        host, port = split_host_port(invite.id_server)
        name = host.strip("[]")
        response = await self._transport.request(
            Target(name, port or 443, name, invite.id_server),
            method,
            _BASE + path,
            headers={
                "Authorization": f"Bearer {invite.id_access_token}",
                **({} if body is None else {"Content-Type": "application/json"}),
            },
            body=None if body is None else orjson.dumps(body),
            timeout_s=TIMEOUT_S,
            max_bytes=MAX_BYTES,
        )
        try:
            answer = orjson.loads(response.body)
        except orjson.JSONDecodeError:
            answer = None
        if response.status != 200:
            said = answer if isinstance(answer, dict) else {}
            errcode, message = (said.get(key) for key in ("errcode", "error"))
            raise RemoteRefused(
                invite.id_server,
                response.status,
                errcode if isinstance(errcode, str) else "",
                message if isinstance(message, str) else "",
            )
        if not isinstance(answer, dict):
            raise BadAnswer(invite.id_server, "the answer is no JSON object")
        return answer


def _key(id_server: str, value: Any) -> dict[str, str]:
    names = ("public_key", "key_validity_url")
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in names):
        raise BadAnswer(id_server, "a public key is none")
    return {name: value[name] for name in names}


def _client_error(error: RemoteError) -> MatrixError:
    if isinstance(error, RemoteRefused):
        if error.errcode == "M_TERMS_NOT_SIGNED":
            return MatrixError("M_TERMS_NOT_SIGNED", 403, "The identity server's terms are not accepted")
        if error.http_status in (401, 403):
            return forbidden("The identity server does not take the access token")
    return client_error(error)

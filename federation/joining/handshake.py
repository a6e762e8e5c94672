"""The make_* and send_* handshake, tried at one server after the other."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from federation.clock import NowMs
from federation.joining.template import (
    Template,
    TemplateError,
    build_membership,
    read_template,
    supported_versions,
)
from federation.outbound.client import (
    LARGE_MAX_BYTES,
    LARGE_TIMEOUT_S,
    FederationClient,
    path_of,
)
from federation.outbound.errors import RemoteError, RemoteRefused, client_error
from matrixlib.events import Event
from matrixlib.identifiers import is_valid_server_name, server_name_of
from matrixlib.room_versions import ROOM_VERSIONS, RoomVersion
from matrixlib.signing import SigningKey
from servicekit.errors import MatrixError, not_found
from servicekit.logging import get_logger

log = get_logger("federation.joining")

MAX_SERVERS = 10
MAKE_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A membership event of ours, signed, and the server that gave the template for it."""

    resident: str
    template: Template
    event: Event


class Handshake:
    """Makes membership events with the help of servers that are in the room.

    Args:
        keys: local server name -> its signing key.
    """

    def __init__(self, client: FederationClient, keys: Mapping[str, SigningKey], now_ms: NowMs) -> None:
        self._client = client
        self._keys = keys
        self._now_ms = now_ms

    def candidates(self, *groups: Iterable[str]) -> list[str]:
        """The servers to ask, in order, each once, ours left out."""
        found = dict.fromkeys(name for group in groups for name in group)
        return [name for name in found if is_valid_server_name(name) and name not in self._keys][:MAX_SERVERS]

    async def make(
        self,
        resident: str,
        membership: str,
        room_id: str,
        user_id: str,
        content: Mapping[str, Any],
        known_version: RoomVersion | None,
    ) -> Prepared:
        """Ask one server for a template, check it, and build our event.

        Args:
            known_version: the room's version, where we know it.

        Raises:
            RemoteError: the server did not give one.
            TemplateError: what it gave is no template. Nothing was signed.
        """
        query: dict[str, Any] = (
            {} if membership == "leave" else {"ver": supported_versions(list(ROOM_VERSIONS))}
        )
        path = path_of(f"/_matrix/federation/v1/make_{membership}/{{}}/{{}}", room_id, user_id, **query)
        origin = server_name_of(user_id)
        answer = await self._client.get(
            resident, path, origin=origin, timeout_s=MAKE_TIMEOUT_S, ignore_backoff=True
        )
        template = read_template(
            answer,
            room_id=room_id,
            user_id=user_id,
            membership=membership,
            resident=resident,
            known_version=known_version,
        )
        event = build_membership(
            template,
            content,
            server_name=origin,
            key=self._keys[origin],
            now_ms=self._now_ms(),
            opaque=secrets.token_urlsafe(18),
        )
        return Prepared(resident, template, event)

    async def send(self, prepared: Prepared) -> Any:
        """Give our event to the server that made the template; returns its parsed answer.

        A join may be answered without most members.

        Raises:
            RemoteError: it did not take it.
        """
        return await self.send_event(prepared.resident, prepared.template.membership, prepared.event)

    async def send_event(
        self, resident: str, membership: str, event: Event, *, omit_members: bool = True
    ) -> Any:
        """Give a membership event of ours to a server. Raises as `send`; may be repeated.

        Args:
            omit_members: a join may be answered without most members.
        """
        options: dict[str, Any] = {
            "content": event.pdu,
            "origin": server_name_of(event.sender),
            "timeout_s": LARGE_TIMEOUT_S,
            "max_bytes": LARGE_MAX_BYTES,
            "ignore_backoff": True,
        }
        if membership == "knock":
            path = path_of("/_matrix/federation/v1/send_knock/{}/{}", event.room_id, event.event_id)
            return await self._client.request(resident, "PUT", path, **options)
        query = {"omit_members": "true"} if membership == "join" and omit_members else {}
        path = path_of(
            f"/_matrix/federation/v2/send_{membership}/{{}}/{{}}", event.room_id, event.event_id, **query
        )
        try:
            return await self._client.request(resident, "PUT", path, **options)
        except RemoteRefused as error:
            if error.http_status not in (404, 405) or error.errcode not in ("", "M_UNRECOGNIZED"):
                raise
        # The older form answers [200, answer].
        path = path_of(f"/_matrix/federation/v1/send_{membership}/{{}}/{{}}", event.room_id, event.event_id)
        answer = await self._client.request(resident, "PUT", path, **options)
        return answer[1] if isinstance(answer, list) and len(answer) == 2 else answer


def worst_of(errors: Sequence[Exception]) -> MatrixError:
    """Return the error for a client after every server failed: the one that says most."""
    if not errors:
        return not_found("No server is known that is in the room")
    refused = [error for error in errors if isinstance(error, RemoteRefused)]
    # A server that knows the room and says no tells more than one that does not know it, or is away.
    refused.sort(key=lambda error: (error.http_status == 404, error.http_status >= 500))
    if refused:
        return client_error(refused[0])
    for error in errors:
        if isinstance(error, RemoteError):
            return client_error(error)
    return MatrixError("M_UNKNOWN", 502, "The other server gave an answer that cannot be used")


__all__ = ["Handshake", "Prepared", "TemplateError", "worst_of"]

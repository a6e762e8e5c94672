"""A user of a scripted server in a room of a running homeserver, who writes chains of signed events.

visitor = Visitor(peer, server.server_name, room_id)
await visitor.join()
events = visitor.messages(3)                                  # each upon the one before
answer = await visitor.send([event.pdu for event in events])
bad = visitor.event("m.room.message", {}, depth=2**63)        # signed, whatever it holds
"""

import itertools
import time
from collections.abc import Sequence
from typing import Any

from matrixlib.event_auth import auth_types_for_event
from matrixlib.events import Event, StateKey, parse_event
from matrixlib.hashes import encode_base64, reference_hash
from matrixlib.room_versions import ROOM_VERSIONS
from matrixlib.signing import sign_event
from tests.support.evil_peer import EvilPeer

V1, V2 = "/_matrix/federation/v1", "/_matrix/federation/v2"
_UNSIGNED = ("signatures", "hashes", "unsigned")

_txn_ids = itertools.count(1)


class Visitor:
    """See the module. `state` is the room's at the join, with the join; `prev_events` and `depth` are of the last
    event made that was right.
    """

    def __init__(
        self, peer: EvilPeer, server_name: str, room_id: str, *, version: str = "10", name: str = "visitor"
    ) -> None:
        self.peer = peer
        self.room_id = room_id
        self.version = ROOM_VERSIONS[version]
        self.user_id = f"@{name}:{peer.server_name}"
        self.state: dict[StateKey, Event] = {}
        self.prev_events: list[Any] = []
        self.depth = 0
        self._server_name = server_name
        self._count = 0

    async def ask(self, method: str, path: str, content: Any = None, **options: Any) -> tuple[int, Any]:
        """Ask the homeserver something as the visitor's server."""
        url = f"https://{self._server_name}"
        return await self.peer.ask(method, url, path, self._server_name, content, **options)

    async def _ask(self, method: str, path: str, content: Any = None) -> Any:
        status, body = await self.ask(method, path, content)
        if status != 200:
            raise RuntimeError(f"{method} {path}: {status} {body}")
        return body

    async def join(self) -> None:
        """Join the room, as any server does."""
        ver = self.version.identifier
        template = (await self._ask("GET", f"{V1}/make_join/{self.room_id}/{self.user_id}?ver={ver}"))[
            "event"
        ]
        join = self._parse(self.sign({**template, "origin_server_ts": int(time.time() * 1000)}))
        answer = await self._ask("PUT", f"{V2}/send_join/{self.room_id}/{join.event_id}", join.pdu)
        events = [self._parse(pdu) for pdu in answer["state"]]
        self.state = {event.key: event for event in [*events, join]}
        self._advance(join)

    def messages(self, count: int) -> list[Event]:
        """The next messages, each upon the one before."""
        made = []
        for _ in range(count):
            self._count += 1
            content = {"msgtype": "m.text", "body": f"message number {self._count}"}
            event = self._parse(self.event("m.room.message", content))
            self._advance(event)
            made.append(event)
        return made

    def event(
        self, kind: str, content: Any, state_key: str | None = None, sender: str = "", **changes: Any
    ) -> dict[str, Any]:
        """A signed PDU upon the last one, with some of its keys changed before it is signed."""
        sender = sender or self.user_id
        wanted = auth_types_for_event(
            self.version, kind, sender, state_key, content if isinstance(content, dict) else {}
        )
        auth = [self.state[key] for key in sorted(wanted) if key in self.state]
        pdu: dict[str, Any] = {
            "type": kind,
            "room_id": self.room_id,
            "sender": sender,
            "content": content,
            "auth_events": [self.reference(event) for event in auth],
            "prev_events": self.prev_events,
            "depth": self.depth + 1,
            "origin_server_ts": int(time.time() * 1000),
        }
        if state_key is not None:
            pdu["state_key"] = state_key
        return self.sign({**pdu, **changes})

    def reference(self, event: Event) -> Any:
        """An event as others name it in this room version."""
        if not self.version.references_carry_hashes:
            return event.event_id
        return [event.event_id, {"sha256": encode_base64(reference_hash(event.pdu, self.version))}]

    def sign(self, pdu: dict[str, Any]) -> dict[str, Any]:
        """Hash and sign a PDU, whether or not it is one."""
        pdu = {key: value for key, value in pdu.items() if key not in _UNSIGNED}
        if not self.version.hashed_event_ids:
            pdu.setdefault("event_id", f"${next(_txn_ids)}-{time.time_ns()}:{self.peer.server_name}")
        return sign_event(pdu, self.version, self.peer.server_name, self.peer.key)

    async def send(self, pdus: Sequence[Any], edus: Sequence[Any] = (), txn_id: str = "") -> dict[str, Any]:
        """Send a transaction; returns the results by event id. Raises RuntimeError unless it is taken."""
        body = self.transaction(pdus, edus)
        answer: dict[str, Any] = await self._ask("PUT", f"{V1}/send/{txn_id or next(_txn_ids)}", body)
        results: dict[str, Any] = answer["pdus"]
        return results

    def transaction(self, pdus: Sequence[Any], edus: Sequence[Any] = ()) -> dict[str, Any]:
        """The body of a transaction."""
        return {
            "origin": self.peer.server_name,
            "origin_server_ts": int(time.time() * 1000),
            "pdus": list(pdus),
            "edus": list(edus),
        }

    def _parse(self, pdu: dict[str, Any]) -> Event:
        return parse_event(pdu, self.version)

    def _advance(self, event: Event) -> None:
        self.prev_events, self.depth = [self.reference(event)], event.depth


def segment(event_id: str) -> str:
    """An event id as a segment of a path. (More than this the client would write out again.)"""
    return event_id.replace("/", "%2F")

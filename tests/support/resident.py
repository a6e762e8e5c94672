"""A room of any size on another server, which lets users of ours in: a script for an `EvilPeer`.

The room is made by hand and not by `tests.support.rooms`, which keeps the state at each event.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import orjson

from matrixlib.event_builder import build_event
from matrixlib.events import Event, parse_event
from matrixlib.identifiers import server_name_of
from matrixlib.room_versions import ROOM_VERSIONS, RoomVersion
from tests.support.evil_peer import Answer, Asked, EvilPeer
from tests.support.matrix_client import ClientError, MatrixClient


class ResidentRoom:
    """A public room of the peer's. `joins` and `leaves` are the events that were sent to it.

    `omits`: whoever asks for it is answered without members but the creator's; `gives_state`: it answers `/state`.
    """

    def __init__(
        self,
        peer: EvilPeer,
        members: int,
        *,
        version: str = "10",
        name: str = "A room",
        creation: dict[str, Any] | None = None,
        omits: bool = False,
        gives_state: bool = True,
    ) -> None:
        self.peer = peer
        self.version = ROOM_VERSIONS[version]
        self.creator = f"@boss:{peer.server_name}"
        self.room_id = f"!big{members}:{peer.server_name}"
        self.state: list[Event] = []
        self.joins: list[Event] = []
        self.leaves: list[Event] = []
        content = {"creator": self.creator, "room_version": version, **(creation or {})}
        self.create = self._send(self.creator, "m.room.create", "", content, ())
        boss = self._send(self.creator, "m.room.member", self.creator, {"membership": "join"}, (self.create,))
        self.levels = self._send(
            self.creator, "m.room.power_levels", "", {"users": {self.creator: 100}}, (self.create, boss)
        )
        self.rules = self._send(
            self.creator, "m.room.join_rules", "", {"join_rule": "public"}, (self.create, boss, self.levels)
        )
        if name:
            self._send(self.creator, "m.room.name", "", {"name": name}, (self.create, boss, self.levels))
        self.auth = (self.create, self.levels, self.rules)
        for number in range(members):
            user = f"@member{number}:{peer.server_name}"
            content = {"membership": "join", "displayname": f"Member {number}"}
            self._send(user, "m.room.member", user, content, self.auth)
        peer.answer("make_join", lambda request: self._template(request, "join"))
        peer.answer("send_join", self.send_join)
        peer.answer("make_leave", lambda request: self._template(request, "leave"))
        peer.answer("send_leave", self._send_leave)
        peer.answer("send", lambda request: {"pdus": {}})
        self.omits = omits
        self.gives_state = gives_state
        peer.answer("state", self.give_state)

    @property
    def members(self) -> int:
        """Joined users of the peer's."""
        return sum(event.type == "m.room.member" for event in self.state)

    def _send(
        self, sender: str, kind: str, state_key: str, content: dict[str, Any], auth: Sequence[Event]
    ) -> Event:
        event = build_event(
            self.version,
            room_id=self.room_id,
            sender=sender,
            type=kind,
            content=content,
            state_key=state_key,
            prev_events=[self.state[-1].event_id] if self.state else [],
            auth_event_ids=[item.event_id for item in auth],
            depth=len(self.state) + 1,
            origin_server_ts=1_700_000_000_000 + len(self.state),
            server_name=self.peer.server_name,
            signing_key=self.peer.key,
        )
        self.state.append(event)
        return event

    def _template(self, request: Asked, membership: str) -> Any:
        user = request.path.rsplit("/", 1)[1].replace("%40", "@").replace("%3A", ":")
        auth = [event.event_id for event in self.auth]
        auth += [event.event_id for event in self.joins if event.sender == user][-1:]
        event = {
            "type": "m.room.member",
            "room_id": self.room_id,
            "sender": user,
            "state_key": user,
            "content": {"membership": membership},
            "prev_events": [self.state[-1].event_id],
            "auth_events": auth,
            "depth": len(self.state) + 1,
            "origin": server_name_of(user),
            "origin_server_ts": 1_700_000_000_000,
        }
        return {"room_version": self.version.identifier, "event": event}

    async def send_join(self, request: Asked) -> Answer:
        self.joins.append(parse_event(request.content, self.version))
        # Written in small pieces by the caller's loop: a large answer must not stop other requests.
        await asyncio.sleep(0)
        omitted = self.omits and request.query.get("omit_members") == "true"
        head = {
            "origin": self.peer.server_name,
            "event": request.content,
            "members_omitted": omitted,
            "servers_in_room": [self.peer.server_name],
            "auth_chain": [event.pdu for event in self.state[:4]],
        }
        told = [event for event in self.state if not omitted or event.type != "m.room.member"]
        state = b",".join(event.pdu_json for event in told)
        return Answer(body=orjson.dumps(head)[:-1] + b',"state":[' + state + b"]}")

    async def give_state(self, request: Asked) -> Answer:
        """Answer `/state`: that before any of the joins that came."""
        await asyncio.sleep(0)
        known = any(event.event_id == request.query.get("event_id") for event in self.joins)
        if not self.gives_state or not known:
            return Answer(404, b'{"errcode":"M_NOT_FOUND","error":"Unknown"}')
        state = b",".join(event.pdu_json for event in self.state)
        chain = b",".join(event.pdu_json for event in self.state[:4])
        return Answer(body=b'{"pdus":[' + state + b'],"auth_chain":[' + chain + b"]}")

    def speak(self, sender: str, content: dict[str, Any], *, after: str) -> Event:
        """Make a message that follows an event of whoever joined."""
        member = next(event for event in self.state if event.state_key == sender)
        return build_event(
            self.version,
            room_id=self.room_id,
            sender=sender,
            type="m.room.message",
            content=content,
            prev_events=[after],
            auth_event_ids=[self.create.event_id, self.levels.event_id, member.event_id],
            depth=len(self.state) + 10,
            origin_server_ts=1_700_000_100_000,
            server_name=self.peer.server_name,
            signing_key=self.peer.key,
        )

    def _send_leave(self, request: Asked) -> Any:
        self.leaves.append(parse_event(request.content, self.version))
        return {}


async def join_patiently(client: MatrixClient, room_id: str, via: str, timeout_s: float = 90) -> Any:
    """Ask again as long as the server is not able to answer."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return await client.post(f"/join/{room_id}?via={via}")
        except ClientError as error:
            if error.status < 500 or time.monotonic() > deadline:
                raise
        except aiohttp.ClientError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.5)


class SomeRoom(Protocol):
    """What joining a room takes."""

    room_id: str
    version: RoomVersion


@dataclass(slots=True)
class RoomOf:
    """A room that is not the peer's."""

    room_id: str
    version: RoomVersion


async def join_through(
    through: str, peer: EvilPeer, room: SomeRoom, user_id: str, query: str = ""
) -> dict[str, Any]:
    """Have a user of another scripted server join by way of a server that is in the room.

    Returns send_join's answer.
    """
    path = f"/_matrix/federation/v1/make_join/{room.room_id}/{user_id}?ver={room.version.identifier}"
    status, answer = await peer.ask("GET", f"https://{through}", path, through)
    if status != 200:
        raise RuntimeError(f"make_join: {status} {answer}")
    event = peer.member_event(room.version, answer["event"])
    path = f"/_matrix/federation/v2/send_join/{room.room_id}/{event.event_id}{query}"
    status, answer = await peer.ask("PUT", f"https://{through}", path, through, event.pdu)
    if status != 200:
        raise RuntimeError(f"send_join: {status} {answer}")
    parsed: dict[str, Any] = answer
    return parsed

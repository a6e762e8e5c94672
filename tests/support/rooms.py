"""Rooms in memory, one line a step, judged as a server would judge them.

    room = Room("10").with_members("@bob:b.example")
    early = room.heads
    room.send("@alice:a.example", "m.room.topic", {"topic": "one"}, state_key="")
    room.send("@bob:b.example", "m.room.message", {"body": "hi"}, prev=early)     # a fork
    assert room.state[("m.room.topic", "")].content == {"topic": "one"}

Every event is hashed and signed; its auth events are chosen from the state before it; it is rejected, and
kept as such, when the rules say so. With `soft_fail` it is also judged by the current state, as if it had come from
another server. Time is a counter.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from matrixlib.event_auth import Refused, auth_types_for_event, check_auth_events, check_event_auth
from matrixlib.event_builder import build_pdu, next_depth
from matrixlib.events import Event, StateKey, parse_event
from matrixlib.identifiers import server_name_of
from matrixlib.room_versions import ROOM_VERSIONS, RoomVersion
from matrixlib.signing import SigningKey, event_signers, sign_event
from matrixlib.state_resolution import MemoryStore, resolve

ALICE = "@alice:a.example"
BOB = "@bob:b.example"
CAROL = "@carol:c.example"
DAVE = "@dave:d.example"

JsonDict = dict[str, Any]


@lru_cache
def key_of(server_name: str) -> SigningKey:
    """The signing key of a server, the same in every run."""
    return SigningKey("ed25519:test", hashlib.sha256(server_name.encode()).digest())


def sign_for_all(pdu: Mapping[str, Any], version: RoomVersion) -> Event:
    """Hash a PDU and sign it with every server that must sign it."""
    first = parse_event({"hashes": {}, "signatures": {}, **pdu}, version, verify_size=False)
    signed = dict(pdu)
    for server_name in sorted(event_signers(first)) or [server_name_of(first.sender)]:
        signed = sign_event(signed, version, server_name, key_of(server_name))
    return parse_event(signed, version)


class Room:
    """A room: its events, which were rejected, the state before and after each, its heads."""

    def __init__(
        self,
        version: str = "10",
        *,
        creator: str = ALICE,
        content: JsonDict | None = None,
        bare: bool = False,
        soft_fail: bool = False,
    ) -> None:
        """Create a room, with the creator joined and, unless ``bare``, levels and a public join rule."""
        self.version = ROOM_VERSIONS[version]
        self.creator = creator
        self.events: dict[str, Event] = {}
        self.rejected: dict[str, Refused] = {}
        self.soft_fail = soft_fail
        self.soft_failed: dict[str, Refused] = {}
        self.before: dict[str, dict[StateKey, str]] = {}
        self.after: dict[str, dict[StateKey, str]] = {}
        self.order: list[str] = []
        self.heads: list[str] = []
        self.clock = 1_700_000_000_000
        self.room_id: str | None = None
        if not self.version.room_id_is_create_hash:
            self.room_id = f"!room:{server_name_of(creator)}"
        body = {"room_version": version, **(content or {})}
        if self.version.creator_in_content:
            body.setdefault("creator", creator)
        self.create = self.send(creator, "m.room.create", body, state_key="")
        self.room_id = self.create.room_id
        self.member(creator, "join")
        if not bare:
            users = {} if self.version.privileged_creators else {creator: 100}
            self.send(creator, "m.room.power_levels", {"users": users}, state_key="")
            self.send(creator, "m.room.join_rules", {"join_rule": "public"}, state_key="")

    def with_members(self, *users: str) -> "Room":
        """Let users join, one after the other."""
        for user in users:
            self.member(user, "join")
        return self

    def member(self, user: str, membership: str, *, by: str | None = None, **kwargs: Any) -> Event:
        """A member event, of the user's own or ``by`` another."""
        content = {"membership": membership, **kwargs.pop("content", {})}
        return self.send(by or user, "m.room.member", content, state_key=user, **kwargs)

    def send(
        self,
        sender: str,
        type: str,  # noqa: A002 - the spec's word
        content: JsonDict | None = None,
        *,
        state_key: str | None = None,
        prev: Sequence[str] | None = None,
        auth: Sequence[str] | None = None,
        ts: int | None = None,
        redacts: str | None = None,
    ) -> Event:
        """Build, sign, judge and add an event, on the heads or on ``prev``."""
        self.clock += 1000
        prev = list(self.heads if prev is None else prev)
        state = self.state_before(prev)
        content = content or {}
        if auth is None:
            types = auth_types_for_event(self.version, type, sender, state_key, content)
            auth = sorted(state[key] for key in types if key in state)
        pdu = build_pdu(
            self.version,
            room_id=self.room_id,
            sender=sender,
            type=type,
            content=content,
            state_key=state_key,
            redacts=redacts,
            prev_events=prev,
            auth_event_ids=auth,
            depth=next_depth(self.version, (self.events[event_id].depth for event_id in prev)),
            origin_server_ts=self.clock if ts is None else ts,
            event_id=f"$e{len(self.events)}:{server_name_of(sender)}",
        )
        event = sign_for_all(pdu, self.version)
        self.add(event)
        return event

    def add(self, event: Event) -> Refused | None:
        """Judge and add an event made elsewhere; its previous and auth events must be there."""
        state = self.state_before(event.prev_event_ids)
        refused = self.judge(event, state)
        self.events[event.event_id] = event
        self.order.append(event.event_id)
        self.before[event.event_id] = state
        self.after[event.event_id] = (
            {**state, event.key: event.event_id} if refused is None and event.is_state else state
        )
        if refused is not None:
            self.rejected[event.event_id] = refused
        elif self.is_soft_failed(event, state):
            return refused
        if refused is None:
            behind = self.behind(event)
            self.heads = [head for head in self.heads if head not in behind] + [event.event_id]
        return refused

    def is_soft_failed(self, event: Event, state: Mapping[StateKey, str]) -> bool:
        """Judge an event by the current state ("Soft failure")."""
        if not self.soft_fail or set(event.prev_event_ids) == set(self.heads):
            return False
        current = self.state_before(self.heads)
        verdict = None if current == state else check_event_auth(event, self.with_events(current))
        if isinstance(verdict, Refused):
            self.soft_failed[event.event_id] = verdict
        return event.event_id in self.soft_failed

    def behind(self, event: Event) -> set[str]:
        """The previous events, and those before them through events that cannot be heads."""
        found: set[str] = set()
        stack = list(event.prev_event_ids)
        while stack:
            event_id = stack.pop()
            if event_id not in found:
                found.add(event_id)
                if event_id in self.soft_failed or event_id in self.rejected:
                    stack.extend(self.events[event_id].prev_event_ids)
        return found

    def judge(self, event: Event, state: Mapping[StateKey, str]) -> Refused | None:
        """Why an event is rejected, ``None`` if it is not: its auth events, then the state before it."""
        auth_events = [self.events[event_id] for event_id in event.auth_event_ids]
        verdict = check_auth_events(event, auth_events, rejected=self.rejected)
        if isinstance(verdict, Refused):
            return verdict
        auth_state = {self.events[link].key: self.events[link] for link in event.auth_links}
        for candidate in (auth_state, self.with_events(state)):
            verdict = check_event_auth(event, candidate)
            if isinstance(verdict, Refused):
                return verdict
        return None

    def state_before(self, prev: Sequence[str]) -> dict[StateKey, str]:
        """The resolved state of some events' states."""
        states = [self.after[event_id] for event_id in prev]
        return resolve(self.version, states, self.store)

    def with_events(self, state: Mapping[StateKey, str]) -> dict[StateKey, Event]:
        """A state with events for ids."""
        return {key: self.events[event_id] for key, event_id in state.items()}

    @property
    def store(self) -> MemoryStore:
        """The room's events for state resolution."""
        return MemoryStore(self.events, self.rejected)

    @property
    def state(self) -> dict[StateKey, Event]:
        """The current state."""
        return self.with_events(self.state_before(self.heads))

    def shuffled_heads(self, rng: random.Random, count: int) -> list[str]:
        """Some of the latest events, for forks."""
        recent = [event_id for event_id in self.order[-12:] if event_id not in self.rejected]
        return rng.sample(recent, min(count, len(recent)))

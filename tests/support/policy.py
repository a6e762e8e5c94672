"""A policy server: its key, what it makes of events, and a script for an `EvilPeer` that is one."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from matrixlib.events import Event
from matrixlib.policy_servers import KEY_ID, POLICY_KEY, PolicyServer, with_signature
from matrixlib.room_versions import RoomVersion
from matrixlib.signing import SigningKey, sign_event
from tests.support.evil_peer import Answer, Asked, EvilPeer

POLICY_KEY_OF_SERVER = SigningKey(KEY_ID, bytes(range(32)))
OTHER_KEY = SigningKey(KEY_ID, bytes(32))
POLICY_TYPE = POLICY_KEY[0]


def policy_content(server_name: str, key: SigningKey = POLICY_KEY_OF_SERVER) -> dict[str, Any]:
    """The content of `m.room.policy` that names a server."""
    return {"via": server_name, "public_keys": {"ed25519": key.verify_key.base64}}


def policy_answer(
    pdu: Mapping[str, Any], version: RoomVersion, server_name: str, key: SigningKey = POLICY_KEY_OF_SERVER
) -> dict[str, Any]:
    """What a policy server answers to an event: its own signature alone."""
    signed = sign_event(pdu, version, server_name, key)
    return {server_name: {key.key_id: signed["signatures"][server_name][key.key_id]}}


def recommended(event: Event, server_name: str) -> Event:
    """An event with the policy server's signature."""
    answer = policy_answer(event.pdu, event.room_version, server_name)
    return with_signature(event, PolicyServer(server_name, POLICY_KEY_OF_SERVER.verify_key), answer)


class PolicyServerScript:
    """Has a scripted server answer as a policy server.

    `decide` gets the PDU and returns None to sign it, or the answer in place of a signature. `asked` are the PDUs
    that came.
    """

    def __init__(self, peer: EvilPeer, version: RoomVersion) -> None:
        self.peer = peer
        self.version = version
        self.asked: list[dict[str, Any]] = []
        self.decide: Callable[[dict[str, Any]], Any] = lambda pdu: None
        peer.answer("sign", self._answer)

    async def _answer(self, request: Asked) -> Any:
        assert request.path == "/_matrix/policy/v1/sign"
        assert request.method == "POST"
        self.asked.append(request.content)
        decided = self.decide(request.content)
        if asyncio.iscoroutine(decided):
            decided = await decided
        if decided is not None:
            return decided
        return policy_answer(request.content, self.version, self.peer.server_name)


def refusal(status: int, errcode: str, error: str = "", **more: Any) -> Answer:
    """An answer in place of a signature."""
    return Answer(status, orjson.dumps({"errcode": errcode, "error": error, **more}))

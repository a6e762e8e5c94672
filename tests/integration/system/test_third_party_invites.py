"""Inviting by an address: a client asks us, we ask an identity server, a scripted one."""

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.arbor_server import ArborServer
from tests.support.evil_peer import Answer, EvilPeer
from tests.support.federation import federated_arbor, wait_for_federation
from tests.support.matrix_client import ClientError, MatrixClient, http_session
from tests.support.tls_ca import TestCa

KEYS = [
    {"public_key": "a" * 43, "key_validity_url": "https://id.example/valid"},
    {"public_key": "b" * 43, "key_validity_url": "https://id.example/ephemeral"},
]
STORED = {"token": "a.token-_=1", "display_name": "c...@e...", "public_keys": KEYS}


def refusal(status: int, errcode: str, **more: Any) -> Answer:
    return Answer(status, orjson.dumps({"errcode": errcode, "error": "No", **more}))


@dataclass(frozen=True, slots=True)
class World:
    """A server, somebody there, and an identity server that knows nobody unless told so."""

    arbor: ArborServer
    identity: EvilPeer
    alice: MatrixClient

    def answer_well(self) -> None:
        hashing = {"lookup_pepper": "pepper", "algorithms": ["none", "sha256"]}
        self.identity.answer("hash_details", lambda _: hashing)
        self.identity.answer("lookup", lambda _: {"mappings": {}})
        self.identity.answer("store-invite", lambda _: STORED)

    def knows(self, address: str, user_id: str) -> None:
        text = f"{address} email pepper"
        hashed = urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        self.identity.answer("lookup", lambda _: {"mappings": {hashed: user_id}})

    def address(self, address: str, **more: Any) -> dict[str, Any]:
        """The body of an invite."""
        return {
            "id_server": self.identity.server_name,
            "id_access_token": "token for it",
            "medium": "email",
            "address": address,
            **more,
        }

    async def invite(self, room_id: str, address: str, **more: Any) -> None:
        await self.alice.post(f"/rooms/{room_id}/invite", self.address(address, **more))

    async def refused(self, room_id: str, address: str, **more: Any) -> tuple[int, str | None]:
        with pytest.raises(ClientError) as caught:
            await self.invite(room_id, address, **more)
        return caught.value.status, caught.value.errcode


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    ca = TestCa(tmp_path / "ca")
    arbor = federated_arbor(tmp_path / "arbor", ca)
    async with EvilPeer(ca) as identity, http_session() as session:
        try:
            await arbor.start()
            await wait_for_federation(arbor)
            made = World(arbor, identity, await arbor.register(session, "alice"))
            made.answer_well()
            yield made
        finally:
            await arbor.stop()


async def test_an_address_that_nobody_has_gets_an_invite_to_redeem(world: World) -> None:
    room_id = await world.alice.create_room(name="Tea", creation_content={"type": "m.space"})
    await world.invite(room_id, "Carol@Example.org", id_access_token="its-token")
    (stored,) = world.identity.asked("store-invite")
    assert stored.headers["Authorization"] == "Bearer its-token"
    assert stored.content == {
        "medium": "email",
        "address": "carol@example.org",
        "room_id": room_id,
        "sender": world.alice.user_id,
        "room_name": "Tea",
        "room_join_rules": "invite",
        "room_type": "m.space",
    }
    (event,) = [
        event for event in await world.alice.state(room_id) if event["type"] == "m.room.third_party_invite"
    ]
    assert event["state_key"] == STORED["token"]
    assert event["content"] == {"display_name": "c...@e...", "public_keys": KEYS, **KEYS[0]}


async def test_who_is_known_by_the_address_is_invited_like_anybody(world: World) -> None:
    bob = await world.arbor.register(world.alice.session, "bob")
    world.knows("bob@example.org", bob.user_id)
    room_id = await world.alice.create_room()
    await world.invite(room_id, "BOB@example.org", id_access_token="its-token", reason="come")
    state = {
        (event["type"], event["state_key"]): event["content"] for event in await world.alice.state(room_id)
    }
    assert state["m.room.member", bob.user_id]["membership"] == "invite"
    assert state["m.room.member", bob.user_id]["reason"] == "come"
    assert world.identity.asked("store-invite") == []
    (asked,) = world.identity.asked("lookup")
    assert (asked.content["algorithm"], asked.content["pepper"]) == ("sha256", "pepper")
    assert "bob" not in str(asked.content), "the address is hashed"
    # createRoom does the same.
    other = await world.alice.create_room(
        is_direct=True, invite_3pid=[world.address("bob@example.org", id_access_token="its-token")]
    )
    state = {
        (event["type"], event["state_key"]): event["content"] for event in await world.alice.state(other)
    }
    assert state["m.room.member", bob.user_id]["is_direct"] is True


async def test_who_may_not_invite_asks_no_identity_server(world: World) -> None:
    bob = await world.arbor.register(world.alice.session, "bob")
    room_id = await bob.create_room(preset="public_chat")
    assert await world.refused(room_id, "c@example.org", id_access_token="t") == (403, "M_FORBIDDEN")
    await world.alice.join(room_id)
    assert await world.refused(room_id, "c@example.org", id_access_token="t") == (403, "M_FORBIDDEN")
    assert world.identity.requests == []


BAD_ANSWERS: list[tuple[str, Any, tuple[int, str]]] = [
    ("lookup", refusal(401, "M_UNAUTHORIZED"), (403, "M_FORBIDDEN")),
    ("hash_details", refusal(401, "M_UNKNOWN_TOKEN"), (403, "M_FORBIDDEN")),
    ("hash_details", refusal(403, "M_TERMS_NOT_SIGNED"), (403, "M_TERMS_NOT_SIGNED")),
    ("store-invite", refusal(400, "M_UNRECOGNIZED"), (400, "M_THREEPID_MEDIUM_NOT_SUPPORTED")),
    ("store-invite", refusal(500, "M_UNKNOWN"), (502, "M_UNKNOWN")),
    ("lookup", refusal(400, "M_INVALID_PEPPER"), (502, "M_UNKNOWN")),
    ("store-invite", {**STORED, "token": "not a token"}, (502, "M_UNKNOWN")),
    ("store-invite", {**STORED, "public_keys": []}, (502, "M_UNKNOWN")),
    ("store-invite", {**STORED, "public_keys": [{"public_key": 1}]}, (502, "M_UNKNOWN")),
    ("hash_details", {"lookup_pepper": "p", "algorithms": ["md5"]}, (502, "M_UNKNOWN")),
    ("lookup", [], (502, "M_UNKNOWN")),
    ("lookup", Answer(200, b"x" * 100_000), (502, "M_UNKNOWN")),
    ("lookup", Answer(302, b"", {"Location": "https://localhost/"}), (502, "M_UNKNOWN")),
]


async def test_answers_that_are_none(world: World) -> None:
    room_id = await world.alice.create_room()
    for endpoint, answer, expected in BAD_ANSWERS:
        world.answer_well()
        world.identity.answer(endpoint, lambda _, answer=answer: answer)  # type: ignore[misc]
        refused = await world.refused(room_id, "c@example.org", id_access_token="t")
        assert refused == expected, (endpoint, answer)
    assert "m.room.third_party_invite" not in {event["type"] for event in await world.alice.state(room_id)}
    # Her session here goes on whatever the identity server says, and a room is made all the same.
    await world.alice.create_room(invite_3pid=[world.address("c@example.org", id_access_token="t")])


async def test_bad_requests(world: World) -> None:
    room_id = await world.alice.create_room()
    for more, expected in (
        ({"id_access_token": None}, "M_MISSING_PARAM"),
        ({"id_access_token": "two words"}, "M_INVALID_PARAM"),
        ({"id_access_token": 5}, "M_BAD_JSON"),
        ({"id_server": "https://id.example"}, "M_INVALID_PARAM"),
        ({"id_server": "id.example/path"}, "M_INVALID_PARAM"),
        ({"medium": "pigeon"}, "M_THREEPID_MEDIUM_NOT_SUPPORTED"),
    ):
        body = {"id_access_token": "t", **more}
        assert await world.refused(room_id, "c@example.org", **body) == (400, expected), more
    assert await world.refused(room_id, "", id_access_token="t") == (400, "M_INVALID_PARAM")
    assert world.identity.requests == []

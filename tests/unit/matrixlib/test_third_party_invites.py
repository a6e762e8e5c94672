"""Third-party invites: each rule, by its number."""

from typing import Any

import pytest

from matrixlib.hashes import encode_base64
from matrixlib.room_versions import ROOM_VERSIONS
from matrixlib.signing import generate_signing_key, sign_json
from tests.support.rooms import ALICE, BOB, CAROL, Room

IDENTITY = generate_signing_key("0")
OTHER = generate_signing_key("0")
PREFIX = {
    **dict.fromkeys("12345", "5.3.1"),
    "6": "4.3.1",
    "7": "4.3.1",
    **dict.fromkeys(["8", "9", "10", "11"], "4.4.1"),
}


def invited(
    version: str, *, signed: Any = ..., listed: dict[str, Any] | None = None, by: str = ALICE
) -> tuple[Room, str | None]:
    """A room with a third-party invite that was redeemed; gives the number of the rule that refused it."""
    room = Room(version)
    keys = listed if listed is not None else {"public_key": IDENTITY.verify_key.base64}
    room.send(ALICE, "m.room.third_party_invite", {"display_name": "b...", **keys}, state_key="token")
    if signed is ...:
        signed = sign_json({"mxid": BOB, "token": "token"}, "id.example", IDENTITY)
    if by != ALICE:
        room.member(by, "join")
    content = {"third_party_invite": {"display_name": "b...", "signed": signed}}
    event = room.member(BOB, "invite", by=by, content=content)
    refused = room.rejected.get(event.event_id)
    return room, refused.rule if refused else None


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_each_rule(version: str) -> None:
    prefix = PREFIX.get(version, "5.4.1")
    assert invited(version)[1] is None
    good: dict[str, Any] = {"mxid": BOB, "token": "token"}
    signed: Any
    for signed in (None, [], "x"):
        assert invited(version, signed=signed)[1] == f"{prefix}.2"
    for signed in (
        {},
        {"mxid": BOB},
        {"token": "token"},
        {"mxid": 5, "token": "token"},
        {"mxid": BOB, "token": []},
    ):
        assert invited(version, signed=signed)[1] == f"{prefix}.3"
    assert invited(version, signed=sign_json({**good, "mxid": CAROL}, "id", IDENTITY))[1] == f"{prefix}.4"
    assert invited(version, signed=sign_json({**good, "token": "other"}, "id", IDENTITY))[1] == f"{prefix}.5"
    assert invited(version, by=CAROL)[1] == f"{prefix}.6"
    for signed in (
        good,
        sign_json(good, "id", OTHER),
        {**good, "signatures": []},
        {**good, "signatures": {"id": {"ed25519:0": "x"}}},
    ):
        assert invited(version, signed=signed)[1] == f"{prefix}.8"


def test_a_banned_target() -> None:
    room = Room("10")
    room.send(
        ALICE, "m.room.third_party_invite", {"public_key": IDENTITY.verify_key.base64}, state_key="token"
    )
    room.member(BOB, "ban", by=ALICE)
    signed = sign_json({"mxid": BOB, "token": "token"}, "id", IDENTITY)
    event = room.member(BOB, "invite", by=ALICE, content={"third_party_invite": {"signed": signed}})
    assert room.rejected[event.event_id].rule == "4.4.1.1"


@pytest.mark.parametrize(
    "listed",
    [
        {
            "public_keys": [
                {"public_key": encode_base64(b"x" * 32)},
                {"public_key": IDENTITY.verify_key.base64},
            ]
        },
        {
            "public_key": "garbage",
            "public_keys": [None, {}, {"public_key": 5}, {"public_key": IDENTITY.verify_key.base64}],
        },
    ],
    ids=["second", "among garbage"],
)
def test_any_listed_key_counts(listed: dict[str, Any]) -> None:
    assert invited("10", listed=listed)[1] is None


@pytest.mark.parametrize(
    "listed", [{}, {"public_key": None}, {"public_keys": 5}, {"public_key": "AAAA", "public_keys": {}}]
)
def test_without_a_key_nobody_can_have_signed(listed: dict[str, Any]) -> None:
    assert invited("10", listed=listed)[1] == "4.4.1.8"

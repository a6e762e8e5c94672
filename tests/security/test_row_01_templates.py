"""Row 1: nothing that another server hands us is ever signed as it is.

The peer, resident of a room, answers make_join, make_leave and make_knock with templates that are not what
was asked for. No event with our signature leaves, and the error is a clean one.
"""

from pathlib import Path
from typing import Any

import pytest

from servicekit.errors import MatrixError
from tests.support.evil_peer import Asked, EvilPeer
from tests.support.federation_alone import FederationAlone
from tests.support.rooms import Room
from tests.support.tls_ca import TestCa

ROOM_ID = "!room:remote.example"


def good_template(room_id: str, user_id: str, membership: str) -> dict[str, Any]:
    return {
        "type": "m.room.member",
        "room_id": room_id,
        "sender": user_id,
        "state_key": user_id,
        "content": {"membership": membership},
        "prev_events": ["$" + "p" * 43],
        "auth_events": ["$" + "a" * 43],
        "depth": 5,
        "origin": "remote.example",
        "origin_server_ts": 1,
    }


BAD = {
    "another type": {"type": "m.room.power_levels"},
    "another sender": {"sender": "@admin:victim.example"},
    "another state key": {"state_key": "@admin:victim.example"},
    "no state key": {"state_key": None},
    "another room": {"room_id": "!other:remote.example"},
    "another membership": {"content": {"membership": "ban"}},
    "content that is no object": {"content": "join"},
    "prev events of another form": {"prev_events": [["$x", {}]]},
    "too many prev events": {"prev_events": [f"${n:043d}" for n in range(21)]},
    "auth events that are no strings": {"auth_events": [7]},
    "a depth out of range": {"depth": 2**53},
    "a negative depth": {"depth": -1},
    "keys that no template has": {"hashes_of_mine": {"sha256": "x"}},
    "an authoriser of a third server": {
        "content": {"membership": "join", "join_authorised_via_users_server": "@a:victim.example"}
    },
}


@pytest.mark.parametrize("membership", ["join", "knock"])
@pytest.mark.parametrize("name", list(BAD))
async def test_a_bad_template_is_never_signed(tmp_path: Path, membership: str, name: str) -> None:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        user_id = us.user("alice")
        event = {**good_template(ROOM_ID, user_id, membership), **BAD[name]}
        if event["state_key"] is None:
            del event["state_key"]
        if name.startswith("an authoriser") and membership == "knock":
            event["content"] = {"membership": "leave"}
        peer.answer(f"make_{membership}", lambda _: {"room_version": "10", "event": event})
        peer.answer(f"send_{membership}", lambda _: {})
        ask = us.parts.joins.join if membership == "join" else us.parts.memberships.knock
        with pytest.raises(MatrixError) as raised:
            await ask(user_id, ROOM_ID, [peer.server_name], {})
        assert raised.value.http_status == 502
        assert peer.asked(f"make_{membership}")
        assert peer.asked(f"send_{membership}") == []
        assert us.input.inputs == []


async def test_an_unknown_room_version_is_never_signed(tmp_path: Path) -> None:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        user_id = us.user("alice")
        template = good_template(ROOM_ID, user_id, "join")
        peer.answer("make_join", lambda _: {"room_version": "evil", "event": template})
        with pytest.raises(MatrixError):
            await us.parts.joins.join(user_id, ROOM_ID, [peer.server_name], {})
        assert peer.asked("send_join") == []


async def test_what_a_good_template_smuggles_in_its_content_is_left_out(tmp_path: Path) -> None:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        user_id = us.user("alice")
        template = good_template(ROOM_ID, user_id, "join")
        template["content"] = {"membership": "join", "displayname": "I am evil", "third_party_invite": {}}
        template["redacts"] = "$something"
        template["signatures"] = {us.server_name: {us.key.key_id: "x"}}
        peer.answer("make_join", lambda _: {"room_version": "10", "event": template})
        with pytest.raises(MatrixError):
            await us.parts.joins.join(user_id, ROOM_ID, [peer.server_name], {"displayname": "Alice"})
        sent = peer.asked("send_join")
        assert sent, "the template was good"
        assert sent[0].content["content"] == {"membership": "join", "displayname": "Alice"}
        assert "redacts" not in sent[0].content


async def test_a_bad_leave_template_is_never_signed_and_the_invite_ends_here(tmp_path: Path) -> None:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        user_id = us.user("alice")
        room = Room("10", creator=f"@boss:{peer.server_name}")
        invite = room.member(user_id, "invite", by=f"@boss:{peer.server_name}")
        us.rooms.outliers[invite.event_id] = invite
        us.rooms.outlier_memberships[room.create.room_id, user_id] = invite

        def make_leave(request: Asked) -> Any:
            event = good_template(room.create.room_id, user_id, "leave")
            return {"room_version": "10", "event": {**event, "type": "m.room.create", "state_key": ""}}

        peer.answer("make_leave", make_leave)
        left = await us.parts.memberships.leave(user_id, room.create.room_id, {})
        assert not left.told_remote
        assert peer.asked("send_leave") == []
        assert us.rooms.outlier_memberships[room.create.room_id, user_id].membership == "leave"

"""Row 12: an EDU speaks for users of the server that sent it, where they are, and for nobody else."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from arbor.log.v1 import live_pb2, output_pb2
from federation.storage import tables
from tests.support.evil_peer import EvilPeer
from tests.support.federation_alone import FederationAlone
from tests.support.rooms import Room
from tests.support.tls_ca import TestCa


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[tuple[EvilPeer, FederationAlone, Room]]:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        room = Room("10", creator=us.user("owner")).with_members(f"@eve:{peer.server_name}")
        us.rooms.of[room.create.room_id] = room
        yield peer, us, room


async def tell(
    peer: EvilPeer, us: FederationAlone, *edus: tuple[str, dict[str, Any]], txn: str = "1"
) -> None:
    body = {"pdus": [], "edus": [{"edu_type": kind, "content": content} for kind, content in edus]}
    path = f"/_matrix/federation/v1/send/{txn}"
    assert await peer.ask("PUT", us.base_url, path, us.server_name, body) == (200, {"pdus": {}})


def all_kinds(user_id: str, room_id: str, us: FederationAlone) -> list[tuple[str, dict[str, Any]]]:
    return [
        ("m.typing", {"room_id": room_id, "user_id": user_id, "typing": True}),
        ("m.receipt", {room_id: {"m.read": {user_id: {"event_ids": ["$x"], "data": {"ts": 1}}}}}),
        ("m.presence", {"push": [{"user_id": user_id, "presence": "online", "last_active_ago": 5}]}),
        (
            "m.direct_to_device",
            {
                "sender": user_id,
                "type": "m.test",
                "message_id": "one",
                "messages": {us.user("owner"): {"*": {"text": "hi"}}},
            },
        ),
        ("m.device_list_update", {"user_id": user_id, "device_id": "D", "stream_id": 5, "prev_id": [4]}),
        ("m.signing_key_update", {"user_id": user_id, "master_key": {}}),
    ]


async def test_users_of_the_sender_are_heard(world: tuple[EvilPeer, FederationAlone, Room]) -> None:
    peer, us, room = world
    eve = f"@eve:{peer.server_name}"
    await tell(peer, us, *all_kinds(eve, room.create.room_id, us))
    typing = live_pb2.LiveMessage.FromString(us.log.about("live.typing")[0]).typing
    assert (typing.user_id, typing.typing) == (eve, True)
    presence = live_pb2.LiveMessage.FromString(us.log.about("live.presence")[0]).presence
    assert (presence.user_id, list(presence.room_ids)) == (eve, [room.create.room_id])
    receipt = output_pb2.OutputMessage.FromString(us.log.about("room.receipt")[0])
    assert receipt.entries[0].receipt.event_id == "$x"
    message = output_pb2.OutputMessage.FromString(us.log.about("user.to_device")[0])
    assert (message.user_id, message.entries[0].to_device.sender) == (us.user("owner"), eve)
    assert len(us.log.about("user.device_list")) == 2


@pytest.mark.parametrize(
    "who", ["@owner:{us}", "@dora:elsewhere.example", "@eve:{peer}.evil", "eve", 7, None]
)
async def test_nobody_else_is_spoken_for(world: tuple[EvilPeer, FederationAlone, Room], who: Any) -> None:
    peer, us, room = world
    user_id = who
    if isinstance(who, str):
        user_id = who.format(us=us.server_name, peer=peer.server_name)
    kinds = all_kinds(user_id, room.create.room_id, us)
    if not isinstance(user_id, str):
        kinds = [item for item in kinds if item[0] != "m.receipt"]
    await tell(peer, us, *kinds)
    assert us.log.published == []
    # Nor is anything noted that would be told or asked later.
    for table in (tables.device_list, tables.seen_message, tables.outgoing_edu):
        count = select(func.count()).select_from(table)
        assert await us.database.read(lambda conn, count=count: conn.execute(count).scalar()) == 0
    assert [request.path for request in peer.requests if "/key/" not in request.path] == []


async def test_nobody_types_or_reads_where_they_are_not(
    world: tuple[EvilPeer, FederationAlone, Room],
) -> None:
    peer, us, room = world
    stranger = f"@stranger:{peer.server_name}"
    other = Room("12", creator=us.user("owner"))
    us.rooms.of[other.create.room_id] = other
    for user_id, room_id in (
        (stranger, room.create.room_id),
        (f"@eve:{peer.server_name}", other.create.room_id),
        (f"@eve:{peer.server_name}", "!unknown:x.example"),
    ):
        await tell(peer, us, *all_kinds(user_id, room_id, us)[:2], txn=f"{user_id}{room_id[:5]}"[1:9])
    await tell(peer, us, all_kinds(stranger, room.create.room_id, us)[2], txn="presence")
    assert us.log.published == []


async def test_the_acl_holds_for_edus(world: tuple[EvilPeer, FederationAlone, Room]) -> None:
    peer, us, room = world
    room.send(room.creator, "m.room.server_acl", {"allow": ["*"], "deny": ["LOCALHOST"]}, state_key="")
    await tell(peer, us, *all_kinds(f"@eve:{peer.server_name}", room.create.room_id, us)[:2])
    assert us.log.published == []


async def test_a_to_device_message_is_told_once(world: tuple[EvilPeer, FederationAlone, Room]) -> None:
    peer, us, room = world
    edu = all_kinds(f"@eve:{peer.server_name}", room.create.room_id, us)[3]
    await tell(peer, us, edu, edu, txn="1")
    await tell(peer, us, edu, txn="2")
    assert len(us.log.about("user.to_device")) == 1


async def test_messages_to_users_of_others_go_nowhere(
    world: tuple[EvilPeer, FederationAlone, Room],
) -> None:
    peer, us, room = world
    kind, content = all_kinds(f"@eve:{peer.server_name}", room.create.room_id, us)[3]
    content["messages"] = {"@dora:elsewhere.example": {"*": {}}, "owner": {"*": {}}, us.user("owner"): 5}
    await tell(peer, us, (kind, content))
    assert us.log.published == []

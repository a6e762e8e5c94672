"""Row 20: what other servers answer never logs a client out, and is never passed on as it is."""

from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from arbor.federation.v1 import federation_pb2
from federation.outbound.errors import RemoteError
from matrixlib.identifiers import is_valid_server_name, parse_room_id
from servicekit.errors import MatrixError
from tests.support.evil_peer import Answer, EvilPeer
from tests.support.federation_alone import FederationAlone
from tests.support.rooms import Room
from tests.support.tls_ca import TestCa

ANSWERS = {
    "unknown token": Answer(401, b'{"errcode":"M_UNKNOWN_TOKEN","error":"x","soft_logout":true}'),
    "missing token": Answer(401, b'{"errcode":"M_MISSING_TOKEN","error":"x"}'),
    "unknown token with 403": Answer(403, b'{"errcode":"M_UNKNOWN_TOKEN","error":"x"}'),
    "consent": Answer(403, b'{"errcode":"M_CONSENT_NOT_GIVEN","consent_uri":"https://evil"}'),
    "deactivated": Answer(403, b'{"errcode":"M_USER_DEACTIVATED"}'),
    "errcode that is no string": Answer(400, b'{"errcode":{"a":1},"error":["x"]}'),
    "html": Answer(500, b"<script>alert(1)</script>", {"Content-Type": "text/html"}),
    "no object": Answer(200, b"[1,2,3]"),
    "no json": Answer(200, b"\xff\xfe"),
    "nothing": Answer(200, b""),
    "a redirect": Answer(302, b"{}", {"Location": "https://127.0.0.1:1/x"}),
}
SAFE = {"M_UNKNOWN", "M_FORBIDDEN", "M_NOT_FOUND"}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[tuple[EvilPeer, FederationAlone]]:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        yield peer, us


@pytest.mark.parametrize("name", list(ANSWERS))
async def test_errors_of_others_are_not_ours(world: tuple[EvilPeer, FederationAlone], name: str) -> None:
    peer, us = world
    for endpoint in ("make_join", "make_knock", "query", "publicRooms", "hierarchy", "invite"):
        peer.answer(endpoint, lambda _: ANSWERS[name])
    room = Room("10", creator=us.user("alice"))
    invite = room.member(f"@eve:{peer.server_name}", "invite", by=room.creator)
    user_id, server = us.user("alice"), peer.server_name
    queries = us.parts.servicer._queries
    for ask in (
        lambda: us.parts.joins.join(user_id, "!r:x.example", [server], {}),
        lambda: us.parts.memberships.knock(user_id, "!r:x.example", [server], {}),
        lambda: queries.alias(f"#room:{server}"),
        lambda: queries.public_rooms(server, {}),
        lambda: queries.hierarchy("!r:x.example", [server], False),
        lambda: us.parts.memberships.invite(invite, []),
    ):
        with pytest.raises(MatrixError) as raised:
            await ask()
        assert raised.value.http_status != 401
        assert raised.value.errcode in SAFE
        assert "soft_logout" not in raised.value.body()
        assert "<" not in raised.value.message


@pytest.mark.parametrize("name", list(ANSWERS))
async def test_a_profile_or_a_leave_does_without_the_other_server(
    world: tuple[EvilPeer, FederationAlone], name: str
) -> None:
    peer, us = world
    for endpoint in ("query", "make_leave", "send_leave"):
        peer.answer(endpoint, lambda _: ANSWERS[name])
    request = federation_pb2.QueryRemoteProfilesRequest(user_ids=[f"@eve:{peer.server_name}"])
    answer = await us.parts.servicer.QueryRemoteProfiles(request, None)  # type: ignore[arg-type]
    assert [(item.unreachable, item.fields_json) for item in answer.profiles] == [(True, b"")]
    room = Room("10", creator=f"@boss:{peer.server_name}")
    invite = room.member(us.user("alice"), "invite", by=room.creator)
    us.rooms.outliers[invite.event_id] = invite
    us.rooms.outlier_memberships[invite.room_id, us.user("alice")] = invite
    left = await us.parts.memberships.leave(us.user("alice"), invite.room_id, {})
    assert not left.told_remote
    assert us.rooms.outlier_memberships[invite.room_id, us.user("alice")].membership == "leave"


async def test_what_a_client_can_act_on_is_passed_on(world: tuple[EvilPeer, FederationAlone]) -> None:
    peer, us = world
    body = b'{"errcode":"M_INCOMPATIBLE_ROOM_VERSION","error":"no","room_version":"99"}'
    peer.answer("make_join", lambda _: Answer(400, body))
    with pytest.raises(MatrixError) as raised:
        await us.parts.joins.join(us.user("alice"), "!r:x.example", [peer.server_name], {})
    assert raised.value.body() == {
        "errcode": "M_INCOMPATIBLE_ROOM_VERSION",
        "error": "no",
        "room_version": "99",
    }


async def test_a_server_out_of_reach_is_a_502(world: tuple[EvilPeer, FederationAlone]) -> None:
    _, us = world
    with pytest.raises(MatrixError) as raised:
        await us.parts.joins.join(us.user("alice"), "!r:x.example", ["localhost:1"], {})
    assert (raised.value.http_status, raised.value.errcode) == (502, "M_UNKNOWN")


ODD: list[object] = [
    [],
    7,
    None,
    {"device_keys": []},
    {"device_keys": {"@x:y": 7}, "master_keys": 5, "self_signing_keys": [1]},
    {"one_time_keys": []},
    {"one_time_keys": {"@stranger:elsewhere.example": {"D": {}}}},
    {"displayname": {}, "avatar_url": 7},
    {"room_id": 7, "servers": ["", 7, None, "not a name"]},
    {"room_id": "!x:y.example", "servers": "localhost"},
    {"chunk": [7, {}, {"room_id": "x"}, {"room_id": "!r:x.example", "num_joined_members": "5"}]},
    {"chunk": [], "next_batch": 7, "total_room_count_estimate": 1.0},
    {"room": {"room_id": "!other:x.example", "num_joined_members": 1}},
    {"room": {"room_id": "!r:x.example", "num_joined_members": 1}, "children": [7, {"room_id": 5}]},
]


@pytest.mark.parametrize("answer", ODD)
@pytest.mark.parametrize(
    "question", ["alias", "profile", "public_rooms", "hierarchy", "user_keys", "claim_keys", "exchange"]
)
async def test_answers_of_any_form_are_refused_or_cut_to_what_they_may_say(
    world: tuple[EvilPeer, FederationAlone], question: str, answer: object
) -> None:
    peer, us = world
    for endpoint in ("query", "publicRooms", "hierarchy", "user", "exchange_third_party_invite"):
        peer.answer(endpoint, lambda _: Answer(body=orjson.dumps(answer)))
    queries, server = us.parts.servicer._queries, peer.server_name
    eve, alice = f"@eve:{server}", us.user("alice")
    try:
        match question:
            case "alias":
                room_id, servers = await queries.alias(f"#room:{server}")
                assert parse_room_id(room_id)
                assert all(is_valid_server_name(name) for name in servers)
            case "profile":
                found = await queries.profile(eve, "")
                assert found is None or all(isinstance(found.get(k, ""), str) for k in ("displayname",))
            case "public_rooms":
                page = await queries.public_rooms(server, {})
                assert page["chunk"] == []
                assert isinstance(page.get("next_batch", ""), str)
            case "hierarchy":
                level = await queries.hierarchy("!r:x.example", [server], False)
                assert level["room"]["room_id"] == "!r:x.example"
                assert level["children"] == []
            case "user_keys":
                for keys in (await queries.user_keys([eve], 5))[0]:
                    assert all(set(of_kind) <= {eve} for of_kind in keys.values())
            case "claim_keys":
                claimed, _ = await queries.claim_keys({eve: {"D": "signed_curve25519"}}, 5)
                assert set(claimed) <= {eve}
            case _:
                signed = {"mxid": alice, "token": "t", "signatures": {}}
                invite = {"mxid": alice, "room_id": "!r:x.example", "sender": eve, "signed": signed}
                body = {"medium": "email", "address": "a@b.c", "mxid": alice, "invites": [invite]}
                path = "/_matrix/federation/v1/3pid/onbind"
                status, _ = await peer.ask("PUT", us.base_url, path, None, body, signed=False)
                assert status in (200, 502)
    except (MatrixError, RemoteError):
        pass  # refused, by an error that callers know

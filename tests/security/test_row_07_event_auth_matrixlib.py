"""Row 7: event-auth rule errors. The tables are in the unit tests, the differential run among the peers; here
stand the mistakes that servers have made.
"""

from typing import Any

import pytest

from matrixlib.event_auth import Refused, check_auth_events, check_event_auth
from matrixlib.events import parse_event
from matrixlib.room_versions import ROOM_VERSIONS
from tests.support.rooms import ALICE, BOB, CAROL, Room, sign_for_all


def refused(room: Room, event_id: str) -> str | None:
    """The number of the rule that refused an event of a room."""
    found = room.rejected.get(event_id)
    return found.rule if found else None


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_a_refusal_names_version_and_rule(version: str) -> None:
    room = Room(version)
    event = room.send(BOB, "m.room.message", {})
    found = room.rejected[event.event_id]
    assert found.room_version == version
    assert found.rule == room.version.rule("sender_joined")
    assert found.rule in str(found)
    assert version in str(found)


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_auth_events_of_another_room(version: str) -> None:
    room, other = Room(version), Room(version, creator="@other:a.example", content={"x": "other"})
    other.room_id = other.room_id or ""
    foreign = [event for event in other.events.values() if event.type == "m.room.power_levels"]
    if not room.version.room_id_is_create_hash:
        pdu = {**foreign[0].pdu, "room_id": "!another:a.example"}
        foreign = [
            sign_for_all({key: pdu[key] for key in pdu if key not in ("signatures", "hashes")}, room.version)
        ]
    message = room.send(ALICE, "m.room.message", {})
    own = [
        room.events[link]
        for link in message.auth_event_ids
        if room.events[link].type != "m.room.power_levels"
    ]
    verdict = check_auth_events(message, [*own, *foreign])
    assert isinstance(verdict, Refused)
    assert verdict.rule == room.version.rule("auth_events.room_id")


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_a_rejected_auth_event(version: str) -> None:
    room = Room(version)
    message = room.send(ALICE, "m.room.message", {})
    own = [room.events[link] for link in message.auth_event_ids]
    for auth_event in own:
        verdict = check_auth_events(message, own, rejected={auth_event.event_id})
        assert isinstance(verdict, Refused)
        assert verdict.rule == room.version.rule("auth_events.rejected")
    if room.version.room_id_is_create_hash:
        verdict = check_auth_events(message, own, rejected={room.create.event_id})
        assert isinstance(verdict, Refused)
        assert verdict.rule == "2"


def test_the_create_event_of_version_12_is_that_of_the_room_id() -> None:
    room, other = Room("12"), Room("12", content={"x": 1})
    message = room.send(ALICE, "m.room.message", {})
    state = {**room.state, ("m.room.create", ""): other.create}
    verdict = check_event_auth(message, state)
    assert isinstance(verdict, Refused)
    assert verdict.rule == "2"


@pytest.mark.parametrize("version", [name for name in ROOM_VERSIONS if int(name) < 12])
def test_a_create_event_of_another_servers_room_id(version: str) -> None:
    create = Room(version).create
    pdu = {**create.pdu, "room_id": "!room:b.example"}
    verdict = check_event_auth(parse_event(pdu, ROOM_VERSIONS[version]), {})
    assert isinstance(verdict, Refused)
    assert verdict.rule == "1.2"


@pytest.mark.parametrize("version", ["8", "9", "10", "11", "12"])
def test_a_restricted_join_without_the_authorising_servers_signature(version: str) -> None:
    room = Room(version)
    room.send(ALICE, "m.room.join_rules", {"join_rule": "restricted"}, state_key="")
    join = room.member(BOB, "join", content={"join_authorised_via_users_server": ALICE})
    assert refused(room, join.event_id) is None
    signatures = {"b.example": join.pdu["signatures"]["b.example"]}
    forged = parse_event({**join.pdu, "signatures": signatures}, room.version)
    verdict = check_event_auth(forged, room.with_events(room.before[join.event_id]))
    assert isinstance(verdict, Refused)
    assert verdict.rule == room.version.rule("member.authorised_signature")


@pytest.mark.parametrize("version", ROOM_VERSIONS)
@pytest.mark.parametrize(
    "content",
    [
        {"users": {ALICE: 100, BOB: 2**53 - 1}},
        {"users": {ALICE: 100}, "events": []},
        {"users": {ALICE: []}},
        {"users": {"": 1}},
        {"users": None},
        {"ban": None},
        {"users": {ALICE: 100}, "users_default": 101},
    ],
    ids=range(7),
)
def test_nobody_raises_anybody_above_themselves(version: str, content: dict[str, Any]) -> None:
    if ROOM_VERSIONS[version].privileged_creators:
        room = Room(version)
        room.send(ALICE, "m.room.power_levels", {"users": {CAROL: 100}}, state_key="")
        content = {**content, "users": {CAROL: 100, BOB: 2**53 - 1}}
    else:
        room = Room(version, content={"creator": ALICE})
        room.send(ALICE, "m.room.power_levels", {"users": {ALICE: 100, CAROL: 100}}, state_key="")
    room.with_members(BOB, CAROL)
    event = room.send(CAROL, "m.room.power_levels", content, state_key="")
    assert refused(room, event.event_id) is not None


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_a_banned_user_gets_nothing_through(version: str) -> None:
    room = Room(version).with_members(BOB)
    room.member(BOB, "ban", by=ALICE)
    attempts = [
        room.member(BOB, "join"),
        room.member(BOB, "leave"),
        room.member(BOB, "invite", by=ALICE),
        room.member(BOB, "knock"),
        room.member(BOB, "join", content={"join_authorised_via_users_server": ALICE}),
        room.send(BOB, "m.room.message", {}),
        room.send(BOB, "m.room.power_levels", {"users": {BOB: 100}}, state_key=""),
        room.send(BOB, "org.example.own", {}, state_key=BOB),
    ]
    assert all(refused(room, event.event_id) for event in attempts)

"""Row 9: state resets. What older versions reset by their rules is kept in version 12, and the reason can be
told.
"""

import pytest

from matrixlib.event_auth import Refused
from matrixlib.room_versions import ROOM_VERSIONS
from matrixlib.state_resolution import resolve_explained
from tests.support.rooms import ALICE, BOB, CAROL, Room

OLD = [name for name in ROOM_VERSIONS if name not in ("1", "12")]


def room_with_levels(version: str, **levels: int) -> Room:
    """A room where Bob may set the topic."""
    room = Room(version).with_members(BOB, CAROL)
    users = dict(levels) if room.version.privileged_creators else {ALICE: 100, **levels}
    room.send(ALICE, "m.room.power_levels", {"users": users, "events": {"m.room.topic": 0}}, state_key="")
    return room


def topic_of_one_who_left(version: str) -> tuple[Room, str, list[dict[tuple[str, str], str]]]:
    """Bob set a topic and left on another branch; then one side has the topic, the other does not."""
    room = room_with_levels(version)
    fork = room.heads
    topic = room.send(BOB, "m.room.topic", {"topic": "x"}, state_key="", prev=fork)
    leave = room.member(BOB, "leave", prev=fork)
    merge = room.send(ALICE, "m.room.message", {}, prev=[topic.event_id, leave.event_id])
    return room, topic.event_id, [room.after[merge.event_id], room.after[leave.event_id]]


@pytest.mark.parametrize("version", OLD)
def test_old_versions_reset_and_say_so(version: str) -> None:
    room, topic, states = topic_of_one_who_left(version)
    assert states[0][("m.room.topic", "")] == topic
    found = resolve_explained(room.version, states, room.store)
    # The page wants this outcome; the caller sees from `conflicted` and `refused` that an entry was lost, and
    # why.
    assert ("m.room.topic", "") not in found.state
    assert ("m.room.topic", "") in found.conflicted
    refusal = found.refused[topic]
    assert isinstance(refusal, Refused)
    assert refusal.rule == room.version.rule("sender_joined")


def test_version_12_keeps_it() -> None:
    room, topic, states = topic_of_one_who_left("12")
    found = resolve_explained(room.version, states, room.store)
    assert found.state[("m.room.topic", "")] == topic
    assert found.steps[("m.room.topic", "")] == "mainline order"


@pytest.mark.parametrize("version", [*OLD, "12"])
def test_an_old_ban_or_level_does_not_come_back(version: str) -> None:
    # Both branches agree that Carol was unbanned; an ancient side branch, where she is not known, changes
    # nothing.
    room = room_with_levels(version)
    ancient = room.heads
    room.member(CAROL, "ban", by=ALICE)
    room.member(CAROL, "leave", by=ALICE)
    joined = room.member(CAROL, "join")
    side = room.send(BOB, "m.room.topic", {"topic": "old"}, state_key="", prev=ancient)
    state = room.state_before([joined.event_id, side.event_id])
    assert state[("m.room.member", CAROL)] == joined.event_id


@pytest.mark.parametrize("version", [*OLD, "12"])
def test_a_demoted_user_cannot_undo_it_from_an_old_branch(version: str) -> None:
    room = room_with_levels(version, **{BOB: 50})
    old = room.heads
    base = {} if room.version.privileged_creators else {ALICE: 100}
    demote = room.send(ALICE, "m.room.power_levels", {"users": {**base, BOB: 0}}, state_key="", prev=old)
    late = 1_900_000_000_000
    back = room.send(
        BOB, "m.room.power_levels", {"users": {**base, BOB: 50, CAROL: 50}}, state_key="", prev=old, ts=late
    )
    kick = room.member(CAROL, "leave", by=BOB, prev=[back.event_id], ts=late + 1)
    state = room.state_before([demote.event_id, kick.event_id])
    assert state[("m.room.power_levels", "")] == demote.event_id
    assert room.events[state[("m.room.member", CAROL)]].membership == "join"


def test_room_ids_of_version_12_cannot_be_shared() -> None:
    rooms = {Room("12", content={"n": number}).room_id for number in range(50)}
    assert len(rooms) == 50
    room = Room("12")
    again = room.send(ALICE, "m.room.create", {"room_version": "12"}, state_key="")
    assert again.room_id != room.room_id

"""Row 8: rejected events never come back into state, whoever refers to them."""

import random

import pytest

from matrixlib.room_versions import ROOM_VERSIONS
from matrixlib.state_resolution import resolve
from tests.support.random_rooms import random_room
from tests.support.rooms import ALICE, BOB, CAROL, Room


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_a_state_that_claims_a_rejected_event(version: str) -> None:
    room = Room(version).with_members(BOB)
    grab = room.send(BOB, "m.room.power_levels", {"users": {BOB: 100}}, state_key="")
    assert grab.event_id in room.rejected
    key = ("m.room.power_levels", "")
    honest = room.state_before(room.heads)
    claimed = {**honest, key: grab.event_id}
    for sets in ([honest, claimed], [claimed, honest], [claimed, honest, claimed]):
        assert resolve(room.version, sets, room.store)[key] == honest[key]


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_what_stands_on_a_rejected_event_is_rejected(version: str) -> None:
    room = Room(version).with_members(BOB, CAROL)
    grab = room.send(BOB, "m.room.power_levels", {"users": {BOB: 100}}, state_key="")
    auth = [
        link
        for link in room.events[room.heads[0]].auth_event_ids
        if room.events[link].type != "m.room.member"
    ]
    auth = [link for link in auth if room.events[link].type == "m.room.create"]
    member = room.state[("m.room.member", BOB)].event_id
    ban = room.member(ALICE, "ban", by=BOB, prev=[grab.event_id], auth=[*auth, member, grab.event_id])
    assert ban.event_id in room.rejected


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_in_random_rooms_with_claims(version: str) -> None:
    for seed in range(15):
        room = random_room(version, seed, steps=25)
        rng = random.Random(seed)
        rejected = [room.events[event_id] for event_id in room.rejected if room.events[event_id].is_state]
        accepted = [event_id for event_id in room.order if event_id not in room.rejected]
        for event in rejected:
            honest = room.after[rng.choice(accepted)]
            other = room.after[rng.choice(accepted)]
            claimed = {**honest, event.key: event.event_id}
            merged = resolve(room.version, [claimed, honest, other], room.store)
            assert event.event_id not in merged.values()

"""Two people talk: accounts, a room, events, through real HTTP."""

from tests.support.clientapi_alone import World


async def test_two_people_talk(world: World) -> None:
    alice, bob = await world.user("alice"), await world.user("bob")
    room_id = (await alice.ok("POST", "/createRoom", {"name": "Tea", "invite": [bob.user_id]}))["room_id"]
    room = world.roomserver.rooms[room_id]
    assert [room.events[event_id].type for event_id in room.order] == [
        "m.room.create",
        "m.room.member",
        "m.room.power_levels",
        "m.room.join_rules",
        "m.room.history_visibility",
        "m.room.guest_access",
        "m.room.name",
        "m.room.member",
    ]
    assert len(world.roomserver.batches) == 1

    await bob.ok("POST", f"/join/{room_id}")
    first = await alice.ok("PUT", f"/rooms/{room_id}/send/m.room.message/t1", {"body": "hello"})
    again = await alice.ok("PUT", f"/rooms/{room_id}/send/m.room.message/t1", {"body": "hello"})
    assert first == again
    sent = await bob.ok("PUT", f"/rooms/{room_id}/send/m.room.message/t1", {"body": "hi"})
    assert room.events[sent["event_id"]].content == {"body": "hi"}
    await bob.ok("PUT", f"/rooms/{room_id}/redact/{sent['event_id']}/t2", {"reason": "oops"})
    await alice.ok("PUT", f"/rooms/{room_id}/state/m.room.topic", {"topic": "tea"})
    await alice.ok("PUT", f"/rooms/{room_id}/state/m.room.topic/", {"topic": "more tea"})
    assert room.state[("m.room.topic", "")].content == {"topic": "more tea"}
    assert await bob.fails("PUT", f"/rooms/{room_id}/state/m.room.topic", {"topic": "no"}) == (
        403,
        "M_FORBIDDEN",
    )
    await bob.ok("POST", f"/rooms/{room_id}/leave")
    assert await bob.fails("PUT", f"/rooms/{room_id}/send/m.room.message/t3", {"body": "hi"}) == (
        403,
        "M_FORBIDDEN",
    )
    assert len(room.extremities) == 1
    # What the lane knows is enough: the RoomServer was asked about the redacted event, and at refusals.
    assert world.roomserver.stale == 0

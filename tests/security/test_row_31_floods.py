"""Row 31: one user who asks for everything at once holds up nobody.

A thousand joins, receipts and repeated transactions of one user at a time: each gets the right answer, nothing
is done twice, and what others ask in the midst of it is answered as ever.
"""

import asyncio
from collections.abc import Callable

import aiohttp

from tests.support.homeserver import Homeserver
from tests.support.matrix_client import segment

FLOOD = 1000


async def test_a_flood_of_one_user(
    homeserver: Homeserver, session: aiohttp.ClientSession, unique: Callable[[str], str]
) -> None:
    mallory = await homeserver.register(session, unique("mallory"))
    alice = await homeserver.register(session, unique("alice"))
    bob = await homeserver.register(session, unique("bob"))
    theirs = await mallory.create_room(preset="public_chat")
    ours = await alice.create_room(preset="public_chat")
    await bob.join(ours)
    read = await mallory.send(theirs, "read this")
    receipt = f"/rooms/{segment(theirs)}/receipt/m.read/{segment(read)}"

    async def conversation() -> list[str]:
        sent = []
        for number in range(20):
            sent.append(await alice.send(ours, f"message {number}"))
            page = await bob.messages(ours, limit=1)
            assert page["chunk"][0]["event_id"] == sent[-1]
        return sent

    async with asyncio.TaskGroup() as group:
        talking = group.create_task(conversation())
        joins = [group.create_task(mallory.join(theirs)) for _ in range(FLOOD)]
        receipts = [group.create_task(mallory.post(receipt)) for _ in range(FLOOD)]
        sends = [group.create_task(mallory.send(theirs, "once", txn_id="the same")) for _ in range(FLOOD)]
    assert len(talking.result()) == 20
    assert len(joins) == len(receipts) == FLOOD
    event_ids = {send.result() for send in sends}
    assert len(event_ids) == 1
    events = await mallory.all_messages(theirs)
    assert [event["event_id"] for event in events if event["content"].get("body") == "once"] == list(
        event_ids
    )
    joined = [event for event in events if event["type"] == "m.room.member"]
    assert len(joined) == 1

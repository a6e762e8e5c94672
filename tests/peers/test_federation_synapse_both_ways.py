"""With a real Synapse: what either side does to a room or its people takes effect on the other, whoever begins."""

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.support.federation import until
from tests.support.matrix_client import MatrixClient, segment
from tests.support.synapse_pair import Pair, agree, people, sees

pytestmark = pytest.mark.timeout(240)


async def both(
    pair: Pair, session: aiohttp.ClientSession, unique: Any, side: str
) -> tuple[MatrixClient, MatrixClient, str]:
    """The owner of a room, a guest from the other server, and the owner's server."""
    alice, sam = await people(pair, session, unique)
    if side == "arbor":
        return alice, sam, pair.arbor.server_name
    return sam, alice, pair.synapse.server_name


async def joined(client: MatrixClient, room_id: str, home: str) -> None:
    """Join a room through a server."""
    await client.post(f"/join/{segment(room_id)}?via={home}&server_name={home}")


async def membership(client: MatrixClient, room_id: str, user_id: str) -> str | None:
    """How a user stands in a room, as another is told."""
    members = (await client.get(f"/rooms/{room_id}/members"))["chunk"]
    return next((item["content"]["membership"] for item in members if item["state_key"] == user_id), None)


async def becomes(client: MatrixClient, room_id: str, user_id: str, wanted: str) -> None:
    """Wait until a user stands so in a room, as another is told."""

    async def look() -> bool:
        return await membership(client, room_id, user_id) == wanted

    await until(look, f"{client.user_id} sees {user_id} as {wanted}")


async def in_sync(client: MatrixClient, section: str, room_id: str) -> dict[str, Any]:
    """Wait until a room is in a section of a first sync, and return what is said there."""

    async def look() -> dict[str, Any] | None:
        found: dict[str, Any] | None = (await client.sync())["rooms"].get(section, {}).get(room_id)
        return found

    return await until(look, f"{room_id} is among {client.user_id}'s rooms of {section}")


@pytest.mark.parametrize("side", ["arbor", "synapse"])
async def test_redaction_kick_and_ban(
    pair: Pair, session: aiohttp.ClientSession, unique: Any, side: str
) -> None:
    owner, guest, home = await both(pair, session, unique, side)
    room_id = await owner.create_room(preset="public_chat", room_version="11")
    await joined(guest, room_id, home)
    # Each redacts what is their own, and the owner what is the guest's.
    for writer, redacter in ((owner, owner), (guest, guest), (guest, owner)):
        said = await writer.send(room_id, "said too much")
        for client in (owner, guest):
            await sees(client, room_id, said)
        await redacter.redact(room_id, said, "no")
        for client in (owner, guest):

            async def redacted(client: MatrixClient = client, said: str = said) -> bool:
                event = await client.get(f"/rooms/{room_id}/event/{segment(said)}")
                return event["content"] == {} and "redacted_because" in event["unsigned"]

            await until(redacted, f"{client.user_id} sees the redaction")
    await owner.post(f"/rooms/{room_id}/kick", {"user_id": guest.user_id, "reason": "for a moment"})

    async def out() -> bool:
        return room_id not in (await guest.get("/joined_rooms"))["joined_rooms"]

    await until(out, "the kick arrives")
    await joined(guest, room_id, home)
    await becomes(owner, room_id, guest.user_id, "join")
    await agree(owner, guest, room_id)
    await owner.post(f"/rooms/{room_id}/ban", {"user_id": guest.user_id})
    await until(out, "the ban arrives")
    with pytest.raises(Exception, match="403"):
        await joined(guest, room_id, home)
    await owner.post(f"/rooms/{room_id}/unban", {"user_id": guest.user_id})
    await joined(guest, room_id, home)
    await sees(owner, room_id, await guest.send(room_id, "here again"))
    await agree(owner, guest, room_id)


@pytest.mark.parametrize("side", ["arbor", "synapse"])
async def test_invites_are_taken_refused_and_taken_back(
    pair: Pair, session: aiohttp.ClientSession, unique: Any, side: str
) -> None:
    owner, guest, _ = await both(pair, session, unique, side)
    for outcome in ("taken", "refused", "taken back"):
        room_id = await owner.create_room(preset="private_chat", name=outcome)
        await owner.invite(room_id, guest.user_id)
        invite = await in_sync(guest, "invite", room_id)
        events = {event["type"]: event for event in invite["invite_state"]["events"]}
        assert events["m.room.name"]["content"] == {"name": outcome}
        assert "m.room.create" in events
        if outcome == "taken":
            await guest.join(room_id)
            await sees(owner, room_id, await guest.send(room_id, "thank you"))
            await agree(owner, guest, room_id)
            continue
        if outcome == "refused":
            await guest.leave(room_id)
            assert room_id not in (await guest.sync())["rooms"].get("invite", {})
        else:
            await owner.post(f"/rooms/{room_id}/kick", {"user_id": guest.user_id})
        await becomes(owner, room_id, guest.user_id, "leave")


@pytest.mark.parametrize("side", ["arbor", "synapse"])
@pytest.mark.parametrize("rule", ["knock", "knock_restricted"])
async def test_knocks_are_answered_refused_and_taken_back(
    pair: Pair, session: aiohttp.ClientSession, unique: Any, side: str, rule: str
) -> None:
    owner, guest, home = await both(pair, session, unique, side)
    content: dict[str, Any] = {"join_rule": rule}
    if rule == "knock_restricted":
        content["allow"] = []
    rules = {"type": "m.room.join_rules", "state_key": "", "content": content}
    for outcome in ("answered", "refused", "taken back"):
        room_id = await owner.create_room(room_version="10", initial_state=[rules], name=outcome)
        await guest.post(f"/knock/{room_id}?via={home}&server_name={home}", {"reason": "please"})
        await becomes(owner, room_id, guest.user_id, "knock")
        knock = await in_sync(guest, "knock", room_id)
        names = [
            event["content"] for event in knock["knock_state"]["events"] if event["type"] == "m.room.name"
        ]
        assert names == [{"name": outcome}]
        if outcome == "answered":
            await owner.invite(room_id, guest.user_id)
            await in_sync(guest, "invite", room_id)
            await guest.join(room_id)
            await sees(owner, room_id, await guest.send(room_id, "thank you"))
            await agree(owner, guest, room_id)
        elif outcome == "refused":
            await owner.post(f"/rooms/{room_id}/kick", {"user_id": guest.user_id})
            await becomes(owner, room_id, guest.user_id, "leave")
        else:
            await guest.leave(room_id)
            if side == "synapse":  # Synapse tells nobody that a knock is taken back.
                await becomes(owner, room_id, guest.user_id, "leave")
            assert room_id not in (await guest.sync())["rooms"].get("knock", {})


@pytest.mark.parametrize("version", ["2", "10", "12"])
async def test_changes_of_power_and_people_on_both_sides_at_once(
    pair: Pair, session: aiohttp.ClientSession, unique: Any, version: str
) -> None:
    """Forks in which what one does decides whether the other was allowed to."""
    alice, sam = await people(pair, session, unique)
    others = [
        await pair.arbor.register(session, unique("ann")),
        await pair.synapse.register(session, unique("sue")),
    ]
    room_id = await alice.create_room(preset="public_chat", room_version=version)
    home = pair.arbor.server_name
    await joined(sam, room_id, home)
    for other in others:
        await joined(other, room_id, home)
    levels = await alice.get(f"/rooms/{room_id}/state/m.room.power_levels")
    users = {sam.user_id: 90, **({} if version == "12" else {alice.user_id: 100})}
    await alice.set_state(room_id, "m.room.power_levels", {**levels, "users": users})
    await agree(alice, sam, room_id)
    ann, sue = others
    for turn in range(3):
        topic = {"topic": f"turn {turn}"}
        done = await asyncio.gather(
            # Sam loses and gets back his level while he uses it.
            alice.set_state(
                room_id, "m.room.power_levels", {**levels, "users": {**users, sam.user_id: 40 + turn}}
            ),
            sam.set_state(room_id, "m.room.topic", topic),
            sam.post(f"/rooms/{room_id}/kick", {"user_id": ann.user_id}),
            alice.post(f"/rooms/{room_id}/kick", {"user_id": sue.user_id}),
            sue.put(f"/rooms/{room_id}/send/m.room.message/{unique('txn')}", {"body": "still here"}),
            alice.set_state(room_id, "m.room.name", {"name": f"turn {turn}"}),
            sam.set_state(room_id, "m.room.name", {"name": f"Sam's turn {turn}"}),
            return_exceptions=True,
        )
        # Whatever was allowed where it was done; what is not is refused there.
        assert not isinstance(done[0], BaseException), done[0]
        await alice.send(room_id, "done here")
        await sam.send(room_id, "done there")
        await agree(alice, sam, room_id)
        await alice.set_state(room_id, "m.room.power_levels", {**levels, "users": users})
        await agree(alice, sam, room_id)
        for other in others:
            await joined(other, room_id, home)
        await agree(alice, sam, room_id)


def presences(answer: Any) -> dict[str, dict[str, Any]]:
    """Who is said to be present, and how."""
    events = answer.get("presence", {}).get("events", [])
    return {event["sender"]: event["content"] for event in events}


@pytest.mark.parametrize("side", ["arbor", "synapse"])
async def test_presence_is_told_across(
    pair: Pair, session: aiohttp.ClientSession, unique: Any, side: str
) -> None:
    watcher, seen, home = await both(pair, session, unique, side)
    room_id = await watcher.create_room(preset="public_chat")
    await joined(seen, room_id, home)
    await sees(watcher, room_id, await seen.send(room_id, "I am here"))
    since = (await watcher.sync())["next_batch"]
    path = f"/presence/{segment(seen.user_id)}/status"
    for presence, text in (("unavailable", "gone for lunch"), ("online", "back again"), ("offline", "")):
        body = {"presence": presence, "status_msg": text} if text else {"presence": presence}
        await seen.put(path, body)

        async def told(presence: str = presence, text: str = text) -> bool:
            nonlocal since
            answer = await watcher.sync(since, timeout_ms=1000)
            since = answer["next_batch"]
            content = presences(answer).get(seen.user_id, {})
            return content.get("presence") == presence and content.get("status_msg", "") == text

        await until(told, f"{watcher.user_id} is told that {seen.user_id} is {presence}")
        asked = await watcher.get(path)
        assert asked["presence"] == presence

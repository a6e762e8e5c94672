"""A real Synapse and an Arbor share rooms, over TLS on loopback.

All is done and compared by the client APIs of the two.
"""

import asyncio
import sqlite3
from contextlib import closing
from typing import Any

import aiohttp
import pytest

from tests.support.arbor_server import ArborServer
from tests.support.federation import until
from tests.support.matrix_client import MatrixClient
from tests.support.synapse_pair import Pair, Watch, agree, people, sees, state_of

pytestmark = pytest.mark.timeout(240)


@pytest.mark.parametrize("version", ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"])
async def test_rooms_of_either_are_shared(
    pair: Pair, session: aiohttp.ClientSession, unique: Any, version: str
) -> None:
    alice, sam = await people(pair, session, unique)
    ours = await alice.create_room(preset="public_chat", room_version=version, name="of Arbor")
    await sam.post(f"/join/{ours}?server_name={pair.arbor.server_name}")
    theirs = await sam.create_room(preset="public_chat", room_version=version, name="of Synapse")
    await alice.post(f"/join/{theirs}?via={pair.synapse.server_name}")
    for room_id in (ours, theirs):
        for writer, reader in ((alice, sam), (sam, alice)):
            event_id = await writer.send(room_id, f"from {writer.user_id}")
            assert (await sees(reader, room_id, event_id))["content"]["body"] == f"from {writer.user_id}"
        state = await agree(alice, sam, room_id)
        assert ("m.room.member", alice.user_id) in state
        assert ("m.room.member", sam.user_id) in state


async def test_redactions_kicks_bans_and_names_reach_the_other_side(
    pair: Pair, session: aiohttp.ClientSession, unique: Any
) -> None:
    alice, sam = await people(pair, session, unique)
    room_id = await alice.create_room(preset="public_chat")
    await sam.post(f"/join/{room_id}?server_name={pair.arbor.server_name}")
    said = await alice.send(room_id, "said too much")
    await sees(sam, room_id, said)
    await alice.redact(room_id, said)

    async def redacted() -> bool:
        event = await sam.get(f"/rooms/{room_id}/event/{said}")
        return event["content"] == {}

    await until(redacted, "the redaction takes effect at the other server")
    await alice.post(f"/rooms/{room_id}/kick", {"user_id": sam.user_id, "reason": "for a moment"})

    async def out() -> bool:
        return room_id not in (await sam.get("/joined_rooms"))["joined_rooms"]

    await until(out, "the kick arrives")
    await sam.post(f"/join/{room_id}?server_name={pair.arbor.server_name}")
    await agree(alice, sam, room_id)
    await alice.post(f"/rooms/{room_id}/ban", {"user_id": sam.user_id})
    await until(out, "the ban arrives")


async def test_changes_on_both_sides_at_once_come_to_one_state(
    pair: Pair, session: aiohttp.ClientSession, unique: Any
) -> None:
    alice, sam = await people(pair, session, unique)
    room_id = await alice.create_room(
        preset="public_chat", room_version="11", power_level_content_override={"state_default": 0}
    )
    await sam.post(f"/join/{room_id}?server_name={pair.arbor.server_name}")
    for turn in range(5):
        await asyncio.gather(
            alice.set_state(room_id, "m.room.topic", {"topic": f"alice {turn}"}),
            sam.set_state(room_id, "m.room.topic", {"topic": f"sam {turn}"}),
            alice.set_state(room_id, "m.room.name", {"name": f"alice {turn}"}),
            sam.set_state(room_id, "org.example.test", {"by": f"sam {turn}"}),
        )
    await alice.send(room_id, "done here")
    await sam.send(room_id, "done there")
    await agree(alice, sam, room_id)


async def test_an_invite_from_synapse_is_seen_taken_and_refused(
    pair: Pair, session: aiohttp.ClientSession, unique: Any
) -> None:
    alice, sam = await people(pair, session, unique)
    for take in (True, False):
        room_id = await sam.create_room(preset="private_chat", name="secret")
        await sam.invite(room_id, alice.user_id)

        async def invited(room_id: str = room_id) -> dict[str, Any] | None:
            found: dict[str, Any] | None = (await alice.sync())["rooms"].get("invite", {}).get(room_id)
            return found

        invite = await until(invited, "the invite arrives")
        events = {event["type"]: event for event in invite["invite_state"]["events"]}
        assert events["m.room.name"]["content"] == {"name": "secret"}
        assert events["m.room.member"]["sender"] == sam.user_id
        if take:
            # Nobody names a server: the inviter's is known.
            await alice.post(f"/join/{room_id}")
            await sees(sam, room_id, await alice.send(room_id, "here I am"))
            continue
        await alice.leave(room_id)

        async def refused(room_id: str = room_id) -> bool:
            members = await sam.get(f"/rooms/{room_id}/members")
            return any(
                event["state_key"] == alice.user_id and event["content"]["membership"] == "leave"
                for event in members["chunk"]
            )

        await until(refused, "the inviter's server hears of it")
        assert room_id not in (await alice.sync())["rooms"].get("invite", {})


async def test_knocking_on_synapse_and_being_let_in(
    pair: Pair, session: aiohttp.ClientSession, unique: Any
) -> None:
    alice, sam = await people(pair, session, unique)
    rules = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    room_id = await sam.create_room(room_version="10", initial_state=[rules], name="closed")
    await alice.post(f"/knock/{room_id}?via={pair.synapse.server_name}", {"reason": "please"})

    async def knocks() -> bool:
        members = await sam.get(f"/rooms/{room_id}/members", membership="knock")
        return [event["state_key"] for event in members["chunk"]] == [alice.user_id]

    await until(knocks, "the knock is heard")
    assert room_id in (await alice.sync())["rooms"]["knock"]
    await sam.invite(room_id, alice.user_id)

    async def invited() -> bool:
        return room_id in (await alice.sync())["rooms"].get("invite", {})

    await until(invited, "the knock is answered")
    await alice.join(room_id)
    await sees(sam, room_id, await alice.send(room_id, "thank you"))


async def test_inviting_somebody_of_synapse(pair: Pair, session: aiohttp.ClientSession, unique: Any) -> None:
    alice, sam = await people(pair, session, unique)
    room_id = await alice.create_room(preset="private_chat", name="come in", invite=[sam.user_id])

    async def invited() -> dict[str, Any] | None:
        found: dict[str, Any] | None = (await sam.sync())["rooms"].get("invite", {}).get(room_id)
        return found

    events = (await until(invited, "the invite arrives"))["invite_state"]["events"]
    assert {"name": "come in"} in [event["content"] for event in events if event["type"] == "m.room.name"]
    await sam.join(room_id)
    await sees(alice, room_id, await sam.send(room_id, "thank you"))
    await agree(alice, sam, room_id)


async def test_restricted_rooms_of_either(pair: Pair, session: aiohttp.ClientSession, unique: Any) -> None:
    alice, sam = await people(pair, session, unique)
    lobby = await alice.create_room(preset="public_chat")
    await sam.post(f"/join/{lobby}?server_name={pair.arbor.server_name}")
    rules = {
        "type": "m.room.join_rules",
        "state_key": "",
        "content": {
            "join_rule": "restricted",
            "allow": [{"type": "m.room_membership", "room_id": lobby}],
        },
    }
    ours = await alice.create_room(room_version="10", initial_state=[rules])
    await sam.post(f"/join/{ours}?server_name={pair.arbor.server_name}")
    await agree(alice, sam, ours)
    theirs = await sam.create_room(room_version="10", initial_state=[rules])
    await alice.post(f"/join/{theirs}?server_name={pair.synapse.server_name}")
    await agree(alice, sam, theirs)


async def test_synapse_joins_a_room_of_many_members(
    pair: Pair, session: aiohttp.ClientSession, unique: Any
) -> None:
    # It asks for the state without members and fetches them afterwards.
    alice, sam = await people(pair, session, unique)
    others = [await pair.arbor.register(session, unique(f"other{number}")) for number in range(20)]
    room_id = await alice.create_room(preset="public_chat", room_version="11")
    for other in others:
        await other.join(room_id)
    await sam.post(f"/join/{room_id}?server_name={pair.arbor.server_name}")
    event_id = await sam.send(room_id, "in at once")
    await sees(others[0], room_id, event_id)
    event_id = await others[1].send(room_id, "welcome")
    await sees(sam, room_id, event_id)
    await agree(alice, sam, room_id)
    joined = (await sam.get(f"/rooms/{room_id}/joined_members"))["joined"]
    assert len(joined) == 22


def partial_join_of(server: ArborServer, room_id: str) -> str:
    """How far the join with partial state of a room is; empty: it was none."""
    with closing(sqlite3.connect(server.data_dir / "federation.db", timeout=30)) as connection:
        query = "SELECT state FROM join_job WHERE room_id = ? AND partial"
        found = connection.execute(query, (room_id,)).fetchone()
    return found[0] if found else ""


@pytest.mark.parametrize("name", ["With a name", ""])
@pytest.mark.parametrize("version", ["1", "10", "12"])
async def test_arbor_joins_a_room_of_many_members(
    pair: Pair, session: aiohttp.ClientSession, unique: Any, version: str, name: str
) -> None:
    alice, sam = await people(pair, session, unique)
    others = [await pair.synapse.register(session, unique(f"other{number}")) for number in range(10)]
    named = {"name": name} if name else {}
    room_id = await sam.create_room(preset="public_chat", room_version=version, **named)
    for other in others:
        await other.join(room_id)
    await alice.post(f"/join/{room_id}?via={pair.synapse.server_name}")
    mine = await alice.send(room_id, "in at once")
    theirs = await others[1].send(room_id, "welcome")
    await alice.set_state(room_id, "m.room.member", {"membership": "join", "displayname": "A"}, alice.user_id)
    await sees(others[0], room_id, mine)
    await sees(alice, room_id, theirs)
    state = await agree(alice, sam, room_id)
    members = [key for key in state if key[0] == "m.room.member"]
    assert len(members) == 12
    assert len((await alice.get(f"/rooms/{room_id}/joined_members"))["joined"]) == 12

    async def completed() -> bool:
        return partial_join_of(pair.arbor, room_id) == "done"

    await until(completed, "the room to be noted as whole")
    # What was before the join can be read by now, and others of ours come in without Synapse.
    bob = await pair.arbor.register(session, unique("bob"))
    await bob.join(room_id)
    await sees(bob, room_id, theirs)
    await agree(bob, sam, room_id)


async def test_typing_and_receipts_go_both_ways(
    pair: Pair, session: aiohttp.ClientSession, unique: Any
) -> None:
    alice, sam = await people(pair, session, unique)
    room_id = await alice.create_room(preset="public_chat")
    await sam.post(f"/join/{room_id}?server_name={pair.arbor.server_name}")
    event_id = await alice.send(room_id, "read this")
    await sees(sam, room_id, event_id)

    for one, other in ((alice, sam), (sam, alice)):
        # Not all servers tell in a first sync who types: what comes after it is what counts.
        watch = Watch(other, room_id, (await other.sync())["next_batch"])
        await one.put(f"/rooms/{room_id}/typing/{one.user_id}", {"typing": True, "timeout": 20000})
        await watch.until(
            lambda kind, content, u=one.user_id: (  # type: ignore[misc]
                kind == "m.typing" and u in content["user_ids"]
            )
        )
        await one.post(f"/rooms/{room_id}/receipt/m.read/{event_id}")
        await watch.until(
            lambda kind, content, u=one.user_id: (  # type: ignore[misc]
                kind == "m.receipt" and u in content.get(event_id, {}).get("m.read", {})
            )
        )


async def test_aliases_profiles_and_history_across(
    pair: Pair, session: aiohttp.ClientSession, unique: Any
) -> None:
    alice, sam = await people(pair, session, unique)
    name = unique("room")
    room_id = await sam.create_room(preset="public_chat", room_alias_name=name)
    said = [await sam.send(room_id, f"before {number}") for number in range(5)]
    await sam.put(f"/profile/{sam.user_id}/displayname", {"displayname": "Sam"})
    alias = f"%23{name}:{pair.synapse.server_name}"
    found = await alice.get(f"/directory/room/{alias}")
    assert found == {"room_id": room_id, "servers": [pair.synapse.server_name]}
    assert (await alice.get(f"/profile/{sam.user_id}"))["displayname"] == "Sam"
    assert await alice.post(f"/join/{alias}") == {"room_id": room_id}
    rooms = await alice.get("/publicRooms", server=pair.synapse.server_name)
    assert "chunk" in rooms
    # Nobody of Arbor's was there when it was said: /messages fetches it.
    for event_id in said:
        await sees(alice, room_id, event_id)
    ours = await alice.create_room(preset="public_chat", room_alias_name=name)
    answer = await sam.get(f"/directory/room/%23{name}:{pair.arbor.server_name}")
    assert answer["room_id"] == ours
    await alice.put(f"/profile/{alice.user_id}/displayname", {"displayname": "Alice"})
    assert (await sam.get(f"/profile/{alice.user_id}"))["displayname"] == "Alice"


async def test_rooms_are_upgraded_across(pair: Pair, session: aiohttp.ClientSession, unique: Any) -> None:
    alice, sam = await people(pair, session, unique)
    for owner, guest, home in (
        (alice, sam, pair.arbor.server_name),
        (sam, alice, pair.synapse.server_name),
    ):
        room_id = await owner.create_room(preset="public_chat", room_version="10", name="old")
        await guest.post(f"/join/{room_id}?server_name={home}")
        await agree(owner, guest, room_id)
        answer = await owner.post(f"/rooms/{room_id}/upgrade", {"new_version": "11"})
        successor = answer["replacement_room"]

        async def told(guest: MatrixClient = guest, room_id: str = room_id) -> str | None:
            state = await state_of(guest, room_id)
            return "there" if ("m.room.tombstone", "") in state else None

        await until(told, f"{guest.user_id} is told where the room went")
        tombstone = await guest.get(f"/rooms/{room_id}/state/m.room.tombstone")
        assert tombstone["replacement_room"] == successor
        await guest.post(f"/join/{successor}?server_name={home}")
        await agree(owner, guest, successor)
        create = await guest.get(f"/rooms/{successor}/state/m.room.create")
        assert create["predecessor"]["room_id"] == room_id
        await sees(owner, successor, await guest.send(successor, "here we are"))


async def test_changes_of_profiles_reach_the_rooms_of_the_other_side(
    pair: Pair, session: aiohttp.ClientSession, unique: Any
) -> None:
    alice, sam = await people(pair, session, unique)
    room_id = await alice.create_room(preset="public_chat")
    await sam.post(f"/join/{room_id}?server_name={pair.arbor.server_name}")
    await agree(alice, sam, room_id)
    for who, watcher, name in ((alice, sam, "Alice the Second"), (sam, alice, "Sam the Third")):
        await who.put(f"/profile/{who.user_id}/displayname", {"displayname": name})

        async def renamed(who: MatrixClient = who, watcher: MatrixClient = watcher, name: str = name) -> bool:
            member = await watcher.get(f"/rooms/{room_id}/state/m.room.member/{who.user_id}")
            return bool(member.get("displayname") == name)

        await until(renamed, f"{watcher.user_id} sees the new name")
    await agree(alice, sam, room_id)


async def test_each_lists_the_rooms_of_the_other(
    pair: Pair, session: aiohttp.ClientSession, unique: Any
) -> None:
    alice, sam = await people(pair, session, unique)
    for owner, asker, home in (
        (alice, sam, pair.arbor.server_name),
        (sam, alice, pair.synapse.server_name),
    ):
        name = unique("listed")
        body = {"preset": "public_chat", "name": name, "visibility": "public"}
        room_id = (await owner.post("/createRoom", body))["room_id"]

        async def listed(asker: MatrixClient = asker, home: str = home, name: str = name) -> Any:
            search = {"filter": {"generic_search_term": name}, "limit": 10}
            page = await asker.post(f"/publicRooms?server={home}", search)
            return page["chunk"] or None

        [room] = await until(listed, "the room is listed")
        assert (room["room_id"], room["num_joined_members"]) == (room_id, 1)
        page = await asker.get("/publicRooms", server=home, limit="1")
        assert len(page["chunk"]) == 1


async def test_whoever_was_away_catches_up(pair: Pair, session: aiohttp.ClientSession, unique: Any) -> None:
    alice, sam = await people(pair, session, unique)
    room_id = await alice.create_room(preset="public_chat")
    await sam.post(f"/join/{room_id}?server_name={pair.arbor.server_name}")
    await sees(sam, room_id, await alice.send(room_id, "while you are here"))
    await pair.synapse.stop()
    missed = [await alice.send(room_id, f"while you are away {number}") for number in range(3)]
    await pair.synapse.start()
    sam = sam.at(pair.synapse.base_url)
    for event_id in missed:
        await sees(sam, room_id, event_id)
    await pair.arbor.stop()
    missed = [await sam.send(room_id, f"while Arbor is away {number}") for number in range(3)]
    await pair.arbor.start()
    alice = alice.at(pair.arbor.base_url)
    # Whichever server comes back speaks first: that ends the other's waiting.
    await sees(sam, room_id, await alice.send(room_id, "back again"))
    for event_id in missed:
        await sees(alice, room_id, event_id)
    await agree(alice, sam, room_id)

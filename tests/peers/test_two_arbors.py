"""Two Arbors share a room; the link between them is cut, both go on, the link returns.

Afterwards both have one state, and every message that was acknowledged is on both, once.
"""

import asyncio
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.federation import federated_arbor, until
from tests.support.matrix_client import MatrixClient, http_session
from tests.support.tls_ca import TestCa

pytestmark = pytest.mark.timeout(180)


async def state_of(client: MatrixClient, room_id: str) -> dict[tuple[str, str], str]:
    return {(event["type"], event["state_key"]): event["event_id"] for event in await client.state(room_id)}


async def messages_of(client: MatrixClient, room_id: str) -> list[str]:
    return [
        event["event_id"] for event in await client.all_messages(room_id) if event["type"] == "m.room.message"
    ]


async def test_a_cut_link_leaves_one_room_behind(tmp_path: Path) -> None:
    ca = TestCa(tmp_path / "ca")
    one, other = federated_arbor(tmp_path / "one", ca), federated_arbor(tmp_path / "other", ca)
    try:
        await one.start()
        await other.start()
        async with http_session() as session:
            alice = await one.register(session, "alice")
            bob = await other.register(session, "bob")
            room_id = await alice.create_room(
                preset="public_chat", power_level_content_override={"state_default": 0}
            )
            await bob.post(f"/join/{room_id}?via={one.server_name}")
            sent = [await alice.send(room_id, "together"), await bob.send(room_id, "together")]

            async def both_have(count: int) -> bool:
                return all([len(await messages_of(client, room_id)) == count for client in (alice, bob)])

            await until(lambda: both_have(2), "both see both messages")

            # The link is cut: one side's federation process takes and sends nothing.
            one.send_signal("federation", signal.SIGSTOP)
            for turn in range(10):
                sent.append(await alice.send(room_id, f"alice alone {turn}"))
                sent.append(await bob.send(room_id, f"bob alone {turn}"))
                await alice.set_state(room_id, "m.room.topic", {"topic": f"alice {turn}"})
                await bob.set_state(room_id, "m.room.topic", {"topic": f"bob {turn}"})
                await bob.set_state(room_id, "org.example.note", {"note": f"bob {turn}"})
            one.send_signal("federation", signal.SIGCONT)
            await until(lambda: both_have(22), "everything is on both sides", timeout_s=60)

            async def agree() -> bool:
                return await state_of(alice, room_id) == await state_of(bob, room_id)

            await until(agree, "one state", timeout_s=30)
            for client in (alice, bob):
                assert sorted(await messages_of(client, room_id)) == sorted(sent)
    finally:
        await asyncio.gather(one.stop(), other.stop())


async def test_a_room_of_many_is_joined_without_its_members_at_first(tmp_path: Path) -> None:
    ca = TestCa(tmp_path / "ca")
    one, other = federated_arbor(tmp_path / "one", ca), federated_arbor(tmp_path / "other", ca)
    try:
        await one.start()
        await other.start()
        async with http_session() as session:
            alice = await one.register(session, "alice")
            members = [await one.register(session, f"member{number}") for number in range(25)]
            room_id = await alice.create_room(preset="public_chat", name="Of many")
            for member in members:
                await member.join(room_id)
            await alice.post(f"/rooms/{room_id}/ban", {"user_id": members[0].user_id})
            bob, carol = await other.register(session, "bob"), await other.register(session, "carol")
            await bob.post(f"/join/{room_id}?via={one.server_name}")
            sent = [
                await bob.send(room_id, "in at once"),
                await members[1].send(room_id, "welcome"),
                await bob.send(room_id, "thanks"),
            ]
            await carol.join(room_id)
            sent.append(await carol.send(room_id, "and me"))

            async def all_have_all() -> bool:
                there = [await messages_of(client, room_id) for client in (alice, bob, members[2], carol)]
                return all(sorted(found) == sorted(sent) for found in there)

            await until(all_have_all, "everything is on both sides", timeout_s=60)

            async def agree() -> bool:
                return await state_of(alice, room_id) == await state_of(bob, room_id)

            await until(agree, "one state", timeout_s=30)
            joined = (await bob.get(f"/rooms/{room_id}/joined_members"))["joined"]
            assert set(joined) == {alice.user_id, bob.user_id, carol.user_id} | {
                member.user_id for member in members[1:]
            }
            _, output = await other.command("federation", "joins")
            assert [line.split()[3] for line in output.splitlines()[1:]] == ["done"]
            with closing(sqlite3.connect(other.data_dir / "federation.db", timeout=30)) as connection:
                assert connection.execute("SELECT partial FROM join_job").fetchall() == [(1,)]
    finally:
        await asyncio.gather(one.stop(), other.stop())

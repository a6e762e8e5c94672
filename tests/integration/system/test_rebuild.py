"""Readers rebuild: derived tables come back row by row, and clients' old tokens go on without gap or repeat."""

import asyncio
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from servicekit.config import load_config
from servicekit.log.connection import LogConnection
from servicekit.log.subjects import OUTPUT
from syncapi.storage.tables import derived_tables, metadata
from tests.support.arbor_server import ArborServer
from tests.support.following import Follower
from tests.support.matrix_client import MatrixClient, segment

Dump = dict[str, list[tuple[Any, ...]]]

PRIMARY = ("receipt", "to_device")


@pytest.fixture
async def arbor(tmp_path: Path) -> AsyncIterator[ArborServer]:
    server = ArborServer(tmp_path / "arbor")
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def columns_of(table: str) -> list[str]:
    """The columns that a rebuild keeps: account data is told again, at a position of the rebuild's."""
    names = [column.name for column in metadata.tables[table].columns]
    return [name for name in names if (table, name) != ("account_data", "position")]


def dumped(server: ArborServer, tables: list[str]) -> Dump:
    """The rows of syncapi's tables, in order."""
    with closing(sqlite3.connect(server.data_dir / "syncapi.db", timeout=30)) as connection:
        return {
            table: sorted(
                connection.execute(f"SELECT {','.join(columns_of(table))} FROM {table}").fetchall(), key=repr
            )
            for table in tables
        }


DERIVED = [table.name for table in derived_tables()]


async def settled(server: ArborServer) -> Dump:
    """The derived tables when nothing moves any more."""
    async with asyncio.timeout(30):
        last = dumped(server, DERIVED)
        while True:
            await asyncio.sleep(0.3)
            now = dumped(server, DERIVED)
            if now == last:
                return now
            last = now


def differences(before: Dump, after: Dump) -> str:
    """What a rebuild made different, in words."""
    lines = []
    for table, rows in before.items():
        columns = columns_of(table)
        lost = [row for row in rows if row not in after[table]]
        gained = [row for row in after[table] if row not in rows]
        for word, found in (("lost", lost), ("gained", gained)):
            lines += [f"{table} {word}: {dict(zip(columns, row, strict=True))}" for row in found[:6]]
    return "\n".join(lines)


def delete_derived(server: ArborServer) -> None:
    with closing(sqlite3.connect(server.data_dir / "syncapi.db", timeout=30)) as connection, connection:
        for table in DERIVED:
            connection.execute(f"DELETE FROM {table}")


class Scene:
    """Three people, rooms of every kind, and everything that a reader keeps about them."""

    def __init__(self, alice: MatrixClient, bob: MatrixClient, carol: MatrixClient) -> None:
        self.alice, self.bob, self.carol = alice, bob, carol
        self.sent: list[str] = []

    @classmethod
    async def played(cls, server: ArborServer, session: aiohttp.ClientSession) -> "Scene":
        scene = cls(*[await server.register(session, name) for name in ("alice", "bob", "carol")])
        await scene.play()
        return scene

    async def play(self) -> None:
        alice, bob, carol = self.alice, self.bob, self.carol
        self.main = await alice.create_room(preset="public_chat", name="Main", room_alias_name="main")
        self.direct = await alice.create_room(
            preset="trusted_private_chat", invite=[bob.user_id], is_direct=True
        )
        self.left = await bob.create_room(preset="public_chat", topic="left")
        self.forgotten = await bob.create_room(preset="public_chat")
        self.invited = await alice.create_room(preset="private_chat", invite=[carol.user_id])
        self.old = await alice.create_room(preset="public_chat", room_version="10")
        await bob.join(self.main)
        await carol.join(self.main)
        await bob.join(self.direct)
        await carol.join(self.left)
        await alice.join(self.forgotten)
        await bob.join(self.old)
        for number in range(12):
            for room_id in (self.main, self.direct, self.old):
                self.sent.append(await alice.send(room_id, f"message {number}"))
        self.sent.append(await carol.send(self.left, "carol here"))
        redacted = await alice.send(self.main, "a secret")
        await alice.redact(self.main, redacted, "slipped out")
        root = await bob.send(self.main, "root of a thread")
        await alice.send(
            self.main,
            {
                "msgtype": "m.text",
                "body": "in it",
                "m.relates_to": {"rel_type": "m.thread", "event_id": root},
            },
        )
        edit = {"msgtype": "m.text", "body": "* edited", "m.new_content": {"msgtype": "m.text", "body": "e"}}
        await bob.send(self.main, {**edit, "m.relates_to": {"rel_type": "m.replace", "event_id": root}})
        mention = {"msgtype": "m.text", "body": "hey", "m.mentions": {"user_ids": [bob.user_id]}}
        self.mention = await alice.send(self.main, mention)
        await alice.set_state(self.main, "m.room.name", {"name": "Renamed"})
        await alice.set_state(self.main, "org.example.config", {"a": 1}, "one")
        await alice.set_state(self.main, "org.example.config", {"a": 2}, "one")
        await alice.put(f"/profile/{segment(alice.user_id)}/displayname", {"displayname": "Alice L."})
        await carol.leave(self.left)
        await bob.leave(self.forgotten)
        await bob.post(f"/rooms/{segment(self.forgotten)}/forget")
        await alice.post(f"/rooms/{segment(self.main)}/ban", {"user_id": carol.user_id})
        user = f"/user/{segment(bob.user_id)}"
        await bob.put(f"{user}/account_data/org.example.setting", {"on": True})
        await bob.put(f"{user}/rooms/{segment(self.main)}/account_data/org.example.room", {"on": 1})
        await bob.put(f"{user}/rooms/{segment(self.main)}/tags/u.work", {"order": 0.5})
        await bob.put("/pushrules/global/content/shout", {"actions": ["notify"], "pattern": "shout"})
        await alice.send(self.main, "do not shout")
        main = f"/rooms/{segment(self.main)}"
        await bob.post(f"{main}/receipt/m.read/{segment(root)}")
        await alice.post(f"{main}/read_markers", {"m.fully_read": root, "m.read.private": root})
        self.sent.append(await alice.send(self.main, "unread"))

    def at(self, base_url: str) -> None:
        for client in (self.alice, self.bob, self.carol):
            client.base_url = base_url

    async def view(self) -> dict[str, Any]:
        """What everybody is shown by fresh initial syncs and by `/messages`, tokens left out."""
        shown: dict[str, Any] = {}
        for client in (self.alice, self.bob, self.carol):
            answer = await client.sync(filter='{"room":{"include_leave":true,"timeline":{"limit":5}}}')
            answer.pop("next_batch")
            in_order(answer.get("account_data", {}))
            for room in answer["rooms"].get("join", {}).values():
                in_order(room.get("account_data", {}))
            shown[client.user_id] = without_tokens(answer)
        shown["main"] = await self.bob.all_messages(self.main)
        shown["old"] = await self.bob.all_messages(self.old)
        shown["left"] = await self.carol.all_messages(self.left)
        answers: dict[str, Any] = without_tokens(shown)
        return answers


def without_tokens(value: Any) -> Any:
    """The value without what may differ from one request to the next."""
    if isinstance(value, dict):
        return {k: without_tokens(v) for k, v in value.items() if k not in ("prev_batch", "age", "presence")}
    if isinstance(value, list):
        return [without_tokens(item) for item in value]
    return value


def in_order(account_data: dict[str, Any]) -> None:
    """Account data has no order."""
    account_data.get("events", []).sort(key=lambda event: event["type"])


async def caught_up(server: ArborServer, scene: Scene, since: list[Follower]) -> None:
    """Everybody is told what comes now, and nothing else."""
    new = [await scene.alice.send(scene.main, "and now"), await scene.bob.send(scene.direct, "and here")]
    alice, bob = since
    for follower in (alice, bob):
        told = len(follower.timeline)
        await follower.catch_up(*new)
        assert {event_id for _, event_id in follower.timeline[told:]} == set(new)
        assert not follower.repeated()
        assert not follower.limited


async def followers(scene: Scene, *last: str) -> list[Follower]:
    found = [Follower(scene.alice), Follower(scene.bob)]
    for follower in found:
        await follower.catch_up(*last)
    return found


async def purge(server: ArborServer, keep_from: int) -> None:
    """Lose OUTPUT's older entries, as retention does it, as the operator."""
    config = load_config(str(server.config_path), {}, {})
    connection = await LogConnection.connect(config, "operator")
    try:
        request = json.dumps({"seq": keep_from}).encode()
        answer = await connection.nc.request(f"$JS.API.STREAM.PURGE.{OUTPUT}", request, timeout=10)
        assert json.loads(answer.data)["success"] is True
        stream = await connection.load_stream(OUTPUT)
        assert stream is not None
        assert stream.first_sequence == keep_from
    finally:
        await connection.close()


async def last_sequence(server: ArborServer) -> int:
    config = load_config(str(server.config_path), {}, {})
    connection = await LogConnection.connect(config, "operator")
    try:
        stream = await connection.load_stream(OUTPUT)
        assert stream is not None
        return stream.last_sequence
    finally:
        await connection.close()


async def test_derived_tables_come_back_row_by_row(
    arbor: ArborServer, session: aiohttp.ClientSession
) -> None:
    scene = await Scene.played(arbor, session)
    follow = await followers(scene, scene.sent[-1])
    view = await scene.view()
    before = await settled(arbor)
    primary = dumped(arbor, list(PRIMARY))
    assert len(before["event"]) > 80
    assert primary["receipt"]
    for table in ("room", "room_state", "user_room", "account_data", "notification_exception"):
        assert before[table], f"the scene leaves {table} empty"

    # Nothing is left of the derived tables; the whole log is there.
    delete_derived(arbor)
    status, output = await arbor.command("rebuild", "syncapi")
    assert status == 0, output
    assert not differences(before, await settled(arbor)), differences(before, await settled(arbor))
    assert dumped(arbor, list(PRIMARY)) == primary
    assert await scene.view() == view
    await caught_up(arbor, scene, follow)

    # The same with OUTPUT's older half gone.
    view, before = await scene.view(), await settled(arbor)
    await purge(arbor, await last_sequence(arbor) // 2)
    delete_derived(arbor)
    status, output = await arbor.command("rebuild", "syncapi")
    assert status == 0, output
    assert not differences(before, await settled(arbor)), differences(before, await settled(arbor))
    assert await scene.view() == view
    await caught_up(arbor, scene, follow)


async def test_a_lost_database_is_made_anew_at_start(
    arbor: ArborServer, session: aiohttp.ClientSession
) -> None:
    scene = await Scene.played(arbor, session)
    follow = await followers(scene, scene.sent[-1])
    before = await settled(arbor)
    await purge(arbor, await last_sequence(arbor) // 2)
    await arbor.stop()
    for file in arbor.data_dir.glob("syncapi.db*"):
        file.unlink()
    await arbor.start()
    scene.at(arbor.base_url)
    await caught_up(arbor, scene, follow)
    after = await settled(arbor)
    # Receipts were primary and are gone with the file; the rooms are all there.
    places = [columns_of("event").index(name) for name in ("position", "event_id", "body", "unsigned")]
    assert {tuple(row[i] for i in places) for row in before["event"]} <= {
        tuple(row[i] for i in places) for row in after["event"]
    }
    for table in ("room_state", "user_room"):
        assert len(after[table]) == len(before[table]), differences(before, after)


async def test_a_lost_log_loses_no_event(arbor: ArborServer, session: aiohttp.ClientSession) -> None:
    scene = await Scene.played(arbor, session)
    follow = await followers(scene, scene.sent[-1])
    view = await scene.view()
    position = await last_sequence(arbor)
    for _ in range(2):
        await arbor.stop()
        shutil.rmtree(arbor.data_dir / "nats")
        await arbor.start()
        scene.at(arbor.base_url)
        assert await scene.view() == view
        await caught_up(arbor, scene, follow)
        # The new stream goes on above every position that was given to anybody.
        assert await last_sequence(arbor) > position
        position = await last_sequence(arbor)
        view = await scene.view()
    # A transaction of before the loss is still known.
    first = await scene.alice.send(scene.main, "once", txn_id="over-the-loss")
    await arbor.stop()
    shutil.rmtree(arbor.data_dir / "nats")
    await arbor.start()
    scene.at(arbor.base_url)
    assert await scene.alice.send(scene.main, "once", txn_id="over-the-loss") == first

"""The sync API as a service: a real nats-server, HTTP, and accounts that answer in the same process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from arbor.accounts.v1 import accounts_pb2, accounts_pb2_grpc
from arbor.log.v1 import live_pb2, output_pb2
from servicekit.config import Config, load_config
from servicekit.errors import MatrixError, unknown_token
from servicekit.grpc.in_process import registry
from servicekit.grpc.methods import Collector
from servicekit.http import Router
from servicekit.log.connection import LogConnection
from servicekit.log.subjects import device_subject, presence_subject, room_output_subject, typing_subject
from syncapi.service import SyncApi, create
from tests.support.http_listener import listening
from tests.support.nats import running_nats
from tests.support.sync_world import ALICE, BOB, Room, SyncWorld


class FakeAccounts(accounts_pb2_grpc.AccountsServiceServicer):
    """Every user's token is the user id; `gone` are logged out."""

    def __init__(self) -> None:
        self.gone: set[str] = set()
        self.asked = 0

    async def ResolveToken(self, request: Any, context: Any) -> accounts_pb2.ResolveTokenResponse:  # noqa: N802
        self.asked += 1
        if request.access_token in self.gone or not request.access_token.startswith("@"):
            raise unknown_token()
        return accounts_pb2.ResolveTokenResponse(user_id=request.access_token, device_id="DEV")

    async def QueryFilter(self, request: Any, context: Any) -> accounts_pb2.QueryFilterResponse:  # noqa: N802
        if request.filter_id != "1":
            raise MatrixError("M_NOT_FOUND", 404, "no")
        return accounts_pb2.QueryFilterResponse(filter_json=b'{"room":{"timeline":{"limit":1}}}')


class Scribe(SyncWorld):
    """Makes messages and publishes them instead of applying them."""

    def __init__(self) -> None:
        self.sequence = 0
        self.held: list[output_pb2.OutputMessage] | None = []
        self._rooms = 0
        self._events = 0

    def take(self) -> list[output_pb2.OutputMessage]:
        """Return what was made since the last time."""
        taken, self.held = self.held or [], []
        return taken


class Running:
    """A running sync API."""

    def __init__(self, config: Config, writer: LogConnection, clients: LogConnection, port: int) -> None:
        self.config = config
        self.writer = writer
        self.clients = clients
        self.port = port
        self.scribe = Scribe()
        self.session = aiohttp.ClientSession(f"http://127.0.0.1:{port}")

    async def publish(self) -> int:
        """Publish what was written; returns the last sequence."""
        sequence = 0
        for message in self.scribe.take():
            subject = room_output_subject(message.room_id, 16)
            sequence = await self.writer.publish(subject, message.SerializeToString())
        return sequence

    async def get(self, user: str, path: str, version: str = "v3", **query: Any) -> tuple[int, Any]:
        """Return (status, JSON)."""
        async with self.session.get(
            f"/_matrix/client/{version}/{path}", params=query, headers={"Authorization": f"Bearer {user}"}
        ) as response:
            return response.status, await response.json()


def make_config(directory: Path) -> Config:
    # Who reads would wake others who read, which most tests here do not expect.
    return load_config(
        None, {}, {"server_name": "here", "data_dir": str(directory), "presence.enabled": "false"}
    )


@contextlib.asynccontextmanager
async def serving(config: Config, accounts: FakeAccounts) -> AsyncIterator[tuple[SyncApi, int]]:
    registry.declare(["clientapi", "syncapi", "roomserver"])
    collector = Collector()
    accounts_pb2_grpc.add_AccountsServiceServicer_to_server(accounts, collector)  # type: ignore[arg-type]
    registry.publish("clientapi", collector.services)
    service = create(config)
    router = Router()
    service.routes(router)
    try:
        await service.start()
        async with asyncio.TaskGroup() as group, listening(router) as port:
            running = group.create_task(service.run())
            try:
                yield service, port
            finally:
                await service.drain()
                running.cancel()
    finally:
        await service.stop()
        registry.clear()


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    """A sync API over a real log."""
    with running_nats(tmp_path) as nats:
        config = make_config(tmp_path)
        async with contextlib.AsyncExitStack() as stack:
            writer = await LogConnection.connect(nats.settings("roomserver"), "roomserver")
            stack.push_async_callback(writer.close)
            await writer.ensure_streams(1)
            clients = await LogConnection.connect(nats.settings("clientapi"), "clientapi")
            stack.push_async_callback(clients.close)
            _, port = await stack.enter_async_context(serving(config, FakeAccounts()))
            made = Running(config, writer, clients, port)
            stack.push_async_callback(made.session.close)
            yield made


async def test_conversation_over_http(running: Running) -> None:
    room: Room = running.scribe.room(ALICE)
    room.join(BOB)
    await running.publish()
    answer: Any = {}
    async with asyncio.timeout(10):
        while room.room_id not in answer.get("rooms", {}).get("join", {}):
            status, answer = await running.get(BOB, "sync")
            assert status == 200
    since = answer["next_batch"]
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(running.get(BOB, "sync", since=since, timeout=30_000))
        room.say(ALICE, "hello")
        await running.publish()
    status, answer = waiting.result()
    assert status == 200
    events = answer["rooms"]["join"][room.room_id]["timeline"]["events"]
    assert [event["content"]["body"] for event in events] == ["hello"]
    assert (await running.get(BOB, "joined_rooms"))[1] == {"joined_rooms": [room.room_id]}
    status, page = await running.get(BOB, f"rooms/{room.room_id}/messages", dir="b", limit=1)
    assert (status, page["chunk"][0]["content"]["body"]) == (200, "hello")
    assert page["chunk"][0]["room_id"] == room.room_id
    status, state = await running.get(BOB, f"rooms/{room.room_id}/state")
    assert (status, len(state)) == (200, 6)
    status, rules = await running.get(BOB, f"rooms/{room.room_id}/state/m.room.join_rules/")
    assert (status, rules) == (200, {"join_rule": "public"})
    status, whole = await running.get(BOB, f"rooms/{room.room_id}/state/m.room.create", format="event")
    assert (status, whole["type"]) == (200, "m.room.create")
    status, members = await running.get(BOB, f"rooms/{room.room_id}/joined_members")
    assert (status, set(members["joined"])) == (200, {ALICE, BOB})
    status, context = await running.get(BOB, f"rooms/{room.room_id}/context/{events[0]['event_id']}")
    assert (status, context["event"]["content"]["body"]) == (200, "hello")
    status, refused = await running.get("@eve:here", f"rooms/{room.room_id}/messages", dir="b")
    assert (status, refused["errcode"]) == (403, "M_FORBIDDEN")


async def test_typing_wakes_a_waiting_client(running: Running) -> None:
    room = running.scribe.room(ALICE)
    room.join(BOB)
    last = await running.publish()
    answer: Any = {}
    async with asyncio.timeout(10):
        while "rooms" not in answer:
            answer = (await running.get(BOB, "sync"))[1]
    async with asyncio.timeout(10):
        while int(answer["next_batch"].split("_")[1].split(".")[1]) < last:
            answer = (await running.get(BOB, "sync"))[1]
    message = live_pb2.LiveMessage(
        typing=live_pb2.Typing(room_id=room.room_id, user_id=ALICE, typing=True, until_ms=2**42)
    )
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(running.get(BOB, "sync", since=answer["next_batch"], timeout=30_000))
        await running.clients.publish(typing_subject(room.room_id, 16), message.SerializeToString())
    ephemeral = waiting.result()[1]["rooms"]["join"][room.room_id]["ephemeral"]["events"]
    assert ephemeral == [{"type": "m.typing", "content": {"user_ids": [ALICE]}}]


async def test_tokens_are_asked_for_once_and_again_after_a_logout(running: Running, tmp_path: Path) -> None:
    accounts = FakeAccounts()
    collector = Collector()
    accounts_pb2_grpc.add_AccountsServiceServicer_to_server(accounts, collector)  # type: ignore[arg-type]
    registry.publish("clientapi", collector.services)
    for _ in range(3):
        assert (await running.get(BOB, "sync"))[0] == 200
    assert accounts.asked == 1
    accounts.gone.add(BOB)
    logout = output_pb2.OutputMessage(
        user_id=BOB,
        entries=[
            output_pb2.OutputEntry(device_changed=output_pb2.DeviceChanged(device_id="DEV", deleted=True))
        ],
    )
    await running.clients.publish(device_subject(BOB, 16), logout.SerializeToString())
    async with asyncio.timeout(10):
        while (await running.get(BOB, "sync"))[0] == 200:
            pass
    status, refused = await running.get(BOB, "sync")
    assert (status, refused["errcode"]) == (401, "M_UNKNOWN_TOKEN")


async def test_stored_and_wrong_filters(running: Running) -> None:
    room = running.scribe.room(ALICE)
    last = await running.publish()
    assert last
    assert (await running.get(ALICE, "sync", filter="7"))[1]["errcode"] == "M_INVALID_PARAM"
    assert (await running.get(ALICE, "sync", filter="{"))[1]["errcode"] == "M_NOT_JSON"
    assert (await running.get(ALICE, "sync", filter=""))[1]["errcode"] == "M_INVALID_PARAM"
    assert (await running.get(ALICE, "sync", since=""))[1]["errcode"] == "M_INVALID_PARAM"
    assert (await running.get(ALICE, "sync", filter='{"room":3}'))[1]["errcode"] == "M_BAD_JSON"
    answer: Any = {}
    async with asyncio.timeout(10):
        while "rooms" not in answer:
            status, answer = await running.get(ALICE, "sync", filter="1")
            assert status == 200
    assert len(answer["rooms"]["join"][room.room_id]["timeline"]["events"]) == 1


async def test_the_ways_from_before_sync(running: Running) -> None:
    room = running.scribe.room(ALICE)
    room.join(BOB)
    room.say(ALICE, "hello")
    await running.publish()
    answer: Any = {"rooms": []}
    async with asyncio.timeout(10):
        while not answer["rooms"] or not answer["rooms"][0]["messages"]["chunk"]:
            status, answer = await running.get(BOB, "initialSync", limit=1)
            assert status == 200
    (shown,) = answer["rooms"]
    assert (shown["room_id"], shown["membership"]) == (room.room_id, "join")
    async with asyncio.timeout(10):
        while shown["messages"]["chunk"][0]["content"].get("body") != "hello":
            answer = (await running.get(BOB, "initialSync", limit=1))[1]
            (shown,) = answer["rooms"]
    assert {event["type"] for event in shown["state"]} >= {"m.room.create", "m.room.member"}
    async with asyncio.TaskGroup() as group:
        query = {"from": answer["end"], "timeout": 30_000}
        waiting = group.create_task(running.get(BOB, "events", **query))
        room.say(ALICE, "more")
        await running.publish()
    status, told = waiting.result()
    assert (status, told["start"]) == (200, answer["end"])
    assert [(event["room_id"], event["content"]["body"]) for event in told["chunk"]] == [
        (room.room_id, "more")
    ]
    status, refused = await running.get(BOB, "events", **{"from": "x"})
    assert (status, refused["errcode"]) == (400, "M_INVALID_PARAM")
    assert (await running.get(BOB, "notifications"))[0] == 200
    assert (await running.get(BOB, "events"))[1]["chunk"] == []


async def test_users_of_other_servers_are_seen_present_by_those_who_share_a_room(running: Running) -> None:
    """LIVE says in which rooms they are; who comes and goes afterwards is followed."""
    far = "@far:elsewhere"
    shared, other = running.scribe.room(ALICE), running.scribe.room(BOB)
    shared.join(far)
    await running.publish()
    since = {user: await token_of(running, user) for user in (ALICE, BOB)}
    # Of whom nothing was told is known whether they share a room, all the same.
    assert await running.get(ALICE, f"presence/{far}/status") == (200, {"presence": "offline"})
    assert (await running.get(BOB, f"presence/{far}/status"))[0] == 403

    async def tell(presence: str, *rooms: Room) -> None:
        told = live_pb2.Presence(user_id=far, presence=presence, room_ids=[room.room_id for room in rooms])
        data = live_pb2.LiveMessage(presence=told).SerializeToString()
        await running.clients.publish(presence_subject(far, 16), data)

    await tell("online", shared)
    # Woken by it, not asked again.
    _, answer = await running.get(ALICE, "sync", since=since[ALICE], timeout=20_000)
    (event,) = answer["presence"]["events"]
    assert (event["sender"], event["content"]["presence"]) == (far, "online")
    assert (await running.get(ALICE, f"presence/{far}/status"))[1]["presence"] == "online"
    assert (await running.get(BOB, f"presence/{far}/status"))[0] == 403
    # From one room into the other: the next that is told is for its members.
    shared.leave(far)
    other.join(far)
    sequence = await running.publish()
    await wait_for_status(running, BOB, far, 200)
    await wait_for_status(running, ALICE, far, 403)
    assert sequence
    await tell("unavailable", other)
    _, answer = await running.get(BOB, "sync", since=since[BOB], timeout=20_000, filter=ONLY_PRESENCE)
    while "presence" not in answer:
        since[BOB] = answer["next_batch"]
        _, answer = await running.get(BOB, "sync", since=since[BOB], timeout=20_000, filter=ONLY_PRESENCE)
    (event,) = answer["presence"]["events"]
    assert (event["sender"], event["content"]["presence"]) == (far, "unavailable")
    assert "presence" not in (await running.get(ALICE, "sync", filter=ONLY_PRESENCE))[1]


ONLY_PRESENCE = '{"room":{"rooms":[]}}'


async def token_of(running: Running, user: str) -> str:
    """A token up to which a user has read."""
    answer = await running.get(user, "sync")
    return str(answer[1]["next_batch"])


async def wait_for_status(running: Running, user: str, other: str, wanted: int) -> None:
    """Ask for somebody's presence until the answer has a status."""
    async with asyncio.timeout(20):
        while (await running.get(user, f"presence/{other}/status"))[0] != wanted:
            await asyncio.sleep(0.01)


async def test_the_first_answers_of_before_sync_have_receipts_presence_and_the_invite(
    running: Running,
) -> None:
    room, other = running.scribe.room(ALICE), running.scribe.room(ALICE)
    room.join(BOB)
    said = room.say(ALICE, "hello")
    room.receipt(BOB, said)
    room.receipt(ALICE, said, "m.read.private")
    invite = other.invite(ALICE, BOB)
    await running.publish()
    live = live_pb2.LiveMessage(presence=live_pb2.Presence(user_id=ALICE, presence="online"))
    await running.clients.publish(presence_subject(ALICE, 16), live.SerializeToString())
    answer: Any = {"presence": []}
    async with asyncio.timeout(10):
        while not answer["presence"] or len(answer["rooms"]) < 2 or not answer["receipts"]:
            answer = (await running.get(BOB, "initialSync", limit=0))[1]
    rooms = {one["room_id"]: one for one in answer["rooms"]}
    assert rooms[room.room_id]["messages"]["chunk"] == []
    invited = rooms[other.room_id]
    assert (invited["membership"], invited["inviter"]) == ("invite", ALICE)
    assert (invited["invite"]["event_id"], invited["invite"]["room_id"]) == (invite, other.room_id)
    told = answer["receipts"], answer["presence"]
    ((receipt,), (present,)) = told
    assert receipt == {
        "type": "m.receipt",
        "room_id": room.room_id,
        "content": {said: {"m.read": {BOB: {"ts": 1_700_000_000_000}}}},
    }
    assert (present["sender"], present["content"]["presence"]) == (ALICE, "online")
    status, alone = await running.get(BOB, f"rooms/{room.room_id}/initialSync", limit=0)
    assert (status, alone["messages"]["chunk"]) == (200, [])
    assert (alone["receipts"], alone["presence"][0]["sender"]) == ([receipt], ALICE)
    assert (await running.get(BOB, f"rooms/{other.room_id}/initialSync"))[0] == 403
    # Events of one room are for those who are in it.
    status, refused = await running.get(BOB, "events", room_id=other.room_id, **{"from": answer["end"]})
    assert (status, refused["errcode"]) == (403, "M_FORBIDDEN")
    assert (await running.get(BOB, "events", room_id=room.room_id, **{"from": answer["end"]}))[0] == 200
    # But where anybody may read, anybody may follow.
    open_ = running.scribe.room(ALICE, visibility="world_readable")
    await running.publish()
    async with asyncio.timeout(10):
        while (await running.get(BOB, f"rooms/{open_.room_id}/initialSync"))[0] != 200:
            pass
    since = (await running.get(BOB, "sync"))[1]["next_batch"]
    async with asyncio.TaskGroup() as group:
        query = {"from": since, "timeout": 30_000, "room_id": open_.room_id}
        peeking = group.create_task(running.get(BOB, "events", **query))
        said = open_.say(ALICE, "to all")
        await running.publish()
    status, told = peeking.result()
    assert (status, told["start"]) == (200, since)
    assert [(event["event_id"], event["room_id"]) for event in told["chunk"]] == [(said, open_.room_id)]
    status, told = await running.get(BOB, "events", room_id=open_.room_id, **{"from": told["end"]})
    assert (status, told["chunk"]) == (200, [])
    assert (await running.get(BOB, "notifications", limit=0))[1]["notifications"] == []
    assert (await running.get(BOB, f"rooms/{room.room_id}/messages", dir="b", limit=0))[1]["chunk"] == []


async def test_limits_that_must_be_greater_than_zero(running: Running) -> None:
    for what in ("hierarchy", "threads"):
        status, refused = await running.get(BOB, f"rooms/!a:here/{what}", version="v1", limit=0)
        assert (status, refused["errcode"]) == (400, "M_INVALID_PARAM")

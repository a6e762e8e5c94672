"""Row 15: whatever stands in what a client may send, everybody's sync, history and search go on.

Every field that a server or another client reads is given values of all kinds, NUL among them, which one of
the databases does not take and the other cuts texts at. Once on SQLite, once on PostgreSQL.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.arbor_server import ArborServer
from tests.support.client_routes import ask, is_clean_error
from tests.support.following import Follower
from tests.support.matrix_client import MatrixClient, segment
from tests.support.postgres import PostgresServer

STRANGE: list[Any] = [
    None, True, 0, -1, 2**53 - 1, "", "\0", "a\0b", "\u202e\uffff", "x" * 5000, "$" + "x" * 300,
    [], [None], [[[]]], {}, {"\0": "\0"}, {"body": {}}, {"event_id": 3, "rel_type": []},
]  # fmt: skip

# Fields of messages and of state that somebody else than the sender reads.
MESSAGE_FIELDS = [
    "body", "msgtype", "formatted_body", "url", "info", "m.relates_to", "m.mentions", "m.new_content",
]  # fmt: skip
RELATION_FIELDS = ["rel_type", "event_id", "key", "m.in_reply_to", "is_falling_back"]
STATE_FIELDS = {
    "m.room.name": "name",
    "m.room.topic": "topic",
    "m.room.avatar": "url",
    "m.room.canonical_alias": "alias",
    "m.room.encryption": "algorithm",
    "m.room.tombstone": "replacement_room",
    "m.room.pinned_events": "pinned",
    "m.room.guest_access": "guest_access",
    "m.room.history_visibility": "history_visibility",
    "m.room.server_acl": "deny",
    "m.room.third_party_invite": "public_key",
    "m.space.child": "via",
}
MEMBER_FIELDS = ["displayname", "avatar_url", "reason", "is_direct", "third_party_invite"]


@pytest.fixture(params=["sqlite", "postgresql"])
async def arbor(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ArborServer]:
    config: dict[str, Any] = {}
    urls: list[str] = []
    postgres: PostgresServer | None = None
    if request.param == "postgresql":
        postgres = request.getfixturevalue("postgres_server")
        services = ("roomserver", "clientapi", "syncapi", "federation")
        urls = [postgres.create_database() for _ in services]
        config["databases"] = dict(zip(services, urls, strict=True))
    server = ArborServer(tmp_path / "arbor", config=config)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
        for url in urls:
            assert postgres is not None
            postgres.drop_database(url)


async def put(client: MatrixClient, path: str, body: dict[str, Any]) -> str | None:
    """Write; the event's id, or None where it was refused, which must be done cleanly."""
    answer = await ask(
        client.session,
        client.base_url,
        "PUT",
        f"/_matrix/client/v3{path}",
        token=client.access_token,
        body=body,
    )
    assert answer.status == 200 or is_clean_error(answer), (path[:120], str(body)[:120], answer)
    return answer.json.get("event_id") if answer.status == 200 else None


async def test_nothing_that_is_sent_stops_a_reader(
    arbor: ArborServer, session: aiohttp.ClientSession
) -> None:
    alice, bob = await arbor.register(session, "alice"), await arbor.register(session, "bob")
    room_id = await alice.create_room(preset="public_chat")
    await bob.join(room_id)
    follower = Follower(bob)
    await follower.follow()
    room = f"/rooms/{segment(room_id)}"
    root = await alice.send(room_id, "root")
    writes: list[tuple[str, dict[str, Any]]] = []

    def message(content: dict[str, Any], event_type: str = "m.room.message") -> None:
        writes.append((f"{room}/send/{segment(event_type)}/t{len(writes)}", content))

    for value in STRANGE:
        for name in MESSAGE_FIELDS:
            message({"msgtype": "m.text", "body": "x", name: value})
        for name in RELATION_FIELDS:
            relation = {"rel_type": "m.thread", "event_id": root, name: value}
            message({"msgtype": "m.text", "body": "x", "m.relates_to": relation})
        message({"m.relates_to": {"rel_type": "m.annotation", "event_id": root, "key": value}}, "m.reaction")
        message({"redacts": value}, "m.room.redaction")
        message({"m.mentions": {"user_ids": value, "room": value}, "body": "x", "msgtype": "m.text"})
        for event_type, name in STATE_FIELDS.items():
            key = room_id if event_type == "m.space.child" else ""
            writes.append((f"{room}/state/{event_type}/{segment(key)}", {name: value}))
        for name in MEMBER_FIELDS:
            path = f"{room}/state/m.room.member/{segment(alice.user_id)}"
            writes.append((path, {"membership": "join", name: value}))
    for text in ("\0", "a\0b", "\u202e", "x" * 255, "%", "_", "'; --", "\\", "\U0001f600"):
        # Names of the client's own: of transactions, types, keys.
        writes.append((f"{room}/send/m.room.message/{segment(text)}", {"msgtype": "m.text", "body": text}))
        writes.append((f"{room}/send/{segment('org.x' + text)}/n{len(writes)}", {"a": text}))
        writes.append((f"{room}/state/org.example/{segment(text)}", {"a": text}))
        user = f"/user/{segment(bob.user_id)}"
        writes.append((f"{user}/account_data/{segment('org.x' + text[:100])}", {"a": text}))
    assert len(writes) > 500

    written: list[str] = []
    semaphore = asyncio.Semaphore(16)

    async def write(path: str, body: dict[str, Any]) -> None:
        client = bob if path.startswith("/user/") else alice
        async with semaphore:
            if event_id := await put(client, path, body):
                written.append(event_id)

    # In parts that a timeline holds, so that every event goes through /sync.
    for start in range(0, len(writes), 80):
        before = len(written)
        async with asyncio.TaskGroup() as group:
            for path, body in writes[start : start + 80]:
                group.create_task(write(path, body))
        try:
            await follower.catch_up(*written[before:], timeout_s=20)
        except TimeoutError:
            pytest.fail(f"a reader stopped:\n{arbor.output_tail()}")
    assert len(written) > 300
    # Strange settings of a user's own.
    for value in STRANGE:
        for event_type in ("m.direct", "m.ignored_user_list", "m.widgets"):
            await put(
                bob, f"/user/{segment(bob.user_id)}/account_data/{event_type}", {"ignored_users": value}
            )
        tag = f"/user/{segment(bob.user_id)}{room}/tags/u.x"
        await put(bob, tag, {"order": value})
        thread = {"thread_id": value}
        await ask(
            session,
            bob.base_url,
            "POST",
            f"/_matrix/client/v3{room}/receipt/m.read/{segment(root)}",
            token=bob.access_token,
            body=thread,
        )

    # Everybody is told all of it, by every way of reading.
    last = await alice.send(room_id, "the end")
    await follower.catch_up(last, timeout_s=60)
    for client in (alice, bob):
        history = {event["event_id"] for event in await client.all_messages(room_id)}
        assert {*written, last} <= history
        assert room_id in (await client.sync())["rooms"]["join"]
        await client.state(room_id)
        await client.get(f"{room}/members")
        await client.get(f"{room}/joined_members")
        await client.get(f"{room}/context/{segment(root)}", limit="100")
        await client.request("GET", f"/_matrix/client/v1{room}/relations/{segment(root)}")
        await client.request("GET", f"/_matrix/client/v1{room}/hierarchy")
        await client.post("/publicRooms", {"filter": {"generic_search_term": "x"}})
    status, output = await arbor.command("log", "dead", "--trace")
    assert (status, output.strip()) == (0, "none"), output
    # A newcomer, and the same after a restart.
    carol = await arbor.register(session, "carol")
    await carol.join(room_id)
    assert room_id in (await carol.sync())["rooms"]["join"]
    await arbor.stop()
    await arbor.start()
    carol.base_url = arbor.base_url
    assert await carol.send(room_id, "well")
    assert "Traceback" not in arbor.output_tail(10_000)

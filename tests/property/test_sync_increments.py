"""Old state + increments = fresh state: what a client accumulated equals a fresh initial sync.

Random conversations over several rooms; clients that sync at random moments, with different filters,
some from memory and some from the database (the window is thrown away at random). In half of them rows of
messages are written late.
"""

import asyncio
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.sync_world import ALICE, BOB, CAROL, REMOTE, Room, SyncWorld

USERS = (ALICE, BOB, CAROL, REMOTE)
FILTERS: tuple[tuple[dict[str, Any] | None, bool], ...] = (
    (None, False),
    (None, True),
    ({"room": {"timeline": {"limit": 2}}}, False),
    ({"room": {"timeline": {"limit": 2}}}, True),
    ({"room": {"timeline": {"types": ["m.room.message"], "limit": 3}}}, False),
    (
        {
            "room": {
                "timeline": {"not_types": ["m.room.topic", "m.room.name"]},
                "state": {"not_types": ["m.room.name"]},
            }
        },
        False,
    ),
)


@dataclass
class ClientRoom:
    """A room as a client knows it."""

    state: dict[tuple[str, str], str] = field(default_factory=dict)
    timeline: list[str] = field(default_factory=list)
    counts: tuple[int, int] = (0, 0)
    summary: dict[str, Any] = field(default_factory=dict)
    account_data: dict[str, Any] = field(default_factory=dict)
    receipts: dict[tuple[str, str], str] = field(default_factory=dict)


@dataclass
class Client:
    """A client that follows the rules of the specification and nothing else."""

    user: str
    filter: dict[str, Any] | None
    state_after: bool
    since: str | None = None
    joined: dict[str, ClientRoom] = field(default_factory=dict)
    invited: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)
    account_data: dict[str, Any] = field(default_factory=dict)

    def take(self, answer: dict[str, Any]) -> None:
        rooms = answer.get("rooms", {})
        for room_id, told in rooms.get("join", {}).items():
            self.invited.discard(room_id)
            self.left.discard(room_id)
            room = self.joined.setdefault(room_id, ClientRoom())
            if told["timeline"]["limited"]:
                room.timeline.clear()
            events = told["timeline"]["events"]
            for event in told["state_after" if self.state_after else "state"]["events"]:
                room.state[event["type"], event["state_key"]] = event["event_id"]
            for event in events:
                # Of state only the outcome is promised: an event that was superseded unseen is left out.
                if "state_key" not in event:
                    room.timeline.append(event["event_id"])
                if not self.state_after and "state_key" in event:
                    room.state[event["type"], event["state_key"]] = event["event_id"]
            unread = told["unread_notifications"]
            room.counts = unread["notification_count"], unread["highlight_count"]
            room.summary.update(told["summary"])
            for event in told["account_data"]["events"]:
                room.account_data[event["type"]] = event["content"]
            for event in told["ephemeral"]["events"]:
                for event_id, types in event["content"].items():
                    for type_, users in types.items():
                        for user in users:
                            room.receipts[type_, user] = event_id
        for room_id in rooms.get("invite", {}):
            self.joined.pop(room_id, None)
            self.left.discard(room_id)
            self.invited.add(room_id)
        for room_id in rooms.get("leave", {}):
            self.joined.pop(room_id, None)
            self.invited.discard(room_id)
            self.left.add(room_id)
        for event in answer.get("account_data", {}).get("events", ()):
            self.account_data[event["type"]] = event["content"]
        self.since = answer["next_batch"]


def compare(client: Client, fresh: Client) -> None:
    """The accumulated client must know what the fresh one does."""
    assert client.joined.keys() == fresh.joined.keys()
    assert client.invited == fresh.invited
    assert client.account_data == fresh.account_data
    for room_id, room in fresh.joined.items():
        mine = client.joined[room_id]
        differing = {
            key for key in {**mine.state, **room.state} if mine.state.get(key) != room.state.get(key)
        }
        assert not differing, (room_id, client, fresh)
        # A fresh timeline is never longer than what one accumulated, and ends alike.
        common = min(len(mine.timeline), len(room.timeline))
        assert mine.timeline[len(mine.timeline) - common :] == room.timeline[len(room.timeline) - common :], (
            room_id,
            client,
            fresh,
        )
        assert len(set(mine.timeline)) == len(mine.timeline)
        assert mine.counts == room.counts, (room_id, client.user, mine.counts, room.counts)
        assert mine.account_data == room.account_data
        assert mine.receipts == room.receipts, (room_id, client, fresh)
        for key in ("m.joined_member_count", "m.invited_member_count"):
            assert mine.summary[key] == room.summary[key]
        if "m.heroes" in room.summary:
            assert set(mine.summary["m.heroes"]) == set(room.summary["m.heroes"])


def membership(room: Room, user: str) -> str:
    return str(room.current.get(("m.room.member", user), ("", {}))[1].get("membership", ""))


def act(world: SyncWorld, rooms: list[Room], draw: Any) -> None:
    """Do one legal thing in a random room."""
    room = draw(st.sampled_from(rooms))
    joined = [user for user in USERS if membership(room, user) == "join"]
    if not joined:
        return
    who = draw(st.sampled_from(joined))
    other = draw(st.sampled_from(USERS))
    kind = draw(
        st.sampled_from(
            [
                "say",
                "say",
                "say",
                "topic",
                "name",
                "join",
                "leave",
                "kick",
                "invite",
                "ban",
                "profile",
                "redact",
                "receipt",
                "tag",
                "visibility",
                "mention",
                "data",
                "private_receipt",
            ]
        )
    )
    theirs = membership(room, other)
    if kind == "say":
        for number in range(draw(st.integers(1, 4))):
            room.say(who, f"text {number}", txn=draw(st.sampled_from([None, ("DEV", "t")])))
    elif kind == "mention":
        room.say(who, "look", **{"m.mentions": {"user_ids": [other]}})
    elif kind == "topic":
        room.state(who, "m.room.topic", "", {"topic": draw(st.sampled_from("abc"))})
    elif kind == "name":
        room.state(who, "m.room.name", "", {"name": draw(st.sampled_from(["", "n"]))})
    elif kind == "visibility":
        values = ["shared", "invited", "joined", "world_readable"]
        room.state(
            who, "m.room.history_visibility", "", {"history_visibility": draw(st.sampled_from(values))}
        )
    elif kind == "profile":
        room.join(who, displayname=draw(st.sampled_from("xyz")))
    elif kind == "join" and theirs not in ("join", "ban"):
        room.join(other)
    elif kind == "leave" and len(joined) > 1:
        room.leave(who)
    elif kind == "kick" and theirs in ("join", "invite") and other != who and len(joined) > 1:
        room.member(who, other, "leave")
    elif kind == "invite" and theirs not in ("join", "ban", "invite"):
        room.invite(who, other)
    elif kind == "ban" and theirs != "ban" and other != who and len(joined) > 1:
        room.ban(who, other)
    elif kind == "redact":
        # Not the name: the redaction itself tells the client that the room has none any more.
        targets = sorted(id_ for id_, pdu in room.pdus.items() if pdu["type"] != "m.room.name")
        room.redact(who, draw(st.sampled_from(targets)))
    elif kind in ("receipt", "private_receipt") and room.pdus:
        private = kind == "private_receipt"
        room.receipt(who, draw(st.sampled_from(sorted(room.pdus))), "m.read.private" if private else "m.read")
    elif kind == "tag" and who != REMOTE:
        world.account_data(who, "m.tag", {"tags": {draw(st.sampled_from("uv")): {}}}, room.room_id)
    elif kind == "data" and who != REMOTE:
        world.account_data(who, draw(st.sampled_from(["a", "b"])), {"x": draw(st.integers(0, 3))})


async def converse(world: SyncWorld, draw: Any) -> None:
    rooms = [world.room(ALICE), world.room(BOB)]
    clients = [
        Client(user, *draw(st.sampled_from(FILTERS))) for user in (ALICE, ALICE, BOB, BOB, CAROL, CAROL)
    ]
    for _ in range(draw(st.integers(3, 14))):
        batch = draw(st.booleans())
        if batch:
            world.hold()
        for _ in range(draw(st.integers(1, 6))):
            act(world, rooms, draw)
        if batch:
            world.release()
        if draw(st.integers(0, 5)) == 0:
            world.load_window()
        for client in clients:
            if draw(st.integers(0, 2)) == 0:
                client.take(
                    await world.sync(
                        client.user,
                        client.since,
                        filter_=client.filter,
                        state_after=client.state_after,
                        full_state=draw(st.integers(0, 7)) == 0,
                    )
                )
    for client in clients:
        if client.since is not None:
            client.take(
                await world.sync(
                    client.user, client.since, filter_=client.filter, state_after=client.state_after
                )
            )
        else:
            client.take(await world.sync(client.user, filter_=client.filter, state_after=client.state_after))
        fresh = Client(client.user, client.filter, client.state_after)
        fresh.take(await world.sync(client.user, filter_=client.filter, state_after=client.state_after))
        compare(client, fresh)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_increments_lead_where_a_fresh_sync_does(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "sync.db"
        world = SyncWorld(f"sqlite:///{file}", holds=data.draw(st.booleans()))
        try:
            asyncio.run(converse(world, data.draw))
        finally:
            world.close()

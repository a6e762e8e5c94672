"""A sync API without the rest of the server: hand-made OUTPUT messages go in, answers come out.

    world = SyncWorld(f"sqlite:///{tmp_path}/sync.db")
    room = world.room(ALICE)                      # create, join, power levels, rules: one message each
    room.join(BOB); room.say(ALICE, "hi")
    answer = await world.sync(BOB)                # as a client would
    world.close()

State is the last event under each key (no forks), unless a test says otherwise with `room.output(...)`.
"""

import functools
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Connection

from arbor.log.v1 import live_pb2, output_pb2
from servicekit.database import Database
from servicekit.positions import Untold, UserPositions
from syncapi.applied import Applied
from syncapi.auth import Caller
from syncapi.consumer import Applier
from syncapi.filters import NO_FILTER, parse_filter
from syncapi.http import event as event_http
from syncapi.http import members as members_http
from syncapi.http import messages as messages_http
from syncapi.live import Live
from syncapi.reads import ReadsFollowWrites
from syncapi.storage.tables import metadata
from syncapi.sync.engine import SyncEngine
from syncapi.sync.request import SyncRequest
from syncapi.tokens import parse_sync_token
from syncapi.window import Window, load_snapshot

ALICE = "@alice:here"
BOB = "@bob:here"
CAROL = "@carol:here"
REMOTE = "@remo:there"
EPOCH = "e1"


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message of OUTPUT."""

    sequence: int
    data: bytes


def _store_position(connection: Connection, sequence: int) -> None:
    connection.exec_driver_sql("DELETE FROM log_position WHERE stream = 'OUTPUT'")
    connection.exec_driver_sql(
        f"INSERT INTO log_position (stream, epoch, position) VALUES ('OUTPUT', '{EPOCH}', {sequence})"
    )


@functools.cache
def empty_database() -> bytes:
    """Return the file of an empty database: migrations cost more than most tests."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "sync.db"
        database = Database(f"sqlite:///{file}", metadata, "syncapi.storage.migrations", reader_threads=1)
        database.migrate()
        database.close()
        return file.read_bytes()


class SyncWorld:
    """See the module.

    Args:
        url: an empty database.
        use_window: whether answers may come from memory.
        holds: whether rows that need nothing of the database wait for a later transaction.
        cache_seconds: how long answers are kept for repeated requests.
    """

    def __init__(
        self,
        url: str,
        *,
        use_window: bool = True,
        holds: bool = False,
        cache_seconds: float = 0,
    ) -> None:
        file = Path(url.removeprefix("sqlite:///"))
        from_template = url.startswith("sqlite:///") and not file.exists()
        if from_template:
            file.write_bytes(empty_database())
        self.database = Database(
            url, metadata, "syncapi.storage.migrations", durability="relaxed", reader_threads=1
        )
        if not from_template:
            self.database.migrate()
        self.applier = Applier(lambda user: user.endswith(":here"))
        self.window = Window()
        self.live = Live()
        self.live.begin("l1")
        self.sequence = 0
        self.unwritten = 0
        """Batches that are held."""
        self.messages: list[Envelope] = []
        # What `rewrite` refers to: snapshot id -> (event id, PDU).
        self.snapshots: dict[int, list[tuple[str, bytes]]] = {}
        self.held: list[output_pb2.OutputMessage] | None = None
        self.use_window = use_window
        self.applier.may_hold = holds
        self.positions = UserPositions()
        self.engine = SyncEngine(
            self.database,
            self.window,
            self.live,
            ReadsFollowWrites(
                self.positions, Untold(), self._wait_for, lambda: self.window.sequence, self.flush
            ),
            lambda: EPOCH,
            cache_seconds=cache_seconds,
        )
        self._rooms = 0
        self._events = 0
        self.load_window()

    async def _wait_for(self, sequence: int, timeout_s: float) -> bool:
        return self.window.sequence >= sequence

    async def flush(self) -> None:
        """Write what is held."""
        self.write_held()

    def write_held(self) -> None:
        """Write what is held."""

        def work(connection: Connection) -> None:
            self.applier.write_held(connection)
            _store_position(connection, self.sequence)

        if self.unwritten:
            self.database.write_sync(work)
            self.applier.held_written()
            self.unwritten = 0

    def load_window(self) -> None:
        """Load the memory from the database, as at start."""
        self.write_held()
        self.window.load(self.database.read_sync(load_snapshot))

    def close(self) -> None:
        """Close the database."""
        self.write_held()
        self.database.close()

    # -- writing

    def next_event_id(self) -> str:
        """Return a new event id."""
        self._events += 1
        return f"$e{self._events}"

    def room(self, creator: str, *, visibility: str = "shared", join_rule: str = "public") -> "Room":
        """Make a room."""
        self._rooms += 1
        room = Room(self, f"!r{self._rooms}:here")
        room.state(creator, "m.room.create", "", {"room_version": "11"})
        room.join(creator)
        room.state(creator, "m.room.power_levels", "", {"users": {creator: 100}})
        room.state(creator, "m.room.join_rules", "", {"join_rule": join_rule})
        room.state(creator, "m.room.history_visibility", "", {"history_visibility": visibility})
        return room

    def put(self, message: output_pb2.OutputMessage) -> int:
        """Append a message to OUTPUT and apply it; returns its sequence."""
        if self.held is not None:
            self.held.append(message)
            return self.sequence + len(self.held)
        return self.put_all([message])

    def put_all(self, messages: list[output_pb2.OutputMessage]) -> int:
        """Append messages and apply them as one batch."""
        envelopes = []
        for message in messages:
            self.sequence += 1
            envelopes.append(Envelope(self.sequence, message.SerializeToString()))
        self.messages += envelopes
        self.apply(envelopes)
        return self.sequence

    def hold(self) -> None:
        """Collect what is put until `release`, which applies it as one batch."""
        self.held = []

    def release(self) -> None:
        """Apply what was collected."""
        held, self.held = self.held or [], None
        if held:
            self.put_all(held)

    def apply(self, envelopes: list[Envelope]) -> Applied:
        """Apply messages that have their sequence already."""

        held = self.applier.hold(envelopes)
        if held is not None:
            self.unwritten += 1
            self._tell(held)
            return held

        def work(connection: Connection) -> Applied:
            self.applier.write_held(connection)
            self.applier.load_quarantined(connection)
            applied = self.applier.apply(connection, envelopes, self.snapshots)
            _store_position(connection, max(envelope.sequence for envelope in envelopes))
            return applied

        applied = self.database.write_sync(work)
        self.applier.held_written()
        self.unwritten = 0
        self.applier.committed()
        self._tell(applied)
        return applied

    def _tell(self, applied: Applied) -> None:
        if self.use_window:
            self.window.apply(applied)
        else:
            self.load_window()

    def user_entry(self, user: str, **kind: Any) -> int:
        """Put an entry about a user."""
        return self.put(output_pb2.OutputMessage(user_id=user, entries=[output_pb2.OutputEntry(**kind)]))

    def account_data(self, user: str, type_: str, content: Any, room_id: str = "") -> int:
        """Set account data."""
        return self.user_entry(
            user,
            account_data_changed=output_pb2.AccountDataChanged(
                room_id=room_id, type=type_, content_json=orjson.dumps(content)
            ),
        )

    def typing(self, room_id: str, user: str, typing: bool = True) -> None:
        """Tell on LIVE who types."""
        message = live_pb2.LiveMessage(
            typing=live_pb2.Typing(
                room_id=room_id, user_id=user, typing=typing, until_ms=time.time_ns() // 1_000_000 + 30_000
            )
        )
        self.live.apply(self.live.sequence + 1, message.SerializeToString())
        self.window.wake_room(room_id)

    def presence(self, user: str, presence: str, *rooms: str) -> None:
        """Tell on LIVE who is present; `rooms` of a user of another server."""
        message = live_pb2.LiveMessage(
            presence=live_pb2.Presence(user_id=user, presence=presence, room_ids=rooms)
        )
        self.live.apply(self.live.sequence + 1, message.SerializeToString())

    # -- reading

    async def sync(
        self,
        user: str,
        since: str | None = None,
        *,
        device: str = "DEV",
        filter_: dict[str, Any] | None = None,
        timeout_ms: int = 0,
        full_state: bool = False,
        state_after: bool = False,
    ) -> dict[str, Any]:
        """Return the answer to a `/sync`."""
        request = SyncRequest(
            user,
            device,
            NO_FILTER if filter_ is None else parse_filter(filter_),
            since=parse_sync_token(since) if since else None,
            timeout_ms=timeout_ms,
            full_state=full_state,
            use_state_after=state_after,
        )
        answer: dict[str, Any] = orjson.loads(await self.engine.answer(request))
        return answer

    def caller(self, user: str, device: str = "DEV") -> Caller:
        """Return a user as endpoints know the caller."""
        return Caller(user, device, False, 0)

    def messages_page(
        self,
        user: str,
        room_id: str,
        *,
        backwards: bool = True,
        start: str | None = None,
        to: str | None = None,
        limit: int = 10,
        filter_: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return a page of `/messages`."""
        self.write_held()
        event_filter = parse_filter({"room": {"timeline": filter_ or {}}}).timeline
        page = messages_http.Page(room_id, backwards, start, to, limit, event_filter)
        answer: dict[str, Any] = orjson.loads(
            self.database.read_sync(messages_http.load_page, self.caller(user), page)
        )
        return answer

    def all_messages(self, user: str, room_id: str, *, backwards: bool = True, limit: int = 3) -> list[str]:
        """Page through a whole room; returns event ids in the order they came."""
        found: list[str] = []
        start: str | None = None
        for _ in range(10_000):
            page = self.messages_page(user, room_id, backwards=backwards, start=start, limit=limit)
            found += [event["event_id"] for event in page["chunk"]]
            if "end" not in page:
                return found
            assert page["end"] != start, "a page that does not lead on"
            start = page["end"]
        raise AssertionError("no end")

    def members(self, user: str, room_id: str, at: str | None = None) -> dict[str, str]:
        """Return what `/members` says: user -> membership."""
        self.write_held()
        answer = orjson.loads(
            self.database.read_sync(members_http.load_members, self.caller(user), room_id, at, None, None)
        )
        return {event["state_key"]: event["content"]["membership"] for event in answer["chunk"]}

    def event(self, user: str, room_id: str, event_id: str) -> dict[str, Any]:
        """Return what `/event` says."""
        self.write_held()
        answer: dict[str, Any] = orjson.loads(
            self.database.read_sync(event_http.load_one, self.caller(user), room_id, event_id)
        )
        return answer


@dataclass(slots=True)
class Room:
    """A room being written by hand."""

    world: SyncWorld
    room_id: str
    depth: int = 0
    current: dict[tuple[str, str], tuple[str, dict[str, Any]]] = field(default_factory=dict)
    pdus: dict[str, dict[str, Any]] = field(default_factory=dict)

    def entry(
        self,
        sender: str,
        type_: str,
        content: dict[str, Any],
        state_key: str | None = None,
        *,
        placement: Any = output_pb2.PLACEMENT_TIMELINE,
        depth: int | None = None,
        txn: tuple[str, str] | None = None,
        **more: Any,
    ) -> output_pb2.RoomEvent:
        """Return the OUTPUT entry of a new event."""
        event_id = self.world.next_event_id()
        if depth is None:
            self.depth += 1
            depth = self.depth
        pdu: dict[str, Any] = {
            "type": type_,
            "sender": sender,
            "content": content,
            "room_id": self.room_id,
            "depth": depth,
            "origin_server_ts": 1_700_000_000_000 + depth,
            "hashes": {"sha256": "x"},
            "signatures": {},
            "prev_events": [],
            "auth_events": [],
            **more,
        }
        if state_key is not None:
            pdu["state_key"] = state_key
        visible = self.current.get(("m.room.history_visibility", ""), ("", {"history_visibility": "shared"}))[
            1
        ]
        entry = output_pb2.RoomEvent(
            event_id=event_id,
            pdu_json=orjson.dumps(pdu),
            room_version="11",
            type=type_,
            sender=sender,
            depth=depth,
            origin_server_ts=pdu["origin_server_ts"],
            placement=placement,
            visibility=output_pb2.Visibility(history_visibility=visible.get("history_visibility", "shared")),
            participation=1,
        )
        if txn is not None:
            entry.transaction_key.user_id = sender
            entry.transaction_key.device_id, entry.transaction_key.txn_id = txn
        self.pdus[event_id] = pdu
        if state_key is not None:
            entry.state_key = state_key
            if placement == output_pb2.PLACEMENT_TIMELINE:
                old = self.current.get((type_, state_key))
                if old is not None:
                    entry.replaces_state = old[0]
                    entry.prev_content_json = orjson.dumps(old[1])
                if type_ == "m.room.history_visibility":
                    entry.visibility.history_visibility_after = content["history_visibility"]
                entry.state_changes.add(
                    type=type_,
                    state_key=state_key,
                    event_id=event_id,
                    replaced_event_id=old[0] if old else "",
                )
                self.current[type_, state_key] = (event_id, content)
                if type_ == "m.room.member":
                    entry.member_counts.joined = self.count("join")
                    entry.member_counts.invited = self.count("invite")
        return entry

    def count(self, membership: str) -> int:
        """Return how many have a membership."""
        return sum(
            key[0] == "m.room.member" and value[1].get("membership") == membership
            for key, value in self.current.items()
        )

    def put(self, *entries: output_pb2.RoomEvent) -> str:
        """Tell entries in one message; returns the last event's id."""
        self.world.put(
            output_pb2.OutputMessage(
                room_id=self.room_id,
                entries=[output_pb2.OutputEntry(room_event=entry) for entry in entries],
            )
        )
        return entries[-1].event_id

    def rewrite(self, *entries: output_pb2.RoomEvent, **fields: Any) -> None:
        """Tell a state that is replaced as a whole: `entries` are its events. `fields`: of `StateRewritten`."""
        snapshot_id = len(self.world.snapshots) + 1
        self.world.snapshots[snapshot_id] = [(entry.event_id, entry.pdu_json) for entry in entries]
        rewritten = output_pb2.StateRewritten(
            snapshot_id=snapshot_id, entries=len(entries), room_version="11", participation=1, **fields
        )
        entry = output_pb2.OutputEntry(state_rewritten=rewritten)
        self.world.put(output_pb2.OutputMessage(room_id=self.room_id, entries=[entry]))

    def end_participation(self) -> None:
        """Tell that nobody of ours is in the room any more."""
        entry = output_pb2.OutputEntry(participation_ended=output_pb2.ParticipationEnded(participation=1))
        self.world.put(output_pb2.OutputMessage(room_id=self.room_id, entries=[entry]))

    def say(self, sender: str, body: str, **more: Any) -> str:
        """Send a text message; `more` goes into the content."""
        txn = more.pop("txn", None)
        return self.put(
            self.entry(sender, "m.room.message", {"msgtype": "m.text", "body": body, **more}, txn=txn)
        )

    def state(self, sender: str, type_: str, state_key: str, content: dict[str, Any]) -> str:
        """Set state."""
        return self.put(self.entry(sender, type_, content, state_key))

    def member(self, sender: str, user: str, membership: str, **content: Any) -> str:
        """Change a membership."""
        entry = self.entry(sender, "m.room.member", {"membership": membership, **content}, user)
        if membership in ("invite", "knock"):
            entry.stripped_state_json.append(
                orjson.dumps(
                    {
                        "type": "m.room.join_rules",
                        "state_key": "",
                        "sender": sender,
                        "content": {"join_rule": "invite"},
                    }
                )
            )
        return self.put(entry)

    def join(self, user: str, **content: Any) -> str:
        """Have a user join."""
        return self.member(user, user, "join", **content)

    def leave(self, user: str) -> str:
        """Have a user leave."""
        return self.member(user, user, "leave")

    def invite(self, sender: str, user: str) -> str:
        """Invite a user."""
        return self.member(sender, user, "invite")

    def ban(self, sender: str, user: str) -> str:
        """Ban a user."""
        return self.member(sender, user, "ban")

    def history(
        self,
        sender: str,
        body: str,
        depth: int,
        members: dict[str, str] | None = None,
        *,
        differ: bool = False,
        visibility: str = "",
    ) -> str:
        """Put in an older event, as back-fill does; `differ`: `members` are not all, but those that were others."""
        entry = self.entry(
            sender,
            "m.room.message",
            {"msgtype": "m.text", "body": body},
            placement=output_pb2.PLACEMENT_HISTORY,
            depth=depth,
        )
        entry.visibility.local_members_differ = differ
        if visibility:
            entry.visibility.history_visibility = visibility
        for user, membership in (members or {}).items():
            entry.visibility.local_members.add(user_id=user, membership=membership)
        return self.put(entry)

    def redact(self, sender: str, event_id: str) -> str:
        """Redact an event: the redaction, and what it did, in one message."""
        entry = self.entry(sender, "m.room.redaction", {"redacts": event_id})
        entry.redacts = event_id
        target = self.pdus[event_id]
        kept = {
            key: value
            for key, value in target["content"].items()
            if target["type"] == "m.room.member" and key == "membership"
        }
        redacted = output_pb2.EventRedacted(
            redacted_event_id=event_id, redacted_pdu_json=orjson.dumps({**target, "content": kept})
        )
        redacted.redaction.event_id = entry.event_id
        redacted.redaction.pdu_json = entry.pdu_json
        if "state_key" in target:
            key = target["type"], target["state_key"]
            if self.current.get(key, ("",))[0] == event_id:
                self.current[key] = (event_id, kept)
        self.world.put(
            output_pb2.OutputMessage(
                room_id=self.room_id,
                entries=[
                    output_pb2.OutputEntry(room_event=entry),
                    output_pb2.OutputEntry(event_redacted=redacted),
                ],
            )
        )
        return entry.event_id

    def receipt(self, user: str, event_id: str, receipt_type: str = "m.read", thread_id: str = "") -> None:
        """Have a user read up to an event."""
        self.world.put(
            output_pb2.OutputMessage(
                room_id=self.room_id,
                entries=[
                    output_pb2.OutputEntry(
                        receipt=output_pb2.Receipt(
                            user_id=user,
                            receipt_type=receipt_type,
                            event_id=event_id,
                            thread_id=thread_id,
                            timestamp_ms=1_700_000_000_000,
                        )
                    )
                ],
            )
        )

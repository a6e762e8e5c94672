"""Following OUTPUT: what it tells that other servers must hear, and what must be fetched from them.

The handler runs in the follower's transaction and stores what a restart must find: which servers are in which
rooms, events and EDUs to send, events that are awaited. Its result says what the loop has to do now.

Most messages on most servers are local users' in rooms where nobody else is: the handler remembers which rooms
those are, stores nothing of their messages, and has the follower pass over batches of nothing else (`skim`). An
event from before another server's join is none of that server's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import orjson
from sqlalchemy import Connection

from arbor.log.v1 import output_pb2
from federation.clock import NowMs
from federation.rooms import VIEW_KEYS
from federation.storage import fetching, outgoing
from federation.storage.outgoing import UNKNOWN, OutgoingEvent
from matrixlib.identifiers import is_valid_user_id, server_name_of
from servicekit.log.errors import UndecodableEntry, UnknownEntryKind
from servicekit.log.reader import LogMessage
from servicekit.log.subjects import event_position

MAX_ROOMS_ALONE = 50_000
_TOLD_PLACEMENTS = (output_pb2.PLACEMENT_TIMELINE, output_pb2.PLACEMENT_HIDDEN)
_MEMBER = "m.room.member"
_OF_VIEW = frozenset(event_type for event_type, _ in VIEW_KEYS)
_CREATE = "m.room.create"


@dataclass(frozen=True, slots=True)
class LocalReceipt:
    """A local user's receipt, for the servers of a room."""

    room_id: str
    receipt: output_pb2.Receipt


@dataclass(slots=True)
class Heard:
    """What a batch of OUTPUT asks of the loop, after its commit."""

    through: int = 0
    """The event position up to which everything is stored."""
    events: list[OutgoingEvent] = field(default_factory=list)
    receipts: list[LocalReceipt] = field(default_factory=list)
    edu_servers: set[str] = field(default_factory=set)
    """Destinations with a new durable EDU; `UNKNOWN`: one whose destinations have to be found."""
    changed_rooms: set[str] = field(default_factory=set)
    """Rooms whose servers, ACL, policy or our part in them changed."""
    unknown_rooms: bool = False
    """The servers of some room have to be asked for."""
    missing: bool = False
    """Some event has to be fetched."""


class OutputHandler:
    """See the module.

    Args:
        is_local: whether a server name is ours.
    """

    def __init__(self, is_local: Callable[[str], bool], now_ms: NowMs) -> None:
        self._is_local = is_local
        self._now_ms = now_ms
        # Rooms known to hold no other server. Only the batches of this handler bring servers into them, so
        # what a committed batch found stays true until another batch says otherwise.
        self._alone: set[str] = set()
        # And those known to hold some.
        self._shared: set[str] = set()
        # None: not looked up yet.
        self._wanted: bool | None = None

    def forget(self) -> None:
        """Forget what memory holds: the database may have moved without us."""
        self._alone.clear()
        self._shared.clear()
        self._wanted = None

    def skim(self, messages: Sequence[LogMessage]) -> Heard | None:
        """See `servicekit.log.applying.Skimmer`."""
        if self._wanted is not False:
            return None
        alone = self._alone
        through = 0
        for message in messages:
            try:
                decoded = output_pb2.OutputMessage.FromString(message.data)
            except Exception:
                return None  # reported where it is applied
            if decoded.room_id not in alone:
                return None
            for entry in decoded.entries:
                if entry.WhichOneof("kind") != "room_event" or not self._stays_here(entry.room_event):
                    return None
            through = event_position(message.sequence, max(len(decoded.entries) - 1, 0))
        return Heard(through)

    def _stays_here(self, event: output_pb2.RoomEvent) -> bool:
        """Whether an event in a room without other servers is surely of no concern to any."""
        return not (
            event.participation_began
            or event.servers_joined
            or event.servers_left
            or _changes_view(event)
            or not self._is_ours(event.sender)
            or self._also(event)
        )

    def apply_batch(self, conn: Connection, messages: Sequence[LogMessage]) -> Heard:
        """Store what messages tell."""
        heard = Heard()
        if self._wanted is None:
            self._wanted = fetching.is_anything_wanted(conn)
        decoded = [(message.sequence, _decode(message)) for message in messages]
        ids = [
            entry.room_event.event_id
            for _, message in decoded
            for entry in message.entries
            if entry.WhichOneof("kind") == "room_event" and not self._is_ours(entry.room_event.sender)
        ]
        relayed = outgoing.load_relayed(conn, ids)
        now = self._now_ms()
        for sequence, message in decoded:
            for index, entry in enumerate(message.entries):
                position = event_position(sequence, index)
                self._apply(conn, message, entry, position, relayed, now, heard)
                heard.through = position
        outgoing.store_events(conn, heard.events, now)
        self._remember(conn, {message.room_id for _, message in decoded if message.room_id}, heard)
        return heard

    def _remember(self, conn: Connection, room_ids: set[str], heard: Heard) -> None:
        """Note which rooms are without other servers, for the batches after this one."""
        for room_id in room_ids:
            if room_id not in heard.changed_rooms and (room_id in self._alone or room_id in self._shared):
                continue
            self._alone.discard(room_id)
            self._shared.discard(room_id)
            server_name = outgoing.load_a_server(conn, room_id)
            if server_name == UNKNOWN:
                continue
            _keep(self._alone if server_name is None else self._shared, room_id)
        if self._wanted:
            self._wanted = fetching.is_anything_wanted(conn)

    def _apply(
        self,
        conn: Connection,
        message: output_pb2.OutputMessage,
        entry: output_pb2.OutputEntry,
        position: int,
        relayed: dict[str, str],
        now_ms: int,
        heard: Heard,
    ) -> None:
        room_id = message.room_id
        match entry.WhichOneof("kind"):
            case "room_event":
                self._room_event(conn, room_id, entry.room_event, position, relayed, heard)
            case "state_rewritten":
                self._ask_for_servers(conn, room_id, position, heard)
            case "event_redacted":
                if _type_of(entry.event_redacted.redacted_pdu_json) in _OF_VIEW:
                    heard.changed_rooms.add(room_id)
            case "participation_ended":
                outgoing.note_all_left(conn, room_id, position)
                fetching.forget_room(conn, room_id)
                heard.changed_rooms.add(room_id)
            case "room_purged":
                if not entry.room_purged.before_event_id:
                    outgoing.forget_room(conn, room_id)
                    fetching.forget_room(conn, room_id)
                heard.changed_rooms.add(room_id)
            case "room_missing":
                missing = entry.room_missing
                fetching.store_wanted(
                    conn,
                    missing.waiting_event_id,
                    room_id,
                    list(missing.missing_event_ids),
                    missing.origin_server,
                    now_ms,
                )
                heard.missing = self._wanted = True
            case "receipt":
                receipt = entry.receipt
                if receipt.receipt_type == "m.read" and self._is_ours(receipt.user_id):
                    heard.receipts.append(LocalReceipt(room_id, receipt))
            case "to_device":
                self._to_device(conn, message.user_id, entry.to_device, position, now_ms, heard)
            case "device_list_changed":
                self._device_list(conn, message.user_id, entry.device_list_changed, position, now_ms, heard)
            case None:
                if not entry.skippable:
                    raise UnknownEntryKind("an OUTPUT entry of a kind that this version does not know")
            case _:
                pass  # of no concern to other servers

    # -- rooms ---------------------------------------------------------------------------------------------

    def _room_event(
        self,
        conn: Connection,
        room_id: str,
        event: output_pb2.RoomEvent,
        position: int,
        relayed: dict[str, str],
        heard: Heard,
    ) -> None:
        if event.participation_began:
            if event.type == _CREATE and self._is_ours(event.sender):
                # Made here: nobody else is in it, and whoever comes in is told of from here on.
                _keep(self._alone, room_id)
            else:
                self._ask_for_servers(conn, room_id, position, heard)
        for server_name in event.servers_joined:
            if not self._is_local(server_name):
                self._alone.discard(room_id)
                outgoing.note_joined(conn, room_id, server_name, position)
        for server_name in event.servers_left:
            outgoing.note_left(conn, room_id, server_name, position)
        if event.servers_joined or event.servers_left or _changes_view(event):
            heard.changed_rooms.add(room_id)
        if self._wanted:
            fetching.forget_wanted(conn, event.event_id)
        ours = self._is_ours(event.sender)
        # Our own join through another server is told by that server.
        if event.placement not in _TOLD_PLACEMENTS or event.participation_began:
            return
        also = self._also(event)
        if room_id in self._alone and not also:
            return
        if ours or event.event_id in relayed:
            heard.events.append(
                OutgoingEvent(
                    position,
                    room_id,
                    event.event_id,
                    event.pdu_json,
                    exclude=relayed.get(event.event_id, ""),
                    also=also,
                )
            )

    def _also(self, event: output_pb2.RoomEvent) -> str:
        """The server of somebody whose invite is taken back, who need not be in the room."""
        if event.type != _MEMBER or event.state_key == event.sender or not event.replaces_state:
            return ""
        if not is_valid_user_id(event.state_key) or self._is_ours(event.state_key):
            return ""
        try:
            before = orjson.loads(event.prev_content_json or b"{}")
        except orjson.JSONDecodeError:
            return ""
        was_asked = isinstance(before, dict) and before.get("membership") in ("invite", "knock")
        # An invite itself goes there by an endpoint of its own.
        return server_name_of(event.state_key) if was_asked else ""

    def _ask_for_servers(self, conn: Connection, room_id: str, position: int, heard: Heard) -> None:
        self._alone.discard(room_id)
        outgoing.note_joined(conn, room_id, UNKNOWN, position)
        heard.unknown_rooms = True
        heard.changed_rooms.add(room_id)

    # -- users ---------------------------------------------------------------------------------------------

    def _to_device(
        self,
        conn: Connection,
        user_id: str,
        message: output_pb2.ToDevice,
        position: int,
        now_ms: int,
        heard: Heard,
    ) -> None:
        server_name = server_name_of(user_id)
        if not server_name or self._is_local(server_name) or not self._is_ours(message.sender):
            return
        edu = {
            "edu_type": "m.direct_to_device",
            "content": {
                "sender": message.sender,
                "type": message.type,
                # Names the delivery at the other end; ours is unique to the entry.
                "message_id": f"{position}",
                "messages": {user_id: {message.device_id: orjson.loads(message.content_json or b"{}")}},
            },
        }
        outgoing.store_edu(conn, server_name, f"output:{position}", orjson.dumps(edu), now_ms)
        heard.edu_servers.add(server_name)

    def _device_list(
        self,
        conn: Connection,
        user_id: str,
        changed: output_pb2.DeviceListChanged,
        position: int,
        now_ms: int,
        heard: Heard,
    ) -> None:
        if not self._is_ours(user_id):
            return
        keys = orjson.loads(changed.keys_json) if changed.keys_json else None
        if changed.device_id:
            content: dict[str, object] = {
                "user_id": user_id,
                "device_id": changed.device_id,
                "stream_id": changed.stream_id,
                "prev_id": [changed.stream_id - 1] if changed.stream_id > 1 else [],
                "deleted": changed.deleted,
            }
            if keys is not None:
                content["keys"] = keys
            edu: dict[str, object] = {"edu_type": "m.device_list_update", "content": content}
        else:
            edu = {"edu_type": "m.signing_key_update", "content": {"user_id": user_id, **(keys or {})}}
        outgoing.store_edu(conn, UNKNOWN, f"output:{position}", orjson.dumps(edu), now_ms)
        heard.edu_servers.add(UNKNOWN)

    def _is_ours(self, user_id: str) -> bool:
        return self._is_local(server_name_of(user_id))


def _changes_view(event: output_pb2.RoomEvent) -> bool:
    return any(change.type in _OF_VIEW for change in event.state_changes)


def _type_of(pdu_json: bytes) -> object:
    return orjson.loads(pdu_json).get("type") if pdu_json else None


def _keep(known: set[str], room_id: str) -> None:
    if len(known) >= MAX_ROOMS_ALONE:
        known.pop()
    known.add(room_id)


def _decode(message: LogMessage) -> output_pb2.OutputMessage:
    try:
        return output_pb2.OutputMessage.FromString(message.data)
    except Exception as error:
        raise UndecodableEntry(f"OUTPUT {message.sequence}: {error}") from error

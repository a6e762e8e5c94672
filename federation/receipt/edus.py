"""What an EDU of another server may say, and where it goes (server-server API, "EDUs" and their modules).

`EduReader.read` turns a transaction's EDUs into what is to be told: on OUTPUT, durable and in order
(receipts, to-device messages, device lists), or on LIVE (typing, presence). Every user an EDU speaks for must
belong to the server that sent it, and be where it claims to be; what does not pass is ignored in silence.
"""

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from arbor.log.v1 import live_pb2, output_pb2
from federation.clock import NowMs
from federation.rooms import Rooms
from federation.storage.device_lists import DeviceChange
from federation.tell import Telling
from matrixlib.canonical_json import MAX_SAFE_INTEGER, CanonicalJsonError, encode_canonical
from matrixlib.identifiers import is_valid_user_id, server_name_of
from servicekit.errors import MatrixError
from servicekit.logging import get_logger

log = get_logger("federation.edus")

TYPING_MS = 30_000
MAX_TEXT = 255
MAX_STATUS = 4096
# So many of the rooms that a present user is in are told.
MAX_PRESENCE_ROOMS = 500
MAX_CONTENT_BYTES = 200 * 1024
# What one message on the log may hold, well below the 1 MiB that the log takes.
MAX_MESSAGE_BYTES = 512 * 1024
MAX_PREV_IDS = 100
PRESENCES = ("online", "unavailable", "offline")

_DEVICE_KINDS = ("m.device_list_update", "m.signing_key_update", "org.matrix.signing_key_update")


@dataclass(frozen=True, slots=True)
class ToDeviceId:
    """Names a to-device message of another server, so that it is delivered once."""

    origin: str
    message_id: str
    tellings: tuple[Telling, ...]


@dataclass(frozen=True, slots=True)
class DeviceUpdate:
    """News of a user's devices in their order. `change` tells whether it is new; None: of cross-signing keys."""

    change: DeviceChange | None
    telling: Telling


@dataclass(slots=True)
class Heard:
    """What a transaction's EDUs come to."""

    tellings: list[Telling] = field(default_factory=list)
    to_device: list[ToDeviceId] = field(default_factory=list)
    device_updates: list[DeviceUpdate] = field(default_factory=list)
    live: list[tuple[str, str, live_pb2.LiveMessage]] = field(default_factory=list)
    """(kind of subject, id, message)."""


class EduReader:
    """See the module.

    Args:
        is_local: whether a server name is ours.
        presence_enabled: whether presence is taken at all.
    """

    def __init__(
        self, rooms: Rooms, is_local: Callable[[str], bool], now_ms: NowMs, *, presence_enabled: bool
    ) -> None:
        self._rooms = rooms
        self._is_local = is_local
        self._now_ms = now_ms
        self._presence_enabled = presence_enabled

    async def read(self, origin: str, edus: Sequence[Any]) -> Heard:
        """Read a transaction's EDUs; a bad one is ignored alone."""
        heard = Heard()
        edus = [edu for edu in edus if isinstance(edu, dict) and isinstance(edu.get("content"), dict)]
        known = await self._known_users(origin, edus)
        for edu in edus:
            try:
                await self._read_one(origin, edu.get("edu_type"), edu["content"], known, heard)
            except (CanonicalJsonError, ValueError, MatrixError) as error:
                log.info("edu_ignored", origin=origin, kind=str(edu.get("edu_type"))[:50], reason=str(error))
        return heard

    async def _known_users(self, origin: str, edus: Sequence[dict[str, Any]]) -> frozenset[str]:
        """The users with news of their devices who share a room with somebody here; others do not matter."""
        users = {
            edu["content"].get("user_id")
            for edu in edus
            if edu.get("edu_type") in _DEVICE_KINDS and _is_user_of(edu["content"].get("user_id"), origin)
        }
        if not users:
            return frozenset()
        found = await self._rooms.memberships("", sorted(users), ["join"])
        return frozenset(item.membership.user_id for item in found)

    async def _read_one(
        self, origin: str, kind: Any, content: dict[str, Any], known: Container[str], heard: Heard
    ) -> None:
        match kind:
            case "m.typing":
                await self._typing(origin, content, heard)
            case "m.receipt":
                await self._receipts(origin, content, heard)
            case "m.presence":
                await self._presence(origin, content, heard)
            case "m.direct_to_device":
                self._direct_to_device(origin, content, heard)
            case "m.device_list_update":
                self._device_list_update(content, known, heard)
            case "m.signing_key_update" | "org.matrix.signing_key_update":
                self._signing_key_update(content, known, heard)
            case _:
                pass  # kinds that we do not know are not for us

    # -- rooms ---------------------------------------------------------------------------------------------

    async def _typing(self, origin: str, content: dict[str, Any], heard: Heard) -> None:
        room_id, user_id = content.get("room_id"), content.get("user_id")
        if not isinstance(room_id, str) or not _is_user_of(user_id, origin):
            return
        if user_id not in await self._joined(room_id, origin, [user_id]):
            return
        typing = content.get("typing") is True
        message = live_pb2.Typing(
            room_id=room_id, user_id=user_id, typing=typing, until_ms=self._now_ms() + TYPING_MS
        )
        heard.live.append(("live.typing", room_id, live_pb2.LiveMessage(typing=message)))

    async def _receipts(self, origin: str, content: dict[str, Any], heard: Heard) -> None:
        for room_id, by_type in content.items():
            reads = by_type.get("m.read") if isinstance(by_type, dict) else None
            if not isinstance(reads, dict):
                continue
            users = [user_id for user_id in reads if _is_user_of(user_id, origin)]
            joined = await self._joined(room_id, origin, users) if users else frozenset()
            receipts = [
                receipt
                for user_id in users
                if user_id in joined
                for receipt in self._receipt(user_id, reads[user_id])
            ]
            for entries in _pieces([output_pb2.OutputEntry(receipt=receipt) for receipt in receipts]):
                message = output_pb2.OutputMessage(
                    room_id=room_id, created_ms=self._now_ms(), entries=entries
                )
                heard.tellings.append(Telling("room.receipt", room_id, message))

    def _receipt(self, user_id: str, value: Any) -> Iterable[output_pb2.Receipt]:
        event_ids = value.get("event_ids") if isinstance(value, dict) else None
        if not isinstance(event_ids, list) or not event_ids or not _is_text(event_ids[0]):
            return
        given = value.get("data")
        data: dict[str, Any] = given if isinstance(given, dict) else {}
        at_ms, thread_id = data.get("ts"), data.get("thread_id")
        yield output_pb2.Receipt(
            user_id=user_id,
            receipt_type="m.read",
            event_id=event_ids[0],
            thread_id=thread_id if _is_text(thread_id) else "",
            timestamp_ms=at_ms if type(at_ms) is int and 0 <= at_ms <= MAX_SAFE_INTEGER else self._now_ms(),
        )

    async def _joined(self, room_id: str, origin: str, users: Sequence[str]) -> frozenset[str]:
        """Which of a server's users are in a room that we are in and whose ACL lets the server be."""
        view = await self._rooms.view(room_id)
        if view is None or not view.participating or not view.allows(origin):
            return frozenset()
        found = await self._rooms.memberships(room_id, users, ["join"])
        return frozenset(item.membership.user_id for item in found)

    # -- users ---------------------------------------------------------------------------------------------

    async def _presence(self, origin: str, content: dict[str, Any], heard: Heard) -> None:
        push = content.get("push")
        if not self._presence_enabled or not isinstance(push, list):
            return
        told = {
            entry["user_id"]: entry
            for entry in push[:1000]
            if isinstance(entry, dict) and _is_user_of(entry.get("user_id"), origin)
        }
        if not told:
            return
        # Only of users with whom somebody here shares a room.
        shared = await self._rooms.memberships("", list(told), ["join"])
        rooms: dict[str, list[str]] = {}
        for item in shared:
            rooms.setdefault(item.membership.user_id, []).append(item.room_id)
        for user_id, room_ids in rooms.items():
            entry = told.get(user_id)
            if entry is None or entry.get("presence") not in PRESENCES:
                continue
            ago, status = entry.get("last_active_ago"), entry.get("status_msg")
            message = live_pb2.Presence(
                user_id=user_id,
                presence=entry["presence"],
                status_msg=status[:MAX_STATUS] if isinstance(status, str) else None,
                last_active_ms=self._now_ms()
                - (ago if type(ago) is int and 0 <= ago <= MAX_SAFE_INTEGER else 0),
                currently_active=entry.get("currently_active") is True,
                room_ids=room_ids[:MAX_PRESENCE_ROOMS],
            )
            heard.live.append(("live.presence", user_id, live_pb2.LiveMessage(presence=message)))

    def _direct_to_device(self, origin: str, content: dict[str, Any], heard: Heard) -> None:
        sender, kind = content.get("sender"), content.get("type")
        message_id, messages = content.get("message_id"), content.get("messages")
        if not _is_user_of(sender, origin) or not _is_text(kind) or not isinstance(messages, dict):
            return
        if not isinstance(message_id, str) or not 0 < len(message_id) <= MAX_TEXT:
            return
        tellings = []
        for user_id, by_device in messages.items():
            if not is_valid_user_id(user_id) or not self._is_local(server_name_of(user_id)):
                continue
            entries = [
                output_pb2.OutputEntry(
                    to_device=output_pb2.ToDevice(
                        device_id=device_id,
                        sender=sender,
                        type=kind,
                        content_json=_small_json(body),
                        message_id=f"{origin}/{message_id}/{device_id}",
                    )
                )
                for device_id, body in (by_device.items() if isinstance(by_device, dict) else ())
                if _is_text(device_id) and isinstance(body, dict)
            ]
            for piece in _pieces(entries):
                message = output_pb2.OutputMessage(user_id=user_id, created_ms=self._now_ms(), entries=piece)
                tellings.append(Telling("user.to_device", user_id, message))
        if tellings:
            heard.to_device.append(ToDeviceId(origin, message_id, tuple(tellings)))

    def _device_list_update(self, content: dict[str, Any], known: Container[str], heard: Heard) -> None:
        user_id, device_id = str(content.get("user_id")), content.get("device_id")
        stream_id, prev_ids = content.get("stream_id"), content.get("prev_id", [])
        if user_id not in known or not _is_text(device_id) or not _is_stream_id(stream_id):
            return
        if not isinstance(prev_ids, list) or not all(_is_stream_id(item) for item in prev_ids):
            raise ValueError("prev_id is no array of stream ids")
        changed = output_pb2.DeviceListChanged(
            stream_id=stream_id,
            device_id=device_id,
            deleted=content.get("deleted") is True,
            keys_json=_small_json(content),
        )
        change = DeviceChange(user_id, stream_id, tuple(prev_ids[:MAX_PREV_IDS]))
        heard.device_updates.append(DeviceUpdate(change, self._device_list_told(user_id, changed)))

    def _signing_key_update(self, content: dict[str, Any], known: Container[str], heard: Heard) -> None:
        user_id = str(content.get("user_id"))
        if user_id in known:
            changed = output_pb2.DeviceListChanged(keys_json=_small_json(content))
            heard.device_updates.append(DeviceUpdate(None, self._device_list_told(user_id, changed)))

    def _device_list_told(self, user_id: str, changed: output_pb2.DeviceListChanged) -> Telling:
        message = output_pb2.OutputMessage(
            user_id=user_id,
            created_ms=self._now_ms(),
            entries=[output_pb2.OutputEntry(device_list_changed=changed)],
        )
        return Telling("user.device_list", user_id, message)


def _pieces(entries: Iterable[output_pb2.OutputEntry]) -> Iterable[list[output_pb2.OutputEntry]]:
    """Entries in pieces that each fit one message."""
    piece: list[output_pb2.OutputEntry] = []
    size = 0
    for entry in entries:
        length = entry.ByteSize() + 16
        if piece and size + length > MAX_MESSAGE_BYTES:
            yield piece
            piece, size = [], 0
        piece.append(entry)
        size += length
    if piece:
        yield piece


def _is_user_of(value: Any, origin: str) -> TypeGuard[str]:
    return is_valid_user_id(value) and server_name_of(value) == origin


def _is_stream_id(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= MAX_SAFE_INTEGER


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT


def _small_json(value: Any) -> bytes:
    data = encode_canonical(value)
    if len(data) > MAX_CONTENT_BYTES:
        raise ValueError("larger than an EDU's content may be")
    return data

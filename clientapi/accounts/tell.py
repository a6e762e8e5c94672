"""What readers hear about accounts: OUTPUT messages, stored in the outbox with the change they tell of."""

from collections.abc import Sequence
from typing import Literal, Protocol

from sqlalchemy import Connection

from arbor.log.v1 import output_pb2
from clientapi.clock import Clock

UserKind = Literal["user.device", "user.account_data", "user.device_list"]


class Outbox(Protocol):
    """Where messages wait for the relay."""

    def store(self, conn: Connection, kind: str, id_: str, message: output_pb2.OutputMessage) -> None:
        """Store a message in the caller's unit of work."""

    def wake(self) -> None:
        """Have the relay look soon. From any thread."""


class Teller:
    """Tells readers of changes."""

    def __init__(self, outbox: Outbox, clock: Clock) -> None:
        self._outbox = outbox
        self._clock = clock

    def tell_user(
        self, conn: Connection, kind: UserKind, user_id: str, entries: Sequence[output_pb2.OutputEntry]
    ) -> None:
        """Tell entries about a user once the unit of work commits."""
        message = output_pb2.OutputMessage(user_id=user_id, created_ms=self._clock(), entries=entries)
        self._outbox.store(conn, kind, user_id, message)

    def tell_receipts(self, conn: Connection, room_id: str, receipts: Sequence[output_pb2.Receipt]) -> None:
        """Tell receipts of a room."""
        message = output_pb2.OutputMessage(
            room_id=room_id,
            created_ms=self._clock(),
            entries=[output_pb2.OutputEntry(receipt=receipt) for receipt in receipts],
        )
        self._outbox.store(conn, "room.receipt", room_id, message)


def device_changed(
    device_id: str, display_name: str | None, *, deleted: bool = False
) -> output_pb2.OutputEntry:
    """A device was made, renamed or deleted, or its tokens changed."""
    changed = output_pb2.DeviceChanged(device_id=device_id, deleted=deleted, display_name=display_name or "")
    return output_pb2.OutputEntry(device_changed=changed)


def account_changed(
    *, access: bool = False, profile: bool = False, erased_ms: int = 0
) -> output_pb2.OutputEntry:
    """Access to the account, or its profile, changed, or its content was erased."""
    changed = output_pb2.AccountChanged(access_changed=access, profile_changed=profile, erased_ms=erased_ms)
    return output_pb2.OutputEntry(account_changed=changed)


def account_data_changed(room_id: str, type_: str, content_json: bytes) -> output_pb2.OutputEntry:
    """Account data changed; an empty room id means global."""
    changed = output_pb2.AccountDataChanged(room_id=room_id, type=type_, content_json=content_json)
    return output_pb2.OutputEntry(account_data_changed=changed)


def room_forgotten(room_id: str) -> output_pb2.OutputEntry:
    """The user forgot a room."""
    return output_pb2.OutputEntry(room_forgotten=output_pb2.RoomForgotten(room_id=room_id))

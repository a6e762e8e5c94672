"""Entries about users: account data, forgotten rooms, devices, to-device messages, device lists."""

import orjson

from arbor.log.v1 import output_pb2
from servicekit.log.subjects import POSITION_FACTOR
from syncapi import notifications
from syncapi.applied import AccountDataSet
from syncapi.applying.batch import Batch
from syncapi.storage import accounts, to_device


def account_data(
    batch: Batch, message: output_pb2.OutputMessage, entry: output_pb2.AccountDataChanged, position: int
) -> None:
    changed = AccountDataSet(message.user_id, entry.room_id, entry.type, entry.content_json or None, position)
    accounts.store_account_data(batch.connection, changed)
    batch.applied.account_data.append(changed)
    if entry.type == "m.ignored_user_list" and not entry.room_id:
        batch.applier.ignored_by = None
    if entry.type == "m.push_rules" and not entry.room_id:
        if batch.applier.push_rules is not None:
            if entry.content_json:
                batch.applier.push_rules[message.user_id] = notifications.parse_rules(entry.content_json)
            else:
                batch.applier.push_rules.pop(message.user_id, None)
        for room in batch.applier.rooms.values():
            room.edited = None


def room_forgotten(
    batch: Batch, message: output_pb2.OutputMessage, entry: output_pb2.RoomForgotten, position: int
) -> None:
    room = batch.room(entry.room_id)
    row = room.members.get(message.user_id)
    if row is not None and row.membership in ("leave", "ban"):
        batch.set_user_room(room, row._replace(forgotten=True))
        batch.applied.memberships.append((message.user_id, entry.room_id, position))


def device_changed(
    batch: Batch, message: output_pb2.OutputMessage, entry: output_pb2.DeviceChanged, position: int
) -> None:
    accounts.store_device(batch.connection, message.user_id, entry.device_id, deleted=entry.deleted)
    if entry.deleted:
        to_device.delete_inbox(batch.connection, message.user_id, entry.device_id)
    batch.applied.accounts.add(message.user_id)


def account_changed(
    batch: Batch, message: output_pb2.OutputMessage, entry: output_pb2.AccountChanged, position: int
) -> None:
    if entry.access_changed:
        batch.applied.accounts.add(message.user_id)
    if entry.erased_ms:
        accounts.store_erased(batch.connection, message.user_id, entry.erased_ms)


def to_device_message(
    batch: Batch, message: output_pb2.OutputMessage, entry: output_pb2.ToDevice, position: int
) -> None:
    if position // POSITION_FACTOR <= batch.primary_through:
        return  # a replay after a rebuild: the inbox has had it, and the client may have taken it
    devices = (
        accounts.load_devices(batch.connection, message.user_id)
        if entry.device_id == "*"
        else [entry.device_id]
    )
    data = b'{"content":%b,"sender":%b,"type":%b}' % (
        entry.content_json,
        orjson.dumps(entry.sender),
        orjson.dumps(entry.type),
    )
    for device_id in devices:
        if to_device.store_message(
            batch.connection, message.user_id, device_id, position, data, entry.message_id
        ):
            batch.applied.to_device.append((message.user_id, device_id, position))


def device_list(
    batch: Batch, message: output_pb2.OutputMessage, entry: output_pb2.DeviceListChanged, position: int
) -> None:
    accounts.store_device_list(batch.connection, message.user_id, position)
    batch.applied.device_lists.append((position, message.user_id))

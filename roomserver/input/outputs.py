"""Entries and messages for OUTPUT.

Each message is made twice: whole, for the log; and as a skeleton, which lacks what the stored events can give
back, for `Export`. `fill` makes a message of a skeleton again.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from arbor.log.v1.output_pb2 import OutputEntry, OutputMessage, OutputStamp, RoomEvent
from matrixlib.events import Event
from roomserver.rooms import RoomWork, Told
from roomserver.storage.events import EventRow
from servicekit.log.subjects import POSITION_FACTOR

WRITER = "roomserver"
MAX_MESSAGE_BYTES = 512 * 1024
MAX_ENTRIES = POSITION_FACTOR
MAX_CHANGE_BYTES = 512 * 1024


def tell_event(work: RoomWork, entry: OutputEntry, event: Event, row: EventRow) -> None:
    """Add the entry of a room event. What the event gives back is filled in here, and the forward extremities
    where it is the only one.
    """
    skeleton = OutputEntry()
    skeleton.CopyFrom(entry)
    room_event = entry.room_event
    pdu_json = event.pdu_json
    size_bytes = len(pdu_json) + 600
    if event.state_key is not None or room_event.state_changes:
        size_bytes += _slim(skeleton.room_event)
    room_event.room_version = work.version.identifier
    fill_event(room_event, event.pdu, pdu_json)
    work.outputs.append(Told(entry, skeleton, row, size_bytes))
    work.touched = True


def _slim(room_event: RoomEvent) -> int:
    """Take out what the stored events can give back; returns how many bytes there were beside the event."""
    size = sum(len(change.pdu_json) + 200 for change in room_event.state_changes)
    size += sum(map(len, room_event.stripped_state_json)) + len(room_event.prev_content_json)
    for change in room_event.state_changes:
        change.pdu_json = b""
    room_event.prev_content_json = b"1" if room_event.prev_content_json else b""
    return size


def fill_event(room_event: RoomEvent, pdu: Mapping[str, Any], pdu_json: bytes) -> None:
    """Fill in what an event says itself, also in its redacted form."""
    room_event.pdu_json = pdu_json
    room_event.type = pdu["type"]
    if "state_key" in pdu:
        room_event.state_key = pdu["state_key"]
    room_event.sender = pdu["sender"]
    room_event.depth = min(pdu["depth"], 2**53 - 1)
    room_event.origin_server_ts = pdu["origin_server_ts"]
    room_event.prev_event_ids.extend(
        [item if isinstance(item, str) else item[0] for item in pdu["prev_events"]]
    )
    if not room_event.forward_extremities:
        room_event.forward_extremities.append(room_event.event_id)


def tell(work: RoomWork, entry: OutputEntry, size_bytes: int = 500, row: EventRow | None = None) -> None:
    """Add another entry, kept as it is."""
    work.outputs.append(Told(entry, entry, row, size_bytes))
    work.touched = True


def cut(told: Iterable[Told]) -> list[list[Told]]:
    """Cut a room's entries into messages of at most 512 KiB (one larger entry alone) and 4096 entries."""
    messages: list[list[Told]] = []
    size = 0
    for item in told:
        if not messages or size + item.size_bytes > MAX_MESSAGE_BYTES or len(messages[-1]) == MAX_ENTRIES:
            messages.append([])
            size = 0
        messages[-1].append(item)
        size += item.size_bytes
    return messages


def make_message(
    room_id: str,
    told: list[Told],
    *,
    partition: int,
    epoch: int,
    output_no: int,
    created_ms: int,
    stray: bool = False,
) -> tuple[bytes, bytes]:
    """Return a message and its skeleton, encoded; the events' rows learn their place."""
    stamp = OutputStamp(writer=WRITER, partition=partition, epoch=epoch, output_no=output_no)
    for index, item in enumerate(told):
        if item.row is not None:
            item.row.output_no = output_no
            item.row.output_index = index
    message = OutputMessage(
        stamp=stamp, room_id=room_id, created_ms=created_ms, entries=[item.entry for item in told]
    )
    skeleton = OutputMessage(
        stamp=OutputStamp(epoch=epoch), created_ms=created_ms, entries=[item.skeleton for item in told]
    )
    if stray:
        skeleton.room_id = room_id  # no row of the room could say it
    return message.SerializeToString(), skeleton.SerializeToString()


def wanted_events(skeleton: OutputMessage) -> set[str]:
    """The ids of the events that `fill` needs."""
    wanted: set[str] = set()
    for entry in skeleton.entries:
        if entry.HasField("room_event"):
            room_event = entry.room_event
            wanted.add(room_event.event_id)
            wanted.update(c.event_id for c in room_event.state_changes if c.event_id)
            if room_event.prev_content_json:
                wanted.add(room_event.replaces_state)
        elif entry.HasField("event_redacted"):
            wanted.update((entry.event_redacted.redacted_event_id, entry.event_redacted.redaction.event_id))
    return wanted


def fill(
    skeleton: OutputMessage,
    bodies: Mapping[str, bytes],
    room_id: str,
    version: str,
    partition: int,
    output_no: int,
) -> OutputMessage:
    """Make a message of its skeleton and the bodies of its events (id -> canonical JSON, redacted where
    they are).

    An entry whose event was purged becomes an empty one that readers skip: the others keep their places.
    """
    skeleton.stamp.writer = WRITER
    skeleton.stamp.partition = partition
    skeleton.stamp.output_no = output_no
    skeleton.room_id = room_id
    for entry in skeleton.entries:
        if entry.HasField("room_event"):
            room_event = entry.room_event
            body = bodies.get(room_event.event_id)
            if body is None:
                entry.Clear()
                entry.skippable = True
                continue
            room_event.room_version = version
            fill_event(room_event, orjson.loads(body), body)
            if room_event.prev_content_json:
                replaced = bodies.get(room_event.replaces_state)
                room_event.prev_content_json = (
                    orjson.dumps(orjson.loads(replaced)["content"]) if replaced else b""
                )
            for change in room_event.state_changes:
                if change.event_id and change.event_id != room_event.event_id:
                    change.pdu_json = bodies.get(change.event_id, b"")
        elif entry.HasField("event_redacted"):
            redacted = entry.event_redacted
            if redacted.redacted_event_id not in bodies or redacted.redaction.event_id not in bodies:
                entry.Clear()
                entry.skippable = True
                continue
            redacted.redacted_pdu_json = bodies[redacted.redacted_event_id]
            redacted.redaction.pdu_json = bodies[redacted.redaction.event_id]
    return skeleton

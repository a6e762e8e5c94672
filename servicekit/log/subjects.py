"""Where an entry goes: the partition and token of an id, and the subjects made of them.

The rules are a contract with writers and readers in any language, with test vectors in
`proto/vectors/subjects.json`. A token is injective and never contains a raw id, so no id can smuggle in a
dot, a wildcard or a space.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

INPUT = "INPUT"
OUTPUT = "OUTPUT"
LIVE = "LIVE"

STREAM_SUBJECTS: dict[str, tuple[str, ...]] = {
    INPUT: ("room.input.>",),
    OUTPUT: ("room.output.>", "room.receipt.>", "user.>"),
    LIVE: ("live.>",),
}
"""The subjects that each stream keeps. No subject belongs to two streams."""

ROOM_KINDS = ("room.input", "room.output", "room.receipt", "live.typing")
USER_KINDS = ("user.to_device", "user.device_list", "user.account_data", "user.device", "live.presence")

POSITION_FACTOR = 4096
"""Entries a message holds at most: event position = sequence * POSITION_FACTOR + index."""


class SubjectParts(NamedTuple):
    """A subject taken apart: `kind` is its first two tokens, `id` the room or user id."""

    kind: str
    partition: int
    id: str


def partition_of(id_: str, partitions: int) -> int:
    """Return the partition of a room or user id: CRC-32 (IEEE) of its UTF-8 modulo the count."""
    return crc32(id_.encode()) % partitions


def encode_token(id_: str) -> str:
    """Return the subject token of an id: unpadded URL-safe Base64 of its UTF-8 bytes.

    Raises:
        ValueError: the id is empty (a subject token cannot be).
    """
    if not id_:
        raise ValueError("an empty id has no subject token")
    return urlsafe_b64encode(id_.encode()).rstrip(b"=").decode()


def decode_token(token: str) -> str:
    """Return the id of a token.

    Raises:
        ValueError: this is not what `encode_token` makes of any id.
    """
    try:
        id_ = urlsafe_b64decode(token.encode() + b"=" * (-len(token) % 4)).decode()
    except (Base64Error, UnicodeError) as error:
        raise ValueError(f"not a subject token: {token!r}") from error
    if not id_ or encode_token(id_) != token:
        raise ValueError(f"not a subject token: {token!r}")
    return id_


@lru_cache(maxsize=16384)
def subject_of(kind: str, id_: str, partitions: int) -> str:
    """Return `<kind>.<partition>.<token>`, e.g. kind `room.input` and a room id."""
    return f"{kind}.{partition_of(id_, partitions)}.{encode_token(id_)}"


def room_input_subject(room_id: str, partitions: int) -> str:
    """Where requests about a room are written."""
    return subject_of("room.input", room_id, partitions)


def room_output_subject(room_id: str, partitions: int) -> str:
    """Where the RoomServer tells what happened in a room."""
    return subject_of("room.output", room_id, partitions)


def room_receipt_subject(room_id: str, partitions: int) -> str:
    """Where receipts of a room are told."""
    return subject_of("room.receipt", room_id, partitions)


def to_device_subject(user_id: str, partitions: int) -> str:
    """Where to-device messages for a user are told."""
    return subject_of("user.to_device", user_id, partitions)


def device_list_subject(user_id: str, partitions: int) -> str:
    """Where changes to a user's device list and keys are told."""
    return subject_of("user.device_list", user_id, partitions)


def account_data_subject(user_id: str, partitions: int) -> str:
    """Where a user's account data is told."""
    return subject_of("user.account_data", user_id, partitions)


def device_subject(user_id: str, partitions: int) -> str:
    """Where it is told that a user's device was made, renamed or deleted."""
    return subject_of("user.device", user_id, partitions)


def typing_subject(room_id: str, partitions: int) -> str:
    """Where typing in a room is told."""
    return subject_of("live.typing", room_id, partitions)


def presence_subject(user_id: str, partitions: int) -> str:
    """Where a user's presence is told."""
    return subject_of("live.presence", user_id, partitions)


def partition_filter(kind: str, partition: int) -> str:
    """Return the filter over one partition of a kind, e.g. `room.output.7.>`."""
    return f"{kind}.{partition}.>"


def parse_subject(subject: str) -> SubjectParts:
    """Take a subject apart.

    Raises:
        ValueError: it is not of the form `<word>.<word>.<partition>.<token>`.
    """
    try:
        first, second, partition, token = subject.split(".")
        return SubjectParts(f"{first}.{second}", int(partition), decode_token(token))
    except ValueError as error:
        raise ValueError(f"not a subject of ours: {subject!r}") from error


def event_position(sequence: int, index: int) -> int:
    """Return the position of entry `index` of the OUTPUT message at `sequence` as one integer."""
    return sequence * POSITION_FACTOR + index


def sequence_of_position(position: int) -> int:
    """Return the stream sequence that an event position lies in."""
    return position // POSITION_FACTOR
